"""``cag/status`` and ``cag/statusChanged``; progress, the log, and workers that are killed."""

from __future__ import annotations

import itertools
import json

import pytest

from tests.client import (
    CANCELLED_BY_DAEMON,
    REQUEST_FAILED,
    Client,
    version_of,
)
from tests.daemon.conftest import LONG, MEDIUM, SHORT, Daemons, at_rest
from tests.documents import LIGHTHOUSE

QUESTION, EXPECTED = "Where is the logbook kept?", "oak chest"


def test_the_status_of_a_daemon_that_is_ready(calm: Client) -> None:
    calm.answer(QUESTION)
    status = calm.wait_status("ready")
    assert status["message"].strip()
    assert status["queue"] == 0
    model = status["model"]
    assert model["quantization"] == "none"
    assert model["dtype"] == "float32"  # the embedded model's, whatever others get
    assert 4_000_000 < model["parameters"] < 8_000_000
    assert model["bytes"] >= 4 * model["parameters"]
    assert model["chunk"] > 0
    (document,) = status["documents"]
    assert document["uri"] == calm.document.as_uri()
    assert document["state"] == "ready"
    assert document["source"] == "disk"
    assert document["version"] == version_of(LIGHTHOUSE.text)
    assert document["maxTokens"] == 4096 - 256 - 256
    assert 0 < document["tokens"] < document["maxTokens"]
    assert document["bytes"] > 0


def test_the_status_says_which_model_and_why(calm: Client) -> None:
    assert "embedded" in json.dumps(calm.wait_status("ready")).lower()


def test_what_was_told_last_is_what_the_status_says(calm: Client) -> None:
    calm.answer(QUESTION)
    status = calm.wait_status("ready")
    told = calm.messages("cag/statusChanged")[-1]["params"]
    status.pop("unloadsInSeconds", None)
    told.pop("unloadsInSeconds", None)
    assert told == status


def test_a_status_is_told_only_when_it_has_changed(calm: Client) -> None:
    told = [each["params"] for each in calm.messages("cag/statusChanged")]
    assert all(first != second for first, second in itertools.pairwise(told))
    since = calm.mark()
    for _ in range(20):
        calm.status()
    assert len(calm.messages("cag/statusChanged", since=since)) <= 1


def test_the_beginning_is_told_step_by_step(calm: Client) -> None:
    told = [each["params"]["state"] for each in calm.messages("cag/statusChanged")]
    first = {state: told.index(state) for state in ("loading", "ready") if state in told}
    assert list(first) == ["loading", "ready"], told
    assert first["loading"] < first["ready"]
    changed = calm.messages("cag/documentChanged")[0]["params"]  # also after the first reading
    assert changed["document"]["version"] == version_of(LIGHTHOUSE.text)
    assert changed["tokens"]["kept"] == 0
    assert changed["tokens"]["computed"] == changed["tokens"]["total"] > 0


def test_answering_is_told(calm: Client) -> None:
    since = calm.mark()
    calm.answer(QUESTION)
    calm.wait_status("ready")
    told = [each["params"]["state"] for each in calm.messages("cag/statusChanged", since=since)]
    assert "answering" in told


def test_the_queue_counts_those_who_wait(slow: Client) -> None:
    first = slow.ask("What?", id="head", maxNewTokens=4096)
    slow.wait_notification("cag/partial", lambda params: params["id"] == "head")
    others = [slow.ask("Who?", maxNewTokens=1) for _ in range(3)]
    assert slow.wait_status(lambda status: status["queue"] >= 3)["state"] == "answering"
    first.cancel()
    for each in others:
        each.result()
    assert slow.wait_status("ready")["queue"] == 0


def progress(client: Client) -> dict[object, list[dict]]:
    """The values of ``$/progress`` by token; and that each token was created before it was used."""
    values: dict[object, list[dict]] = {}
    for message in client.messages():
        if message.get("method") == "window/workDoneProgress/create":
            assert message["params"]["token"] not in values
            values[message["params"]["token"]] = []
        elif message.get("method") == "$/progress":
            values[message["params"]["token"]].append(message["params"]["value"])
    return values


def check_progress(client: Client, *, open_ones: bool = False) -> list[list[dict]]:
    shown = [values for values in progress(client).values() if values]
    for values in shown:
        kinds = [each["kind"] for each in values]
        assert kinds[0] == "begin"
        assert values[0]["title"].strip()
        assert set(kinds[1:-1]) <= {"report"}
        assert kinds[-1] == "end" or open_ones
        percentages = [each["percentage"] for each in values if "percentage" in each]
        assert percentages == sorted(percentages)
        assert all(0 <= each <= 100 for each in percentages)
    return shown


def test_long_work_is_shown_as_progress_and_ends(slow: Client) -> None:
    slow.document.write_text(LIGHTHOUSE.text, encoding="utf-8")
    before = len(check_progress(slow, open_ones=True))
    result = slow.request("cag/refresh").result()
    assert result["milliseconds"] > 1000, "the test is void: this machine reads the text in no time"
    assert slow.wait_status("ready")
    slow.wait_until(lambda: len(progress(slow)) > before, 20, "the progress")
    slow.wait_until(lambda: list(progress(slow).values())[-1][-1]["kind"] == "end", 20, "the end of the progress")
    assert len(check_progress(slow)) > before


def test_work_of_less_than_a_second_is_not_shown(calm: Client) -> None:
    calm.wait_status("ready")
    check_progress(calm)
    before = len(progress(calm))
    result = calm.request("cag/refresh", {"force": True}).result()
    calm.answer(QUESTION)
    if result["milliseconds"] < 900:
        assert len(progress(calm)) == before


@pytest.mark.exhaustive
def test_a_client_without_progress_gets_none_and_a_killed_worker_comes_back(daemon: Daemons) -> None:
    client = daemon(capabilities={})
    assert EXPECTED in client.answer(QUESTION, whileRefreshing="previous")  # the first reading has no previous one
    assert progress(client) == {}

    for _ in range(2):
        client.wait_status("ready")
        worker, since = client.worker(), client.mark()
        worker.kill()
        client.wait_for(
            lambda message: message.get("method") in ("window/logMessage", "window/showMessage", "cag/statusChanged"),
            since=since,
            what="a word about the worker's end",
        )
        result = client.ask(QUESTION).result()
        assert EXPECTED in result["answer"]
        assert client.worker().pid != worker.pid

    # A worker that dies again and again is not started for ever; to refresh is to try once more.
    for _ in range(2):
        client.wait_status("ready")
        client.worker().kill()
        client.wait_status(lambda status: status["state"] in ("loading", "failed"))
    failed = client.wait_status("failed")
    assert "SIGKILL" in failed["message"]
    assert client.ask(QUESTION).error()["data"]["reason"] == "modelFailed"
    assert client.request("cag/refresh").result()["tokens"]["computed"] > 0
    assert EXPECTED in client.answer(QUESTION)

    client.process.kill()  # the worker ends with the front
    client.wait_end()
    assert client.worker_pids() == []


@pytest.mark.exhaustive
def test_a_worker_killed_while_answering_costs_that_answer_only(slow: Client) -> None:
    pending = slow.ask("What?", id="killed", maxNewTokens=4096)
    slow.wait_notification("cag/partial", lambda params: params["id"] == "killed")
    worker = slow.worker()
    worker.kill()
    error = pending.error()
    assert error["code"] in (CANCELLED_BY_DAEMON, REQUEST_FAILED)
    assert error["data"]["reason"] in ("workerRestarted", "outOfMemory", "modelFailed")
    slow.document.write_text("The dog sleeps in a basket.\n", encoding="utf-8")
    assert slow.ask("What?", maxNewTokens=3).result()["tokens"]["generated"] == 3
    assert slow.worker().pid != worker.pid


def kill_while_reading(client: Client) -> int:
    """Kills the worker in the middle of a reading."""
    client.wait_status(lambda status: status["state"] == "reading" and status["documents"][0].get("read", 0) > 0)
    worker = client.worker()
    worker.kill()
    return worker.pid


@pytest.mark.exhaustive
def test_a_worker_killed_while_reading_comes_back_and_the_question_is_answered(slow: Client) -> None:
    slow.document.write_text(MEDIUM, encoding="utf-8")
    pending = slow.ask("What?", maxNewTokens=3)
    since = slow.mark()
    killed = kill_while_reading(slow)
    said = slow.wait_for(
        lambda message: message.get("method") == "window/showMessage", since=since, what="a word about the worker's end"
    )
    assert "SIGKILL" in said["params"]["message"]
    assert pending.result()["tokens"]["generated"] == 3
    assert slow.worker().pid != killed


@pytest.mark.exhaustive
def test_a_text_that_killed_two_workers_is_not_read_again_by_itself(daemon: Daemons, slow_flags: list[str]) -> None:
    slow = daemon(SHORT, options={"refresh": "ask"}, flags=slow_flags)
    slow.wait_status("ready")
    slow.document.write_text(LONG, encoding="utf-8")
    pending = slow.ask("What?")
    since = slow.mark()
    first = kill_while_reading(slow)
    slow.wait_notification("cag/statusChanged", lambda status: status["state"] == "loading", since=since)
    second = kill_while_reading(slow)
    error = pending.error()
    assert error["code"] == REQUEST_FAILED
    assert error["data"]["reason"] == "outOfMemory"
    failed = slow.wait_status(lambda status: status["documents"][0]["state"] == "failed")
    assert "twice" in failed["documents"][0]["message"]
    again = slow.ask("What?").error()  # it would only be killed again
    assert again["code"] == REQUEST_FAILED
    slow.document.write_text(SHORT, encoding="utf-8")
    assert slow.ask("What?", maxNewTokens=3).result()["tokens"]["generated"] == 3
    assert slow.worker().pid not in (first, second)
    assert at_rest(slow.worker())


@pytest.mark.parametrize("method", ["cag/status", "cag/refresh"])
def test_a_status_and_a_refresh_need_no_model_to_be_answered(bare: Client, method: str) -> None:
    reply = bare.request(method).reply(20)
    assert ("result" in reply) == (method == "cag/status")
    assert bare.worker_pids() == []


# ── in a few words, for a status bar ────────────────────────────────────────────────────────


def test_loading_tells_how_far_it_is(calm: Client) -> None:
    told = [each["params"] for each in calm.messages("cag/statusChanged")]
    loading = [each for each in told if each["state"] == "loading"]
    percents = [each["percent"] for each in loading]
    assert percents == sorted(percents)
    assert {percent for percent in percents if 0 < percent < 100}, percents
    assert max(percents) < 100  # it is not there yet
    assert all(each["short"] == f"loading {each['percent']} %" for each in loading)
    since = calm.mark()
    calm.configure({"cag": {"dtype": "bfloat16"}})
    first = calm.wait_notification("cag/statusChanged", lambda params: params["state"] == "loading", since=since)
    assert first["percent"] == 0  # and not where the one before had come to
    calm.configure({"cag": {"dtype": None}})
    calm.wait_status("ready")


def test_ready_tells_how_much_of_what_fits_is_used(calm: Client) -> None:
    status = calm.wait_status("ready")
    (document,) = status["documents"]
    assert status["short"] == f"ready · {document['tokens']} of 3.6k tokens"
    cached = document["cached"]
    assert (cached["version"], cached["tokens"]) == (document["version"], document["tokens"])
    assert cached["computed"] in (0, cached["tokens"])  # another test may have left it on the disk
    assert "reason" not in status
    assert "percent" not in status


def test_what_is_missing_has_the_reason_of_an_error(bare: Client) -> None:
    status = bare.wait_status("noDocument")
    assert status["short"] == "no document"
    assert status["reason"] == status["documents"][0]["reason"] == "documentNotFound"
    assert "cached" not in status["documents"][0]


def test_a_failure_has_the_reason_of_an_error(daemon: Daemons) -> None:
    client = daemon(" \n")
    status = client.wait_status("failed")
    assert status["reason"] == status["documents"][0]["reason"] == "documentEmpty"
    client.configure({"cag": {"model": "nowhere/at-all"}})
    client.document.write_text(SHORT, encoding="utf-8")
    status = client.wait_status(lambda status: status["state"] == "failed" and status["reason"] == "modelNotFound")
    assert (status["short"], status["reason"]) == ("failed", "modelNotFound")
    assert "reason" not in status["documents"][0]  # the text is all right


def test_reading_tells_the_tokens_and_the_time_that_is_left(slow: Client) -> None:
    before = slow.wait_status("ready")["documents"][0]["cached"]
    slow.document.write_text(LONG, encoding="utf-8")
    refresh = slow.request("cag/refresh", {})
    params = slow.wait_notification(
        "cag/statusChanged", lambda params: params["state"] == "reading" and params["documents"][0].get("secondsLeft")
    )
    (document,) = params["documents"]
    numbers = f"reading {document['read']:,} of {document['tokens']:,} tokens, "
    assert params["short"].startswith(numbers)
    assert params["percent"] == 100 * document["read"] // document["tokens"]
    assert document["cached"] == before  # what a question that may not wait is answered from
    refresh.cancel()
    slow.document.write_text(SHORT, encoding="utf-8")


def test_a_text_that_waits_tells_how_long_its_reading_would_take(slow: Client) -> None:
    held = slow.wait_status("ready")["documents"][0]["version"]
    slow.document.write_text(LONG, encoding="utf-8")
    status = slow.wait_status(lambda status: status["documents"][0]["version"] != held)
    (document,) = status["documents"]
    assert document["state"] == "waiting"
    assert document["secondsLeft"] > 5
    assert document["cached"]["version"] == held
    assert status["short"].endswith(" · text changed")
    slow.document.write_text(SHORT, encoding="utf-8")


def test_a_text_that_cannot_be_read_is_a_failure_also_where_an_earlier_one_is_cached(daemon: Daemons) -> None:
    client = daemon(SHORT)
    held = client.wait_status("ready")["documents"][0]["version"]
    client.document.write_text(MEDIUM * 20, encoding="utf-8")
    status = client.wait_status("failed")
    (document,) = status["documents"]
    assert status["reason"] == document["reason"] == "documentTooLong"
    assert document["cached"]["version"] == held != document["version"]
    assert client.ask("What?", whileRefreshing="previous").result()["snapshot"] == "previous"
