"""What `pull` has brought into the hub's cache, which other tools share: noted, so that `clean` deletes just that."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cag_daemon.places import PULLED, Kept, entries_of, size_up, state_folder


@dataclass
class Brought:
    """What `pull` has brought of a model into a hub cache, in a file of our state folder.

    A file is noted before it is fetched, so that a part of it is known, too; and afterwards with its size and time,
    so that what another tool fetches in its place, or before a pull that was killed could, is not taken for ours.

    Attributes:
        hub: the hub cache.
        folder: the model's own in it.
        model: its hub id.
        revisions: those fetched.
        files: relative to the hub cache; size and time of change, None: not whole yet.
    """

    hub: Path
    folder: str
    model: str
    revisions: list[str] = field(default_factory=list)
    files: dict[str, tuple[int, int] | None] = field(default_factory=dict)

    @property
    def note(self) -> Path:
        """Where this stands."""
        key = hashlib.sha256(os.fsencode(self.hub)).hexdigest()[:16]
        return state_folder() / PULLED / f"{self.folder}-{key}.json"

    @contextlib.contextmanager
    def fetching(self, revision: str, *paths: Path) -> Iterator[None]:
        """While these are fetched: those that are not there yet are ours."""
        if revision not in self.revisions:
            self.revisions.append(revision)
        self.files = {name: stamp for name, stamp in self.files.items() if self.is_ours(name)}
        names = [path.absolute().relative_to(self.hub).as_posix() for path in paths]
        self.files |= {name: None for name, path in zip(names, paths, strict=True) if not os.path.lexists(path)}
        self._save()
        try:
            yield
        finally:
            self.files |= {name: _stamp(self.hub / name) for name in names if name in self.files}
            self.files = {name: stamp for name, stamp in self.files.items() if self.is_ours(name)}
            self._save()

    def paths(self) -> list[Path]:
        """What is there of it."""
        return [self.hub / name for name in self.files if self.is_ours(name)]

    def is_ours(self, name: str) -> bool:
        """Whether that path is there, and still what was brought."""
        if name not in self.files or (now := _stamp(self.hub / name)) is None:
            return False
        return self.files[name] == now or (self.files[name] is None and name.endswith(".incomplete"))

    def kept(self) -> Kept | None:
        """All of it as one; None: nothing is there any more."""
        parts = [size_up(path, "") for path in self.paths()]
        size = sum(0 if each.path.is_symlink() else each.size for each in parts)
        used = max((each.used or 0 for each in parts), default=None)
        return Kept(self.hub / self.folder, f"model {self.model}, fetched by pull", size, used) if parts else None

    def _save(self) -> None:
        # A home that can't be written to is no reason for a pull to fail: `clean` then leaves that model alone.
        with contextlib.suppress(OSError):
            self.note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            new = self.note.with_suffix(f".{os.getpid()}.new")
            new.write_text(json.dumps({**vars(self), "hub": str(self.hub)}, indent=1), "utf-8")
            new.replace(self.note)


def brought_of(hub: Path, folder: str, model: str) -> Brought:
    """What is noted of a model, or an empty note."""
    note = Brought(hub.absolute(), folder, model)
    return next((each for each in brought() if each.note == note.note), note)


def brought() -> list[Brought]:
    """Everything that is noted; a note that can't be read counts for nothing."""
    notes = []
    for path in entries_of(state_folder() / PULLED):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            note = _read(json.loads(path.read_text("utf-8")))
            if note.note == path:
                notes.append(note)
    return notes


def _read(said: dict[str, Any]) -> Brought:
    """Only paths in the model's own folder are taken: the note is a file, and somebody may have written into it."""
    inside = re.compile(rf"{re.escape(said['folder'])}/(?:blobs|snapshots/\w+)/(?!\.\.?$)[^/\\]+")
    files = {name: stamp and (int(stamp[0]), int(stamp[1])) for name, stamp in said["files"].items()}
    revisions = [each for each in said["revisions"] if re.fullmatch(r"\w+", each)]
    if not re.fullmatch(r"models--[\w.-]+", said["folder"]) or not all(map(inside.fullmatch, files)):
        raise ValueError("not a note of ours")
    return Brought(Path(said["hub"]), said["folder"], str(said["model"]), revisions, files)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
