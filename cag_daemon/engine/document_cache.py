"""Caches of texts, as token ids: a buffer holds one text whole, and beside it lie the ends of others that begin alike.

Keys and values of a token depend on the tokens up to it alone, and on where the passes that read it began: multiples of
the chunk. So what two texts have in common, down to such a multiple, is read once; the rest of the one that is not in
the buffer lies aside, and is swapped in when somebody wants it. Nothing here computes: bits are moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch

from cag_daemon.engine.cag import clean_up
from cag_daemon.engine.kv_cache import InPlaceCache
from cag_daemon.engine.prompt import PromptTemplate

MOST_ASIDE = 4  # ends of other texts of one document; the oldest go first

Tails = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values of each layer, [1, kv heads, tokens, head dim]


@dataclass(frozen=True)
class KnownText:
    """A text that was read whole.

    Attributes:
        version: its name.
        ids: of its tokens; compared in full, never by hash.
        template: how questions about it are put.
    """

    version: str
    ids: list[int]
    template: PromptTemplate


@dataclass
class Aside:
    """A text whose end lies beside the buffer: up to ``start`` the buffer holds it, too."""

    ids: list[int]
    start: int
    tails: Tails

    @property
    def bytes(self) -> int:
        """What the end takes."""
        return _bytes(self.tails)


class TextCache:
    """A buffer for one text at a time, and the ends of others.

    Args:
        buffer: an empty cache.
        chunk: tokens that are read at a time: ends begin at multiples of it.

    Attributes:
        ids: what the buffer holds; all of a text, or its beginning while it is being read.
    """

    def __init__(self, buffer: InPlaceCache, chunk: int) -> None:
        self.buffer = buffer
        self.chunk = chunk
        self.ids: list[int] = []
        self._asides: list[Aside] = []  # least recently used first

    @property
    def bytes(self) -> int:
        """What all of it takes."""
        return self.buffer.bytes + self.ends_bytes

    @property
    def ends_bytes(self) -> int:
        """What the ends take that lie aside."""
        return sum(aside.bytes for aside in self._asides)

    def turn_to(self, ids: list[int], *, keep: bool = True) -> int:
        """Have the buffer hold as much as is known of a text, and lay aside what else it held.

        Args:
            keep: False: forget what the buffer held beyond what they have in common.

        Returns:
            How many of the text's tokens it holds now: all, or a multiple of the chunk.
        """
        best = max(self._asides, key=lambda aside: self._kept(aside.ids, ids), default=None)
        if best is not None and self._kept(best.ids, ids) > self._kept(self.ids, ids):
            self._swap(best, keep)
        kept = self._kept(self.ids, ids)
        if kept < len(self.ids):
            self._lay_aside(kept, keep)
        return kept

    def read(self, ids: Sequence[int]) -> None:
        """The buffer now holds these tokens, too."""
        self.ids = [*self.ids, *ids]

    def clean(self) -> None:
        """Have the buffer hold its text and nothing behind it, as after a question."""
        clean_up(self.buffer, len(self.ids))

    def forget(self, needed: Iterable[list[int]] = (), most: int = 0) -> None:
        """Drop ends, the least recently used first, until there are no more than ``most``, but none that is needed."""
        needed = list(needed)
        for aside in list(self._asides):
            if len(self._asides) > most and aside.ids not in needed:
                self._asides.remove(aside)

    def known(self, ids: list[int]) -> int:
        """How many tokens of a text need not be read, were it turned to."""
        return max(self._kept(each, ids) for each in (self.ids, *(aside.ids for aside in self._asides)))

    def copy_from(self, other: TextCache, ids: list[int]) -> int:
        """Take into the empty buffer what another cache knows of a text; how many tokens that is."""
        kept = other.known(ids)
        if kept:
            _write(self.buffer, 0, other._beginning(ids, kept))
            self.ids = ids[:kept]
        return kept

    def _beginning(self, ids: list[int], kept: int) -> Tails:
        """Keys and values of a text's first tokens, which the buffer or the end of another holds."""
        if self._kept(self.ids, ids) == kept:
            return _views(self.buffer, 0, kept)
        aside = next(each for each in self._asides if self._kept(each.ids, ids) == kept)
        before = _views(self.buffer, 0, min(kept, aside.start))
        rest = max(0, kept - aside.start)
        ends = [(keys[:, :, :rest], values[:, :, :rest]) for keys, values in aside.tails]
        return [_joined(one, other) for one, other in zip(before, ends, strict=True)]

    def _kept(self, held: list[int], ids: list[int]) -> int:
        """How many tokens of a text need not be read where those of another are held: all, or whole chunks."""
        common = common_length(held, ids)
        return common if common == len(held) == len(ids) else common - common % self.chunk

    def _swap(self, aside: Aside, keep: bool) -> None:
        """Lay aside what the buffer holds beyond what it has in common with a text, and bring in that text's end."""
        self._asides.remove(aside)
        self._lay_aside(aside.start, keep)
        _write(self.buffer, aside.start, aside.tails)
        self.ids = aside.ids

    def _lay_aside(self, start: int, keep: bool) -> None:
        """Cut the buffer at ``start``; what others have in common with what goes is theirs from now on."""
        for aside in self._asides:
            if aside.start > start:
                between = _views(self.buffer, start, aside.start)
                aside.tails = [_joined(one, other) for one, other in zip(between, aside.tails, strict=True)]
                aside.start = start
        if keep and len(self.ids) > start:
            tails = [(keys.clone(), values.clone()) for keys, values in _views(self.buffer, start, len(self.ids))]
            self._asides.append(Aside(self.ids, start, tails))
        clean_up(self.buffer, start)
        self.ids = self.ids[:start]


@dataclass
class DocumentCache:
    """What is cached of one document: the text that was read last, and where it and its relatives are."""

    text: KnownText
    cache: TextCache


@dataclass
class DocumentCaches:
    """Caches by document, least recently used first. Documents of the same text share one.

    Args:
        budget: bytes that all may take together.
        on_leaving, on_dropped: told the name of each document whose cache has to leave, and when it has.

    Attributes:
        begun: readings that were broken off before there was anything to answer from, to be gone on with.
    """

    budget: int
    on_leaving: Callable[[str], object] | None = None
    on_dropped: Callable[[str], object] | None = None
    begun: dict[str, TextCache] = field(default_factory=dict)
    _documents: dict[str, DocumentCache] = field(default_factory=dict)

    def __contains__(self, document: str) -> bool:
        return document in self._documents

    def get(self, document: str) -> DocumentCache | None:
        """The document's cache, now the most recently used; None if there is none."""
        found = self._documents.pop(document, None)
        if found is not None:
            self._documents[document] = found
        return found

    def put(self, document: str, cached: DocumentCache) -> None:
        """Replace the document's cache."""
        self._documents.pop(document, None)
        self._documents[document] = cached

    def forget(self, document: str) -> None:
        """Drop the document's cache, if there is one, without a word."""
        self._documents.pop(document, None)
        self.begun.pop(document, None)

    def forget_all(self) -> list[str]:
        """Drop everything; the documents that were there."""
        names = list(self._documents)
        self._documents.clear()
        self.begun.clear()
        return names

    def all(self) -> list[TextCache]:
        """Every cache once, however many documents share it."""
        caches = [*(each.cache for each in self._documents.values()), *self.begun.values()]
        return list({id(each): each for each in caches}.values())

    def needed(self, cache: TextCache) -> list[list[int]]:
        """The texts that questions are answered from, of those in that cache."""
        return [each.text.ids for each in self._documents.values() if each.cache is cache]

    def with_text(self, ids: list[int]) -> TextCache | None:
        """A cache that holds exactly this text."""
        return next((each.cache for each in self._documents.values() if each.text.ids == ids), None)

    def make_room(self, needed: int, document: str | None = None) -> None:
        """Until ``needed`` bytes more fit the budget: drop what nobody asks about, then other documents' caches.

        The document's own buffer is not counted: what is needed is counted instead.
        """
        own = [self.begun.get(document or ""), getattr(self._documents.get(document or ""), "cache", None)]

        def total() -> int:
            return needed + sum(each.ends_bytes if each in own else each.bytes for each in self.all())

        for cache in self.all():
            if total() > self.budget:
                cache.forget(self.needed(cache))
        for name in [name for name in self.begun if name != document]:
            if total() > self.budget:
                if self.on_leaving and name not in self._documents:
                    self.on_leaving(name)
                del self.begun[name]
        for name in [name for name in self._documents if name != document]:
            if total() <= self.budget:
                return
            if self.on_leaving:
                self.on_leaving(name)
            del self._documents[name]
            if self.on_dropped:
                self.on_dropped(name)


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two texts have in common from the start."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    low, high = 0, length  # one[:low] == other[:low], and not so for high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle)
    return low


def _views(cache: InPlaceCache, start: int, end: int) -> Tails:
    """What a cache holds from one token to another, not copied."""
    layers = [layer for layer in cache.layers if layer.is_initialized]
    return [(layer.keys[:, :, start:end], layer.values[:, :, start:end]) for layer in layers]


def _write(cache: InPlaceCache, start: int, tails: Tails) -> None:
    """Put keys and values behind the first ``start`` tokens of a cache."""
    clean_up(cache, start)
    for layer, (keys, values) in zip(cache.layers, tails, strict=True):
        layer.update(keys, values)


def _joined(
    one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([one[0], other[0]], dim=2), torch.cat([one[1], other[1]], dim=2)


def _bytes(tails: Tails) -> int:
    return sum(keys.nbytes + values.nbytes for keys, values in tails)
