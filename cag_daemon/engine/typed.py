"""A question that is still being typed, read behind its document meanwhile, so that it is read when it is asked.

What is read is the tokens that the question has so far; with each key the last few are read anew, and what was read of
another question is forgotten. A question that was read in parts has the bits of one that was read at once: both go
through passes of widths that agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch

from cag_daemon.engine.cag import clean_up
from cag_daemon.engine.decoding import in_chunks, read_question, split_question
from cag_daemon.engine.document_cache import TextCache, common_length
from cag_daemon.engine.model import LoadedModel
from cag_daemon.engine.passes import ShouldStop
from cag_daemon.errors import Stopped


class Typed:
    """What is read of a question at the moment, behind the document in some cache.

    Args:
        loaded: the model.
        widths: see `widths.agreeing`; empty: nothing is ever read ahead.
    """

    def __init__(self, loaded: LoadedModel, widths: tuple[int, ...]) -> None:
        self._loaded, self._widths = loaded, widths
        self._cache: TextCache | None = None
        self._ids: list[int] = []
        self._whole = 0  # of them read in whole chunks

    def read(self, cache: TextCache, ids: Sequence[int], should_stop: ShouldStop) -> None:
        """Read a question behind what the cache holds, as far as ``should_stop`` lets it, and there is room."""
        ids, chunk = list(ids), self._loaded.chunk
        if not self._widths or len(cache.ids) + len(ids) + max(self._widths) > cache.buffer.capacity:
            return
        done = self._kept(cache, ids, len(ids))
        self._cache, self._ids, self._whole = cache, ids[:done], in_chunks(len(ids), chunk)
        pieces = split_question(torch.tensor([ids[done:]]), chunk, self._widths) if done < len(ids) else []
        with suppress(Stopped):  # something else is to be done; what was read stays
            for piece in pieces:
                read_question(
                    self._loaded.model,
                    piece,
                    cache.buffer,
                    chunk_size=chunk,
                    widths=self._widths,
                    should_stop=should_stop,
                )
                self._ids += piece[0].tolist()

    def take(self, cache: TextCache, ids: Sequence[int]) -> int:
        """Leave in the cache what was read of a question, all but its last token at most; how many tokens that is.

        They are the caller's from then on: to be cleaned up, as what is read behind them.
        """
        kept = self._kept(cache, ids, len(ids) - 1)
        self._cache, self._ids = None, []
        return kept

    def forget(self) -> None:
        """The cache holds its document again, and nothing behind it."""
        if self._cache is not None:
            self._cache.clean()
        self._cache, self._ids = None, []

    def _kept(self, cache: TextCache, ids: Sequence[int], most: int) -> int:
        """Crop what was read to what is of this question, too."""
        if cache is not self._cache:
            self.forget()
            return 0
        whole, kept = in_chunks(len(ids), self._loaded.chunk), min(common_length(self._ids, ids), most)
        if whole != self._whole or kept < whole:  # it would be read in other pieces now
            kept = 0
        clean_up(cache.buffer, len(cache.ids) + kept)
        return kept
