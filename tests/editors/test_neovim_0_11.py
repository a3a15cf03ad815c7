"""Neovim 0.11: all there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.editors.neovim.drive import Case, Editors, cases


@pytest.fixture(scope="module")
def editors(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> Editors:
    return Editors("0.11", tmp_path_factory.mktemp("neovim"), programs)


@pytest.mark.parametrize("case", cases("asking", "starting", "projects", "trouble"))
def test_neovim(editors: Editors, case: Case) -> None:
    editors.check(case)
