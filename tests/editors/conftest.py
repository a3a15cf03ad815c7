"""What every editor's test needs: a daemon to find on PATH, a project to open, a home of its own, and an end."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.client import ROOT, still_alive

EXAMPLE = ROOT / "examples" / "document.txt"


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PATH that holds ``cag-daemon``: this checkout's, whatever copy is installed."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "cag-daemon"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m cag_daemon "$@"\n', "utf-8")
    script.chmod(0o755)
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the example as its ``document.txt``, and a file beside it."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(EXAMPLE, folder / "document.txt")
    (folder / "notes.md").write_text("# Notes\n\nWho donated the lathe?\n", encoding="utf-8")
    return folder


@pytest.fixture
def environment(tmp_path: Path, programs: Path) -> Iterator[dict[str, str]]:
    """A home of its own, so that no editor meets the user's settings; the daemon on PATH.

    It shares its front with nobody, and that ends with the last editor: what is left is seen at once.
    """
    home = tmp_path / "home"
    home.mkdir()
    places = {"XDG_CONFIG_HOME": ".config", "XDG_DATA_HOME": ".local/share", "XDG_STATE_HOME": ".local/state"}
    places |= {"XDG_CACHE_HOME": ".cache"}
    for place in places.values():
        (home / place).mkdir(parents=True, mode=0o700)
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("CAG_", "XDG_", "NVIM", "PYTHON"))
    }
    # The name of a socket may not be long.
    with tempfile.TemporaryDirectory(prefix="cag-") as runtime:
        yield kept | {
            "HOME": str(home),
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "XDG_RUNTIME_DIR": runtime,
            "CAG_LINGER_SECONDS": "0",
            **{name: str(home / place) for name, place in places.items()},
        }


def daemons_of(folder: Path) -> list[psutil.Process]:
    """Daemons and workers that belong to editors of this test: by its home, which they inherit."""
    found = []
    for process in psutil.process_iter():
        try:
            if "cag_daemon" in " ".join(process.cmdline()) and process.environ().get("HOME") == str(folder / "home"):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


@pytest.fixture(autouse=True)
def nothing_is_left_behind(tmp_path: Path) -> Iterator[None]:
    """After each test no daemon and no worker lives on."""
    yield
    left = still_alive(daemons_of(tmp_path), 5)
    for process in left:
        process.kill()
    assert not left, left
