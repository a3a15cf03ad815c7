"""The order of a whole run, and that no test meets a daemon of whoever runs it."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

import pytest

os.environ["XDG_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="cag-")
atexit.register(shutil.rmtree, os.environ["XDG_RUNTIME_DIR"], ignore_errors=True)

# Each of them keeps one process busy for minutes: what begins last ends last.
FIRST = (
    "test_vscode.py",
    "test_many_editors.py",
    "test_shared.py",
    "test_status.py",
    "test_neovim_0_11.py",
    "test_neovim_0_12.py",
    "test_neovim_0_10.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that all processes end at about the same time."""
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))
