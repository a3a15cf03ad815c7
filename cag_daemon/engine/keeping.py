"""What is cached and what is on disk, kept alike: restored before reading, verified and written when there is time."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cag_daemon.engine.cag import prefill
from cag_daemon.engine.devices import environment
from cag_daemon.engine.document_cache import TextCache, common_length
from cag_daemon.engine.kv_cache import bytes_per_token
from cag_daemon.engine.model import LoadedModel
from cag_daemon.engine.passes import ShouldStop
from cag_daemon.engine.store import Segment, SegmentStore, StoredText
from cag_daemon.errors import Stopped
from cag_daemon.places import CACHES, document_folder

log = logging.getLogger(__name__)


@dataclass
class Task:
    """What is still to be done for a document's text.

    Attributes:
        file: where the document is.
        doubtful: from which token to which it was copied from the disk, and nothing of that computed here; None: none.
        to_write: where the segments begin that are not on disk.
        write: whether it is to be there.
    """

    cache: TextCache
    file: Path
    ids: list[int]
    version: str
    text: StoredText
    doubtful: tuple[int, int] | None
    to_write: list[int]
    write: bool


class Keeping:
    """The caches of one engine, on disk.

    Args:
        loaded: the model.
        cache_directory: see `places`.
        most_bytes: see `SegmentStore`.
        on_wrong: called when a cache from the disk turned out not to be what it should be: nothing that is in memory,
            and may have begun with it, is to be answered from.
    """

    def __init__(
        self, loaded: LoadedModel, cache_directory: str, most_bytes: int | None, on_wrong: Callable[[], object]
    ) -> None:
        self._loaded, self._cache_directory, self._on_wrong = loaded, cache_directory, on_wrong
        folder = Path(cache_directory).expanduser() / CACHES
        self._store = SegmentStore(folder, loaded.key, loaded.chunk, most_bytes, environment(loaded.model.device))
        self._tasks: dict[str, Task] = {}

    def restore(self, document: str, file: str, version: str, cache: TextCache, ids: list[int]) -> int:
        """Copy what is on disk of a text behind what the cache holds of it; how many tokens.

        Args:
            document: its name.
            file: where it is.
        """
        text, before = self._text(file, ids), len(cache.ids)
        for segment in text.load(before):
            if not self._fits(segment):
                break
            keys, values = (each.to(self._loaded.model.device) for each in segment)
            for number, layer in enumerate(cache.buffer.layers):
                layer.update(keys[number][None], values[number][None])
            cache.read(ids[len(cache.ids) : len(cache.ids) + keys.shape[2]])
        if len(cache.ids) == before:
            return 0
        known, first = self._tasks.get(document), before
        if known is not None and known.doubtful is not None and known.cache is cache:
            # It was begun earlier, and broken off: that part has not been verified either.
            first = min(before, known.doubtful[0])
        task = Task(cache, Path(file), ids, version, text, (first, len(cache.ids)), [], write=False)
        if text.verified(version) or self._verified(document, task, None):
            self._tasks[document] = task
            return len(cache.ids) - before
        cache.turn_to(ids[:before], keep=False)
        return 0

    def keep(self, document: str, file: str, version: str, cache: TextCache, ids: list[int], *, write: bool) -> None:
        """A document's text is cached whole: have it on disk when there is time.

        Args:
            write: False: it is not what the file says, and is not written down.
        """
        text, doubtful = self._text(file, ids), None
        known = self._tasks.get(document)
        write = write or (known is not None and known.write and known.ids == ids)
        if known is not None and known.doubtful is not None and known.cache is cache:
            # What an edit has left of it is as doubtful as before.
            start, end = known.doubtful
            common = common_length(known.ids, ids)
            end = min(end, common if common == len(ids) == len(known.ids) else common - common % self._loaded.chunk)
            doubtful = (start, end) if end > start else None
        missing = text.missing() if write else []
        self._tasks[document] = Task(cache, Path(file), ids, version, text, doubtful, missing, write)

    def drop(self, document: str, file: str, ids: list[int]) -> None:
        """What is on disk of a document is not to be used again, whatever it is."""
        self._text(file, ids).drop()
        self._tasks.pop(document, None)

    def forget(self, document: str) -> None:
        """Nothing more is to be done for that document."""
        self._tasks.pop(document, None)

    @property
    def busy(self) -> bool:
        """Whether there is something to be done."""
        return bool(self._tasks)

    def work(self, should_stop: ShouldStop | None = None) -> None:
        """Do a small piece of what there is to do: one segment is verified, or written."""
        self._work(*next(iter(self._tasks.items())), should_stop)

    def finish(self, document: str | None = None, until: Callable[[], bool] = lambda: False) -> None:
        """Write what is to be written, without verifying, until it is done or time is up.

        Args:
            document: that one, which leaves memory, and of which nothing is to be done afterwards; None: all.
        """
        for each in [document] if document is not None else list(self._tasks):
            while (task := self._tasks.get(each)) is not None and not until():
                task.doubtful = None
                self._work(each, task)
        if document is not None:
            self.forget(document)

    def carry_over(self, other: Keeping) -> None:
        """Have done here what is still to be done there, where caches were kept until now."""
        for document, task in other._tasks.items():
            text = self._text(str(task.file), task.ids)
            missing = text.missing() if task.write else []
            self._tasks[document] = replace(task, text=text, to_write=missing)

    def _work(self, document: str, task: Task, should_stop: ShouldStop | None = None) -> None:
        try:
            self._piece(document, task, should_stop)
        except Exception:  # a cache that can't be kept costs a reading, one day; it is no error for anybody
            log.exception("The cache of %s can't be kept on disk.", document)
            self._tasks.pop(document, None)

    def _piece(self, document: str, task: Task, should_stop: ShouldStop | None) -> None:
        whole, held = task.cache.ids == task.ids, task.cache.ids
        there = bool(task.cache.buffer.layers) and bool(held)
        if task.doubtful is not None and there and held[: task.doubtful[1]] == task.ids[: task.doubtful[1]]:
            # Also of a reading that was broken off: it will be gone on with.
            if not self._verified(document, task, should_stop):
                self._tasks.clear()
                self._on_wrong()
        elif not whole or not there:
            del self._tasks[document]  # overtaken: the newer text has a task of its own
        elif task.to_write:
            start = task.to_write.pop(0)
            if not task.text.save(start, self._segment(task, start)):
                del self._tasks[document]
        else:
            del self._tasks[document]
            if task.write:
                task.text.finish(task.version)

    def _text(self, file: str, ids: list[int]) -> StoredText:
        return self._store.text(document_folder(self._cache_directory, Path(file)), ids)

    def _segment(self, task: Task, start: int) -> Segment:
        end = min(len(task.ids), start + self._loaded.chunk)
        layers = task.cache.buffer.layers
        keys = torch.stack([layer.keys[0, :, start:end] for layer in layers])
        values = torch.stack([layer.values[0, :, start:end] for layer in layers])
        return keys.cpu(), values.cpu()

    def _fits(self, segment: Segment) -> bool:
        """Whether it is of this model's shape; the key says so, and so it is not believed."""
        config, dtype = self._loaded.model.config.get_text_config(decoder=True), self._loaded.model.dtype
        keys, values = segment
        size = keys.shape[2] * bytes_per_token(config, dtype)
        shape = (config.num_hidden_layers, config.num_key_value_heads)
        return tuple(keys.shape[:2]) == shape and keys.dtype == dtype and keys.nbytes + values.nbytes == size

    def _verified(self, document: str, task: Task, should_stop: ShouldStop | None) -> bool:
        """Compute a segment once more, in its place, and compare it bit by bit; False: what is on disk is dropped."""
        assert task.doubtful is not None
        (first, last), chunk = task.doubtful, self._loaded.chunk
        start = first + random.randrange(-(-(last - first) // chunk)) * chunk
        end, length = min(last, start + chunk), len(task.cache.ids)
        layers = task.cache.buffer.layers
        before = [(layer.keys[:, :, start:end].clone(), layer.values[:, :, start:end].clone()) for layer in layers]
        for layer in layers:
            layer.length = start
        same = True
        try:
            ids = torch.tensor([task.ids[start:end]])
            prefill(self._loaded.model, ids, task.cache.buffer, chunk_size=chunk, should_stop=should_stop)
            same = all(
                torch.equal(layer.keys[:, :, start:end], keys) and torch.equal(layer.values[:, :, start:end], values)
                for layer, (keys, values) in zip(layers, before, strict=True)
            )
            task.doubtful = None
        except Stopped:
            pass  # another time
        finally:
            for layer, (keys, values) in zip(layers, before, strict=True):
                layer.length = start
                layer.update(keys, values)
                layer.length = length
        if not same:
            log.warning(
                "The cache of %s on disk is not what this model makes of the text here; it is read anew.", document
            )
            task.text.drop()
        return same
