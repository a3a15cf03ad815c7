"""What a request with bad params gets: its error, its parameter named, one reply, and the daemon lives on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.client import (
    INVALID_PARAMS,
    REQUEST_FAILED,
    Client,
)
from tests.daemon.conftest import Daemons
from tests.documents import LIGHTHOUSE

QUESTION, EXPECTED = "Where is the logbook kept?", "oak chest"
RANGE = {"start": {"line": 0, "character": 0}, "end": {"line": 0, "character": 1}}

BAD_ASKS: list[tuple[Any, str]] = [
    *[
        ({"question": value}, "question")
        for value in ("", " ", "\n\t \r\n", "\u00a0", None, 5, 1.5, True, [], ["x"], {})
    ],
    ({}, "question"),
    ({"id": "x", "maxNewTokens": 5}, "question"),
    *[({"id": value}, "id") for value in (5, True, ["x"], {"a": 1}, 1.5)],
    *[({"maxNewTokens": value}, "maxNewTokens") for value in (0, -1, 4097, 10**30, True, False, "5", 1.5, [5], {})],
    *[({"whileRefreshing": value}, "whileRefreshing") for value in ("later", "", "WAIT", 1, True, ["wait"])],
    *[
        ({"document": value}, "document")
        for value in (5, True, [], {"uri": "file:///x"}, "", "not a uri", "http://a/b")
    ],
    *[({"selection": value}, "selection") for value in (5, "text", True, [], ["x"], {})],
    ({"selection": {"uri": "file:///x", "text": "x"}}, "selection"),
    ({"selection": {"uri": "file:///x", "range": RANGE}}, "selection"),
    ({"selection": {"uri": 5, "range": RANGE, "text": "x"}}, "selection"),
    ({"selection": {"uri": "file:///x", "range": RANGE, "text": 5}}, "selection"),
    ({"selection": {"uri": "file:///x", "range": {"start": 1}, "text": "x"}}, "selection"),
    ({"conversation": "c1"}, "conversation"),
]


@pytest.mark.parametrize(("params", "parameter"), BAD_ASKS, ids=lambda value: repr(value)[:50])
def test_a_bad_parameter_of_ask_is_named(calm: Client, params: dict[str, Any], parameter: str) -> None:
    if parameter != "question":
        params = {"question": QUESTION} | params
    since = calm.mark()
    error = calm.request("cag/ask", params).error()
    assert error["code"] == INVALID_PARAMS, error
    assert error["data"] == {"parameter": parameter}
    assert parameter in error["message"]
    assert calm.messages("cag/partial", since=since) == []
    assert calm.messages("window/showMessage", since=since) == []


@pytest.mark.parametrize("params", [None, [], ["question"], [{"question": QUESTION}], {}])
def test_params_of_ask_that_hold_no_question(calm: Client, params: Any) -> None:
    error = calm.request("cag/ask", params).error()
    assert error["code"] == INVALID_PARAMS
    assert error["data"]["parameter"] in ("question", "params")
    assert calm.request("cag/ask").error()["code"] == INVALID_PARAMS


@pytest.mark.parametrize("params", [5, "text", True, 1.5])
def test_params_that_are_no_structure_get_an_error(bare: Client, params: Any) -> None:
    for method in ("cag/ask", "cag/refresh"):
        assert bare.request(method, params).error()["code"] in (INVALID_PARAMS, -32600), method
    assert bare.status()["state"] == "noDocument"


@pytest.mark.parametrize(
    ("params", "parameter"),
    [
        ({"force": "yes"}, "force"),
        ({"force": 1}, "force"),
        ({"document": 5}, "document"),
        ({"document": "x"}, "document"),
    ],
)
def test_a_bad_parameter_of_refresh_is_named(calm: Client, params: dict[str, Any], parameter: str) -> None:
    error = calm.request("cag/refresh", params).error()
    assert (error["code"], error["data"]) == (INVALID_PARAMS, {"parameter": parameter})


def test_a_file_outside_of_all_folders_selects_no_document(calm: Client, tmp_path: Path) -> None:
    beside = calm.folder.with_name(calm.folder.name + "er") / "main.c"  # a name that only begins like the folder's
    for path in (tmp_path / "stranger.txt", beside):
        error = calm.ask(QUESTION, document=path.as_uri()).error()
        assert error["code"] in (INVALID_PARAMS, REQUEST_FAILED)
        assert error["data"].get("parameter") == "document" or error["data"].get("reason") == "documentNotFound"


def test_a_question_that_does_not_fit_beside_the_document_is_too_long(calm: Client) -> None:
    error = calm.ask("Where is the oak chest? " * 2000, id="long").error()
    assert error["code"] == REQUEST_FAILED
    data = error["data"]
    assert data["reason"] == "questionTooLong"
    assert 0 < data["maxTokens"] < data["tokens"]
    context = 4096  # the embedded model's
    assert data["maxTokens"] <= context - calm.document_status()["tokens"]
    selection = {"uri": calm.document.as_uri(), "range": RANGE, "text": "The cook is called Bruno. " * 2000}
    assert calm.ask("Who is the cook?", selection=selection).error()["data"]["reason"] == "questionTooLong"
    assert EXPECTED in calm.answer(QUESTION)


def test_too_little_room_for_the_answer_ends_it_with_length(calm: Client) -> None:
    # A question that leaves room, but not for 4096 tokens: it is answered, not refused.
    question = "Tell me about the storm and the window and the glass. " * 40
    result = calm.ask(question, maxNewTokens=4096).result(timeout=240)
    assert result["finishReason"] in ("stop", "length")
    assert result["tokens"]["cached"] + result["tokens"]["prompt"] + result["tokens"]["generated"] <= 4096


def test_the_daemon_lives_on_after_all_of_this(calm: Client) -> None:
    assert EXPECTED in calm.answer(QUESTION)


def test_a_relative_document_without_a_folder_is_not_found(daemon: Daemons) -> None:
    client = daemon(folders=[])
    error = client.ask(QUESTION).error()
    assert (error["code"], error["data"]["reason"]) == (REQUEST_FAILED, "documentNotFound")
    assert client.wait_status("noDocument")
    assert client.request("cag/refresh").error()["data"]["reason"] == "documentNotFound"


@pytest.mark.exhaustive
def test_an_absolute_document_needs_no_folder(daemon: Daemons, tmp_path: Path) -> None:
    path = tmp_path / "far away.md"
    path.write_text(LIGHTHOUSE.text, encoding="utf-8")
    client = daemon(folders=[], options={"document": str(path)})
    result = client.ask(QUESTION).result()
    assert EXPECTED in result["answer"]
    assert result["document"]["uri"] == path.as_uri()


def test_a_model_that_is_not_there_is_said_and_another_one_heals_it(daemon: Daemons, tmp_path: Path) -> None:
    client = daemon(options={"model": str(tmp_path / "nowhere")})
    failed = client.wait_status("failed")
    assert "nowhere" in failed["message"]
    error = client.ask(QUESTION).error()
    assert (error["code"], error["data"]["reason"]) == (REQUEST_FAILED, "modelNotFound")
    assert "nowhere" in error["message"]

    empty = tmp_path / "empty model"
    empty.mkdir()
    (empty / "config.json").write_text('{"model_type": "mistral", "architectures": ["MistralForCausalLM"]}')
    client.configure({"cag": {"model": str(empty)}})
    client.wait_status(lambda status: status["state"] == "failed" and "empty model" in status["message"])
    error = client.ask(QUESTION).error()
    assert error["data"]["reason"] in ("modelNotFound", "modelFailed")

    client.configure({"cag": {"model": "mistralai/Mistral-7B-Instruct-v0.3"}})  # not on this disk; no network
    client.wait_status(lambda status: status["state"] == "failed" and "Mistral-7B-Instruct-v0.3" in status["message"])
    assert client.ask(QUESTION).error()["data"]["reason"] == "modelNotFound"

    client.configure({"cag": {"model": "embedded"}})
    assert EXPECTED in client.answer(QUESTION)
    assert client.status()["state"] in ("ready", "answering")
