"""Workspace folders: each has its document; documents that come later; files with odd names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.client import REQUEST_FAILED, Client, folder, version_of
from tests.daemon.conftest import Daemons
from tests.documents import BOOKSHOP, GREENHOUSE, LIGHTHOUSE

QUESTION, EXPECTED = "Where is the logbook kept?", "oak chest"
PHONE, NUMBER = "How can the caretaker be reached?", "417"
BOOKS, SAFE = "Where are rare books kept?", "fireproof safe"


def change_folders(client: Client, added: list[Path] = [], removed: list[Path] = []) -> None:  # noqa: B006
    event = {"added": [folder(each) for each in added], "removed": [folder(each) for each in removed]}
    client.notify("workspace/didChangeWorkspaceFolders", {"event": event})


def uris(client: Client) -> list[str]:
    return [each["uri"] for each in client.status()["documents"]]


def test_each_folder_has_its_document_and_folders_come_and_go(daemon: Daemons) -> None:
    light = daemon.workspace(LIGHTHOUSE.text, "light house 😀 ä#?%20")
    green = daemon.workspace(GREENHOUSE.text, "green")
    inner = light / "packages" / "books"  # a folder within a folder
    inner.mkdir(parents=True)
    (inner / "document.txt").write_text(BOOKSHOP.text, encoding="utf-8")
    client = daemon(folders=[light, green])
    client.wait_status(lambda status: [each["state"] for each in status["documents"]] == ["ready", "ready"])
    assert uris(client) == [(each / "document.txt").as_uri() for each in (light, green)]

    # The first folder's is the default; any file of a folder selects that folder's.
    assert EXPECTED in client.answer(QUESTION)
    result = client.ask(PHONE, document=(green / "src" / "main.c").as_uri()).result()
    assert NUMBER in result["answer"]
    assert result["document"] == {
        **result["document"],
        "uri": (green / "document.txt").as_uri(),
        "version": version_of(GREENHOUSE.text),
    }
    assert result["citations"][0]["location"]["uri"] == (green / "document.txt").as_uri()
    assert EXPECTED in client.answer(QUESTION, document=(light / "a.c").as_uri())
    assert NUMBER in client.answer(PHONE, document=(green / "document.txt").as_uri())
    assert client.ask(QUESTION, document=(inner / "x.c").as_uri()).result()["document"]["version"] == version_of(
        LIGHTHOUSE.text
    )
    refreshed = client.request("cag/refresh", {"document": (green / "x").as_uri()}).result()
    assert refreshed["document"]["version"] == version_of(GREENHOUSE.text)

    # Questions about both, together.
    pendings = [client.ask(QUESTION), client.ask(PHONE, document=green.as_uri() + "/x"), client.ask(QUESTION)]
    for pending, expected in zip(pendings, (EXPECTED, NUMBER, EXPECTED), strict=True):
        assert expected in pending.result()["answer"]

    # An edit of one leaves the other alone.
    since = client.mark()
    changed = GREENHOUSE.changed(GREENHOUSE.changes[0])
    (green / "document.txt").write_text(changed, encoding="utf-8")
    assert "852" in client.answer(PHONE, document=(green / "x").as_uri())
    told = {each["params"]["document"]["uri"] for each in client.messages("cag/documentChanged", since=since)}
    assert told == {(green / "document.txt").as_uri()}

    # The innermost folder counts.
    change_folders(client, added=[inner])
    assert SAFE in client.answer(BOOKS, document=(inner / "x.c").as_uri())
    assert EXPECTED in client.answer(QUESTION, document=(light / "packages" / "x.c").as_uri())
    assert len(uris(client)) == 3

    # The first one goes: the next is the default.
    change_folders(client, removed=[light])
    assert "852" in client.answer(PHONE)
    assert client.ask(QUESTION, document=(light / "x.c").as_uri()).reply()["error"]
    assert uris(client) == [(each / "document.txt").as_uri() for each in (green, inner)]

    # All go, and one comes back.
    change_folders(client, removed=[green, inner])
    client.wait_status("noDocument")
    error = client.ask(QUESTION).error()
    assert (error["code"], error["data"]["reason"]) == (REQUEST_FAILED, "documentNotFound")
    assert uris(client) == []
    change_folders(client, added=[light])
    assert EXPECTED in client.answer(QUESTION)


def test_a_daemon_without_a_document_loads_nothing_and_answers_when_one_appears(daemon: Daemons) -> None:
    client = daemon(None)
    status = client.wait_status("noDocument")
    assert [each["state"] for each in status["documents"]] == ["missing"]
    assert client.worker_pids() == []
    error = client.ask(QUESTION).error()
    assert (error["code"], error["data"]["reason"]) == (REQUEST_FAILED, "documentNotFound")
    assert "document.txt" in error["message"]
    assert client.worker_pids() == []

    since = client.mark()
    client.document.write_text(LIGHTHOUSE.text, encoding="utf-8")
    client.wait_notification("cag/documentChanged", since=since)  # seen without being asked
    client.wait_status("ready")
    assert EXPECTED in client.answer(QUESTION)


@pytest.mark.exhaustive
def test_a_buffer_may_be_the_first_there_is_of_a_document(daemon: Daemons) -> None:
    client = daemon(None)
    client.wait_status("noDocument")
    client.open(client.document, "")
    client.change(client.document, LIGHTHOUSE.text)
    result = client.ask(QUESTION).result()
    assert EXPECTED in result["answer"]
    assert client.document_status()["source"] == "buffer"
    client.close(client.document)
    client.wait_status("noDocument")
