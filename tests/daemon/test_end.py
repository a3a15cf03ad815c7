"""The end: whatever the daemon is doing, it and its worker are gone two seconds after their editor."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.client import CANCELLED_BY_DAEMON, ENDS_WITHIN, ROOT, SLACK, Client, still_alive
from tests.daemon.conftest import LONG, SHORT, Daemons

WORK = {"reading": LONG, "answering": SHORT}


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen]:
    """The process of an editor that holds none of our pipes."""
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def busy(client: Client, state: str):
    """A request under way, and its worker in the middle of it."""
    pending = client.ask("What?", id="busy", maxNewTokens=4096)
    if state == "reading":
        client.wait_status(lambda status: status["documents"] and status["documents"][0].get("read", 0) > 0, 100)
    else:
        client.wait_notification("cag/partial", timeout=100)
    assert client.worker().is_running()
    return pending


def test_exit_after_shutdown_ends_with_0_and_alone_with_1(daemon: Daemons) -> None:
    polite, rude = daemon(None), daemon(None)
    polite.shutdown()
    polite.exit()
    assert polite.wait_end() == 0
    rude.exit()
    assert rude.wait_end() == 1


def test_the_end_of_stdin_is_the_end(daemon: Daemons) -> None:
    early, started, idle = daemon(None, initialize=False), daemon(), daemon(None)
    idle.wait_status("noDocument")
    started.wait_status(lambda status: status["state"] != "starting")
    for client in (early, idle, started):  # one of them is loading
        client.workers()
        client.eof()
        client.wait_end()


def test_the_end_within_a_frame_is_the_end(daemon: Daemons) -> None:
    client = daemon(None)
    client.raw(b"Content-Length: 5000\r\n\r\n{")
    client.eof()
    client.wait_end()


def test_a_process_that_was_not_alive_at_the_start_is_not_watched(daemon: Daemons) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    client = daemon(None, process_id=gone.pid)
    time.sleep(ENDS_WITHIN + SLACK)  # nothing can be awaited: nothing shall happen
    assert client.wait_status("noDocument")


def test_the_end_of_the_editors_process_is_the_end_though_stdin_is_open(
    daemon: Daemons, sleeper: subprocess.Popen
) -> None:
    client = daemon(None, process_id=sleeper.pid)
    client.wait_status("noDocument")
    client.abandoned = True
    sleeper.kill()
    sleeper.wait()
    client.wait_end()


@pytest.mark.parametrize("state", ["reading", pytest.param("answering", marks=pytest.mark.exhaustive)])
def test_shutdown_and_exit_are_heard_at_work(daemon: Daemons, slow_flags: list[str], state: str) -> None:
    client = daemon(WORK[state], flags=slow_flags)
    pending = busy(client, state)
    client.shutdown()
    error = pending.error(10)
    assert (error["code"], error["data"]) == (CANCELLED_BY_DAEMON, {"reason": "shuttingDown"})
    client.exit()
    assert client.wait_end() == 0


@pytest.mark.parametrize("state", [pytest.param("reading", marks=pytest.mark.exhaustive), "answering"])
def test_the_end_of_stdin_is_heard_at_work(daemon: Daemons, slow_flags: list[str], state: str) -> None:
    client = daemon(WORK[state], flags=slow_flags)
    busy(client, state)
    client.eof()
    client.wait_end()


@pytest.mark.exhaustive
def test_exit_alone_is_heard_while_reading(daemon: Daemons, slow_flags: list[str]) -> None:
    client = daemon(LONG, flags=slow_flags)
    busy(client, "reading")
    client.exit()
    assert client.wait_end() == 1


@pytest.mark.exhaustive
def test_the_end_of_the_editors_process_is_noticed_while_answering(
    daemon: Daemons, slow_flags: list[str], sleeper: subprocess.Popen
) -> None:
    client = daemon(SHORT, flags=slow_flags, process_id=sleeper.pid)
    busy(client, "answering")
    client.abandoned = True
    sleeper.kill()
    sleeper.wait()
    client.wait_end()


@pytest.mark.parametrize(
    "state", [*(pytest.param(each, marks=pytest.mark.exhaustive) for each in ("ready", "reading")), "answering"]
)
def test_nothing_outlives_an_editor_that_is_killed(
    daemon: Daemons, slow_flags: list[str], tmp_path: Path, state: str
) -> None:
    order = {
        "cwd": str(tmp_path),
        "folder": str(daemon.workspace(WORK.get(state, SHORT))),
        "flags": [] if state == "ready" else slow_flags,
        "state": state,
    }
    editor = subprocess.Popen(
        [sys.executable, "-m", "tests.daemon.fake_editor", json.dumps(order)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with editor:
        line = editor.stdout.readline()
        assert line, "the fake editor came to nothing"
        left = [psutil.Process(pid) for pid in json.loads(line)]
        assert len(left) >= 2, "a daemon and its worker"
        editor.kill()
    try:
        assert still_alive(left, ENDS_WITHIN + SLACK) == []
    finally:
        for process in still_alive(left, 0):
            process.kill()
