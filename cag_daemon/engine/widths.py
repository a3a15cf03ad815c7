"""How many rows a pass may have, such that a row's bits are the same however many there are.

A pass that verifies a draft has more rows than one that decodes a token, and kernels choose their ways by the number of
rows. Only where the bits agree can an answer with drafts be the one without, to the last bit. Nobody documents where
that is so; here it is tried, on two layers of the model and its output layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cag_daemon.engine.cag import clean_up, forward, prefill
from cag_daemon.engine.kv_cache import GRID, InPlaceCache
from cag_daemon.engine.model import LoadedModel

CANDIDATES = (1, 2, 4, 8, 16, 32)
WORTH = 8  # rows: fewer at most are hardly worth drafting for
TOKENS = 16  # that are decoded one by one, to compare with


def agreeing(loaded: LoadedModel, cache: InPlaceCache) -> tuple[int, ...]:
    """The widths to decode and to verify drafts with, the narrowest first; empty: rows depend on each other here.

    Args:
        loaded: a model of few layers: others of the same shapes compute in the same way.
        cache: an empty one, for as many layers.
    """
    # Around a multiple of the grid, where passes of different widths are given different numbers of keys.
    start = max(GRID, min(loaded.chunk, loaded.context // 2) // GRID * GRID) - TOKENS // 3
    if start + TOKENS + max(CANDIDATES) > loaded.context:
        return ()
    vocabulary = min(len(loaded.tokenizer), int(loaded.model.config.get_text_config(decoder=True).vocab_size))
    ids = torch.randint(3, vocabulary, (start + TOKENS + max(CANDIDATES),), generator=torch.Generator().manual_seed(1))
    prefill(loaded.model, ids[None, :start], cache, chunk_size=loaded.chunk)
    for base in CANDIDATES:
        clean_up(cache, start)
        one_by_one = [_rows(loaded, cache, ids[start + at : start + at + 1], base) for at in range(TOKENS)]
        found = tuple(
            width for width in CANDIDATES if width >= base and _agrees(loaded, cache, ids, start, width, one_by_one)
        )
        if base in found and max(found) >= WORTH:
            return found
    return ()


def _agrees(
    loaded: LoadedModel,
    cache: InPlaceCache,
    ids: torch.Tensor,
    start: int,
    width: int,
    wanted: Sequence[list[torch.Tensor]],
) -> bool:
    """Whether passes full of tokens, of which fewer and fewer are kept, give what passes of one token gave."""
    clean_up(cache, start)
    first = 0
    for keep in (3, 4, 1):
        many = min(width, TOKENS - first)
        ours = _rows(loaded, cache, ids[start + first : start + first + many], width)
        for place, theirs in enumerate(wanted[first : first + many]):
            if any(not torch.equal(a[..., place : place + 1, :], b) for a, b in zip(ours, theirs, strict=True)):
                return False
        first += min(keep, width)
        clean_up(cache, start + first)
    return True


def _rows(loaded: LoadedModel, cache: InPlaceCache, ids: torch.Tensor, width: int) -> list[torch.Tensor]:
    """Logits, keys and values of some tokens, in a pass filled up with others; the cache then ends with them."""
    before, many = cache.get_seq_length(), len(ids)
    rows = torch.cat([ids, ids.new_full((width - many,), 7)])
    logits = forward(loaded.model, rows[None].to(loaded.model.device), cache, None, logits_to_keep=width).logits
    clean_up(cache, before + many)
    made = [logits[0, :many].clone()]
    for layer in cache.layers:
        made += [layer.keys[0, :, before:].clone(), layer.values[0, :, before:].clone()]
    return made
