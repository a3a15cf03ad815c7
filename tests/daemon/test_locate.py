"""``cag/locate``: where the words of an answer stand in the document as it is now."""

from __future__ import annotations

from tests.client import INVALID_PARAMS, Client, range_of, slice16, text_at, version_of
from tests.daemon.conftest import Daemons
from tests.documents import LIGHTHOUSE

QUESTION = "Where is the logbook kept?"


def test_a_citation_is_found_again_after_an_edit(quiet: Client) -> None:
    quiet.document.write_text(LIGHTHOUSE.text, encoding="utf-8")
    result = quiet.ask(QUESTION).result()
    (citation,) = result["citations"]
    words = slice16(result["answer"], *citation["answerRange"])
    edited = "A line that was not there. 🏮\n\n" + LIGHTHOUSE.text
    quiet.document.write_text(edited, encoding="utf-8")
    located = quiet.request("cag/locate", {"text": words, "document": result["document"]["uri"]}).result()
    assert located["document"] == {"uri": quiet.document.as_uri(), "version": version_of(edited)}
    (found,) = located["citations"]
    assert text_at(edited, found["location"]["range"]) == words
    assert found["location"]["range"]["start"]["line"] == citation["location"]["range"]["start"]["line"] + 2
    quiet.document.write_text(LIGHTHOUSE.text, encoding="utf-8")


def test_an_unsaved_buffer_is_what_is_looked_at(quiet: Client) -> None:
    edited = "Written, not saved.\n" + LIGHTHOUSE.text
    quiet.open(quiet.document, LIGHTHOUSE.text)
    quiet.change(quiet.document, edited)
    located = quiet.request("cag/locate", {"text": "Written, not saved."}).result()
    assert located["citations"][0]["location"]["range"] == range_of(edited, "Written, not saved.")
    quiet.close(quiet.document)


def test_words_that_have_gone_are_nowhere(quiet: Client) -> None:
    assert quiet.request("cag/locate", {"text": "Nobody ever wrote these words."}).result()["citations"] == []


def test_nothing_is_loaded_for_it(daemon: Daemons) -> None:
    client = daemon(options={"refresh": "ask"})
    client.wait_status("ready")
    client.request("cag/unload").result()
    assert client.request("cag/locate", {"text": LIGHTHOUSE.text[:40]}).result()["citations"]
    assert client.wait_status("unloaded")
    client.wait_until(lambda: not client.worker_pids(), 5, "the worker gone, and none in its place")


def test_blank_text_is_refused(quiet: Client) -> None:
    for params in ({"text": " "}, {}, {"text": 3}):
        error = quiet.request("cag/locate", params).error()
        assert (error["code"], error["data"]) == (INVALID_PARAMS, {"parameter": "text"})


def test_a_document_that_is_missing_is_an_error(bare: Client) -> None:
    assert bare.request("cag/locate", {"text": "any words"}).error()["data"]["reason"] == "documentNotFound"
