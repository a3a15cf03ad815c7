"""What int8 and int4 weights cost and bring: greedy agreement, divergence, answers, bytes and time, on the CPU.

    python -m benchmarks.quantization [--shape small|0.5b|7b] [--layers N] [--dtype float32] [--threads N] [--json]

The loss is measured on the embedded model, over text it was not made from, and on a random Mistral of a real layer
shape (where weights have no meaning, and an argmax is a narrow thing). ``read``: in passes of many rows, where the
weights are widened; ``decoded``: in passes of few. Time is measured on the random one, on the product's own path, all
kinds in turns; a ratio above 1 is faster than without quantisation.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from cag_daemon.engine.cag import clean_up, generate, prefill
from cag_daemon.engine.kv_cache import InPlaceCache
from cag_daemon.engine.linear import pack_linears
from cag_daemon.engine.narrow import narrow
from cag_daemon.engine.passes import answering, cache_argument, forward
from cag_daemon.engine.prompt import PromptTemplate
from cag_daemon.engine.quantize import KINDS, QuantizedLinear, quantize_module
from tests.models import EMBEDDED, embedded_tokenizer, random_mistral

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
SHAPES: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 1024, "intermediate_size": 3584, "num_attention_heads": 8, "num_key_value_heads": 2},
    "0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2},
    "7b": {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8},
}
READ, DECODED = 128, 16  # rows of a pass
BEHIND = 512  # tokens that a timed pass comes behind
TOKENS = 300  # of a text, at most
QUESTIONS = (
    "When did the workshop open?",
    "How many members use the workshop?",
    "When is the workshop open?",
    "When do new members receive their key?",
    "When does the safety course take place?",
    "How long does the safety course last?",
    "Who looks after the locks?",
    "How thick may plywood be for the laser cutter?",
    "Why must PVC never be cut?",
    "Who donated the lathe?",
    "What does anyone who wants to use the table saw need?",
    "Which port does the large 3D printer run on?",
    "How much does membership cost?",
    "Where is the tin box?",
    "When is the annual budget decided?",
    "What does a broken machine get?",
    "Who coordinates the repairs?",
    "Where does the first aid kit hang?",
    "Where is the water main?",
    "Why was the roof garden project postponed?",
    "Where are ideas for new machines collected?",
)


Sample = tuple[list[int], int]  # ids, and the position from which on they count
Answers = Callable[[Any], list[list[int]]]


@dataclass
class Row:
    """One model in one kind."""

    model: str
    kind: str
    megabytes: float = 0
    bytes_ratio: float = 1
    agreement_read: float = 1
    agreement_decoded: float = 1
    divergence_read: float = 0
    divergence_decoded: float = 0
    same_answers: str = ""
    read_faster: float | None = None
    decode_faster: float | None = None


def texts() -> Iterator[str]:
    """Text that the embedded model was not made from: ours, and the standard library's."""
    yield (ROOT / "examples" / "document.txt").read_text("utf-8")
    blocks = (ROOT / "README.md").read_text("utf-8").split("\n\n")
    yield "\n\n".join(block for block in blocks if block[:1].isalpha())
    for module in (argparse, textwrap, json):
        tree = ast.parse(Path(module.__file__).read_text("utf-8"))
        found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Module))
        yield "\n\n".join(each for each in found if each)


def linear_bytes(model: Any) -> int:
    """What the linear layers of a model take; an ``lm_head`` that is the embedding's takes nothing."""
    shared = model.get_input_embeddings().weight.data_ptr()
    layers = [each for each in model.modules() if isinstance(each, torch.nn.Linear | QuantizedLinear)]
    tensors = [tensor for layer in layers for tensor in (*layer.parameters(), *layer.buffers())]
    return sum(tensor.nbytes for tensor in tensors if tensor.data_ptr() != shared)


def logits(model: Any, ids: list[int], width: int) -> torch.Tensor:
    """The logits [n, vocabulary] behind each token, in passes of ``width`` rows."""
    cache = InPlaceCache(model.config, len(ids))
    with torch.no_grad():
        passes = [
            model(torch.tensor([ids[start : start + width]]), use_cache=True, **{cache_argument(model): cache}).logits[
                0
            ]
            for start in range(0, len(ids), width)
        ]
    return torch.cat(passes).float()


def compare(model: Any, full: list[torch.Tensor], samples: list[Sample], width: int) -> tuple[float, float]:
    """How often the greedy token is the same, and the mean divergence (KL, in nats) from the full model."""
    same, divergence, count = 0.0, 0.0, 0
    for (ids, start), theirs in zip(samples, full, strict=True):
        ours = logits(model, ids, width)[start:]
        same += float((ours.argmax(-1) == theirs.argmax(-1)).sum())
        p, q = theirs.log_softmax(-1), ours.log_softmax(-1)
        divergence += float((p.exp() * (p - q)).sum())
        count += len(theirs)
    return same / count, divergence / count


def loss(full: Any, samples: dict[str, list[Sample]], answers: Answers | None = None) -> list[Row]:
    """A row for each name of samples and each kind."""
    expected = {name: [logits(full, ids, READ)[start:] for ids, start in each] for name, each in samples.items()}
    right, size = answers(full) if answers else [], linear_bytes(full) / 1e6
    rows = [Row(name, "none", size) for name in samples]
    for kind in KINDS:
        model = copy.deepcopy(full)
        quantize_module(model, kind, full.dtype, CPU)
        same = sum(one == other for one, other in zip(answers(model), right, strict=True)) if answers else 0
        for name, each in samples.items():
            row = Row(name, kind, linear_bytes(model) / 1e6, same_answers=f"{same} of {len(right)}" if answers else "")
            row.bytes_ratio = row.megabytes / size
            row.agreement_read, row.divergence_read = compare(model, expected[name], each, READ)
            row.agreement_decoded, row.divergence_decoded = compare(model, expected[name], each, DECODED)
            rows.append(row)
    return sorted(rows, key=lambda row: list(samples).index(row.model))


def embedded_loss() -> list[Row]:
    """The embedded model in float32: where it answers, and over all of a text, which it was not taught to go on."""
    template = PromptTemplate(embedded_tokenizer(), "")
    full = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32, local_files_only=True)
    full = full.eval().requires_grad_(False)
    document = template.document_ids(next(texts()))
    asked = [template.question_ids(question) for question in QUESTIONS]

    def answers(model: Any) -> list[list[int]]:
        cache, given = InPlaceCache(model.config, 1024), []
        prefill(model, torch.tensor([document]), cache)
        for ids in asked:
            given.append(generate(model, torch.tensor([ids]), cache, 40)[0].tolist())
            clean_up(cache, len(document))
        return given

    told = [
        (document + ids + answer, len(document + ids) - 1)
        for ids, answer in zip(asked[:6], answers(full)[:6], strict=True)
    ]
    read = [(template.document_ids(text)[:TOKENS], 0) for text in texts()]
    return loss(full, {"embedded, answers": told, "embedded, texts": read}, answers)


def random_loss_and_time(shape: str, dtype: torch.dtype, layers: int) -> list[Row]:
    """A random Mistral of that shape: loss, and the time of a pass of many rows and of one."""
    sizes = SHAPES[shape] | {"head_dim": 128, "vocab_size": 4096, "num_hidden_layers": layers}
    full = random_mistral(max_position_embeddings=4096, **sizes).to(dtype)
    ids = torch.randint(4, 4096, (256,), generator=torch.Generator().manual_seed(1)).tolist()
    name = f"random {shape}, {str(dtype).removeprefix('torch.')}"
    rows = loss(full, {name: [(ids, 0)]})
    models = [full, *(copy.deepcopy(full) for _ in KINDS)]
    for model, kind in zip(models[1:], KINDS, strict=True):
        quantize_module(model, kind, dtype, CPU)
    pack_linears(full)
    for model in models:
        narrow(model)
    for name, width in (("read_faster", READ), ("decode_faster", 1)):
        best = _in_turns([_pass(model, width) for model in models])
        for row, seconds in zip(rows, best, strict=True):
            setattr(row, name, best[0] / seconds)
    return rows


def _pass(model: Any, width: int) -> Callable[[], None]:
    """A pass of so many rows, behind some, on the product's own path."""
    cache = InPlaceCache(model.config)
    ids = torch.full((1, BEHIND + width), 5)
    prefill(model, ids[:, :BEHIND], cache, chunk_size=BEHIND)
    way = answering if width == 1 else forward

    def run() -> None:
        way(model, ids[:, BEHIND:], cache, None, logits_to_keep=1)
        clean_up(cache, BEHIND)

    return run


def _in_turns(passes: list[Callable[[], None]], seconds: float = 20) -> list[float]:
    """The best time of each, measured in turns, so that a noisy machine is noisy for all."""
    best, deadline, rounds = [float("inf")] * len(passes), time.monotonic() + seconds, 0
    while rounds < 3 or (time.monotonic() < deadline and rounds < 30):
        for number, run in enumerate(passes):
            before = time.perf_counter()
            run()
            best[number] = min(best[number], time.perf_counter() - before)
        rounds += 1
    return best


def main() -> None:
    """Measure, and print what was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantization", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small", help="of the random model (default small)")
    parser.add_argument("--layers", type=int, default=1, help="of the random model (default 1)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "both"), default="both", help="of the random model")
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch's choice)")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of a table")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)

    with Console(stderr=True).status("Measuring …"):
        rows = embedded_loss()
        for dtype in ("float32", "bfloat16") if options.dtype == "both" else (options.dtype,):
            rows += random_loss_and_time(options.shape, getattr(torch, dtype), options.layers)
    if options.json:
        json.dump([asdict(row) for row in rows], sys.stdout, indent=2)
        return
    headings = ("model", "kind", "MB", "of", "same token: read", "decoded", "KL: read", "decoded", "same answers")
    table = Table(*headings, "read ×", "decode ×", box=None, pad_edge=False)
    for row in rows:
        table.add_row(
            row.model if row.kind == "none" else "",
            row.kind,
            f"{row.megabytes:.1f}",
            f"{row.bytes_ratio:.3f}",
            f"{row.agreement_read:.4f}",
            f"{row.agreement_decoded:.4f}",
            f"{row.divergence_read:.5f}",
            f"{row.divergence_decoded:.5f}",
            row.same_answers,
            f"{row.read_faster:.2f}" if row.read_faster else "",
            f"{row.decode_faster:.2f}" if row.decode_faster else "",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
