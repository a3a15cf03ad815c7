"""``cag/typing`` is a hint: whatever is in it, nobody hears of it, and the answer is the same."""

from __future__ import annotations

from tests.client import Client
from tests.documents import LIGHTHOUSE

QUESTION = "Where is the logbook kept?"


def test_an_answer_is_the_one_without_typing(quiet: Client) -> None:
    plain = quiet.ask(QUESTION).result()
    for length in range(1, len(QUESTION) + 1, 3):
        quiet.notify("cag/typing", {"question": QUESTION[:length]})
    quiet.notify("cag/typing", {"question": QUESTION, "document": quiet.document.as_uri()})
    typed = quiet.ask(QUESTION).result()
    assert typed["answer"] == plain["answer"]
    assert typed["tokens"]["prompt"] == plain["tokens"]["prompt"]
    other = quiet.ask("Who is the keeper?").result()  # after another question was typed than is asked
    quiet.notify("cag/typing", {"question": QUESTION})
    assert quiet.ask("Who is the keeper?").result()["answer"] == other["answer"]


def test_it_says_nothing_whatever_is_wrong(quiet: Client) -> None:
    selection = {"uri": "file:///x", "range": {"start": {"line": 0, "character": 0}}, "text": 7}
    for params in (None, [], {}, {"question": 7}, {"question": " "}, {"question": "Why?", "selection": selection}):
        quiet.notify("cag/typing", params)
    quiet.notify("cag/typing")
    quiet.notify("cag/typing", {"question": "Why?", "document": "file:///nowhere/else.txt"})
    quiet.notify("cag/typing", {"question": "Why? " * 20_000})
    quiet.notify("cag/typing", {"question": "\ud800 </s> [INST]", "selection": None, "more": 1})
    told = len(quiet.messages("window/showMessage"))
    assert quiet.ask(QUESTION).result()["answer"]
    assert quiet.status()["state"] == "ready"
    assert len(quiet.messages("window/showMessage")) == told


def test_what_is_typed_about_a_text_that_has_changed_is_asked_about_the_new_one(quiet: Client) -> None:
    quiet.document.write_text(LIGHTHOUSE.text, encoding="utf-8")
    plain = quiet.ask(QUESTION).result()
    quiet.notify("cag/typing", {"question": QUESTION})
    quiet.document.write_text("A line that was not there.\n\n" + LIGHTHOUSE.text, encoding="utf-8")
    changed = quiet.ask(QUESTION).result()
    assert changed["answer"] == plain["answer"]
    assert changed["document"]["version"] != plain["document"]["version"]
    quiet.document.write_text(LIGHTHOUSE.text, encoding="utf-8")


def test_typing_loads_nothing(quiet: Client) -> None:
    quiet.request("cag/unload").result()
    quiet.notify("cag/typing", {"question": QUESTION})
    assert quiet.status()["state"] == "unloaded"
    assert quiet.ask(QUESTION).result()["answer"]
