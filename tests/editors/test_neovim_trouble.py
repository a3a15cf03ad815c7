"""Neovim with daemons of another version, and with daemons that end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.editors.neovim.drive import Case, Editors, cases


@pytest.fixture(scope="module")
def editors(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> Editors:
    return Editors(tmp_path_factory.mktemp("neovim"), programs)


@pytest.mark.parametrize("version", ["0.10", "0.11", "0.12"])
@pytest.mark.parametrize("case", cases("trouble"))
def test_neovim(editors: Editors, version: str, case: Case) -> None:
    editors.check(version, case, {"TEST_PYTHON": sys.executable})
