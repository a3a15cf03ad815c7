"""What is cached and what is on disk, kept alike: restored before reading, verified and written when there is time."""

from __future__ import annotations

import logging
import platform
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from cag_daemon.engine.cag import ShouldStop, prefill
from cag_daemon.engine.document_cache import TextCache
from cag_daemon.engine.model import LoadedModel
from cag_daemon.engine.store import Segment, SegmentStore, StoredText
from cag_daemon.errors import Stopped
from cag_daemon.places import CACHES, document_folder

log = logging.getLogger(__name__)


@dataclass
class Task:
    """What is still to be done for a document's text."""

    cache: TextCache
    ids: list[int]
    version: str
    text: StoredText
    to_verify: int | None  # where the segment begins that is computed once more
    to_write: list[int]  # where those begin that are not on disk
    write: bool


class Keeping:
    """The caches of one engine, on disk.

    Args:
        loaded: the model.
        cache_directory: see `places`.
        most_bytes: see `SegmentStore`.
        on_wrong: called with the document whose restored cache was not what it should be.
    """

    def __init__(
        self, loaded: LoadedModel, cache_directory: str, most_bytes: int | None, on_wrong: Callable[[str], object]
    ) -> None:
        self._loaded, self._cache_directory, self._on_wrong = loaded, cache_directory, on_wrong
        folder = Path(cache_directory).expanduser() / CACHES
        self._store = SegmentStore(folder, loaded.key, loaded.chunk, most_bytes, _environment(loaded))
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
        copied = len(cache.ids) - before
        if not copied:
            return 0
        where = before + random.randrange(-(-copied // self._loaded.chunk)) * self._loaded.chunk
        task = Task(cache, ids, version, text, where, [], write=False)
        if text.verified(version) or self._verified(document, task, None):
            self._tasks[document] = task
            return copied
        cache.turn_to(ids[:before], keep=False)
        return 0

    def keep(self, document: str, file: str, version: str, cache: TextCache, ids: list[int], *, write: bool) -> None:
        """A document's text is cached whole: have it on disk when there is time.

        Args:
            write: False: it is not what the file says, and is not written down.
        """
        text = self._text(file, ids)
        known = self._tasks.get(document)
        to_verify = known.to_verify if known is not None and known.ids == ids else None
        self._tasks[document] = Task(cache, ids, version, text, to_verify, text.missing() if write else [], write)

    def forget(self, document: str) -> None:
        """Nothing more is to be done for that document."""
        self._tasks.pop(document, None)

    @property
    def busy(self) -> bool:
        """Whether there is something to be done."""
        return bool(self._tasks)

    def work(self, should_stop: ShouldStop | None = None) -> None:
        """Do a small piece of what there is to do: one segment is verified, or written."""
        document, task = next(iter(self._tasks.items()))
        if task.cache.ids != task.ids or not task.cache.buffer.layers:
            del self._tasks[document]  # overtaken: the newer text has a task of its own
        elif task.to_verify is not None:
            if not self._verified(document, task, should_stop):
                del self._tasks[document]
        elif task.to_write:
            start = task.to_write.pop(0)
            if not task.text.save(start, self._segment(task, start)):
                del self._tasks[document]
        else:
            del self._tasks[document]
            if task.write:
                task.text.finish(task.version)

    def finish(self, until: Callable[[], bool] = lambda: False) -> None:
        """Write what is to be written, without verifying, until it is done or time is up."""
        for task in self._tasks.values():
            task.to_verify = None
        while self._tasks and not until():
            self.work()

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
        config = self._loaded.model.config.get_text_config(decoder=True)
        keys = segment[0]
        return (keys.shape[0], keys.shape[1]) == (config.num_hidden_layers, config.num_key_value_heads) and (
            keys.dtype == self._loaded.model.dtype
        )

    def _verified(self, document: str, task: Task, should_stop: ShouldStop | None) -> bool:
        """Compute one segment once more, in its place, and compare it bit by bit; False: it is not the same."""
        start, task.to_verify = task.to_verify or 0, None
        end = min(len(task.cache.ids), start + self._loaded.chunk)
        layers, length = task.cache.buffer.layers, len(task.cache.ids)
        before = [(layer.keys[:, :, start:end].clone(), layer.values[:, :, start:end].clone()) for layer in layers]
        for layer in layers:
            layer.length = start
        same = True
        try:
            ids = torch.tensor([task.ids[start:end]])
            prefill(self._loaded.model, ids, task.cache.buffer, chunk_size=self._loaded.chunk, should_stop=should_stop)
            same = all(
                torch.equal(layer.keys[:, :, start:end], keys) and torch.equal(layer.values[:, :, start:end], values)
                for layer, (keys, values) in zip(layers, before, strict=True)
            )
        except Stopped:
            task.to_verify = start  # another time
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
            self._on_wrong(document)
        return same


def _environment(loaded: LoadedModel) -> str:
    """What may change bits though nobody would think so: the system, and the driver."""
    parts = [platform.platform(), platform.machine()]
    if loaded.model.device.type == "cuda":
        parts.append(str(torch.cuda.get_device_properties(loaded.model.device)))
    return " · ".join(parts)
