"""Which text of which document is cached, as token ids, within a memory budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cag_daemon.engine.kv_cache import InPlaceCache
from cag_daemon.engine.prompt import PromptTemplate


@dataclass
class DocumentCache:
    """A text that was read whole.

    Attributes:
        version: of the text.
        ids: the prefix that the cache holds; compared in full, never by hash.
        cache: exactly ``len(ids)`` tokens long whenever nobody is being answered.
        template: how questions about it are put.
    """

    version: str
    ids: list[int]
    cache: InPlaceCache
    template: PromptTemplate


class DocumentCaches:
    """Whole caches by document, least recently used first.

    Args:
        budget: bytes that all may take together.
        on_dropped: told the name of each document whose cache had to leave.
    """

    def __init__(self, budget: int, on_dropped: Callable[[str], object] | None = None) -> None:
        self.budget = budget
        self._on_dropped = on_dropped
        self._caches: dict[str, DocumentCache] = {}

    def __contains__(self, document: str) -> bool:
        return document in self._caches

    def get(self, document: str) -> DocumentCache | None:
        """The document's whole cache, now the most recently used; None if there is none."""
        found = self._caches.pop(document, None)
        if found is not None:
            self._caches[document] = found
        return found

    def put(self, document: str, cached: DocumentCache) -> None:
        """Replace the document's cache."""
        self._caches.pop(document, None)
        self._caches[document] = cached

    def forget(self, document: str) -> None:
        """Drop the document's cache, if there is one, without a word."""
        self._caches.pop(document, None)

    def make_room(self, needed: int, document: str | None = None) -> None:
        """Drop other documents' caches, the least recently used first, until ``needed`` bytes more fit the budget.

        The document's own cache is not counted: it will be replaced.
        """
        others = [name for name in self._caches if name != document]
        total = needed + sum(self._caches[name].cache.bytes for name in others)
        for name in others:
            if total <= self.budget:
                return
            total -= self._caches.pop(name).cache.bytes
            if self._on_dropped:
                self._on_dropped(name)
