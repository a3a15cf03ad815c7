"""How many rows a pass may have, such that a row's bits are the same however many there are.

A pass that verifies a draft has more rows than one that decodes a token, and kernels choose their ways by the number of
rows. Only where the bits agree can an answer with drafts be the one without, to the last bit. Nobody documents where
that is so; here it is tried, on two layers of the model and its output layer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch

from cag_daemon.engine.cag import clean_up, prefill
from cag_daemon.engine.kv_cache import GRID, InPlaceCache
from cag_daemon.engine.model import LoadedModel
from cag_daemon.engine.passes import answering

CANDIDATES = (1, 2, 4, 8, 16, 32)
SMALL = 100_000_000  # parameters up to which 16 rows take hardly longer than one
OF_SMALL = (16, 32, 64)  # what is tried first there
TIMES = 5  # that each is timed
WORTH = 8  # rows: fewer at most are hardly worth drafting for


def agreeing(loaded: LoadedModel, cache: InPlaceCache) -> tuple[int, ...]:
    """The widths to decode and to verify drafts with, the narrowest first; empty: rows depend on each other here.

    Args:
        loaded: a model of few layers: others of the same shapes compute in the same way.
        cache: an empty one, for as many layers.
    """
    most = max(*CANDIDATES, *OF_SMALL)
    # Around a multiple of the grid, where passes of different widths are given different numbers of keys.
    start = max(GRID, min(loaded.chunk, loaded.context // 2) // GRID * GRID) - 7
    if start + 2 * most > loaded.context:
        return ()
    vocabulary = min(len(loaded.tokenizer), int(loaded.model.config.get_text_config(decoder=True).vocab_size))
    ids = torch.randint(3, vocabulary, (start + most,), generator=torch.Generator().manual_seed(1))
    prefill(loaded.model, ids[None, :start], cache, chunk_size=loaded.chunk)
    tried = [tuple(each for each in CANDIDATES if each >= base) for base in CANDIDATES if base <= WORTH]
    for widths in [OF_SMALL, *tried] if loaded.parameters < SMALL else tried:
        if found := _among(loaded, cache, ids, start, widths):
            return _without_slow(loaded, cache, ids, start, found)
    return ()


def _without_slow(
    loaded: LoadedModel, cache: InPlaceCache, ids: torch.Tensor, start: int, widths: tuple[int, ...]
) -> tuple[int, ...]:
    """Those that are worth having: a narrow pass that takes longer than a wider one is not.

    oneDNN's products of two rows take a third longer than of four on a Zen 4. Which of them are used is only a matter
    of speed, since all agree. They are full of tokens: a narrow pass computes no others.
    """
    took = dict.fromkeys(widths, math.inf)
    for _ in range(TIMES):
        for width in widths:
            clean_up(cache, start)
            began = time.perf_counter()
            float(_rows(loaded, cache, ids[:width], width)[0][0, 0])  # a GPU is waited for
            took[width] = min(took[width], time.perf_counter() - began)
    return tuple(width for width in widths if all(took[width] < took[wider] for wider in widths if wider > width))


def _among(
    loaded: LoadedModel, cache: InPlaceCache, ids: torch.Tensor, start: int, widths: tuple[int, ...]
) -> tuple[int, ...]:
    """Those that agree with the first of them, if that is worth anything."""
    # 1. One row alone finds out most of those that do not, at little cost.
    clean_up(cache, start)
    wanted = _rows(loaded, cache, ids[start : start + 1], widths[0])
    near = []
    for width in widths:
        clean_up(cache, start)
        if all(map(torch.equal, _rows(loaded, cache, ids[start : start + 1], width), wanted)):
            near.append(width)
    if max(near, default=0) < WORTH:
        return ()
    # 2. What is decoded one by one, and every row of passes full of tokens beside it.
    clean_up(cache, start)
    one_by_one = [_rows(loaded, cache, ids[at : at + 1], widths[0]) for at in range(start, start + max(near))]
    found = tuple(width for width in near if _agrees(loaded, cache, ids, start, width, one_by_one))
    return found if widths[0] in found and max(found) >= WORTH else ()


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
        many = min(width, len(wanted) - first)
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
    kept = {"logits_to_keep": width, "wanted_rows": many}
    logits = answering(loaded.model, rows[None].to(loaded.model.device), cache, None, **kept).logits
    clean_up(cache, before + many)
    made = [logits[0, :many].clone()]
    for layer in cache.layers:
        made += [layer.keys[0, :, before:].clone(), layer.values[0, :, before:].clone()]
    return made
