"""``$/cancelRequest``: heard while reading and while answering, and nothing is left of what was cancelled."""

from __future__ import annotations

import pytest

from tests.client import CANCELLED, Client
from tests.daemon.conftest import LONG, MEDIUM, SHORT, at_rest

SOON = 10  # seconds for the reply to a cancelled request, on a machine that has much else to do


def begin_reading(client: Client, request: str = "cag/ask"):
    """A request that reads LONG, and is in the middle of it."""
    client.document.write_text(LONG, encoding="utf-8")
    pending = client.ask("What?", id="reading") if request == "cag/ask" else client.request(request)
    client.wait_status(lambda status: status["state"] == "reading" and status["documents"][0].get("read", 0) > 0)
    return pending


def begin_answering(client: Client, name: str):
    """A question whose answer is endless, and has begun."""
    pending = client.ask("What?", id=name, maxNewTokens=4096)
    client.wait_notification("cag/partial", lambda params: params["id"] == name and params["seq"] >= 1)
    return pending


def check_cancelled(error: dict) -> None:
    assert error["code"] == CANCELLED
    assert "result" not in error


@pytest.mark.parametrize("request_", ["cag/ask", "cag/refresh"])
def test_a_cancel_is_heard_while_reading(slow: Client, request_: str) -> None:
    worker = slow.worker()
    pending = begin_reading(slow, request_)
    pending.cancel()
    check_cancelled(pending.error(SOON))
    assert at_rest(worker), "the worker reads on for nobody"
    status = slow.wait_status(lambda status: status["state"] != "reading")
    assert status["queue"] == 0
    assert status["documents"][0]["state"] == "waiting"

    slow.document.write_text(SHORT, encoding="utf-8")
    assert slow.ask("Where does the cat sleep?", maxNewTokens=4).result()["tokens"]["generated"] == 4
    assert slow.worker().pid == worker.pid, "a cancel costs no worker"


def test_a_cancel_is_heard_while_answering(slow: Client) -> None:
    worker = slow.worker()
    pending = begin_answering(slow, "endless")
    assert slow.status()["state"] == "answering"
    pending.cancel()
    check_cancelled(pending.error(SOON))
    assert at_rest(worker), "the worker answers on for nobody"
    assert slow.wait_status("ready")["queue"] == 0
    assert slow.ask("Where does the cat sleep?", maxNewTokens=4).result()["tokens"]["generated"] == 4
    assert slow.worker().pid == worker.pid


def test_a_cancelled_question_in_the_queue_is_replied_to_before_its_turn(slow: Client) -> None:
    first = begin_answering(slow, "before")
    second, third = slow.ask("What?", id="behind"), slow.ask("Who?", maxNewTokens=2)
    assert slow.wait_status(lambda status: status["queue"] >= 2)["state"] == "answering"
    second.cancel()
    check_cancelled(second.error(SOON))
    assert not first.answered
    first.cancel()
    check_cancelled(first.error(SOON))
    assert third.result()["tokens"]["generated"] == 2
    assert not [each for each in slow.messages("cag/partial") if each["params"]["id"] == "behind"]


@pytest.mark.exhaustive
def test_who_waits_for_the_same_reading_is_not_cancelled_with_another(slow: Client) -> None:
    slow.document.write_text(MEDIUM, encoding="utf-8")
    first, second = slow.ask("What?", maxNewTokens=2), slow.ask("Who?", maxNewTokens=2)
    refresh = slow.request("cag/refresh")
    slow.wait_status("reading")
    first.cancel()
    check_cancelled(first.error(SOON))
    assert second.result()["tokens"]["generated"] == 2
    assert refresh.result()["document"] == second.result()["document"]


def test_what_is_already_answered_cannot_be_cancelled(slow: Client) -> None:
    pending = slow.ask("What?", maxNewTokens=1)
    result = pending.result()
    for _ in range(3):
        pending.cancel()
    assert slow.ask("What?", maxNewTokens=1).result()["answer"] == result["answer"]
    assert len(pending.replies) == 1


def test_a_cancel_sent_twice_is_replied_to_once(slow: Client) -> None:
    pending = begin_answering(slow, "twice cancelled")
    pending.cancel()
    pending.cancel()
    check_cancelled(pending.error(SOON))
    pending.cancel()
    slow.status()
    assert len(pending.replies) == 1


def test_a_cancel_right_behind_its_request_is_heard(slow: Client) -> None:
    pendings = [slow.ask("What?", id=f"at once {n}", maxNewTokens=4096) for n in range(3)]
    for pending in pendings:
        pending.cancel()
    for pending in pendings:
        check_cancelled(pending.error(SOON))
    assert at_rest(slow.worker())


@pytest.mark.exhaustive
def test_cancelled_work_leaves_no_trace_in_later_answers(slow: Client) -> None:
    def essence() -> tuple:
        result = slow.ask("Where does the cat sleep?", maxNewTokens=12).result()
        # How it was drafted may differ: an answer that was given before is proposed again.
        tokens = {name: result["tokens"][name] for name in ("cached", "prompt", "generated")}
        return result["answer"], tokens, result["document"]

    before = essence()
    begin_answering(slow, "trace").cancel()
    assert essence() == before
    begin_reading(slow).cancel()
    slow.document.write_text(SHORT, encoding="utf-8")
    assert essence() == before
    begin_reading(slow, "cag/refresh").cancel()
    slow.document.write_text(SHORT, encoding="utf-8")
    assert essence() == before


def test_a_command_can_be_cancelled_too(slow: Client) -> None:
    pending = slow.command("cag.ask", "Tell me everything, at length.")
    slow.wait_status("answering")
    pending.cancel()
    check_cancelled(pending.error(SOON))
    assert at_rest(slow.worker())
