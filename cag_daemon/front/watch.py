"""An early warning that a document may have changed on disk.

Events only say where to look, and a look is a `stat`. So what no event reports (a network drive, a used-up watch limit,
a renamed folder far above) is still noticed, only later. Everything slow happens in one thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import re
import sys
import threading
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)

from cag_daemon.text import Stamp, stamp

if TYPE_CHECKING:
    from watchdog.observers.api import BaseObserver, ObservedWatch

Mode = Literal["events", "polling"]

# Seconds: a burst of events is one change; a look where no events come; a look where they do, for what they miss.
_BURST, _POLL, _HEARTBEAT = 0.05, 1.0, 5.0
_MAX_ENTRIES = 1000
# Not those of opening and closing: our own reading must not look like a change.
_EVENTS: list[type[FileSystemEvent]] = [
    *(FileCreatedEvent, FileModifiedEvent, FileMovedEvent, FileDeletedEvent),
    *(DirCreatedEvent, DirMovedEvent, DirDeletedEvent),
]
# File systems where others write without our kernel noticing; and all FUSE.
_EVENTLESS = {
    *("9p", "drvfs", "wslfs", "cifs", "smb3", "smbfs", "nfs", "nfs4", "afs", "ceph", "lustre", "gfs2", "ocfs2"),
    *("virtiofs", "vboxsf", "vmhgfs", "prl_fs", "fakeowner"),
}


@dataclass
class _Document:
    path: Path
    stamp: Stamp | None
    entries: frozenset[str] = frozenset()
    folders: frozenset[str] = frozenset()
    mode: Mode = "polling"


@dataclass
class _Way:
    """The directory entries that decide what a path opens, with links followed, up to the first that is missing."""

    entries: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)

    @property
    def folders(self) -> frozenset[str]:
        """Where to listen: around the file, around its folder (it can be replaced), and around each link."""
        return frozenset(map(os.path.dirname, self.entries[-2:] + self.links))


class Watcher:
    """Watches documents, wherever they are, or will be.

    Args:
        on_change: called on the loop with the path as it was given to `watch`, once for a burst of changes: something
            may have happened to that document.
        loop: where it is called.
        polling: never use events.
    """

    def __init__(
        self, on_change: Callable[[Path], None], loop: asyncio.AbstractEventLoop, *, polling: bool = False
    ) -> None:
        self._on_change = on_change
        self._loop = loop
        self._polling = polling
        self._lock = threading.Lock()
        self._documents: dict[Path, _Document] = {}
        self._closed = False
        # Paths that events named; "" only wakes the thread.
        self._touched: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        # Of the thread alone.
        self._observer: BaseObserver | None = None
        self._watches: dict[str, tuple[tuple[int, int], ObservedWatch]] = {}
        self._handler = _Handler(self._touched)

    def watch(self, path: Path) -> None:
        """Report what happens to a document from now on. It need not exist, nor its folder. Twice is once."""
        with self._lock:
            if self._closed or path in self._documents:
                return
            self._documents[path] = _Document(path, stamp(path))
            if not self._thread.is_alive():
                self._thread.start()
        self._touched.put("")

    def unwatch(self, path: Path) -> None:
        """Report no more of it, from now on; one that is not watched is no error."""
        with self._lock:
            self._documents.pop(path, None)
        self._touched.put("")

    def mode(self, path: Path) -> Mode:
        """Whether changes of a watched document are seen by events, or by looking once a second."""
        document = self._documents.get(path)
        return document.mode if document else "polling"

    def close(self) -> None:
        """Report nothing more, and end the thread. Takes under a second, and never raises."""
        with self._lock:
            self._closed = True
            self._documents.clear()
        self._touched.put("")
        if self._thread.is_alive():
            self._thread.join(0.9)

    def _run(self) -> None:
        while not self._closed:
            documents = list(self._documents.values())
            idle = not all(document.mode == "events" for document in documents)
            touched = self._wait(_POLL if idle else _HEARTBEAT)
            for document in list(self._documents.values()):
                if self._look(document, touched):
                    # RuntimeError: the loop is closed, and nobody is interested any more.
                    with contextlib.suppress(RuntimeError):
                        self._loop.call_soon_threadsafe(self._report, document)
            self._forget(set(self._watches) - {f for document in documents for f in document.folders})
        with contextlib.suppress(Exception):
            if self._observer:
                self._observer.stop()

    def _wait(self, seconds: float) -> set[str]:
        """The paths that events named, after the first has come or the time is over."""
        touched = set()
        with contextlib.suppress(queue.Empty):
            touched.add(self._touched.get(timeout=seconds))
            if not self._closed:
                time.sleep(_BURST)
            while True:
                touched.add(self._touched.get_nowait())
        return touched
