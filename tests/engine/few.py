"""What the tests of few rows share: a small model that machine code is for, and passes through it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from cag_daemon.engine import narrow_pass
from cag_daemon.engine.cag import clean_up, prefill
from cag_daemon.engine.kv_cache import InPlaceCache
from cag_daemon.engine.linear import PackedLinear, pack_linears
from cag_daemon.engine.passes import answering
from tests.models import random_mistral

SHAPE = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2}
IDS = torch.randint(3, 200, (1, 300), generator=torch.Generator().manual_seed(3))


def mistral(seed: int = 0, **changes: Any) -> Any:
    """One that the narrow pass is for; its vocabulary fills no whole blocks."""
    model = random_mistral(seed, **({**SHAPE, "head_dim": 64, "vocab_size": 200} | changes)).bfloat16()
    pack_linears(model)
    return model


@functools.cache
def here() -> bool:
    """Whether all that it needs is here; not whether it is right."""
    try:
        narrow_pass._machine()
    except Exception:
        return False
    return PackedLinear(torch.rand(128, 64).bfloat16()).blocks_at is not None


only_here = pytest.mark.skipif(not here(), reason="there is no narrow pass on this machine")


@contextmanager
def threads(many: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(many)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def ways() -> list[bool]:
    """Whether by the processor's own products of pairs: it may have none, and float32 numbers are always there."""
    if not here():
        return [False]
    from cag_daemon.engine.compiling import features

    return [False, True] if "avx512bf16" in features() else [False]


def rows_of(model: Any, cache: Any, start: int, rows: int, width: int, way: Any) -> list[torch.Tensor]:
    """Logits, keys and values of some rows behind the first tokens, in a pass of a width; the cache stays as it is."""
    ids = torch.cat([IDS[:, start : start + rows], IDS[:, :1].expand(1, width - rows)], 1)
    logits = way(model, ids, cache, None, logits_to_keep=width, wanted_rows=rows).logits[0, :rows]
    kept = [each[0, :, start : start + rows].clone() for layer in cache.layers for each in (layer.keys, layer.values)]
    clean_up(cache, start)
    return [logits.clone(), *kept]


def near(ours: torch.Tensor, plain: torch.Tensor, most: float = 0.02) -> bool:
    return bool((ours - plain).float().norm() <= most * plain.float().norm())


def assert_rows_have_the_bits_of_rows_one_by_one(model: Any, start: int, rows: int, more: int, many: int) -> None:
    """Of a pass of some rows, filled up with ``more``, on so many threads, behind the first ``start`` tokens."""
    cache = InPlaceCache(model.config)
    prefill(model, IDS[:, :start], cache, chunk_size=64)
    wanted = []
    for row in range(rows):
        wanted.append(rows_of(model, cache, start + row, 1, 1, answering))
        answering(model, IDS[:, start + row : start + row + 1], cache, None)
    clean_up(cache, start)
    with threads(many):
        ours = rows_of(model, cache, start, rows, min(16, rows + more), answering)
    for row in range(rows):
        for one, all_ in zip(wanted[row], ours, strict=True):
            assert torch.equal(one[..., 0, :], all_[..., row, :])
