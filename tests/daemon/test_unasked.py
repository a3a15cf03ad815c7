"""A reading that takes long never begins unasked, and one that is short does not wait to be asked for."""

from __future__ import annotations

import time

import pytest

from tests.client import Client
from tests.daemon.conftest import LONG, SHORT, Daemons


@pytest.fixture(scope="module")
def long(module_daemon: Daemons, slow_flags: list[str]) -> Client:
    """A daemon that was started with a document whose reading takes minutes."""
    return module_daemon(LONG, flags=slow_flags)


def test_it_is_measured_and_said_and_not_begun(long: Client) -> None:
    status = long.wait_status(lambda status: "reading takes about" in status["short"])
    (document,) = status["documents"]
    assert (status["state"], document["state"]) == ("ready", "waiting")
    assert document["secondsLeft"] >= 10
    assert "tokens" not in document
    assert status["message"].startswith("Reading document.txt takes about ")
    assert status["message"].endswith(": it begins with a question, or refresh to begin now.")
    time.sleep(2)  # and stays so
    assert long.status()["documents"][0]["state"] == "waiting"
    assert long.messages("cag/documentChanged") == []


def test_nor_by_saving_another_long_text(long: Client) -> None:
    before = long.wait_status(lambda status: "reading takes about" in status["short"])["documents"][0]["version"]
    long.document.write_text(LONG + LONG, encoding="utf-8")
    status = long.wait_status(lambda status: status["documents"][0]["version"] != before)
    assert status["documents"][0]["state"] == "waiting"
    long.document.write_text(LONG, encoding="utf-8")
    long.wait_status(lambda status: status["documents"][0]["version"] == before)


def test_a_refresh_begins_it(long: Client) -> None:
    refresh = long.request("cag/refresh", {})
    # What was measured is kept: how fast it is, is told from the next chunk on.
    status = long.wait_status(lambda status: status["documents"][0].get("read", 0) and "about" in status["short"])
    assert status["state"] == "reading"
    assert status["documents"][0]["secondsLeft"] > 5
    refresh.cancel()
    status = long.wait_status(lambda status: "reading takes about" in status["short"])
    assert status["documents"][0]["state"] == "waiting"


def test_a_question_begins_it(long: Client) -> None:
    asked = long.ask("What?")
    long.wait_status(lambda status: status["documents"][0].get("read", 0) > 0)
    asked.cancel()
    long.wait_status(lambda status: "reading takes about" in status["short"])


def test_a_short_text_is_read_at_once(long: Client) -> None:
    long.document.write_text(SHORT, encoding="utf-8")
    status = long.wait_status(lambda status: status["documents"][0]["state"] == "ready")
    assert status["short"].startswith("ready · ")
