"""A text that is read slowly while questions come: ``whileRefreshing``, ``refresh``, and what is put off by what."""

from __future__ import annotations

import threading

import pytest

from tests.client import Client, version_of
from tests.daemon.conftest import LONG, MEDIUM, SHORT, at_rest


def begin_reading(client: Client, text: str):
    client.document.write_text(text, encoding="utf-8")
    refresh = client.request("cag/refresh")
    client.wait_status("reading")
    return refresh


def test_previous_is_answered_at_once_from_the_last_whole_cache(slow: Client) -> None:
    plain = slow.ask("Where does the cat sleep?", maxNewTokens=6).result()
    refresh = begin_reading(slow, MEDIUM)
    previous = slow.ask("Where does the cat sleep?", maxNewTokens=6, whileRefreshing="previous").result()
    assert not refresh.answered
    assert previous["snapshot"] == "previous"
    assert previous["document"] == plain["document"]
    assert previous["answer"] == plain["answer"], "half a new text has touched the old one"
    assert refresh.result()["document"]["version"] == version_of(MEDIUM)


def test_wait_is_answered_from_the_text_at_the_arrival_of_the_question(slow: Client) -> None:
    refresh = begin_reading(slow, MEDIUM)
    result = slow.ask("Where does the cat sleep?", maxNewTokens=2).result()
    assert (result["snapshot"], result["document"]["version"]) == ("current", version_of(MEDIUM))
    assert refresh.result()["document"] == result["document"]
    assert result["milliseconds"]["queued"] > 0


def test_an_answer_that_was_overtaken_by_the_file_is_previous(slow: Client) -> None:
    pending = slow.ask("What?", id="overtaken", maxNewTokens=30)
    slow.wait_notification("cag/partial", lambda params: params["id"] == "overtaken")
    slow.open(slow.document, SHORT)
    slow.change(slow.document, MEDIUM)
    result = pending.result()
    assert (result["snapshot"], result["document"]["version"]) == ("previous", version_of(SHORT))
    slow.close(slow.document)


def test_a_reading_that_a_question_waits_for_is_not_put_off_by_newer_text(slow: Client) -> None:
    slow.open(slow.document, SHORT)
    slow.change(slow.document, MEDIUM)
    pending = slow.ask("What?", maxNewTokens=2)
    versions, text = {version_of(MEDIUM)}, MEDIUM
    enough = threading.Event()
    while not pending.answered:  # somebody types all the time
        text += "a"
        versions.add(version_of(text))
        slow.change(slow.document, text)
        enough.wait(0.3)
        assert len(versions) < 300, "the question starves"
    result = pending.result()
    assert result["document"]["version"] in versions
    assert result["snapshot"] == ("current" if result["document"]["version"] == version_of(text) else "previous")
    slow.close(slow.document)


def test_a_newer_text_takes_the_place_of_one_that_nobody_waits_for(slow: Client) -> None:
    slow.configure({"cag": {"refresh": "auto"}})
    try:
        since = slow.mark()
        slow.document.write_text(MEDIUM, encoding="utf-8")
        slow.wait_status("reading")
        text = "The dog sleeps in a basket.\n"
        slow.document.write_text(text, encoding="utf-8")
        slow.wait_notification(
            "cag/documentChanged", lambda params: params["document"]["version"] == version_of(text), since=since
        )
        told = [each["params"]["document"]["version"] for each in slow.messages("cag/documentChanged", since=since)]
        assert told == [version_of(text)]
    finally:
        slow.configure({"cag": {"refresh": "ask"}})


def test_a_reading_ends_when_the_text_is_again_the_one_that_is_cached(slow: Client) -> None:
    slow.configure({"cag": {"refresh": "save"}})
    try:
        slow.document.write_text(LONG, encoding="utf-8")
        slow.wait_status(lambda status: status["documents"][0].get("read", 0) > 0)
        slow.document.write_text(SHORT, encoding="utf-8")  # undone
        status = slow.wait_status("ready", 20)
        assert status["documents"][0]["version"] == version_of(SHORT)
        assert at_rest(slow.worker()), "the worker reads what nobody has any more"
    finally:
        slow.configure({"cag": {"refresh": "ask"}})


def test_a_text_that_takes_long_is_not_read_unasked_before_it_is_saved(slow: Client) -> None:
    # auto: at once where that is estimated under 10 s, otherwise on save or with the next question.
    slow.configure({"cag": {"refresh": "auto"}})
    try:
        slow.open(slow.document, SHORT)
        slow.change(slow.document, LONG)
        status = slow.wait_status(lambda status: status["documents"][0]["source"] == "buffer")
        assert slow.wait_status(lambda status: status["documents"][0]["state"] == "waiting")
        assert status["documents"][0]["uri"] == slow.document.as_uri()
        previous = slow.ask("What?", maxNewTokens=2, whileRefreshing="previous").result()
        assert (previous["snapshot"], previous["document"]["version"]) == ("previous", version_of(SHORT))
        assert slow.document_status()["state"] == "waiting"
        slow.document.write_text(LONG, encoding="utf-8")
        slow.save(slow.document)
        slow.wait_status("reading")
        slow.document.write_text(SHORT, encoding="utf-8")
        slow.wait_status(lambda status: status["documents"][0].get("version") == version_of(SHORT))
    finally:
        slow.close(slow.document)
        slow.configure({"cag": {"refresh": "ask"}})


@pytest.mark.exhaustive
def test_the_status_is_told_at_any_moment_of_a_reading_and_not_too_often(slow: Client) -> None:
    since = slow.mark()
    refresh = begin_reading(slow, MEDIUM)
    asked = []
    while not refresh.answered:
        asked.append(slow.request("cag/status"))
        asked[-1].result(timeout=20)
    refresh.result()
    assert sorted(each.seconds for each in asked)[len(asked) // 2] < 1, "half of them"
    reading = [each.result()["documents"][0] for each in asked if each.result()["state"] == "reading"]
    assert reading
    read = [each["read"] for each in reading if "read" in each]
    assert read == sorted(read)
    assert len(set(read)) > 1, "it is told how far it is"
    assert all(each["read"] <= each["tokens"] for each in reading if "read" in each and "tokens" in each)
    told = [
        each.at
        for each in slow.log[since:]
        if each.message.get("method") == "cag/statusChanged" and each.message["params"]["state"] == "reading"
    ]
    for index, at in enumerate(told):
        within = [each for each in told[index:] if each < at + 1]
        assert len(within) <= 15, "progress is told at most ten times a second"
