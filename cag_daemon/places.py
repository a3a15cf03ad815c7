"""The paths that are ours: what is kept on this machine, where, and who writes it. `clean` deletes these and no others.

    cache directory    quantized/<model>-<kind>-<16 hex>/   engine/kept_weights: weights held in 8 or 4 bits
    (a setting)        caches/<file>-<16 hex>/              engine/store: KV caches of a document
                       self-tests/<model>-<16 hex>/         engine/self_test: whether refreshing is exact here
                       …/.<name>.<random>                   work that is under way, or was interrupted
    state folder       pulled/<model>-<16 hex>.json         brought: what `pull` brought into the hub's cache
    log folder         daemon.log, daemon.log.1 …           runtime, front/host: what the front has to say
    runtime folder     <12 hex>.sock, .lock, .start         runtime: where a front is, that it lives, that one starts
                       standalone-<process>.json            front/neighbours: a daemon that shares its model with nobody

The cache directory may be any folder, also one with other things in it: there only these names are ours.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import platformdirs
import psutil

from cag_daemon import runtime
from cag_daemon.errors import one_line

APP = "cag-daemon"
TAG = "CACHEDIR.TAG"
SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55"
TAG_TEXT = (
    f"{SIGNATURE}\n"
    "# This folder is a cache of cag-daemon; `cag-daemon clean` empties it. Backups may leave it out.\n"
    "# What this file is for: https://bford.info/cachedir/\n"
)
QUANTIZED, CACHES, SELF_TESTS, PULLED = "quantized", "caches", "self-tests", "pulled"
OURS = {
    QUANTIZED: (re.compile(r"[\w.-]+-int[48]-[0-9a-f]{16}"), "quantised weights"),
    CACHES: (re.compile(r"[\w.-]+-[0-9a-f]{16}"), "KV cache of a document"),
    SELF_TESTS: (re.compile(r"[\w.-]+-[0-9a-f]{16}"), "result of a self-test"),
}
LOG = re.compile(r"[\w.-]+\.log(?:\.\d+)?")
RUNTIME = re.compile(r"(?P<front>[0-9a-f]{12}\.sock)(?:\.(?:lock|start))?|standalone-(?P<pid>\d+)\.json")
UNDER_WAY_SECONDS = 3600  # what has not been written to for so long was interrupted


@dataclass(frozen=True)
class Kept:
    """A path of ours that is there.

    Attributes:
        path: a file or a folder, all of it ours.
        what: it is, in a few words.
        size: in bytes.
        used: when it was last written or read, in seconds since 1970; None: not known.
        stays: why it can't be deleted now; empty: it can.
        empty: a folder with nothing in it but our tag, and maybe folders like itself.
    """

    path: Path
    what: str
    size: int
    used: float | None
    stays: str = ""
    empty: bool = False


# ── where ───────────────────────────────────────────────────────────────────────────────────


def default_cache() -> Path:
    """The cache directory where none is set."""
    return Path(platformdirs.user_cache_dir(APP))


def state_folder() -> Path:
    """What is to be remembered, and is no cache."""
    return Path(platformdirs.user_state_dir(APP))


def log_folder() -> Path:
    """Logs."""
    return Path(platformdirs.user_log_dir(APP))


def runtime_folder() -> Path | None:
    """Where sockets are; None: it is not there, or not ours. To be looked at it is not made."""
    folder = runtime.folder_path()
    return folder if _is_own_folder(folder) else None


def _is_own_folder(path: Path) -> bool:
    with contextlib.suppress(OSError):
        found = path.lstat()  # in a folder that is open to all, a link may be another's trap
        return stat.S_ISDIR(found.st_mode) and (not hasattr(os, "getuid") or found.st_uid == os.getuid())
    return False


def document_folder(cache_directory: str | Path, document: Path) -> Path:
    """Where the KV caches of a document are kept, whether there are any or not."""
    path = _absolute(document)
    return _absolute(cache_directory) / CACHES / _named(path.name, path.as_uri())


def self_test_folder(cache_directory: str | Path, model: str, key: str) -> Path:
    """Where it is kept what the self-test found for a model in the environment that the key stands for."""
    return _absolute(cache_directory) / SELF_TESTS / _named(model, key)


def self_test_folders(cache_directory: str | Path) -> list[Path]:
    """All of those that there are."""
    pattern, _ = OURS[SELF_TESTS]
    return [each for each in entries_of(_absolute(cache_directory) / SELF_TESTS) if pattern.fullmatch(each.name)]


def _named(name: str, key: str) -> str:
    readable = re.sub(r"[^\w.-]+", "-", name)[:80]
    return f"{readable}-{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"


def make_cache_folder(path: Path) -> None:
    """Have that folder there, for nobody else to read, and tagged as a cache where nothing but ours is in it.

    Where it holds other things (somebody's home) a tag would keep those out of their backups: tag the folder inside.

    Raises:
        OSError: it can't be made, or is a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    names = {each.name for each in path.iterdir()}
    if TAG not in names and not any(_is_foreign(name) for name in names):
        _write_new(path / TAG, TAG_TEXT)


def _is_foreign(name: str) -> bool:
    entries = any(_entry(pattern, name) for pattern, _ in OURS.values())
    return not (name in OURS or entries or name.startswith(f".{TAG}."))


def _entry(pattern: re.Pattern[str], name: str) -> str | None:
    """Whether a folder of that name is ours: "whole", "temporary" or None."""
    if pattern.fullmatch(name):
        return "whole"
    return "temporary" if re.fullmatch(rf"\.{pattern.pattern}\.\w+", name) else None


def _write_new(path: Path, text: str) -> None:
    """Write a file all at once, and never over another one."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        with contextlib.suppress(FileExistsError):
            try:
                os.link(temporary, path)
            except FileExistsError:
                raise
            except OSError:  # no hard links here: not all at once, then
                with path.open("x", encoding="utf-8", newline="\n") as file:
                    file.write(text)
    finally:
        temporary.unlink(missing_ok=True)


# ── what is there ───────────────────────────────────────────────────────────────────────────


def found(cache_directory: str | Path) -> list[Kept]:
    """Everything of ours but what `pull` brought: in that cache directory, the default one, and the other folders.

    Raises:
        OSError: a folder can't be looked into.
    """
    kept: list[Kept] = []
    for top in cache_folders(cache_directory):
        inside = [each for folder in OURS for each in _inside(top, folder)]
        if not inside and _is_tag(top / TAG) and all(_is_tag(each) or _is_empty(each) for each in entries_of(top)):
            inside = [Kept(top, "empty cache folder", (top / TAG).stat().st_size, None, empty=True)]
        kept += inside
    kept += [size_up(each, "log") for each in entries_of(log_folder()) if LOG.fullmatch(each.name) and each.is_file()]
    return [*kept, *_of_processes()]


def found_of(cache_directory: str | Path, document: Path) -> list[Kept]:
    """What is kept of one document.

    Raises:
        OSError: a folder can't be looked into.
    """
    folders = [(top, document_folder(top, document).name) for top in cache_folders(cache_directory)]
    return [each for top, name in folders for each in _inside(top, CACHES) if name in each.path.name]


def cache_folders(cache_directory: str | Path) -> list[Path]:
    """The cache directory, and the one that was used before another was set."""
    return list(dict.fromkeys((_absolute(cache_directory), default_cache())))


def remove_empty(cache_directory: str | Path) -> None:
    """Remove our folders that hold nothing but our tag."""
    tops = cache_folders(cache_directory)
    others = (state_folder() / PULLED, log_folder(), state_folder(), *_runtime())
    for folder in (*(top / name for top in tops for name in OURS), *tops, *others):
        with contextlib.suppress(OSError):  # not ours to remove; or something has come into it just now
            entries = [] if folder.is_symlink() else entries_of(folder)
            if all(_is_tag(each) for each in entries):
                for each in entries:
                    each.unlink()
                folder.rmdir()


def _inside(top: Path, name: str) -> Iterator[Kept]:
    pattern, what = OURS[name]
    for each in entries_of(top / name) if not (top / name).is_symlink() else ():
        kind = _entry(pattern, each.name)
        if kind is None or not (each.is_symlink() or each.is_dir()):
            continue
        kept = size_up(each, what if kind == "whole" else f"{what}, not finished")
        under_way = kind == "temporary" and time.time() - (kept.used or 0) < UNDER_WAY_SECONDS
        stays = "written to within the last hour" if under_way else ""
        yield Kept(kept.path, kept.what, kept.size, kept.used, stays)


def _of_processes() -> Iterator[Kept]:
    """What fronts and other daemons have left in the runtime folder; of those that live it stays."""
    for each in (entry for folder in _runtime() for entry in entries_of(folder)):
        match = RUNTIME.fullmatch(each.name)
        with contextlib.suppress(FileNotFoundError):  # ended meanwhile
            if match is None or stat.S_ISSOCK(each.lstat().st_mode) != (each.suffix == ".sock"):
                continue
            if match["pid"]:
                lives, what = _lives(int(match["pid"]), each.lstat().st_mtime), "note of a daemon"
            else:
                lock = each.with_name(f"{match['front']}.lock")
                lives, what = _is_locked(lock) or _is_locked(each), "socket" if each.suffix == ".sock" else "lock"
            yield replace(size_up(each, what), stays="a daemon is running" if lives else "")


def _runtime() -> list[Path]:
    folder = runtime_folder()
    return [] if folder is None else [folder]


def _lives(pid: int, since: float) -> bool:
    """Whether there is such a process that is older than its note; another may have its number now."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).create_time() < since + 1
    return False


def _is_locked(path: Path) -> bool:
    """Whether a process holds the lock that this file stands for."""
    try:
        import fcntl

        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # ours for an instant, else
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return False
    return False


def size_up(path: Path, what: str) -> Kept:
    """A path with the size and the last use of all that is in it; links are not followed."""
    stats = []
    for each in (path, *(Path(folder, name) for folder, _, names in _walk(path) for name in names)):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            stats.append(each.lstat())
    files = [each for each in stats if not stat.S_ISDIR(each.st_mode)]
    # A folder with nothing in it yet is as new as itself.
    used = max((max(each.st_mtime, each.st_atime) for each in files or stats), default=None)
    return Kept(path, what, sum(each.st_size for each in files), used)


def _walk(path: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    return iter(()) if path.is_symlink() else os.walk(path)


def entries_of(folder: Path) -> list[Path]:
    """What is in a folder, which need not be there."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(folder.iterdir())
    return []


def _is_tag(path: Path) -> bool:
    """Whether it is the tag that we write; in somebody's own folder there may be another."""
    return path.name == TAG and path.is_file() and not path.is_symlink() and path.read_bytes() == TAG_TEXT.encode()


def _is_empty(folder: Path) -> bool:
    """Whether it is one of ours with nothing but a tag in it."""
    return folder.name in OURS and not folder.is_symlink() and all(_is_tag(each) for each in entries_of(folder))


def _absolute(path: str | Path) -> Path:
    return Path(os.path.normpath(Path(path).expanduser().absolute()))


def why(error: OSError) -> str:
    """What the system said, without the path."""
    return error.strerror or one_line(error)
