"""Neovim with a model that takes its time: waiting, stopping, and the end in mid-answer."""

from __future__ import annotations

import time
from pathlib import Path
from unittest import mock

import pytest

from tests.client import ENDS_WITHIN, SLACK, still_alive
from tests.daemon import slow
from tests.editors.conftest import daemons_of
from tests.editors.neovim.drive import Case, Editors, cases, start


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The daemon tests' slow model, with fewer layers: some ten tokens a second."""
    with mock.patch.object(slow, "LAYERS", 8):
        return slow.make_slow_model(tmp_path_factory.mktemp("models") / "slow")


@pytest.fixture(scope="module")
def editors(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> Editors:
    return Editors("0.11", tmp_path_factory.mktemp("neovim"), programs)


@pytest.mark.parametrize("case", cases("slow"))
def test_neovim(editors: Editors, case: Case, model: Path) -> None:
    editors.check(case, {"TEST_MODEL": str(model)})


@pytest.mark.exhaustive
@pytest.mark.parametrize("version", ["0.12"])
def test_an_editor_that_is_killed_in_mid_answer_leaves_nothing_behind(
    version: str, tmp_path: Path, programs: Path, model: Path
) -> None:
    process = start(version, "held", tmp_path, programs, {"TEST_MODEL": str(model)})
    code = process.wait(60)
    killed = time.monotonic()
    assert code == -9, (tmp_path / "log.txt").read_text("utf-8", errors="replace")
    assert len(daemons_of(tmp_path)) >= 1  # it was not over already
    left = still_alive(daemons_of(tmp_path), ENDS_WITHIN + SLACK)
    assert not left, f"{left} after {time.monotonic() - killed:.1f} s"
