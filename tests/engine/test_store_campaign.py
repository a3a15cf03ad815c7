"""Processes die while they write, or write at the same time: what is on disk is whole, or it is read again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client import ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def run(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.store_campaign", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("stride", "least"),
    [(29, 8), pytest.param(1, 250, marks=[pytest.mark.exhaustive, pytest.mark.timeout(900)])],
)
def test_killed_at_any_line_of_writing(stride: int, least: int, tmp_path: Path) -> None:
    said = run("kill", str(tmp_path), str(stride))
    assert int(said.split()[1]) >= least, said


@pytest.mark.parametrize(
    ("processes", "rounds"),
    [(3, 25), pytest.param(6, 400, marks=[pytest.mark.exhaustive, pytest.mark.timeout(900)])],
)
def test_several_processes_share_a_folder(processes: int, rounds: int, tmp_path: Path) -> None:
    assert f"{processes} processes" in run("share", str(tmp_path), str(processes), str(rounds))
