"""The real editors: where they are, and what a test does without them.

`.ci/editors` installs them into ``.editors``; ``CAG_EDITORS`` names another folder. A test whose editor is missing
fails in CI, and is skipped with the reason elsewhere.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

from tests.client import ROOT

EDITORS = Path(os.environ.get("CAG_EDITORS") or ROOT / ".editors")


def need(name: str) -> Path:
    """An editor's program or folder, by its path below `EDITORS`, or by its name on PATH."""
    found = EDITORS / name if (EDITORS / name).exists() else None
    if found is None and "/" not in name and (which := shutil.which(name)) is not None:
        found = Path(which)
    if found is None:
        missing(f"{name} is not there; .ci/editors installs it")
    return found


def missing(why: str) -> NoReturn:
    """No test without its editor: a failure in CI, skipped elsewhere."""
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)
