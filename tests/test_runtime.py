"""Where the front is, who may become it, and that nobody else gets in."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cag_daemon import __version__, places, runtime
from tests.client import ROOT

pytestmark = pytest.mark.skipif(not runtime.shareable(), reason="shared mode needs unix sockets")

NOBODY = 65534


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cag") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        monkeypatch.setenv("XDG_STATE_HOME", f"{folder}/state")
        monkeypatch.setenv("TMPDIR", f"{folder}/tmp")
        Path(folder, "tmp").mkdir()
        yield Path(folder)


@pytest.fixture
def claims() -> Iterator[list[runtime.Claim]]:
    made: list[runtime.Claim] = []
    yield made
    for each in made:
        each.listener.close()
        each.release()


def take(claims: list[runtime.Claim]) -> runtime.Claim:
    claim = runtime.Claim.take()
    assert claim is not None
    claims.append(claim)
    return claim


def reached() -> bool:
    connection = runtime.connect()
    if connection is None:
        return False
    connection.close()
    return True


# ── where ──


def test_the_folder_is_for_this_user_alone(home: Path) -> None:
    assert runtime.runtime_folder() == home / "cag-daemon"
    assert (home / "cag-daemon").stat().st_mode & 0o777 == 0o700


def test_without_a_runtime_directory_it_is_a_temporary_folder_of_the_user(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert runtime.runtime_folder() == home / "tmp" / f"cag-daemon-{os.getuid()}"


def test_a_folder_that_others_may_use_is_refused(home: Path) -> None:
    runtime.runtime_folder().chmod(0o750)
    with pytest.raises(runtime.RuntimeUnusable, match="chmod 700"):
        runtime.runtime_folder()


@pytest.mark.parametrize("what", ["link", "file"])
def test_what_is_no_folder_is_refused(home: Path, what: str) -> None:
    if what == "link":
        (home / "other").mkdir(mode=0o700)
        (home / "cag-daemon").symlink_to(home / "other")
    else:
        (home / "cag-daemon").write_text("")
    with pytest.raises(runtime.RuntimeUnusable, match="no folder"):
        runtime.runtime_folder()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_another_users_folder_is_refused() -> None:
    os.chown(runtime.runtime_folder(), NOBODY, NOBODY)
    with pytest.raises(runtime.RuntimeUnusable, match="another user's"):
        runtime.socket_path()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_another_users_runtime_directory_is_left_alone(home: Path) -> None:
    os.chown(home, NOBODY, NOBODY)  # as `su` leaves the variable
    assert runtime.runtime_folder().is_relative_to(home / "tmp")
    assert not (home / "cag-daemon").exists()


@pytest.mark.parametrize("length", [60, 75, 90, 200])
def test_a_sockets_path_stays_under_100_bytes(home: Path, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    long = home / ("ü" * ((length - len(str(home))) // 2))
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    path = runtime.socket_path()
    assert len(os.fsencode(path)) < runtime.LONGEST
    assert path.is_relative_to(long) == (length == 60)


def test_the_socket_is_named_after_the_installation(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = runtime.socket_path()
    assert first == runtime.socket_path()
    package = home / "elsewhere"
    package.mkdir()
    (package / "a.py").write_text("")
    names = {first}
    monkeypatch.setattr(runtime, "PACKAGE", str(package))
    names.add(runtime.socket_path())
    os.utime(package / "a.py", (1, 1))
    names.add(runtime.socket_path())
    monkeypatch.setattr(sys, "executable", "another")
    names.add(runtime.socket_path())
    monkeypatch.setattr(runtime, "__version__", "99")
    names.add(runtime.socket_path())
    assert len(names) == 5
    assert {len(each.stem) for each in names} == {12}


def test_the_log_is_where_all_logs_are() -> None:
    assert runtime.log_file() == str(places.log_folder() / "daemon.log")


def test_the_greeting_has_of_the_environment_only_what_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAG_MODEL", "m")
    monkeypatch.setenv("SECRET_TOKEN", "s")
    said = runtime.hello("editor", ["--model", "x"])
    assert said["environment"]["CAG_MODEL"] == "m"
    assert "SECRET_TOKEN" not in said["environment"]
    assert (said["purpose"], said["version"], said["arguments"]) == ("editor", __version__, ["--model", "x"])


# ── who ──


def test_there_is_one_front_and_nothing_is_left_of_it(claims: list[runtime.Claim]) -> None:
    assert not reached()
    claim = take(claims)
    assert reached()
    assert claim.holds()
    assert claim.path.stat().st_mode & 0o077 == 0
    assert runtime.Claim.take() is None
    assert reached()
    claim.release()
    assert list(runtime.runtime_folder().iterdir()) == []


def test_a_socket_that_nobody_listens_to_is_replaced(claims: list[runtime.Claim]) -> None:
    code = "import os; from cag_daemon import runtime; assert runtime.Claim.take(); os._exit(0)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert runtime.socket_path().exists()
    assert not reached()
    take(claims)
    assert reached()


def test_a_front_whose_lock_was_deleted_is_not_replaced_while_it_listens(claims: list[runtime.Claim]) -> None:
    claim = take(claims)
    Path(f"{claim.path}.lock").unlink()
    assert runtime.Claim.take() is None
    assert not claim.holds()
    before = claim.listener
    assert claim.renew()
    before.close()
    assert claim.holds()


@pytest.mark.parametrize("deleted", ["socket", "folder"])
def test_a_socket_that_was_deleted_is_made_anew(claims: list[runtime.Claim], deleted: str) -> None:
    claim = take(claims)
    for each in runtime.runtime_folder().iterdir():
        if deleted == "folder" or each.suffix == ".sock":
            each.unlink()
    if deleted == "folder":
        runtime.runtime_folder().rmdir()
    assert not claim.holds()
    before = claim.listener
    assert claim.renew()
    before.close()
    assert claim.holds()
    assert reached()
    assert runtime.Claim.take() is None


def test_who_was_replaced_makes_way(claims: list[runtime.Claim]) -> None:
    old = take(claims)
    for each in runtime.runtime_folder().iterdir():
        each.unlink()
    new = take(claims)
    assert not old.holds()
    assert not old.renew()
    old.release()
    assert new.holds()
    assert reached()


def test_other_installations_are_found(claims: list[runtime.Claim], monkeypatch: pytest.MonkeyPatch) -> None:
    claim = take(claims)
    assert runtime.others() == []
    monkeypatch.setattr(runtime, "__version__", "99")
    assert runtime.others() == [claim.path]


def test_what_a_dead_front_of_another_version_has_left_is_swept_and_a_living_one_stays(
    claims: list[runtime.Claim], monkeypatch: pytest.MonkeyPatch
) -> None:
    living = take(claims)
    monkeypatch.setattr(runtime, "_installation", lambda: "0123456789ab")
    code = (
        "from cag_daemon import runtime; runtime._installation = lambda: '0123456789ab'; import os; "
        "assert runtime.Claim.take(); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    dead = runtime.socket_path()
    assert dead.exists()
    for path in (dead, living.path):
        runtime.sweep(str(path))
    assert not dead.exists()
    assert not Path(f"{dead}.lock").exists()
    assert living.holds()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_another_user_who_listens_is_not_talked_to(
    claims: list[runtime.Claim], monkeypatch: pytest.MonkeyPatch
) -> None:
    take(claims)
    monkeypatch.setattr(runtime, "peer", lambda connection: NOBODY)
    with pytest.raises(runtime.RuntimeUnusable, match="another user"):
        runtime.connect()


def test_the_peer_is_this_user(claims: list[runtime.Claim]) -> None:
    take(claims)
    connection = runtime.connect()
    assert connection is not None
    with connection:
        assert runtime.peer(connection) == os.getuid()


def test_a_front_that_takes_nobody_is_not_waited_for_long(claims: list[runtime.Claim]) -> None:
    claim = take(claims)
    claim.listener.listen(0)
    first = runtime.connect()
    try:
        with pytest.raises(runtime.RuntimeUnusable, match="takes no connection"):
            runtime.connect(timeout=0.2)
    finally:
        assert first is not None
        first.close()


def test_what_the_front_answers_is_the_answer(claims: list[runtime.Claim]) -> None:
    assert runtime.connect() is None
    claim = take(claims)

    def serve() -> None:
        connection, _ = claim.listener.accept()
        with connection:
            connection.recv(100_000)
            connection.sendall(b'{"welcome": {}, "result": {"pid": 1}}\nmore')

    thread = threading.Thread(target=serve)
    thread.start()
    connection = runtime.connect()
    assert connection is not None
    with connection:
        answer = runtime.greet(connection, runtime.hello("status"))
    thread.join()
    assert answer == {"welcome": {}, "result": {"pid": 1}}


def test_a_process_is_told_from_a_later_one_and_from_its_zombie() -> None:
    assert runtime.birth(os.getpid()) == runtime.birth(os.getpid()) is not None
    assert runtime.birth(0) is runtime.birth(2**22 + 1) is None
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert runtime.birth(child.pid) is not None
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert runtime.birth(child.pid) is None
