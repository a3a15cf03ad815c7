"""The paths that are ours: made for nobody else to read, tagged as caches, told from whatever else lies there."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cag_daemon import places, runtime
from cag_daemon.places import TAG, make_cache_folder
from tests.fake_front import runtime_home

__all__ = ["runtime_home"]  # a fixture

WEIGHTS = "mistralai--Small-int4-0123456789abcdef"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home in which all of our folders are."""
    for name in ("cache", "state", "log", "runtime"):
        function = "default_cache" if name == "cache" else f"{name}_folder"
        monkeypatch.setattr(places, function, lambda name=name: tmp_path / "home" / name)
    return tmp_path / "home"


def write(path: Path, size: int = 10, age: float = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_a_cache_folder_is_for_nobody_else_to_read_and_tagged_by_the_standard(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    make_cache_folder(folder)
    if os.name == "posix":
        assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / TAG).read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55\n")
    assert "cag-daemon" in (folder / TAG).read_text()
    assert [each.name for each in folder.iterdir()] == [TAG]


def test_what_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / TAG).write_text("somebody else's")
    make_cache_folder(tmp_path)
    make_cache_folder(tmp_path)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [(TAG, "somebody else's")]


def test_a_folder_with_other_things_in_it_is_not_tagged_for_that_would_keep_them_out_of_backups(tmp_path: Path) -> None:
    write(tmp_path / "thesis.txt")
    make_cache_folder(tmp_path)
    make_cache_folder(tmp_path / "quantized")
    assert not (tmp_path / TAG).exists()
    assert (tmp_path / "quantized" / TAG).exists()


def test_a_folder_with_nothing_but_ours_is_tagged(tmp_path: Path) -> None:
    write(tmp_path / "quantized" / WEIGHTS / "0")
    write(tmp_path / "quantized" / f".{WEIGHTS}.x1" / "0")
    make_cache_folder(tmp_path / "quantized")
    make_cache_folder(tmp_path)
    assert (tmp_path / "quantized" / TAG).exists()
    assert (tmp_path / TAG).exists()


def test_a_file_in_its_place_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "file")
    with pytest.raises(OSError):
        make_cache_folder(tmp_path / "file")


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_many_at_once_make_one_tag(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    if not links:
        monkeypatch.setattr(places.os, "link", refuse)
    failed: list[BaseException] = []
    start = threading.Barrier(8)

    def make() -> None:
        try:
            start.wait()
            make_cache_folder(tmp_path / "new")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert failed == []
    assert [each.name for each in (tmp_path / "new").iterdir()] == [TAG]
    assert (tmp_path / "new" / TAG).read_text() == places.TAG_TEXT


def test_a_race_lost_to_a_foreign_tag_leaves_that(tmp_path: Path) -> None:
    (tmp_path / TAG).write_text("was first")
    places._write_new(tmp_path / TAG, places.TAG_TEXT)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [(TAG, "was first")]


def test_only_names_of_ours_are_found(tmp_path: Path, home: Path) -> None:
    ours = [
        write(home / "cache" / "quantized" / WEIGHTS / "sub" / "0").parents[1],
        write(tmp_path / "quantized" / f".{WEIGHTS}.x_1" / "0", age=7200).parent,
        write(places.document_folder(tmp_path, tmp_path / "doc.txt") / "0").parent,
        write(home / "log" / "daemon.log"),
        write(home / "log" / "daemon.log.1"),
    ]
    write(tmp_path / "quantized" / "my own" / "0")
    write(tmp_path / "quantized" / "mine-int4")
    write(tmp_path / "quantized" / WEIGHTS)  # a file
    write(tmp_path / "caches" / "notes" / "0")
    write(tmp_path / WEIGHTS / "0")
    write(home / "log" / "notes.txt")
    write(home / "runtime" / "a.sock")  # no socket
    found = places.found(tmp_path)
    assert {each.path for each in found} == set(ours)
    assert {each.size for each in found} == {10}
    assert not any(each.stays for each in found)


def test_what_is_being_written_stays_and_what_was_interrupted_does_not(tmp_path: Path) -> None:
    empty = tmp_path / "quantized" / f".{WEIGHTS}.new"
    empty.mkdir(parents=True)
    write(tmp_path / "quantized" / f".{WEIGHTS}.young" / "0", age=3000)
    write(tmp_path / "quantized" / f".{WEIGHTS}.old" / "0", age=4000)
    stays = {each.path.suffix: bool(each.stays) for each in places.found(tmp_path)}
    assert stays == {".new": True, ".young": True, ".old": False}


def test_the_last_use_is_the_newest_reading_or_writing_in_it(tmp_path: Path) -> None:
    write(tmp_path / "quantized" / WEIGHTS / "0", age=9000)
    write(tmp_path / "quantized" / WEIGHTS / "1", age=5000)
    (found,) = places.found(tmp_path)
    assert found.used == pytest.approx(time.time() - 5000, abs=100)


def test_a_folder_that_is_a_link_is_not_looked_into(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / WEIGHTS / "0")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "quantized").symlink_to(tmp_path / "elsewhere")
    assert places.found(tmp_path / "cache") == []


def test_what_is_kept_of_a_document_is_found_however_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tmp_path / "docs" / "a doc é.txt"
    folder = places.document_folder(tmp_path, document)
    write(folder / "0")
    write(places.document_folder(tmp_path, tmp_path / "other" / "a doc é.txt") / "0")
    document.parent.mkdir()
    monkeypatch.chdir(document.parent)
    for name in (document, Path(document.name), Path("../docs") / document.name):
        assert [each.path for each in places.found_of(tmp_path, name)] == [folder]


def test_only_empty_folders_of_ours_are_removed(tmp_path: Path, home: Path) -> None:
    make_cache_folder(tmp_path / "set")
    make_cache_folder(tmp_path / "set" / "quantized")
    make_cache_folder(home / "cache")
    write(home / "cache" / "thesis.txt")
    places.remove_empty(tmp_path / "set")
    assert not (tmp_path / "set").exists()
    assert (home / "cache" / TAG).exists()


def test_an_empty_folder_with_a_tag_of_another_stays(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / TAG).write_text("another")
    assert places.found(tmp_path / "set") == []
    places.remove_empty(tmp_path / "set")
    assert (tmp_path / "set" / TAG).exists()


# ── of processes ────────────────────────────────────────────────────────────────────────────

unix = pytest.mark.skipif(sys.platform == "win32", reason="no sockets in the file system here")
SOCKET = "0123456789ab.sock"


def socket_in(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    code = f"import socket; socket.socket(socket.AF_UNIX).bind({name!r})"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    return folder / name


def locked(path: Path) -> subprocess.Popen[bytes]:
    """A process that holds the lock of that file."""
    code = (
        f"import fcntl; file = open({str(path)!r}, 'w'); fcntl.flock(file, fcntl.LOCK_EX); print(flush=True); input()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


@unix
def test_what_a_dead_front_has_left_is_found(home: Path) -> None:
    socket_in(home / "runtime", SOCKET)
    write(home / "runtime" / f"{SOCKET}.lock")
    write(home / "runtime" / f"{SOCKET}.start")
    write(home / "runtime" / "notes.lock")
    socket_in(home / "runtime", "another.sock")
    write(home / "runtime" / "ffffffffffff.sock")  # no socket
    found = {each.path.name: (each.what, each.stays) for each in places.found(home / "cache")}
    assert found == {
        SOCKET: ("socket", ""),
        f"{SOCKET}.lock": ("lock", ""),
        f"{SOCKET}.start": ("lock", ""),
    }


@unix
def test_what_belongs_to_a_running_front_stays(home: Path) -> None:
    running, starting, dead = SOCKET, "aaaaaaaaaaaa.sock", "bbbbbbbbbbbb.sock"
    for name in (running, dead):
        socket_in(home / "runtime", name)
        write(home / "runtime" / f"{name}.lock")
        write(home / "runtime" / f"{name}.start")
    with locked(home / "runtime" / f"{running}.lock") as one, locked(home / "runtime" / f"{starting}.start") as two:
        stays = {each.path.name for each in places.found(home / "cache") if each.stays}
        assert stays == {running, f"{running}.lock", f"{running}.start", f"{starting}.start"}
        for process in (one, two):
            process.communicate(b"\n")
    assert not any(each.stays for each in places.found(home / "cache"))


def test_the_note_of_a_standalone_daemon_stays_while_that_lives(home: Path) -> None:
    mine = write(home / "runtime" / f"standalone-{os.getpid()}.json")
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    write(home / "runtime" / f"standalone-{ended.pid}.json")
    reused = write(home / "runtime" / f"standalone-{os.getppid()}.json", age=10**9)  # older than that process
    found = {each.path: each.stays for each in places.found(home / "cache")}
    assert len(found) == 3
    assert {path for path, stays in found.items() if stays} == {mine}
    assert found[reused] == ""


@unix
def test_the_front_and_the_list_agree_on_where_its_files_are(
    runtime_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime_home))
    assert places.runtime_folder() is None
    assert not (runtime_home / "cag-daemon").exists(), "to look is no reason to make it"
    claim = runtime.Claim.take()
    assert claim is not None
    try:
        assert places.runtime_folder() == runtime.runtime_folder()
        found = {each.path: each for each in places._of_processes()}
        assert found[runtime.socket_path()].stays == "a daemon is running"
        assert set(found) == set(runtime.runtime_folder().iterdir())
        assert all(each.stays for each in found.values())
    finally:
        claim.listener.close()
        claim.release()
    assert not any(each.stays for each in places._of_processes())


@unix
def test_they_agree_also_where_the_path_would_be_too_long_for_a_socket(
    runtime_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    long = runtime_home / ("x" * 70)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    monkeypatch.setenv("TMPDIR", str(runtime_home))
    folder = runtime.runtime_folder()
    assert folder == places.runtime_folder() == runtime_home / f"cag-daemon-{os.getuid()}"


@unix
def test_a_runtime_folder_that_is_a_link_is_not_looked_into(
    runtime_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime_home))
    (runtime_home / "elsewhere").mkdir(0o700)
    (runtime_home / "cag-daemon").symlink_to(runtime_home / "elsewhere")
    assert places.runtime_folder() is None


@unix
@pytest.mark.parametrize("state", ["", "set"])
def test_the_log_is_where_the_front_writes_it(state: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path) if state else "")
    assert str(places.log_folder() / "daemon.log") == runtime.log_file()
