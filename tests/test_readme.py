"""What the README shows is what happens."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from cag_daemon.engine.engine import Engine
from cag_daemon.engine.model import load_model
from cag_daemon.engine.plan import Wanted
from cag_daemon.front.protocol import COMMANDS
from tests.client import ROOT, Client
from tests.test_catalogue import MACHINES

README = (ROOT / "README.md").read_text("utf-8")
EXAMPLE = (ROOT / "examples" / "document.txt").read_text("utf-8")
REFUSAL = "The document does not say."


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_two_commands_do_all_the_set_up() -> None:
    asking, testing = blocks("sh")
    for command in (asking, testing):
        (line,) = command.splitlines()
        assert line.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert "/cag-daemon ask " in asking
    assert testing.endswith("/pytest\n")


def test_the_terminals_show_what_is_answered() -> None:
    engine = Engine(load_model(Wanted("embedded", threads=1)))
    engine.prepare("example", "1", EXAMPLE)
    shown = [block.splitlines() for block in blocks("console") if block.startswith("$ cag-daemon ask")]
    assert len(shown) == 2
    for command, answer, *places in shown:
        question = re.fullmatch(r'\$ cag-daemon ask "(.*)" --document examples/document\.txt', command)
        assert question is not None
        assert engine.ask("example", question[1]).text == answer
        assert len(places) == (answer != REFUSAL)
        for place in places:
            path, line, column, words = re.fullmatch(r"(\S+):(\d+):(\d+)  (.*?)…?", place).groups()  # type: ignore[union-attr]
            assert path == "examples/document.txt"
            assert EXAMPLE.splitlines()[int(line) - 1][int(column) - 1 :].startswith(words)


def test_the_library_example_runs(tmp_path: Path) -> None:
    (code,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", code],
        **{"cwd": ROOT, "env": Client.environment(tmp_path, {}), "capture_output": True, "text": True, "timeout": 100},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "The lathe was donated by a retired clockmaker named Anselm Brandt.",
        "Membership costs thirty-two euros a month.",
    ]


def test_the_commands_for_editors_are_those_there_are() -> None:
    assert tuple(re.findall(r"^\| `(cag\.\w+)` \|", README, re.MULTILINE)) == COMMANDS


def test_it_names_the_models_that_pull_would_name() -> None:
    said = dict(re.findall(r"^\| (.+?) \| (`(?:ministral|mistral)-.*) \|$", README, re.MULTILINE))
    named = {machine.strip() for cell in said for machine in re.split(r", or |^", cell) if machine.strip()}
    assert {each.removeprefix("a CPU ").removeprefix("a ") for each in MACHINES} == {
        each.removeprefix("a ") for each in named
    }
    for cell, advice in said.items():
        for machine, (_, alias, quantization) in MACHINES.items():
            if machine.removeprefix("a CPU ").removeprefix("a ") in cell:
                assert f"`{alias}`" in advice, machine
                assert (quantization in advice) if quantization != "none" else ("int" not in advice), machine


def test_what_it_says_for_neovim_is_what_the_help_says() -> None:
    """The help's examples are run in the real editor."""
    page = (ROOT / "editor-clients" / "neovim" / "doc" / "cag.txt").read_text("utf-8")
    shown = [re.sub(r"^    ", "", each, flags=re.MULTILINE) for each in re.findall(r">lua\n(.*?)<", page, re.DOTALL)]
    assert len(blocks("lua")) == 2
    assert [block for block in blocks("lua") if block not in shown] == []


def test_what_is_linked_is_there() -> None:
    pages = [
        ROOT / name
        for name in (
            "README.md",
            "CHANGELOG.md",
            "CONTRIBUTING.md",
            *("docs/DESIGN.md", "docs/EDITORS.md", "docs/PROTOCOL.md"),
        )
    ]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text("utf-8")):
            assert target.startswith("https:") or (page.parent / target).exists(), f"{page.name}: {target}"
