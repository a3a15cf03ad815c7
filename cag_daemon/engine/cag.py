"""The public core of cache-augmented generation: read a prompt once, then ask as often as you like.

    cache = get_kv_cache(model, tokenizer, prompt)
    origin = cache.get_seq_length()
    ids = tokenizer(question, return_tensors="pt").input_ids
    answer = tokenizer.decode(generate(model, ids, cache)[0], skip_special_tokens=True)
    clean_up(cache, origin)

Decoding is greedy. Everything works on a plain ``DynamicCache()`` too, which copies the whole cache at every token.
A pass through the model happens whole or not at all: stopped or failed, it leaves the cache as it was before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache

from cag_daemon.engine.decoding import Decoding, DraftCounts
from cag_daemon.engine.devices import default_chunk
from cag_daemon.engine.drafts import Drafts
from cag_daemon.engine.kv_cache import InPlaceCache
from cag_daemon.engine.passes import ShouldStop, clean_up, forward, one_sequence, reserve

__all__ = ["clean_up", "generate", "generate_step", "get_kv_cache", "prefill"]


def get_kv_cache(model: Any, tokenizer: Any, prompt: str) -> Cache:
    """Read a prompt into a new cache.

    Raises:
        ValueError: the prompt has no tokens.
    """
    input_ids = tokenizer(prompt, return_tensors="pt").input_ids
    cache = InPlaceCache(model.config)
    prefill(model, input_ids, cache)
    return cache


def generate(model: Any, input_ids: torch.Tensor, past_key_values: Cache, max_new_tokens: int = 50) -> torch.Tensor:
    """Decode greedily after the cached tokens and ``input_ids`` [1, n].

    Returns:
        The new tokens, [1, m], m ≤ max_new_tokens; the end token is the last one if it came.

    Raises:
        ValueError: no input, or more than one sequence.
    """
    tokens = list(generate_step(model, input_ids, past_key_values, max_new_tokens=max_new_tokens))
    return torch.tensor([tokens], dtype=torch.long, device=input_ids.device)


def prefill(
    model: Any,
    input_ids: torch.Tensor,
    past_key_values: Cache,
    *,
    chunk_size: int | None = None,
    progress: Callable[[int, int], object] | None = None,
    should_stop: ShouldStop | None = None,
    between_chunks: Callable[[], object] | None = None,
) -> None:
    """Read ``input_ids`` [1, n] into the cache, in chunks that begin at multiples of ``chunk_size`` of the position.

    So the bits of what is cached depend on the tokens alone, not on where an earlier reading ended.

    Args:
        chunk_size: tokens; None: `default_chunk`.
        progress: called with (done, n) after every chunk.
        should_stop: asked before every layer, and every linear one in it.
        between_chunks: called where other work may be done; the cache is whole then.

    Raises:
        Stopped: ``should_stop`` said so; the cache ends with the last whole chunk.
        ValueError: no input, or more than one sequence.
    """
    input_ids = one_sequence(input_ids, model)
    chunk_size = chunk_size or default_chunk(model.device, model.dtype)
    origin, total = past_key_values.get_seq_length(), input_ids.shape[1]
    reserve(past_key_values, origin + total)
    decoder, done = model.get_decoder(), 0
    while done < total:
        end = min(total, done + chunk_size - (origin + done) % chunk_size)
        forward(decoder, input_ids[:, done:end], past_key_values, should_stop)
        done = end
        if progress:
            progress(done, total)
        if between_chunks and done < total:
            between_chunks()


def generate_step(
    model: Any,
    input_ids: torch.Tensor,
    past_key_values: Cache,
    *,
    max_new_tokens: int = 50,
    should_stop: ShouldStop | None = None,
    chunk_size: int | None = None,
    widths: Sequence[int] = (),
    drafts: Drafts | None = None,
    counts: DraftCounts | None = None,
) -> Iterator[int]:
    """Decode greedily after the cached tokens and ``input_ids`` [1, n], a token at a time.

    Args:
        max_new_tokens: at most so many are given.
        should_stop: asked before every layer, and every linear one in it.
        chunk_size: an input longer than this is passed in pieces; None: `default_chunk`.
        widths: how many rows a pass may have, the narrowest first: such that a row has the same bits in each (see
            `widths.agreeing`). The narrowest is used where nothing is drafted. None: one row, and no drafts.
        drafts: what is proposed, and verified; the tokens are the same without.
        counts: where to count what was proposed and accepted.

    Yields:
        Token ids; the end token is the last one if it came.

    Raises:
        Stopped: ``should_stop`` said so; the cache ends with the last whole pass. `clean_up` is the caller's.
        ValueError: no input, or more than one sequence.
    """
    input_ids = one_sequence(input_ids, model)
    decoding = Decoding(model, past_key_values, should_stop, tuple(widths), drafts, counts or DraftCounts())
    return decoding.steps(input_ids, max_new_tokens, chunk_size)
