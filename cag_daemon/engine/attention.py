"""Attention to a long cache by few queries: no key or value is copied, none is repeated.

Query heads that share keys and values (grouped queries) become rows of one product: [1, heads, n, d] is looked at as
[1, key/value heads, group · n, d]. transformers' own way repeats keys and values for every query head instead, which
for Mistral's four is four copies of the whole cache in each layer.

Keys and values come from `InPlaceCache` up to a multiple of `GRID`, and what lies beyond the last token is masked, so
that a row's bits do not depend on how many tokens come after it in its pass. Other caches give what they have.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

NAME = "cag_packed"  # part of the key of what is kept on disk: other kernels have other bits
FEW = 64  # rows of a group, up to which keys and values are read once for all of the group


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
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend.

    Args:
        query: [1, heads, n, d].
        key, value: [1, key/value heads, keys, d].
        attention_mask: see `mask`.

    Returns:
        [1, n, heads, d], and no weights.
    """
    _, heads, rows, size = query.shape
    shared = key.shape[1]
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


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor | None, scaling: float | None
) -> torch.Tensor:
    return scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling)
