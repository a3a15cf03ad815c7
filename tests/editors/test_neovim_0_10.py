"""Neovim 0.10: the everyday, and when the daemon starts, by setup() alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.editors.neovim.drive import Case, Editors, cases


@pytest.fixture(scope="module")
def editors(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> Editors:
    return Editors("0.10", tmp_path_factory.mktemp("neovim"), programs)


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", cases("asking", "starting"))
def test_neovim(editors: Editors, case: Case) -> None:
    editors.check(case)
