"""The passes of one answer: a question read in pieces, tokens decoded, drafts verified."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache

from cag_daemon.engine.devices import default_chunk
from cag_daemon.engine.drafts import Drafts
from cag_daemon.engine.passes import ShouldStop, answering, clean_up, one_sequence, reserve

CHEAP = 4  # rows of a pass that take hardly longer than one: reading the weights takes the time


@dataclass
class DraftCounts:
    """How many tokens were proposed by drafts, and how many of them were the model's own."""

    drafted: int = 0
    accepted: int = 0


@dataclass
class Decoding:
    """One answer; see `cag.generate_step` for what it is made with."""

    model: Any
    cache: Cache
    should_stop: ShouldStop | None
    widths: tuple[int, ...]
    drafts: Drafts | None
    counts: DraftCounts
    _level: int = 0  # of the drafts' widths: wider while they are right to their end

    def steps(self, input_ids: torch.Tensor, max_new_tokens: int, chunk_size: int | None) -> Iterator[int]:
        """Token ids after the cached tokens and ``input_ids`` [1, n]."""
        if max_new_tokens < 1:
            return
        model, cache = self.model, self.cache
        # 1. Room for all that may come: no step allocates.
        widest = max(self.widths, default=1)
        reserve(cache, cache.get_seq_length() + input_ids.shape[1] + max_new_tokens + widest)
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
        kept = {"logits_to_keep": len(rows), "wanted_rows": 1 + len(draft)}
        logits = answering(self.model, input_ids, self.cache, self.should_stop, **kept).logits
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
    for piece in split_question(one_sequence(input_ids, model), chunk_size, widths):
        _pass(model.get_decoder(), piece, past_key_values, should_stop, widths)


def _pass(module: Any, piece: torch.Tensor, cache: Cache, should_stop: ShouldStop | None, widths: Sequence[int]) -> Any:
    """Pass a piece, filled up to a width where it is not a whole chunk; its logits are its first rows."""
    tokens = piece.shape[1]
    width = next((each for each in widths if each >= tokens), tokens)
    kept = {} if module is module.get_decoder() else {"logits_to_keep": width if widths and width in widths else 1}
    if width > tokens:
        piece = torch.cat([piece, piece[:, -1:].expand(-1, width - tokens)], 1)
        kept["wanted_rows"] = tokens
    before = cache.get_seq_length()
    found = answering(module, piece, cache, should_stop, **kept)
    clean_up(cache, before + tokens)
    return found


def end_tokens(model: Any) -> frozenset[int]:
    """The ids that end an answer: of the generation config, else of the config."""
    for config in (model.generation_config, model.config.get_text_config(decoder=True)):
        ends = getattr(config, "eos_token_id", None)
        if ends is not None:
            return frozenset(ends if isinstance(ends, list | tuple) else [ends])
    return frozenset()
