"""Once read is read: after a restart the document is copied from the disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client import ROOT, Client
from tests.daemon.conftest import MEDIUM, SHORT, Daemons
from tests.documents import LIGHTHOUSE
from tests.engine.caches import forge

NONE_KEPT = "--cache-max-gigabytes"
QUESTION, EXPECTED = "Where is the logbook kept?", "oak chest"


def segments(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def first_cost(client: Client) -> dict[str, int]:
    client.wait_status("ready")
    tokens: dict[str, int] = client.messages("cag/documentChanged")[0]["params"]["tokens"]
    cached = client.status()["documents"][0]["cached"]
    assert (cached["tokens"], cached["computed"]) == (tokens["total"], tokens["computed"])
    return tokens


def test_the_next_daemon_reads_nothing_and_answers_the_same(daemon: Daemons, tmp_path: Path) -> None:
    workspace, caches = daemon.workspace(), tmp_path / "caches"
    options = {"cacheDirectory": str(caches)}
    first = daemon(folders=[workspace], options=options)
    cost = first_cost(first)
    assert (cost["kept"], cost["computed"] > 100) == (0, True)
    answer = first.ask(QUESTION).result()
    first.stop()  # at the end it is brought to the disk
    assert segments(caches)

    second = daemon(folders=[workspace], options=options)
    assert first_cost(second) == {"total": cost["total"], "kept": cost["total"], "computed": 0}
    again = second.ask(QUESTION).result()
    assert again["answer"] == answer["answer"]
    assert again["citations"] == answer["citations"]
    # Unloading brings it there, too, and the model comes back without reading.
    (workspace / "document.txt").write_text(LIGHTHOUSE.text + "The keeper's cat is called Soot.\n", encoding="utf-8")
    assert "Soot" in second.answer("What is the keeper's cat called?")
    before = segments(caches)
    second.request("cag/unload").result()
    second.wait_status("unloaded")
    assert EXPECTED in second.answer(QUESTION)
    assert len(segments(caches)) > len(before)
    assert second.messages("cag/documentChanged")[-1]["params"]["tokens"]["computed"] == 0


@pytest.mark.exhaustive
def test_it_is_written_when_things_are_quiet(daemon: Daemons, tmp_path: Path) -> None:
    client = daemon(options={"cacheDirectory": str(tmp_path / "caches")})
    client.wait_status("ready")
    assert segments(tmp_path / "caches") == []
    client.wait_until(lambda: len(list((tmp_path / "caches").rglob("*.json"))) == 1, 60, "the manifest")


@pytest.mark.exhaustive
def test_zero_gigabytes_are_none(daemon: Daemons, tmp_path: Path) -> None:
    client = daemon(options={"cacheDirectory": str(tmp_path / "caches"), "cacheMaxGigabytes": 0})
    client.wait_status("ready")
    client.stop()
    assert not (tmp_path / "caches").exists()


def test_an_edit_costs_what_comes_behind_it(daemon: Daemons) -> None:
    client = daemon()
    total = first_cost(client)["total"]
    client.document.write_text(LIGHTHOUSE.text + "The cat is called Soot.\n", encoding="utf-8")
    tokens = client.request("cag/refresh", {}).result()["tokens"]
    assert tokens["total"] > total
    assert tokens["computed"] <= 2 * 128
    client.document.write_text(LIGHTHOUSE.text, encoding="utf-8")
    assert client.request("cag/refresh", {}).result()["tokens"] == {"total": total, "kept": total, "computed": 0}
    forced = client.request("cag/refresh", {"force": True}).result()["tokens"]
    assert forced == {"total": total, "kept": 0, "computed": total}


@pytest.mark.exhaustive
def test_a_cache_that_is_wrong_is_read_again_at_once(daemon: Daemons, tmp_path: Path) -> None:
    """Found out when things are quiet, and mended before anybody asks."""
    workspace, caches = daemon.workspace(), tmp_path / "caches"
    options = {"cacheDirectory": str(caches)}
    first = daemon(folders=[workspace], options=options)
    total = first_cost(first)["total"]
    first.stop()
    forge(caches)
    second = daemon(folders=[workspace], options=options)
    assert first_cost(second)["computed"] == 0
    second.wait_until(lambda: len(second.messages("cag/documentChanged")) > 1, 60, "reading again")
    assert second.messages("cag/documentChanged")[-1]["params"]["tokens"] == {
        "total": total,
        "kept": 0,
        "computed": total,
    }
    assert EXPECTED in second.answer(QUESTION)


@pytest.mark.exhaustive
def test_what_is_typed_first_and_saved_then_is_kept_too(daemon: Daemons, tmp_path: Path) -> None:
    workspace, caches = daemon.workspace(), tmp_path / "caches"
    options = {"cacheDirectory": str(caches)}
    first = daemon(folders=[workspace], options=options)
    first_cost(first)
    text = LIGHTHOUSE.text + "The keeper's cat is called Soot.\n"
    first.open(first.document, LIGHTHOUSE.text)
    first.change(first.document, text)
    assert "Soot" in first.answer("What is the keeper's cat called?")
    first.document.write_text(text, encoding="utf-8")
    first.save(first.document)
    first.wait_status(lambda status: status["documents"][0]["source"] == "disk")
    first.stop()
    second = daemon(folders=[workspace], options=options)
    assert first_cost(second)["computed"] == 0


@pytest.mark.exhaustive
def test_what_is_saved_while_it_is_read_is_kept_too(daemon: Daemons, slow_flags: list[str], tmp_path: Path) -> None:
    caches = tmp_path / "caches"
    options = {"cacheDirectory": str(caches), "refresh": "ask"}
    client = daemon(SHORT, options=options, flags=[each for each in slow_flags if each not in ("0", NONE_KEPT)])
    client.open(client.document, SHORT)
    client.change(client.document, MEDIUM)
    asked = client.request("cag/refresh", {})  # a question would look at the file once more
    client.wait_status("reading")
    client.document.write_text(MEDIUM, encoding="utf-8")
    client.save(client.document)
    client.wait_status(lambda status: status["documents"][0]["source"] == "disk")
    assert not asked.answered
    asked.result()
    client.stop()
    assert segments(caches)


@pytest.mark.exhaustive
def test_where_refreshing_is_not_exact_everything_is_read_and_doctor_says_so(daemon: Daemons, tmp_path: Path) -> None:
    workspace, caches = daemon.workspace(), tmp_path / "caches"
    options = {"cacheDirectory": str(caches)}
    first = daemon(folders=[workspace], options=options)
    first_cost(first)
    first.stop()
    assert "bit for bit as afresh" in doctor(caches, tmp_path)
    (result,) = caches.glob("self-tests/*/result.json")
    result.write_text(result.read_text().replace('"passed": true', '"passed": false'))
    second = daemon(folders=[workspace], options=options)
    total = first_cost(second)["total"]
    second.document.write_text(LIGHTHOUSE.text + "The cat is called Soot.\n", encoding="utf-8")
    tokens = second.request("cag/refresh", {}).result()["tokens"]
    assert (tokens["kept"], tokens["total"] > total) == (0, True)
    assert "Soot" in second.answer("What is the cat called?")
    assert "after an edit all is read" in doctor(caches, tmp_path)


def doctor(caches: Path, folder: Path) -> str:
    words = [sys.executable, "-m", "cag_daemon", "doctor", "--json", "--cache-directory", str(caches)]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    found = {each["what"]: each["found"] for each in json.loads(done.stdout)["findings"]}
    return str(found["refreshing"])
