"""``--standalone``: each editor has a process tree of its own, and knows of the others' models only what they cost.

The other tests of this folder run in this mode, too, where CAG_TEST_STANDALONE is set: `.ci/run` does so.
"""

from __future__ import annotations

import json
import os

import psutil
import pytest

from tests.client import SHARED, alive, ask_front
from tests.daemon.conftest import Daemons

ALONE = ("serve", "--standalone")
QUESTION, EXPECTED = "Where is the logbook kept?", "oak chest"


def test_a_second_window_is_told_that_a_model_is_loaded_and_what_another_one_costs(daemon: Daemons) -> None:
    first = daemon(arguments=ALONE)
    first.wait_status("ready")
    assert EXPECTED in first.answer(QUESTION)
    assert first.messages("window/showMessage") == []
    second = daemon(arguments=ALONE, beside=first)
    told = second.wait_for(lambda each: each.get("method") == "window/showMessage", what="a word about the first")
    message = told["params"]["message"]
    assert f"process {first.process.pid}" in message
    assert "embedded" in message
    assert "MB more" in message
    assert EXPECTED in second.answer(QUESTION)
    assert second.worker().pid != first.worker().pid
    assert second.worker().ppid() == second.process.pid
    assert ask_front(first.runtime, "status") is None, "nothing is shared"
    assert "clients" not in second.status()
    second.stop()
    # What is not in memory any more is not told of.
    assert len(list((first.runtime / "cag-daemon").glob("standalone-*"))) == 1
    first.request("cag/unload").result()
    assert list((first.runtime / "cag-daemon").glob("standalone-*")) == []
    assert EXPECTED in first.answer(QUESTION)
    first.stop()
    assert list((first.runtime / "cag-daemon").glob("standalone-*")) == []


@pytest.mark.exhaustive
def test_who_has_died_is_not_told_of(daemon: Daemons) -> None:
    first = daemon(arguments=ALONE)
    first.wait_status("ready")
    folder = first.runtime / "cag-daemon"
    note = json.loads(next(folder.glob("standalone-*.json")).read_text("utf-8"))
    first.abandoned = True
    first.process.kill()
    (folder / "standalone-1.json").write_text(json.dumps(note | {"pid": os.getpid()}), "utf-8")  # another's number
    (folder / "standalone-2.json").write_text("no note", "utf-8")
    second = daemon(arguments=ALONE, beside=first)
    second.wait_status("ready")
    assert second.messages("window/showMessage") == []
    assert [each.name for each in folder.glob("standalone-*")] == [f"standalone-{second.process.pid}.json"]


@pytest.mark.skipif(not SHARED, reason="needs unix sockets")
def test_where_nothing_can_be_shared_the_editor_has_its_own_and_stderr_says_why(daemon: Daemons) -> None:
    client = daemon(initialize=False)
    client.abandoned = True
    client.process.kill()
    folder = client.runtime / "cag-daemon"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)  # for everybody
    other = daemon(beside=client)
    assert EXPECTED in other.answer(QUESTION)
    assert "chmod 700" in other.stderr()
    workers = [each for each in psutil.Process(other.process.pid).children() if alive(each)]
    assert len(workers) == 1
    folder.chmod(0o700)
