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
from dataclasses import dataclass
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
# Linux follows 40 links.
_MAX_LINKS = 40
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


class Watcher:
    """Watches documents, wherever they are, or will be.

    Args:
        on_change: called on the loop with the path as it was given to `watch`, once for a burst of events: something
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
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        # Paths that events named; "" only wakes the thread.
        self._touched: queue.SimpleQueue[str] = queue.SimpleQueue()
        # The rest is the thread's own.
        self._handler = _Handler(self._touched)
        self._observer: BaseObserver | None = None
        self._watches: dict[str, tuple[tuple[int, int], ObservedWatch]] = {}

    def watch(self, path: Path) -> None:
        """Report what happens to a document from now on; it need not exist, nor its folder. Twice is once."""
        document = _Document(path, stamp(path))
        with self._lock:
            if self._closed or path in self._documents:
                return
            self._documents[path] = document
            if self._thread.ident is None:
                self._thread.start()
        self._touched.put("")

    def unwatch(self, path: Path) -> None:
        """Report no more of a document; one that is not watched is no error."""
        with self._lock:
            self._documents.pop(path, None)
        self._touched.put("")

    def mode(self, path: Path) -> Mode:
        """Whether a document's changes are seen by events, or by looking once a second (at first: by looking)."""
        document = self._documents.get(path)
        return document.mode if document else "polling"

    def close(self) -> None:
        """Report nothing more and end the thread: within a second, and without raising."""
        with self._lock:
            self._closed = True
            self._documents.clear()
        self._touched.put("")
        if self._thread.is_alive():
            self._thread.join(0.9)

    def _run(self) -> None:
        documents: list[_Document] = []
        while not self._closed:
            slow = all(document.mode == "events" for document in documents)
            touched = self._wait(_HEARTBEAT if slow else _POLL)
            with self._lock:
                documents = list(self._documents.values())
            for document in documents:
                if self._look(document) or touched & document.entries:
                    # RuntimeError: the loop is closed, and nobody is interested any more.
                    with contextlib.suppress(RuntimeError):
                        self._loop.call_soon_threadsafe(self._report, document)
            for folder in self._watches.keys() - {folder for document in documents for folder in document.folders}:
                self._unlisten(folder)
        if self._observer:
            with contextlib.suppress(Exception):
                self._observer.stop()

    def _wait(self, seconds: float) -> set[str]:
        """The paths that events named in a burst, or none if there was no event for so long.

        A folder that was created, moved or deleted is another folder now, even with the old one's inode number.
        """
        touched = set()
        with contextlib.suppress(queue.Empty):
            touched.add(self._touched.get(timeout=seconds))
            time.sleep(_BURST)
            while True:
                touched.add(self._touched.get_nowait())
        for folder in [folder for folder in self._watches if _key(folder) in touched]:
            self._unlisten(folder)
        return touched

    def _report(self, document: _Document) -> None:
        if self._documents.get(document.path) is document:
            self._on_change(document.path)

    def _look(self, document: _Document) -> bool:
        """Listen wherever something could happen to a document; whether it differs from the last look."""
        if not self._polling:
            entries: list[str] = []
            # What appeared before we listened is found by walking again.
            for _ in range(10):
                before = entries
                entries, folders = _way(document.path)
                if entries == before:
                    break
                document.entries, document.folders = frozenset(map(_key, entries)), folders
                document.mode = "events" if all(map(self._listen, folders)) else "polling"
        last, document.stamp = document.stamp, stamp(document.path)
        return document.stamp != last

    def _listen(self, folder: str) -> bool:
        """Whether events come from a folder, from now on if not before."""
        try:
            status = os.stat(folder)  # noqa: PTH116
            identity = status.st_dev, status.st_ino
            if folder in self._watches:
                if self._watches[folder][0] == identity:
                    return True
                self._unlisten(folder)
            # Watchdog takes a folder that it may not read for one where nothing happens.
            if not os.access(folder, os.R_OK) or not events_come(folder, _mounts()):
                return False
            if self._observer is None:
                self._observer = _start_observer()
            watch = self._observer.schedule(self._handler, folder, event_filter=_EVENTS)
        except Exception:
            # No folder, no more watches to be had, no libc for them: whatever it is, there is polling.
            return False
        self._watches[folder] = identity, watch
        return True

    def _unlisten(self, folder: str) -> None:
        _, watch = self._watches.pop(folder)
        # The folder may be gone, and the watch with it.
        with contextlib.suppress(Exception):
            assert self._observer
            self._observer.unschedule(watch)


class _Handler(FileSystemEventHandler):
    """Passes on which paths events named."""

    def __init__(self, touched: queue.SimpleQueue[str]) -> None:
        self._touched = touched

    def on_any_event(self, event: FileSystemEvent) -> None:
        for path in (event.src_path, event.dest_path):
            if path:
                self._touched.put(_key(os.fsdecode(path)))


def _start_observer() -> BaseObserver:
    from watchdog.observers import Observer

    observer = Observer()
    observer.start()
    return observer


def _way(path: Path) -> tuple[list[str], frozenset[str]]:
    """The directory entries that decide what a path opens, and the folders where a change of them is seen soon.

    Links are followed; the entries end with the file, or with the first that is missing. The folders are those around
    the file, around its folder (which can be replaced as a whole) and around each link.
    """
    path = path.absolute()
    here, rest = Path(path.anchor), list(path.parts[:0:-1])
    entries: list[str] = []
    links: list[str] = []
    while rest and len(links) <= _MAX_LINKS:
        name = rest.pop()
        if name == "..":
            here = here.parent
            continue
        entry = here / name
        try:
            target = entry.readlink()
        except (FileNotFoundError, NotADirectoryError, ValueError):
            entries.append(str(entry))
            break
        except OSError:
            entries.append(str(entry))
            here = entry
            continue
        entries.append(str(entry))
        links.append(str(entry))
        if target.is_absolute():
            here, target = Path(target.anchor), target.relative_to(target.anchor)
        rest += target.parts[::-1]
    return entries, frozenset(os.path.dirname(entry) for entry in [*entries[-2:], *links])  # noqa: PTH120


def events_come(folder: str, mounts: str) -> bool:
    """Whether the kernel sees what happens in a folder, by its file system's type.

    Args:
        folder: absolute, without links.
        mounts: what ``/proc/self/mountinfo`` says; nothing where there is none.
    """
    longest, kind = "", ""
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        point = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), left.split(" ")[4])
        if len(point) >= len(longest) and (point in ("/", folder) or folder.startswith(point + "/")):
            longest, kind = point, right.split(" ")[0]
    return kind not in _EVENTLESS and not kind.startswith("fuse")


def _mounts() -> str:
    try:
        return Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    except OSError:
        return ""


def _key(path: str) -> str:
    """Elsewhere than on Linux a file's name can be spelt in several ways; too much in one is only one look more."""
    return path if sys.platform == "linux" else unicodedata.normalize("NFC", path).casefold()
