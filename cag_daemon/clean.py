"""`clean`: what is kept on this machine, with its size; asks, and deletes that and nothing else."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from cag_daemon import places
from cag_daemon.brought import Brought, brought
from cag_daemon.config import Settings
from cag_daemon.errors import CagError, InvalidParams
from cag_daemon.places import Kept

# A path that could not be deleted, and why.
Failure = tuple[Path, str]


def clean(settings: Settings, document: str | None, models: bool, yes: bool, as_json: bool) -> int:
    """List what is ours, ask, delete; 0, 1 where something could not be deleted, 2 where nobody could be asked.

    Args:
        settings: where caches are kept.
        document: only what is kept of that file.
        models: also what `pull` brought into the hub's cache.
        yes: delete without asking.
        as_json: the list as JSON on stdout, which deletes only with ``yes``.

    Raises:
        CagError: a folder can't be looked into.
        InvalidParams: what was asked for does not go together.
    """
    if document is not None and models:
        raise InvalidParams("--models belongs to no document: leave out --document, or --models.", "models")
    with contextlib.suppress(AttributeError):  # a character that a pipe's encoding lacks is no reason to fail
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        listed = _listed(settings.cache_directory, document, models)
        others = [] if models or document is not None else [each for each, _ in _models()]
    except OSError as error:
        raise CagError(f"{error.filename} can't be looked into ({places.why(error)}): make it readable.") from error
    going = [(kept, delete) for kept, delete in listed if not kept.stays]
    left = [kept for kept, _ in listed if kept.stays]
    if as_json:
        return _as_json(settings, going, left, yes)
    if listed:
        _show([kept for kept, _ in listed])
    if not going:
        click.echo(_nothing(document, bool(left)))
    _say_others(others)
    if not going:
        return 0
    if not yes:
        if sys.stdin is None or not sys.stdin.isatty():
            click.echo("cag-daemon: Nothing was deleted: give --yes to delete these without being asked.", err=True)
            return 2
        if not click.confirm("Delete these?"):
            click.echo("Nothing was deleted.")
            return 0
    deleted, failures = _delete(settings, going)
    click.echo(f"Deleted {_count(len(deleted))}, {decimal(sum(each.size for each in deleted))}.")
    for path, why in failures:
        click.echo(f"cag-daemon: {_short(path)} could not be deleted: {why}.", err=True)
    return int(bool(failures))


# ── what there is ───────────────────────────────────────────────────────────────────────────

# What is there, and what deletes it.
Listed = list[tuple[Kept, Callable[[], list[Failure]]]]


def _listed(cache_directory: str, document: str | None, models: bool) -> Listed:
    if document is not None:
        return [(kept, partial(_remove, kept.path)) for kept in places.found_of(cache_directory, Path(document))]

    def remover(kept: Kept) -> Callable[[], list[Failure]]:
        return partial(_remove_empty, kept.path, cache_directory) if kept.empty else partial(_remove, kept.path)

    listed = [(kept, remover(kept)) for kept in places.found(cache_directory)]
    return [*listed, *(_models() if models else ())]


def _models() -> Listed:
    return [(kept, partial(_remove_model, each)) for each in brought() if (kept := each.kept()) is not None]


# ── words ───────────────────────────────────────────────────────────────────────────────────


def _show(listed: list[Kept]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("path", overflow="fold")
    table.add_column("what it is", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("last used", no_wrap=True)
    for kept in listed:
        what = f"{kept.what}; stays: {kept.stays}" if kept.stays else kept.what
        used = "" if kept.used is None else datetime.fromtimestamp(kept.used).strftime("%Y-%m-%d")
        table.add_row(Text(_short(kept.path)), Text(what), decimal(kept.size), used)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 10_000  # for programs, a line each
    console.print(table)
    total = [kept for kept in listed if not kept.stays]
    click.echo(f"{_count(len(total))}, {decimal(sum(kept.size for kept in total))} together.")


def _nothing(document: str | None, left: bool) -> str:
    if left:
        return "There is nothing else to delete."
    if document is not None:
        return f"Nothing is kept of {document}."
    return "Nothing of cag-daemon is kept on this machine."


def _say_others(models: list[Kept]) -> None:
    if models:
        size = decimal(sum(each.size for each in models))
        click.echo(f"Not counting {_count(len(models), 'model')} that pull fetched, {size}: --models adds them.")


def _count(number: int, what: str = "path") -> str:
    return f"{number} {what}" + "s" * (number != 1)


def _short(path: Path) -> str:
    home = Path.home()
    return str(Path("~") / path.relative_to(home)) if path.is_relative_to(home) else str(path)


def _as_json(settings: Settings, going: Listed, left: list[Kept], yes: bool) -> int:
    said: dict[str, Any] = {"paths": [_entry(kept) for kept, _ in going]}
    said["bytes"] = sum(kept.size for kept, _ in going)
    said["left"] = [_entry(kept) | {"why": kept.stays} for kept in left]
    failures: list[Failure] = []
    if yes:
        deleted, failures = _delete(settings, going)
        said["deleted"] = [str(kept.path) for kept in deleted]
        said["failed"] = [{"path": str(path), "why": why} for path, why in failures]
    # Escaped: a path may hold bytes that are no text in any encoding.
    click.echo(json.dumps(said, indent=2))
    return int(bool(failures))


def _entry(kept: Kept) -> dict[str, Any]:
    entry: dict[str, Any] = {"path": str(kept.path), "what": kept.what, "bytes": kept.size}
    if kept.used is not None:
        entry["lastUsed"] = datetime.fromtimestamp(kept.used).astimezone().isoformat(timespec="seconds")
    return entry


# ── deleting ────────────────────────────────────────────────────────────────────────────────


def _delete(settings: Settings, going: Listed) -> tuple[list[Kept], list[Failure]]:
    deleted, failures = [], []
    for kept, delete in going:
        failed = delete()
        failures += failed
        deleted += [] if failed else [kept]
    places.remove_empty(settings.cache_directory)
    return deleted, failures


def _remove(path: Path) -> list[Failure]:
    """Delete a path of ours, whatever it is; of a link the link, never what it leads to."""
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(path)
    except FileNotFoundError:  # gone meanwhile
        return []
    except OSError as error:
        return [(Path(error.filename or path), places.why(error))]
    return []


def _remove_empty(folder: Path, cache_directory: str) -> list[Failure]:
    places.remove_empty(cache_directory)
    return [(folder, "something has come into it, or it may not be removed")] if folder.exists() else []


def _remove_model(note: Brought) -> list[Failure]:
    """Delete what `pull` brought of a model.

    Not by huggingface_hub's own strategy: that takes whole revisions, and is silent about what it may not delete.
    """
    from filelock import FileLock, Timeout

    storage, locks = note.hub / note.folder, note.hub / ".locks" / note.folder
    lock = locks / "cag-daemon-pull.lock"
    try:
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=0):
            failures = _remove_brought(note, storage, locks)
    except Timeout:
        return [(storage, "cag-daemon pull is fetching it now")]
    except OSError as error:
        return [(Path(error.filename or storage), places.why(error))]
    if not failures:
        failures = _remove(note.note)
        with contextlib.suppress(OSError):
            lock.unlink(missing_ok=True)
            locks.rmdir()
    return failures


def _remove_brought(note: Brought, storage: Path, locks: Path) -> list[Failure]:
    ours = note.paths()
    links = [path for path in ours if path.parent.name != "blobs"]
    failures = [failed for path in links for failed in _remove(path)]
    # What a link leads to that is not ours, or could not be deleted, is still needed.
    needed = {each.resolve() for each in storage.glob("snapshots/**/*") if each.is_symlink()}
    for path in ours:
        if path.parent.name == "blobs" and path.resolve() not in needed:
            failures += _remove(path)
            with contextlib.suppress(OSError):
                (locks / f"{path.name.removesuffix('.incomplete')}.lock").unlink(missing_ok=True)
    _tidy(note, storage)
    return failures


def _tidy(note: Brought, storage: Path) -> None:
    """Remove folders that are empty now, and what pointed at a revision that is gone: with it, none could be found."""
    for revision in note.revisions:
        with contextlib.suppress(OSError):
            (storage / "snapshots" / revision).rmdir()
            for branch in storage.glob("refs/**/*"):
                if branch.is_file() and branch.read_text("utf-8").strip() == revision:
                    branch.unlink()
    for name in ("blobs", "snapshots"):
        with contextlib.suppress(OSError):
            (storage / name).rmdir()
    if {each.name for each in places.entries_of(storage)} <= {"refs", "trees", ".no_exist"}:
        shutil.rmtree(storage, ignore_errors=True)  # they only say what was where
