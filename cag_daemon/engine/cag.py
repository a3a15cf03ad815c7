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

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache

from cag_daemon.engine.devices import default_chunk
from cag_daemon.engine.drafts import Drafts
from cag_daemon.engine.kv_cache import InPlaceCache
from cag_daemon.errors import Stopped

ShouldStop = Callable[[], bool]
CHEAP = 4  # rows of a pass that take hardly longer than one: reading the weights takes the time


def get_kv_cache(model: Any, tokenizer: Any, prompt: str) -> Cache:
    """Read a prompt into a new cache.

    Raises:
        ValueError: the prompt has no tokens.
    """
    input_ids = tokenizer(prompt, return_tensors="pt").input_ids
    cache = InPlaceCache(model.config)
    prefill(model, input_ids, cache)
    return cache


def clean_up(cache: Cache, origin_len: int) -> None:
    """Crop a cache back to its first ``origin_len`` tokens.

    Layer by layer, since after an interrupted pass they have different lengths.

    Raises:
        ValueError: the cache is shorter than that.
    """
    lengths = [int(layer.get_seq_length()) for layer in cache.layers] or [0]
    if min(lengths) < origin_len or origin_len < 0:
        raise ValueError(f"A cache of {min(lengths)} tokens can't be cleaned up to {origin_len}.")
    for layer, length in zip(cache.layers, lengths, strict=False):
        if length > origin_len:
            layer.crop(origin_len - length)


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
    input_ids = _one_sequence(input_ids, model)
    chunk_size = chunk_size or default_chunk(model.device, model.dtype)
    origin, total = past_key_values.get_seq_length(), input_ids.shape[1]
    _reserve(past_key_values, origin + total)
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
    input_ids = _one_sequence(input_ids, model)
    decoding = _Decoding(model, past_key_values, should_stop, tuple(widths), drafts, counts or DraftCounts())
    return decoding.steps(input_ids, max_new_tokens, chunk_size)


@dataclass
class DraftCounts:
    """How many tokens were proposed by drafts, and how many of them were the model's own."""

    drafted: int = 0
    accepted: int = 0


@dataclass
class _Decoding:
    """The passes of one answer; see `generate_step`."""

    model: Any
    cache: Cache
    should_stop: ShouldStop | None
    widths: tuple[int, ...]
    drafts: Drafts | None
    counts: DraftCounts
    _level: int = 0  # of the drafts' widths: wider while they are right to their end

    def steps(self, input_ids: torch.Tensor, max_new_tokens: int, chunk_size: int | None) -> Iterator[int]:
        if max_new_tokens < 1:
            return
        model, cache = self.model, self.cache
        # 1. Room for all that may come: no step allocates.
        widest = max(self.widths, default=1)
        _reserve(cache, cache.get_seq_length() + input_ids.shape[1] + max_new_tokens + widest)
        # 2. The input; only of its last piece are logits made.
        chunk = chunk_size or default_chunk(model.device, model.dtype)
        *pieces, last = split_question(input_ids, chunk, self.widths)
        for piece in pieces:
            _pass(model.get_decoder(), piece, cache, self.should_stop, self.widths)
        logits = _pass(model, last, cache, self.should_stop, self.widths).logits
        # 3. Tokens, and the pass that the last of them is the input of.
        ends, given, found = end_tokens(model), 0, [int(logits[0, min(last.shape[1], logits.shape[1]) - 1].argmax(-1))]
        while True:
            for token in found:
                yield token
                given += 1
                if token in ends or given == max_new_tokens:
                    return
                if self.drafts is not None:
                    self.drafts.add(token)
            found = self._next(found[-1], max_new_tokens - given)

    @property
    def _wide(self) -> tuple[int, ...]:
        """The widths for drafts: up to four rows cost about as much as one."""
        return tuple(each for each in self.widths if each >= CHEAP) or self.widths[-1:]

    def _next(self, token: int, room: int) -> list[int]:
        """Pass the last token, and a draft behind it; the tokens that follow are one more than were accepted."""
        if not self.widths:
            rows, draft = [token], []
        else:
            width = self._wide[self._level]
            draft = self.drafts.propose(min(width, room) - 1) if self.drafts is not None else []
            width = next(each for each in self.widths if each > len(draft))
            rows = [token, *draft, *[token] * (width - 1 - len(draft))]  # the rest is for the width's sake
        before = self.cache.get_seq_length()
        input_ids = torch.tensor([rows], device=self.model.device)
        logits = forward(self.model, input_ids, self.cache, self.should_stop, logits_to_keep=len(rows)).logits
        return self._verified(draft, logits, before)

    def _verified(self, draft: list[int], logits: torch.Tensor, before: int) -> list[int]:
        """Keep of a draft what the model says itself."""
        found = logits[0, : len(draft) + 1].argmax(-1).tolist()
        right = next((at for at, guess in enumerate(draft) if guess != found[at]), len(draft))
        clean_up(self.cache, before + 1 + right)
        self.counts.drafted += len(draft)
        self.counts.accepted += right
        if draft:
            wider = self._level + 1 if right == len(draft) else self._level - (right * 2 < len(draft))
            self._level = min(max(wider, 0), len(self._wide) - 1)
        return found[: right + 1]


def split_question(input_ids: torch.Tensor, chunk_size: int, widths: Sequence[int]) -> list[torch.Tensor]:
    """A question in pieces: whole chunks, and what is left in passes of widths that agree.

    So the bits of what is left do not depend on where it was read in the midst of, see `read_question`.
    """
    if not widths:
        return list(torch.split(input_ids, chunk_size, dim=1))
    whole = in_chunks(input_ids.shape[1], chunk_size)
    pieces = list(torch.split(input_ids[:, :whole], chunk_size, dim=1)) if whole else []
    return pieces + (list(torch.split(input_ids[:, whole:], max(widths), dim=1)) if whole < input_ids.shape[1] else [])


def in_chunks(tokens: int, chunk_size: int) -> int:
    """How many of a question's tokens are read in whole chunks."""
    return tokens // chunk_size * chunk_size


def read_question(
    model: Any,
    input_ids: torch.Tensor,
    past_key_values: Cache,
    *,
    chunk_size: int,
    widths: Sequence[int],
    should_stop: ShouldStop | None = None,
) -> None:
    """Read a question, or its beginning, as `generate_step` does before it decodes.

    Raises:
        Stopped: ``should_stop`` said so; the cache ends with the last whole piece.
    """
    for piece in split_question(_one_sequence(input_ids, model), chunk_size, widths):
        _pass(model.get_decoder(), piece, past_key_values, should_stop, widths)


def _pass(module: Any, piece: torch.Tensor, cache: Cache, should_stop: ShouldStop | None, widths: Sequence[int]) -> Any:
    """Pass a piece, filled up to a width where it is not a whole chunk; its logits are its first rows."""
    tokens = piece.shape[1]
    width = next((each for each in widths if each >= tokens), tokens)
    kept = {} if module is module.get_decoder() else {"logits_to_keep": width if widths and width in widths else 1}
    if width > tokens:
        piece = torch.cat([piece, piece[:, -1:].expand(-1, width - tokens)], 1)
    before = cache.get_seq_length()
    found = forward(module, piece, cache, should_stop, **kept)
    clean_up(cache, before + tokens)
    return found


def end_tokens(model: Any) -> frozenset[int]:
    """The ids that end an answer: of the generation config, else of the config."""
    for config in (model.generation_config, model.config.get_text_config(decoder=True)):
        ends = getattr(config, "eos_token_id", None)
        if ends is not None:
            return frozenset(ends if isinstance(ends, list | tuple) else [ends])
    return frozenset()


def _one_sequence(input_ids: torch.Tensor, model: Any) -> torch.Tensor:
    if input_ids.ndim != 2 or input_ids.shape[0] != 1:
        raise ValueError(f"input_ids must be one sequence, of shape [1, n], not {list(input_ids.shape)}.")
    if input_ids.shape[1] == 0:
        raise ValueError("input_ids is empty: there is nothing to read.")
    return input_ids.to(model.device)


def _reserve(cache: Cache, tokens: int) -> None:
    if isinstance(cache, InPlaceCache):
        cache.reserve(tokens)


def forward(module: Any, input_ids: torch.Tensor, cache: Cache, should_stop: ShouldStop | None, **kwargs: Any) -> Any:
    """One pass of a model or its decoder, which happens whole or not at all; see `prefill` for the arguments."""
    with _whole_or_nothing(cache), _stoppable(module.get_decoder(), should_stop), torch.no_grad():
        return module(input_ids=input_ids, use_cache=True, **{cache_argument(module): cache}, **kwargs)


def cache_argument(module: Any) -> str:
    """What a model calls its cache: ``cache`` from transformers 5.24 on, ``past_key_values`` before."""
    return _cache_argument(type(module).forward)


@functools.cache
def _cache_argument(forward: Callable[..., Any]) -> str:
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


@contextmanager
def _whole_or_nothing(cache: Cache) -> Iterator[None]:
    origin = cache.get_seq_length()
    try:
        yield
    except BaseException:
        clean_up(cache, origin)
        raise


@contextmanager
def _stoppable(decoder: Any, should_stop: ShouldStop | None) -> Iterator[None]:
    """Ask ``should_stop`` before every decoder layer and every linear layer in it: on a CPU one takes long enough."""

    def ask(*_: Any) -> None:
        if should_stop is not None and should_stop():
            raise Stopped

    layers = decoder.layers if should_stop is not None else ()
    linear = (module for layer in layers for module in layer.modules() if hasattr(module, "in_features"))
    hooks = [module.register_forward_pre_hook(ask) for module in (*layers, *linear)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
