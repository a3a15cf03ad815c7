"""Runs a file of Lua cases in a real Neovim with the real daemon, and tells pytest of each of them.

All cases of a file share one editor and one daemon, whose start costs seconds. The editor runs when the first of them
is asked for.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.client import ENDS_WITHIN, ROOT, SLACK, runtime_of, still_alive
from tests.editors.conftest import EXAMPLE, daemons_of
from tests.editors.found import need

PLUGIN = ROOT / "editor-clients" / "neovim"
HERE = Path(__file__).resolve().parent
GOOD_END = "it prints no error, ends at once, and leaves nothing behind"
ERROR = re.compile(r"\bE\d{2,4}:|Error (?:executing|detected|in)|stack traceback|attempt to \w+ ")

PATIENCE = 110


@dataclass(frozen=True)
class Case:
    """One case of a file."""

    file: str
    name: str


def cases(*files: str) -> list[Any]:
    """The cases of these files, as parameters."""
    found = []
    for file in files:
        code = (HERE / f"{file}.lua").read_text("utf-8")
        names = re.findall(r"^t\.case\('(.+)', function", code, re.MULTILINE)
        assert 0 < len(set(names)) == code.count("t.case("), f"{file}: a case's name is not on its first line, or twice"
        found += [pytest.param(Case(file, name), id=f"{file}: {name}") for name in (*names, GOOD_END)]
    return found


def neovim(version: str) -> Path:
    """The editor of that version, as ``0.11``."""
    return need(f"nvim-{version}/bin/nvim")


def home_of(folder: Path, programs: Path) -> dict[str, str]:
    """An environment that knows nothing of the user, with the daemon on PATH."""
    home = folder / "home"
    places = {"XDG_CONFIG_HOME": ".config", "XDG_DATA_HOME": ".local/share", "XDG_STATE_HOME": ".local/state"}
    places |= {"XDG_CACHE_HOME": ".cache"}
    for place in places.values():
        (home / place).mkdir(parents=True, mode=0o700, exist_ok=True)
    hidden = ("CAG_", "XDG_", "NVIM", "PYTHON", "VIM")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    path = os.pathsep.join([str(programs), "/usr/bin", "/bin"])
    found = {name: str(home / place) for name, place in places.items()}
    # A front of its own, which ends with the editor.
    own = {"XDG_RUNTIME_DIR": str(runtime_of(folder)), "CAG_LINGER_SECONDS": "0"}
    return kept | {"HOME": str(home), "PATH": path, "NVIM_LOG_FILE": str(home / "nvim.log")} | found | own


def start(version: str, file: str, folder: Path, programs: Path, more: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """An editor that runs a file of cases in ``folder/project``, and writes ``results.jsonl`` and ``log.txt``."""
    project = folder / "project"
    project.mkdir(parents=True)
    shutil.copy(EXAMPLE, project / "document.txt")
    (project / "notes.md").write_text("# Notes\n\nWho donated the lathe?\n", encoding="utf-8")
    environment = home_of(folder, programs) | {
        "TEST_PLUGIN": str(PLUGIN),
        "TEST_CASES": str(HERE / f"{file}.lua"),
        "TEST_RESULTS": str(folder / "results.jsonl"),
        "TEST_PROJECT": str(project),
        "TEST_PYTHON": sys.executable,
        **more,
    }
    command = [str(neovim(version)), "--headless", "-u", str(HERE / "init.lua"), "-i", "NONE"]
    with (folder / "log.txt").open("wb") as log:
        return subprocess.Popen(command, cwd=project, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


class Editors:
    """Runs each file at most once, in an editor of one version, and remembers what became of its cases."""

    def __init__(self, version: str, base: Path, programs: Path) -> None:
        self._version = version
        self._base = base
        self._programs = programs
        self._runs: dict[str, tuple[dict[str, str | None], str]] = {}

    def check(self, case: Case, more: Mapping[str, str] | None = None) -> None:
        """Fails where the case failed, or did not run; ``more``: variables of the environment for its file."""
        if case.file not in self._runs:
            self._runs[case.file] = self._run(case.file, more or {})
        results, log = self._runs[case.file]
        if "*" in results:
            pytest.fail(f"{case.file}.lua: {results['*']}\n{log[-4000:]}")
        if case.name not in results:
            pytest.fail(f"did not run\n{log[-4000:]}")
        if (problem := results[case.name]) is not None:
            pytest.fail(problem)

    def _run(self, file: str, more: Mapping[str, str]) -> tuple[dict[str, str | None], str]:
        folder = self._base / file
        folder.mkdir()
        process = start(self._version, file, folder, self._programs, more)
        results = folder / "results.jsonl"
        try:
            code: int | str = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            code = f"none after {PATIENCE} s"
        finally:
            process.kill()
            process.wait()
        ended = time.time()
        left = still_alive(daemons_of(folder), ENDS_WITHIN + SLACK)
        for each in left:
            each.kill()
        said = (folder / "log.txt").read_text("utf-8", errors="replace")
        lines = results.read_text("utf-8").splitlines() if results.exists() else []
        found: dict[str, str | None] = {line["case"]: line.get("problem") for line in map(json.loads, lines)}
        problems = [f"left behind: {left}"] if left else []
        problems += [f"exit code: {code}"] if code != 0 else []
        problems += [f"printed:\n{said[-6000:]}"] if ERROR.search(said) else []
        if lines and (took := ended - results.stat().st_mtime) > SLACK:
            problems.append(f"it took {took:.1f} s to end")
        found[GOOD_END] = "\n".join(problems) or None
        return found, said
