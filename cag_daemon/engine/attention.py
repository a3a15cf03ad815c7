"""Attention to a long cache by few queries: no key or value is copied, none is repeated.

Query heads that share keys and values (grouped queries) become rows of one product: [1, heads, n, d] is looked at as
[1, key/value heads, group · n, d]. transformers' own way repeats keys and values for every query head instead, which
for Mistral's four is four copies of the whole cache in each layer.

Keys and values come from `InPlaceCache` up to a multiple of `GRID`, and what lies beyond the last token is masked, so
that a row's bits do not depend on how many tokens come after it in its pass. Other caches give what they have.

A pass is often wider than its tokens are many, for its products' sake. Attention is not paid for the rest of it where a
row's bits do not depend on how many rows there are, which is tried first.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

NAME = "cag_packed"  # part of the key of what is kept on disk: other kernels have other bits
FEW = 64  # rows of a group, up to which keys and values are read once for all of the group
TRIED = (100, 1000, 3000)  # keys, with which it is tried which rows agree
log = logging.getLogger(__name__)


def install(model: Any) -> None:
    """Have a model attend this way."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, mask)
    model.set_attn_implementation(NAME)


def mask(*args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> torch.Tensor:
    """What each query sees, [1, 1, queries, keys]: 0, or -inf where it may not look. Made once for all layers.

    Args:
        args, kwargs: see `sdpa_mask`; windows are in them.
        dtype: of the queries: torch would make another mask of theirs in every layer.
    """
    seen = sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})
    assert seen is not None
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    wanted_rows: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend.

    Args:
        query: [1, heads, n, d].
        key, value: [1, key/value heads, keys, d].
        attention_mask: see `mask`.
        wanted_rows: how many of the queries, the first ones, are wanted; the others may get zeros. None: all.

    Returns:
        [1, n, heads, d], and no weights.
    """
    _, heads, rows, size = query.shape
    shared = key.shape[1]
    if wanted_rows is not None and wanted_rows < rows and attention_mask is not None:
        kind = (query.device, query.dtype, heads, shared, size, rows, torch.get_num_threads())
        few = next((each for each in agreeing_rows(*kind) if each >= wanted_rows), rows)
        if few < rows:
            found, _ = attend(module, query[:, :, :few], key, value, attention_mask[:, :, :few], scaling)
            return pad(found, (0, 0, 0, 0, 0, rows - few)), None
    group = heads // shared
    if group == 1:
        found = _attend(query, key, value, attention_mask, scaling)
    elif query.device.type == "cpu" and rows * group > FEW:
        # Many rows: the group goes where a batch would, and keys and values are the same for all of it.
        batch = query.view(shared, group, rows, size).transpose(0, 1)
        keys, values = (each.expand(group, -1, -1, -1) for each in (key, value))
        found = _attend(batch, keys, values, attention_mask, scaling).transpose(0, 1).reshape(query.shape)
    else:
        packed = None if attention_mask is None else attention_mask.repeat(1, 1, group, 1)
        found = _attend(query.reshape(1, shared, group * rows, size), key, value, packed, scaling).view(query.shape)
    return found.transpose(1, 2), None


@functools.cache
def agreeing_rows(
    device: torch.device, dtype: torch.dtype, heads: int, shared: int, size: int, rows: int, threads: int
) -> tuple[int, ...]:
    """How many rows may attend alone and have the bits that they have among so many; not all numbers are tried.

    Kernels go through rows in blocks, and what is left over may go through another kernel.

    Args:
        heads, size: of the queries.
        shared: key/value heads.
        rows: of a pass.
        threads: that torch computes with; another number may mean other kernels.
    """
    random = torch.Generator().manual_seed(threads)
    found = {*range(1, 9), FEW * shared // heads, rows // 2, rows * 3 // 4} & {*range(1, rows)}
    for keys in TRIED:
        query, key, value = (
            torch.randn(1, many, length, size, generator=random).to(device, dtype)
            for many, length in ((heads, rows), (shared, keys), (shared, keys))
        )
        # Each query sees one key more than the one before it, as in a text.
        hidden = torch.ones(rows, keys).triu(keys - rows + 1).bool()
        seen = torch.zeros(1, 1, rows, keys).masked_fill_(hidden, -torch.inf).to(device, dtype)
        whole, _ = attend(torch.nn.Identity(), query, key, value, seen)
        for few in sorted(found):
            alone, _ = attend(torch.nn.Identity(), query[:, :, :few], key, value, seen[:, :, :few])
            if not torch.equal(alone, whole[:, :few]):
                found.remove(few)
    log.info("Of %d rows in %s on %s so many may attend alone: %s", rows, dtype, device, sorted(found))
    return tuple(sorted(found))


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor | None, scaling: float | None
) -> torch.Tensor:
    return scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling)
