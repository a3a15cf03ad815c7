"""Neovim 0.12: the everyday, and daemons that end or are of another version."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.editors.neovim.drive import Case, Editors, cases


@pytest.fixture(scope="module")
def editors(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> Editors:
    return Editors("0.12", tmp_path_factory.mktemp("neovim"), programs)


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", cases("asking", "trouble"))
def test_neovim(editors: Editors, case: Case) -> None:
    editors.check(case)
