"""Neovim 0.10: the everyday."""

from __future__ import annotations

import pytest

from tests.editors.neovim.drive import Case, Editors, cases

VERSION = "0.10"


@pytest.fixture(scope="module")
def editors(tmp_path_factory: pytest.TempPathFactory, programs: object) -> Editors:
    return Editors(tmp_path_factory.mktemp("neovim"), programs)


@pytest.mark.parametrize("case", cases("asking", "starting"))
def test_neovim(editors: Editors, case: Case) -> None:
    editors.check(VERSION, case)
