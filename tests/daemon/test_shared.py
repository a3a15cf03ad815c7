"""Shared mode: one front, one model, one cache of each text for all editors of a user, and none when nobody asks."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.client import (
    CANCELLED,
    CANCELLED_BY_DAEMON,
    ENDS_WITHIN,
    ROOT,
    SHARED,
    SLACK,
    Client,
    alive,
    ask_front,
    still_alive,
)
from tests.daemon.conftest import LONG, SHORT, Daemons
from tests.daemon.trouble import device_that_fails
from tests.documents import LIGHTHOUSE

pytestmark = pytest.mark.skipif(not SHARED, reason="this run is about --standalone")

QUESTION, EXPECTED = "Where is the logbook kept?", "oak chest"
CHANGE = LIGHTHOUSE.changes[0]
KEPT = {"CAG_LINGER_SECONDS": "30"}


def last_cost(client: Client) -> dict[str, int]:
    tokens: dict[str, int] = client.messages("cag/documentChanged")[-1]["params"]["tokens"]
    return tokens


def pid_of_front(client: Client) -> int:
    told = ask_front(client.runtime, "status")
    assert told is not None
    pid: int = told["result"]["pid"]
    return pid


def notices(client: Client, since: int = 0) -> list[str]:
    return [each["params"]["message"] for each in client.messages("window/showMessage", since=since)]


def nothing_left(runtime: Path) -> None:
    """No socket and no lock of a front."""
    deadline = time.monotonic() + ENDS_WITHIN + SLACK
    left = list((runtime / "cag-daemon").iterdir())
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = list((runtime / "cag-daemon").iterdir())
    assert left == []


# ── one for all ─────────────────────────────────────────────────────────────────────────────


def test_two_editors_share_a_front_a_worker_and_the_cache_of_a_text(daemon: Daemons) -> None:
    first = daemon()
    first.wait_status("ready")
    front, worker = first.front(), first.worker()
    second = daemon(beside=first)  # another folder, another name, the same text
    second.wait_status("ready")
    assert last_cost(second)["computed"] == 0
    assert second.watched.children() == []
    assert (second.front(), second.worker_pids()) == (front, [worker.pid])
    assert EXPECTED in first.answer(QUESTION)
    assert EXPECTED in second.answer(QUESTION)
    clients = second.status()["clients"]
    assert [each["documents"] for each in clients] == [[first.document.as_uri()], [second.document.as_uri()]]
    assert {each["name"] for each in clients} == {"tests"}
    second.stop()
    assert len(first.status()["clients"]) == 1
    assert first.worker().pid == worker.pid


def test_an_unsaved_buffer_counts_for_its_own_editor_only(daemon: Daemons) -> None:
    first = daemon()
    second = daemon(folders=[first.folder], beside=first)
    for client in (first, second):
        client.open(client.document, LIGHTHOUSE.text)
    first.change(first.document, LIGHTHOUSE.changed(CHANGE))
    assert CHANGE.expected in first.answer(CHANGE.question)
    assert CHANGE.before in second.answer(CHANGE.question)
    assert first.document_status()["source"] == "buffer"
    assert second.document_status()["source"] == "disk"
    # What is saved counts for both.
    first.document.write_text(LIGHTHOUSE.changed(CHANGE), encoding="utf-8")
    first.save(first.document)
    second.change(second.document, LIGHTHOUSE.changed(CHANGE))
    second.save(second.document)
    assert CHANGE.expected in second.answer(CHANGE.question)


def test_document_prompt_and_length_belong_to_the_client(daemon: Daemons) -> None:
    first = daemon(options={"maxNewTokens": 4})
    other = first.folder / "other.md"
    other.write_text("The harbour master is called Ida Brekke. She keeps two dogs.\n", encoding="utf-8")
    second = daemon(folders=[first.folder], options={"document": "other.md"}, beside=first)
    assert first.ask(QUESTION).result()["finishReason"] == "length"
    result = second.ask("What is the harbour master called?").result()
    assert "Ida Brekke" in result["answer"]
    assert result["document"]["uri"] == other.as_uri()
    assert first.worker_pids() == second.worker_pids()


@pytest.mark.exhaustive
def test_who_wants_another_model_gets_it_and_is_told_what_that_costs(daemon: Daemons, slow_flags: list[str]) -> None:
    first = daemon()
    first.wait_status("ready")
    worker = first.worker()
    second = daemon(SHORT, flags=slow_flags, beside=first)
    second.wait_status("ready")
    told = second.wait_for(lambda each: each.get("method") == "window/showMessage", what="what it costs")
    assert "beside embedded" in told["params"]["message"]
    assert "GB of memory" in told["params"]["message"]
    assert alive(worker)
    assert len(first.worker_pids()) == 2
    assert notices(first) == []
    # Settings like the other's bring it back to the other's model, and nobody is kept waiting for the second.
    second.stop()
    first.wait_until(lambda: len(first.worker_pids()) == 1, 10, "the end of the second worker")
    assert EXPECTED in first.answer(QUESTION)
    assert first.worker().pid == worker.pid


@pytest.mark.exhaustive
def test_a_setting_of_the_worker_is_changed_under_nobodys_feet(daemon: Daemons) -> None:
    first, second = (client := daemon()), daemon(beside=client)
    for each in (first, second):
        each.wait_status("ready")
    worker = first.worker()
    second.configure({"cag": {"threads": 2}})
    assert EXPECTED in second.answer(QUESTION)
    assert EXPECTED in first.answer(QUESTION)
    assert worker.pid in first.worker_pids()
    second.configure({"cag": {"threads": None}})
    assert EXPECTED in second.answer(QUESTION)
    first.wait_until(lambda: first.worker_pids() == [worker.pid], 10, "one worker for both")


@pytest.mark.exhaustive
def test_questions_of_different_editors_take_turns_and_never_cancel_each_other(
    daemon: Daemons, slow_flags: list[str]
) -> None:
    first = daemon(SHORT, flags=slow_flags)
    second = daemon(SHORT, flags=slow_flags, beside=first)
    for each in (first, second):
        each.ask("What?", maxNewTokens=1).result()
    many = [first.ask(f"What {number}?", id=str(number), maxNewTokens=6) for number in range(4)]
    first.wait_notification("cag/partial")
    one = second.ask("What else?", id="0", maxNewTokens=6)
    one.result()
    assert sum(each.answered for each in many) <= 2, "who came later waits for one question, not for all"
    many[3].cancel()
    assert many[3].error()["code"] == CANCELLED
    for each in many[:3]:
        each.result()


@pytest.mark.exhaustive
def test_a_text_that_is_waited_for_is_read_before_one_that_is_not(daemon: Daemons, slow_flags: list[str]) -> None:
    first = daemon(SHORT, flags=slow_flags, options={"refresh": "ask"})
    first.ask("What?", maxNewTokens=1).result()
    second = daemon(SHORT + "It purrs.\n", flags=slow_flags, beside=first)
    second.wait_status("ready")
    first.document.write_text(LONG, encoding="utf-8")
    reading = first.ask("What?", maxNewTokens=1)
    first.wait_status(lambda status: status["documents"][0].get("read", 0) > 0, 100)
    # A question that needs no reading is not kept waiting by somebody else's.
    second.ask("What?", maxNewTokens=1).result(30)
    assert not reading.answered
    reading.cancel()
    assert reading.error()["code"] == CANCELLED


@pytest.mark.exhaustive
def test_to_unload_waits_for_what_others_have_asked(daemon: Daemons, slow_flags: list[str]) -> None:
    first = daemon(SHORT, flags=slow_flags)
    second = daemon(SHORT, flags=slow_flags, beside=first)
    for each in (first, second):
        each.wait_status("ready")
    asked = first.ask("What?", id="x", maxNewTokens=30)
    first.wait_notification("cag/partial")
    unloading = second.request("cag/unload")
    assert len(asked.result()["answer"]) > 0
    assert unloading.result() == {}
    for each in (first, second):
        each.wait_status("unloaded")
    first.wait_until(lambda: first.worker_pids() == [], 10, "the end of the worker")
    # Who opens the document is about to ask.
    second.open(second.document, SHORT)
    second.wait_status("ready")
    assert second.worker_pids() != []
    # And whoever else has such a document has it again, too.
    first.wait_status("ready")
    first.ask("What?", maxNewTokens=1).result()


# ── life and death ──────────────────────────────────────────────────────────────────────────


def test_editors_that_start_at_the_same_instant_get_one_front(daemon: Daemons) -> None:
    first = daemon(initialize=False)
    others = [daemon(initialize=False, beside=first) for _ in range(4)]
    for client in (first, *others):
        client.initialize([client.folder])
    told = ask_front(first.runtime, "status")
    assert told is not None
    assert len(told["result"]["clients"]) == 5
    found = [
        each.pid
        for each in psutil.process_iter(["cmdline"])
        if any("front.host" in part for part in each.info["cmdline"] or ())
        and each.environ().get("XDG_RUNTIME_DIR") == str(first.runtime)
    ]
    assert found == [told["result"]["pid"]]


def test_the_front_lingers_with_the_cache_and_then_nothing_is_left(daemon: Daemons) -> None:
    first = daemon(env={"CAG_LINGER_SECONDS": "4"})
    first.wait_status("ready")
    front, worker = first.front(), first.worker()
    first.shutdown()
    first.exit()
    assert first.process.wait(ENDS_WITHIN + SLACK) == 0
    second = daemon(folders=[first.folder], env={"CAG_LINGER_SECONDS": "1"}, beside=first)
    second.wait_status("ready")
    assert last_cost(second)["computed"] == 0
    assert second.worker().pid == worker.pid
    second.shutdown()
    second.exit()
    assert second.process.wait(ENDS_WITHIN + SLACK) == 0
    assert still_alive([front, worker], 1 + ENDS_WITHIN + SLACK) == []
    nothing_left(first.runtime)


@pytest.mark.exhaustive
def test_a_forwarder_that_is_killed_takes_nobody_along(daemon: Daemons, slow_flags: list[str]) -> None:
    first = daemon(SHORT, flags=slow_flags)
    second = daemon(SHORT, flags=slow_flags, beside=first)
    second.wait_status("ready")
    front = first.front()
    answering = first.ask("What?", maxNewTokens=4096, id="x")
    first.wait_notification("cag/partial")
    first.abandoned = True
    first.process.kill()
    second.wait_until(lambda: len(second.status()["clients"]) == 1, 10, "the editor forgotten")
    assert not answering.answered
    # What it had asked is not gone on with for nobody.
    second.ask("What?", maxNewTokens=1).result(20)
    assert second.front() == front


def test_a_front_that_is_killed_is_started_again_with_the_editors_buffers(daemon: Daemons) -> None:
    first = daemon()
    second = daemon(beside=first)
    first.open(first.document, LIGHTHOUSE.text)
    first.change(first.document, LIGHTHOUSE.changed(CHANGE))
    assert CHANGE.expected in first.answer(CHANGE.question)
    second.wait_status("ready")
    front, workers = first.front(), first.workers()
    assert front is not None
    front.kill()
    assert still_alive([front, *workers], ENDS_WITHIN + SLACK) == []
    first.wait_until(lambda: ask_front(first.runtime, "status"), 20, "another front")
    # Without a word, and with what was not saved.
    assert CHANGE.expected in first.answer(CHANGE.question)
    assert first.document_status()["source"] == "buffer"
    assert EXPECTED in second.answer(QUESTION)
    assert pid_of_front(first) == pid_of_front(second) != front.pid
    assert notices(first) == notices(second) == []
    assert len(next(each for each in first.pendings if each.method == "initialize").replies) == 1


@pytest.mark.exhaustive
def test_what_was_asked_of_a_front_that_is_killed_ends_with_a_sentence(daemon: Daemons, slow_flags: list[str]) -> None:
    client = daemon(SHORT, flags=slow_flags)
    client.wait_status("ready")
    asked = client.ask("What?", id="x", maxNewTokens=4096)
    client.wait_notification("cag/partial")
    front = client.front()
    assert front is not None
    front.kill()
    error = asked.error(10)
    assert (error["code"], error["data"]) == (CANCELLED_BY_DAEMON, {"reason": "workerRestarted"})
    assert "ask again" in error["message"]
    assert client.ask("What?", maxNewTokens=1).result()["answer"]


@pytest.mark.exhaustive
def test_a_worker_that_is_killed_comes_back_for_all(daemon: Daemons) -> None:
    first = daemon()
    second = daemon(beside=first)
    for client in (first, second):
        client.wait_status("ready")
    first.worker().kill()
    for client in (first, second):
        client.wait_for(lambda each: each.get("method") == "window/showMessage", what="a word about the worker's end")
        assert EXPECTED in client.answer(QUESTION)
    assert first.worker_pids() == second.worker_pids()


@pytest.mark.exhaustive
@pytest.mark.parametrize("who", ["front", "worker", "forwarder"])
def test_what_is_suspended_goes_on_afterwards(daemon: Daemons, who: str) -> None:
    client = daemon()
    client.wait_status("ready")
    process = {"front": client.front(), "worker": client.worker(), "forwarder": client.watched}[who]
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    asked = client.ask(QUESTION)
    time.sleep(2)
    assert not asked.answered
    process.send_signal(signal.SIGCONT)
    assert EXPECTED in asked.result()["answer"]
    assert notices(client) == []


@pytest.mark.parametrize("gone", ["socket", pytest.param("folder", marks=pytest.mark.exhaustive)])
def test_a_socket_that_is_deleted_is_made_anew_and_nobody_notices(daemon: Daemons, gone: str) -> None:
    first = daemon()
    first.wait_status("ready")
    front = pid_of_front(first)
    folder = first.runtime / "cag-daemon"
    for path in folder.iterdir():
        if gone == "folder" or path.suffix == ".sock":
            path.unlink()
    if gone == "folder":
        folder.rmdir()
    first.wait_until(lambda: (folder.exists() or None) and list(folder.glob("*.sock")), 10, "a socket")
    second = daemon(beside=first)
    assert EXPECTED in second.answer(QUESTION)
    assert pid_of_front(second) == front
    assert EXPECTED in first.answer(QUESTION)


def full_disk() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


@pytest.mark.exhaustive
def test_a_full_disk_costs_only_what_would_have_been_kept(daemon: Daemons, monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.Popen

    class Limited(real):  # type: ignore[misc, valid-type]
        def __init__(self, *args: object, **more: object) -> None:
            super().__init__(*args, preexec_fn=full_disk, **more)

    monkeypatch.setattr(subprocess, "Popen", Limited)
    client = daemon()
    monkeypatch.undo()
    assert EXPECTED in client.answer(QUESTION)
    front = client.front()
    assert front is not None
    assert front.rlimit(psutil.RLIMIT_FSIZE)[0] == 4096, "the test is void"
    client.request("cag/unload").result()
    client.wait_status("unloaded")
    assert EXPECTED in client.answer(QUESTION)
    assert all(path.stat().st_size <= 4096 for path in client.home.rglob("*") if path.is_file())


@pytest.mark.exhaustive
def test_a_device_that_fails_once_costs_a_restart_and_twice_is_said(daemon: Daemons, tmp_path: Path) -> None:
    once = daemon(env=device_that_fails(tmp_path / "once", 1))
    assert EXPECTED in once.answer(QUESTION)
    assert "lost its device" in notices(once)[0]
    twice = daemon(env=device_that_fails(tmp_path / "twice", 2))
    error = twice.ask(QUESTION).error()
    assert error["data"]["reason"] == "modelFailed"
    assert "set device to cpu" in error["message"]
    assert twice.status()["state"] == "failed"
    twice.request("cag/refresh").result()
    assert EXPECTED in twice.answer(QUESTION)


def test_stop_frees_all_and_the_next_question_starts_it_again(daemon: Daemons) -> None:
    first = daemon(env=KEPT)
    second = daemon(beside=first, env=KEPT)
    first.open(first.document, LIGHTHOUSE.text)
    first.change(first.document, LIGHTHOUSE.changed(CHANGE))
    for client in (first, second):
        client.wait_status("ready")
    assert CHANGE.expected in first.answer(CHANGE.question)
    front, workers = first.front(), first.workers()
    assert front is not None
    since = first.mark()
    told = ask_front(first.runtime, "stop")
    assert told is not None
    assert told["result"]["pid"] == front.pid
    assert still_alive([front, *workers], 2 * (ENDS_WITHIN + SLACK)) == []
    nothing_left(first.runtime)
    first.wait_notification("cag/statusChanged", lambda status: status["state"] == "unloaded", since=since)
    time.sleep(1)
    assert ask_front(first.runtime, "status") is None, "nobody asked, and it was started again"
    assert CHANGE.expected in first.answer(CHANGE.question)
    assert EXPECTED in second.answer(QUESTION)
    assert pid_of_front(first) == pid_of_front(second)
    ask_front(first.runtime, "stop")


@pytest.mark.exhaustive
def test_ask_on_the_command_line_joins_the_daemon_that_runs(daemon: Daemons) -> None:
    client = daemon()
    client.wait_status("ready")
    environment = Client.environment(client.home, {"XDG_RUNTIME_DIR": str(client.runtime), "CAG_LINGER_SECONDS": "0"})
    command = [sys.executable, "-m", "cag_daemon", "ask", QUESTION, "--json", "--document", str(client.document)]
    asked = subprocess.run(command, env=environment, cwd=client.home, capture_output=True, text=True, check=True)
    joined = json.loads(asked.stdout)
    assert EXPECTED in joined["answer"]
    assert joined["document"]["uri"] == client.document.as_uri()
    by_itself = subprocess.run([*command, "--standalone"], env=environment, capture_output=True, text=True, check=True)
    alone = json.loads(by_itself.stdout)
    assert joined.keys() == alone.keys()
    assert (joined["answer"], joined["citations"]) == (alone["answer"], alone["citations"])
    log = (client.home / "state" / "cag-daemon" / "log" / "daemon.log").read_text("utf-8")
    assert log.count("the front of version") == 1
    assert len(client.worker_pids()) == 1
    assert [each["name"] for each in client.status()["clients"]] == ["tests"], "it has gone"


@pytest.mark.exhaustive
def test_another_version_lives_beside_and_takes_over_when_nobody_is_left(daemon: Daemons, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "cag_daemon", tmp_path / "newer" / "cag_daemon")
    newer = {"PYTHONPATH": str(tmp_path / "newer")}
    old = daemon(env=KEPT)
    old.wait_status("ready")
    front = old.front()
    new = daemon(beside=old, env=newer)
    assert EXPECTED in new.answer(QUESTION)
    assert EXPECTED in old.answer(QUESTION)
    sockets = list((old.runtime / "cag-daemon").glob("*.sock"))
    assert len(sockets) == 2, "both live"
    new.stop()
    old.shutdown()
    old.exit()
    assert old.process.wait(ENDS_WITHIN + SLACK) == 0
    assert alive(front), "it lingers"
    again = daemon(beside=old, env=newer)
    assert EXPECTED in again.answer(QUESTION)
    assert still_alive([front], 2 * (ENDS_WITHIN + SLACK)) == [], "it need not wait for anybody"


@pytest.mark.exhaustive
def test_the_log_is_a_file_of_ours_and_has_nothing_of_the_document(daemon: Daemons) -> None:
    client = daemon()
    assert EXPECTED in client.answer(QUESTION)
    client.worker().kill()
    client.wait_for(lambda each: each.get("method") == "window/showMessage", what="a word about the worker's end")
    assert EXPECTED in client.answer(QUESTION)
    log = client.home / "state" / "cag-daemon" / "log" / "daemon.log"
    text = log.read_text("utf-8")
    assert "the front of version" in text
    assert "signal 9" in text
    assert EXPECTED not in text
    assert "logbook" not in text
    if hasattr(os, "getuid"):
        assert log.stat().st_mode & 0o077 == 0
