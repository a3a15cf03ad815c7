"""What was measured beside the goals, and beside what the machine could do at best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.table import Found, Row
from benchmarks.ways import LlamaCpp, Ours
from cag_daemon.engine.kv_cache import bytes_per_token

QUESTION = 16  # tokens


@dataclass(frozen=True)
class Bench:
    """What is measured, and what the machine can do.

    Attributes:
        plain, ours: the model, and the product's way with it.
        fewer: the product's way with its weights in fewer bits.
        quotes: answers that stand in the document.
        bandwidth: bytes a second that come from memory.
        flops: operations a second of matrix products.
    """

    plain: Any
    ours: Ours
    llama: LlamaCpp | None
    quotes: list[list[int]]
    document: Callable[[int], list[int]]
    bandwidth: float
    flops: float
    fewer: dict[str, Ours] = field(default_factory=dict)


def rows(found: Found, bench: Bench, length: int) -> list[Row]:
    """The table's lines for a length."""
    on_cpu = bench.ours.model.device.type == "cpu"
    config = bench.ours.model.config
    cached = length * bytes_per_token(config, torch.bfloat16)
    first, token = "first token: cag-daemon", "a token: cag-daemon"

    def of_limit(way: str, model: Any) -> float:
        return 100 * (read_by_a_token(model) + cached) / bench.bandwidth / found.seconds[way][length]

    def against(what: str, slow: str, quick: str, goal: float | None = None) -> Row:
        return Row(what, length, found.ratio(slow, quick, length), goal)

    # Weights and cache from memory once, or the products of the question's tokens, whichever takes longer.
    products = 2 * QUESTION * weights_of_layers(bench.plain) / bench.flops
    limit = max((read_by_a_token(bench.plain) + cached) / bench.bandwidth, products)
    attended = 2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * length**2
    reading = 2 * length * weights_of_layers(bench.plain) + attended
    found_ = [
        against(
            "first token, warm, against the document in the prompt",
            "first token: document in the prompt",
            first,
            150.0 if length >= 4000 and on_cpu else None,
        ),
        against("first token, warm, against the tutorial's loop", "first token: the tutorial's loop", first),
        against("first token, warm, against llama.cpp with its cache", "first token: llama.cpp", first, 1.5),
        against("first token, warm, against BM25 with three pieces in the prompt", "first token: BM25", first),
        Row(
            "first token, warm: times of the limit",
            length,
            found.seconds[first][length] / limit,
            None if on_cpu else 2.0,
            most=True,
        ),
        against("decoding, nothing drafted, against the tutorial's loop", "a token: the tutorial's loop", token),
        against(
            "decoding, nothing drafted, against llama.cpp",
            "a token: llama.cpp",
            token,
            0.85 if length < 4000 else 1.1,
        ),
        against(
            "decoding a quoted answer, against the tutorial's loop",
            "a token: the tutorial's loop",
            f"{token}, quoting the document",
        ),
        against(
            "decoding a quoted answer, against llama.cpp",
            "a token: llama.cpp",
            f"{token}, quoting the document",
            2.5,
        ),
        against("reading, against llama.cpp", "read: llama.cpp", "read: cag-daemon", 1.3),
        Row(
            "reading: of the rate of matrix products",
            length,
            100 * reading / bench.flops / found.seconds["read: cag-daemon"][length],
            unit="%",
        ),
        Row(
            "a pass: of the limit of memory",
            length,
            of_limit(token, bench.plain),
            78.0 if not on_cpu else 70.0 if length < 16000 else 60.0,
            "%",
        ),
    ]
    for kind, way in bench.fewer.items():
        name = f"{token}, {kind}"
        found_ += [
            against(f"decoding in {kind}, against bfloat16", token, name),
            Row(f"a pass in {kind}: of the limit of memory", length, of_limit(name, way.model), unit="%"),
        ]
    return found_


def read_by_a_token(model: Any) -> int:
    """Bytes of weights that decoding a token reads: all but the embeddings, of which it reads a row."""
    tensors = {id(each): each.nbytes for each in [*model.parameters(), *model.buffers()]}
    tensors.pop(id(model.get_input_embeddings().weight), None)
    return sum(tensors.values())


def weights_of_layers(model: Any) -> int:
    """How many weights each token that is read is multiplied with."""
    return sum(each.numel() for each in model.get_decoder().layers.parameters())
