"""Daemons that share nothing (``--standalone``) know of each other: a second one says that a model is loaded already.

Each leaves a file with its process and its model in the runtime folder, for as long as that is in memory.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from cag_daemon import runtime
from cag_daemon.front.pool import size
from cag_daemon.messages import Loaded


def greet(model: Loaded) -> str | None:
    """Tell the others that this model is in memory here; what our user should know of theirs, or None."""
    with contextlib.suppress(OSError, runtime.RuntimeUnusable):
        found = [told for path in _notes() if (told := _told(path)) is not None]
        birth = runtime.birth(os.getpid())
        mine = {"pid": os.getpid(), "birth": birth, "model": model.name, "bytes": model.bytes}
        _mine().write_text(json.dumps(mine), encoding="utf-8")
        if found:
            name, bytes_, pid = found[0]
            return (
                f"A model is loaded in another window already ({name}, {size(bytes_)}, process {pid}). This window has "
                f"its own, {model.name}, which takes {size(model.bytes)} more: close the other, or unload it, to free "
                "its memory."
            )
    return None


def leave() -> None:
    """There is no model in memory here any more."""
    with contextlib.suppress(OSError, runtime.RuntimeUnusable):
        _mine().unlink(missing_ok=True)


def _mine() -> Path:
    folder: Path = runtime.runtime_folder()
    return folder / f"standalone-{os.getpid()}.json"


def _notes() -> list[Path]:
    return [path for path in sorted(runtime.runtime_folder().glob("standalone-*.json")) if path != _mine()]


def _told(path: Path) -> tuple[str, int, int] | None:
    """Model, bytes and process of a note, if that process is alive; else the note is removed."""
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        birth = runtime.birth(int(note["pid"]))
        if birth is not None and birth == note["birth"]:
            return str(note["model"]), int(note["bytes"]), int(note["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    path.unlink(missing_ok=True)
    return None
