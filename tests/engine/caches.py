"""What the tests of caches have in common: a text, the bits of a cache, and those of a fresh one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cag_daemon.engine import store
from cag_daemon.engine.engine import Engine

BAKERY = "The bakery opens at six. Anna bakes the rye bread. The oven was built in 1912 by Tom Reed.\n"
CHUNK = 16  # of `loaded_random`
_fresh: dict[tuple[str, torch.dtype, str], tuple[list[torch.Tensor], Any]] = {}


def kv(engine: Engine, document: str = "d") -> list[torch.Tensor]:
    """Keys and values of a document, which must be what its buffer holds."""
    cached = engine._caches._documents[document]
    buffer, ids = cached.cache.buffer, cached.text.ids
    assert cached.cache.ids == ids
    assert {layer.get_seq_length() for layer in buffer.layers} == {len(ids)}
    return [t.clone() for layer in buffer.layers for t in (layer.keys, layer.values)]


def identical(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    """Bit for bit."""
    return all(map(torch.equal, one, other))


class After:
    """Says stop when it was asked so many times."""

    def __init__(self, asked: int) -> None:
        self.left = asked

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def fresh(engine: Engine, text: str) -> tuple[list[torch.Tensor], Any]:
    """Keys and values, and an answer, where the text is read from nothing."""
    model = engine.loaded.model
    key = (model.config.to_json_string(), model.dtype, text)  # tests of several models share a process
    if key not in _fresh:
        other = Engine(engine.loaded)
        other.prepare("d", text, text)
        _fresh[key] = kv(other), other.ask("d", "Why?", max_new_tokens=4)
    return _fresh[key]


def forge(folder: Path) -> None:
    """All segments as from a model that computes otherwise, with right checksums: nothing but computing can tell."""
    for file in sorted(folder.rglob("*.safetensors")):
        tensors = {name: tensor * 1.001 for name, tensor in load_file(file).items()}
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        metadata["crc"] = str(store._sum(tensors["keys"], tensors["values"]))
        save_file(tensors, file, metadata)
