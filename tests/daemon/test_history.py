"""A real daemon through edits, restarts, kills and damage: it answers as one that has just read the text."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cag_daemon.engine.engine import Engine
from cag_daemon.engine.model import load_model
from tests.daemon.conftest import Daemons
from tests.documents import LIGHTHOUSE

QUESTIONS = [question for question, _ in LIGHTHOUSE.pairs]
WORDS = ("The cat is called Soot. ", "Nobody rows in fog.\n", "", "In May the lamp is cleaned. ")


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(3))
def test_it_answers_as_if_it_had_just_read_the_text(seed: int, daemon: Daemons, tmp_path: Path) -> None:
    chance, fresh = random.Random(seed), Engine(load_model("embedded"))
    workspace, caches = daemon.workspace(), tmp_path / "caches"
    document, options = workspace / "document.txt", {"cacheDirectory": str(caches)}
    text, restored, starts = LIGHTHOUSE.text, 0, 0
    client = daemon(folders=[workspace], options=options)
    for _ in range(16):
        what = chance.choice(("edit", "edit", "ask", "ask", "stop", "kill", "damage"))
        if what == "edit":
            at = chance.randrange(len(text))
            text = text[:at] + chance.choice(WORDS) + text[at + chance.randrange(40) :]
            document.write_text(text, encoding="utf-8")
        elif what != "ask":
            if what == "kill":
                client.kill()
            else:
                client.stop()
            files = sorted(caches.rglob("*.safetensors"))
            if what == "damage" and files:
                file = chance.choice(files)
                data = bytearray(file.read_bytes())
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
                file.write_bytes(data)
            client, starts = daemon(folders=[workspace], options=options), starts + 1
            cost = client.wait_status("ready")["documents"][0]["cached"]
            restored += cost["computed"] < cost["tokens"]
        question = chance.choice(QUESTIONS)
        fresh.prepare("d", str(hash(text)), text, force=True)
        assert client.answer(question) == fresh.ask("d", question).text, (what, question)
    assert starts == 0 or restored > 0
