"""`python -m benchmarks` runs, and says of each goal whether it is met."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.table import Found, Row, in_order

ROOT = Path(__file__).resolve().parents[1]
GOALS = (
    "first token, warm, against the document in the prompt",
    "first token, warm, against llama.cpp with its cache",
    "decoding, nothing drafted, against llama.cpp",
    "decoding a quoted answer, against llama.cpp",
    "reading, against llama.cpp",
    "a pass: of the limit of memory",
)


@pytest.mark.parametrize(
    ("row", "met", "measured"),
    [
        (Row("", 1, 1.29, 1.3), False, "1.2 ×"),
        (Row("", 1, 1.3, 1.3), True, "1.3 ×"),
        (Row("", 1, 2.01, 2.0, most=True), False, "2.1 ×"),
        (Row("", 1, 1.5, 2.0, most=True), True, "1.5 ×"),
        (Row("", 1, None, 2.0), None, "not run"),
        (Row("", 1, 3.0), None, "3.0 ×"),
        (Row("", 1, 69.9, 70.0, "%"), False, "69 %"),
        (Row("", 1, 1234.5, 150.0), True, "1,234 ×"),
        (Row("", 1, 0.849, 0.85), False, "0.84 ×"),
    ],
)
def test_a_goal_that_is_missed_never_looks_as_if_it_were_met(row: Row, met: bool | None, measured: str) -> None:
    assert row.met is met
    assert row.measured == measured


def test_what_was_not_run_has_no_ratio() -> None:
    found = Found()
    found.took("a", 5, 6.0)
    assert found.ratio("a", "b", 5) is None
    found.took("b", 5, 2.0)
    assert found.ratio("a", "b", 5) == 3
    assert found.ratio("a", "b", 6) is None


def test_what_belongs_together_stands_together() -> None:
    rows = [Row("a", 1, 1), Row("b", 1, 2), Row("a", 2, 3), Row("b", 2, 4)]
    assert [row.value for row in in_order(rows)] == [1, 3, 2, 4]


@pytest.mark.exhaustive
def test_it_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--shape", "tiny", "--lengths", "512", "--threads", "1"]
    found = subprocess.run(
        [*command, "--json", str(tmp_path / "found.json"), "--plots", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    for goal in GOALS[:-1]:
        assert goal in found.stdout
    written = json.loads((tmp_path / "found.json").read_text("utf-8"))
    rows = {row["what"]: row for row in written["rows"]}
    assert set(GOALS) <= set(rows)
    for kind in ("int8", "int4"):
        assert rows[f"decoding in {kind}, against bfloat16"]["value"] > 0
    assert rows["decoding a quoted answer, against the tutorial's loop"]["value"] > 0
    assert written["seconds"]["read: cag-daemon"]["512"] > 0
    assert {each.name for each in tmp_path.glob("*.png")} == {"first-token.png", "decoding.png"}
    # What this machine lacks is named, not left out in silence.
    for row in rows.values():
        if "llama.cpp" in row["what"] and row["value"] is None:
            assert any("llama.cpp" in each for each in written["missing"])


def test_a_gpu_that_is_not_here_is_said(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--shape", "7b"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 1
    assert "no GPU here that torch can use" in found.stderr
    assert "Traceback" not in found.stderr
