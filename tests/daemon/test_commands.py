"""Commands and code actions: for editors that have no client of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.client import INVALID_PARAMS, Client, range_of
from tests.daemon.conftest import Daemons
from tests.documents import LIGHTHOUSE

QUESTION, EXPECTED = "Where is the logbook kept?", "oak chest"
NOTES = f"// 😀 A note.\n// {QUESTION} Later more.\n\nint main;\n"
EMPTY = {"start": {"line": 1, "character": 4}, "end": {"line": 1, "character": 4}}


@pytest.fixture
def notes(calm: Client) -> Path:
    return calm.folder.with_name("notes beside") / "notes.c"


def shown(client: Client, since: int) -> list[str]:
    return [each["params"]["message"] for each in client.messages("window/showMessage", since=since)]


def code_actions(client: Client, uri: str, where: dict[str, Any]) -> list[dict[str, Any]]:
    params = {"textDocument": {"uri": uri}, "range": where, "context": {"diagnostics": []}}
    return client.request("textDocument/codeAction", params).result() or []


def test_ask_returns_and_shows_the_answer(calm: Client) -> None:
    since = calm.mark()
    result = calm.command("cag.ask", QUESTION).result()
    plain = calm.ask(QUESTION).result()
    assert (result["answer"], result["citations"]) == (plain["answer"], plain["citations"])
    (message,) = shown(calm, since)
    assert plain["answer"] in message
    assert calm.messages("cag/partial", since=since) == []


def test_status_shows_the_sentence(calm: Client) -> None:
    calm.wait_status("ready")
    since = calm.mark()
    status = calm.command("cag.status").result()
    assert shown(calm, since) == [status["message"]]


def test_why_a_command_failed_is_shown(calm: Client) -> None:
    since = calm.mark()
    errors = [calm.command(*call).error() for call in (["cag.ask"], ["cag.ask", " "], ["cag.nonsense"])]
    assert shown(calm, since) == [error["message"] for error in errors]


def test_a_client_of_ours_shows_failures_and_states_itself(quiet: Client) -> None:
    since = quiet.mark()
    quiet.command("cag.ask", " ").error()
    quiet.command("cag.status").result()
    assert shown(quiet, since) == []


def test_a_question_of_our_own_client_is_not_shown(calm: Client) -> None:
    since = calm.mark()
    calm.answer(QUESTION, id="not shown")
    calm.status()
    assert shown(calm, since) == []


def test_ask_takes_a_place_for_the_selection(calm: Client) -> None:
    plain = calm.command("cag.ask", "What is this?").result()
    where = {"uri": calm.document.as_uri(), "range": range_of(LIGHTHOUSE.text, "The lamp burns rapeseed oil")}
    selected = calm.command("cag.ask", "What is this?", where).result()
    assert selected["tokens"]["prompt"] > plain["tokens"]["prompt"] + 3


def test_the_selected_text_of_an_open_buffer_is_the_question(calm: Client, notes: Path) -> None:
    calm.open(notes, NOTES.replace(QUESTION, "What?"))  # not on disk, and changed since it was opened
    calm.change(notes, (range_of(NOTES.replace(QUESTION, "What?"), "What?"), QUESTION))
    since = calm.mark()
    result = calm.command("cag.askSelection", notes.as_uri(), range_of(NOTES, QUESTION)).result()
    assert EXPECTED in result["answer"]
    assert EXPECTED in shown(calm, since)[0]
    calm.close(notes)


def test_the_selected_text_of_a_file_is_the_question(calm: Client, tmp_path: Path) -> None:
    path = tmp_path / "ä note.c"
    path.write_text(NOTES, encoding="utf-8")
    result = calm.command("cag.askSelection", path.as_uri(), range_of(NOTES, QUESTION)).result()
    assert EXPECTED in result["answer"]


def test_status_and_refresh_return_what_their_requests_return(calm: Client) -> None:
    calm.answer(QUESTION)
    calm.wait_status("ready")
    command, request = calm.command("cag.status").result(), calm.status()
    command.pop("unloadsInSeconds", None)
    request.pop("unloadsInSeconds", None)
    assert command == request
    result = calm.command("cag.refresh").result()
    assert result["document"]["uri"] == calm.document.as_uri()
    assert calm.request("workspace/executeCommand", {"command": "cag.status"}).result()["documents"]


@pytest.mark.parametrize("command", ["cag.nonsense", "", "cag", "cag/ask", "editor.action.rename", "cagDaemon.ask"])
def test_an_unknown_command_is_refused(calm: Client, command: str) -> None:
    error = calm.command(command).error()
    assert error["code"] == INVALID_PARAMS
    assert error["data"] == {"parameter": "command"}


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("cag.ask", []),
        ("cag.ask", [""]),
        ("cag.ask", [5]),
        ("cag.ask", [None]),
        ("cag.ask", [[QUESTION]]),
        ("cag.ask", [QUESTION, 5]),
        ("cag.ask", [QUESTION, {"uri": 5}]),
        ("cag.askSelection", []),
        ("cag.askSelection", ["file:///x"]),
        ("cag.askSelection", [5, EMPTY]),
        ("cag.askSelection", ["file:///x", 5]),
        ("cag.askSelection", ["file:///x", {"start": {"line": -1}}]),
        ("cag.askSelection", ["file:///nowhere/at/all.c", {**EMPTY, "end": {"line": 2, "character": 0}}]),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_bad_arguments_of_a_command_are_refused(calm: Client, command: str, arguments: list[Any]) -> None:
    since = calm.mark()
    error = calm.command(command, *arguments).error()
    assert error["code"] == INVALID_PARAMS, error
    assert error["data"]["parameter"]
    assert shown(calm, since) == [] or error["message"] in shown(calm, since)[0]


def test_an_empty_or_blank_selection_is_no_question(calm: Client, notes: Path) -> None:
    calm.open(notes, NOTES)
    blank = {"start": {"line": 2, "character": 0}, "end": {"line": 3, "character": 0}}
    for where in (EMPTY, blank):
        assert calm.command("cag.askSelection", notes.as_uri(), where).error()["code"] == INVALID_PARAMS
    calm.close(notes)


def test_a_selection_beyond_the_text_is_cut_at_its_end(calm: Client, notes: Path) -> None:
    calm.open(notes, QUESTION)
    beyond = {"start": {"line": 0, "character": 0}, "end": {"line": 70, "character": 900}}
    assert EXPECTED in calm.command("cag.askSelection", notes.as_uri(), beyond).result()["answer"]
    calm.close(notes)


def test_a_code_action_asks_the_selection(calm: Client, notes: Path) -> None:
    calm.open(notes, NOTES)
    actions = code_actions(calm, notes.as_uri(), range_of(NOTES, QUESTION))
    (action,) = actions
    command = action["command"] if isinstance(action["command"], dict) else action
    assert action["title"].strip()
    assert command["command"] == "cag.askSelection"
    assert command["arguments"] == [notes.as_uri(), range_of(NOTES, QUESTION)]
    result = calm.request(
        "workspace/executeCommand", {"command": command["command"], "arguments": command["arguments"]}
    ).result()
    assert EXPECTED in result["answer"]
    calm.close(notes)


def test_there_is_no_code_action_without_a_selection(calm: Client, notes: Path) -> None:
    calm.open(notes, NOTES)
    assert code_actions(calm, notes.as_uri(), EMPTY) == []
    calm.close(notes)


def test_a_client_that_shows_answers_itself_is_shown_none(quiet: Client) -> None:
    quiet.document.write_text(LIGHTHOUSE.text, encoding="utf-8")
    since = quiet.mark()
    assert EXPECTED in quiet.command("cag.ask", QUESTION).result()["answer"]
    quiet.status()
    assert shown(quiet, since) == []
    quiet.open(quiet.folder / "notes.c", NOTES)
    assert code_actions(quiet, (quiet.folder / "notes.c").as_uri(), range_of(NOTES, QUESTION)) == []
    quiet.close(quiet.folder / "notes.c")


def test_a_failed_command_fails_like_its_request(daemon: Daemons) -> None:
    client = daemon(None)
    client.wait_status("noDocument")
    for command in (("cag.ask", QUESTION), ("cag.refresh",)):
        assert client.command(*command).error()["data"]["reason"] == "documentNotFound"
    assert client.command("cag.status").result()["state"] == "noDocument"
