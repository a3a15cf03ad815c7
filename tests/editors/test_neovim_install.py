"""The Neovim plugin installed as its help says: each way in an editor with a configuration of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.client import ENDS_WITHIN, SLACK, still_alive
from tests.editors.conftest import daemons_of
from tests.editors.neovim.drive import HERE, PLUGIN, home_of, neovim

HELP = (PLUGIN / "doc" / "cag.txt").read_text("utf-8")
PRINTED = "/what/cag-daemon/client/neovim/prints"
BY_HAND = "runtimepath:prepend('"


def block(part: str) -> str:
    """The help's example in Lua that has this in it, with the folder where the plugin really is."""
    (found,) = (each for each in re.findall(r">lua\n(.*?)\n<", HELP, re.DOTALL) if part in each)
    return re.sub(r"^ {4}", "", found, flags=re.MULTILINE).replace(PRINTED, str(PLUGIN))


def enabled(version: str) -> str:
    """The one of the two lines that is for this version."""
    lines = block("vim.lsp.enable('cag')    --").splitlines()
    return lines[0 if version != "0.10" else 1]


def run(version: str, configuration: str, folder: Path, programs: Path) -> None:
    """Starts an editor with that init.lua, and runs the cases of installed.lua in it."""
    project = folder / "project"
    project.mkdir()
    (project / "document.txt").write_text("The cat sleeps in a copper kettle.\n", encoding="utf-8")
    (project / "notes.txt").write_text("Notes\n", encoding="utf-8")
    results = folder / "results.jsonl"
    environment = home_of(folder, programs) | {
        "TEST_CASES": str(HERE / "installed.lua"),
        "TEST_RESULTS": str(results),
        "TEST_PROJECT": str(project),
    }
    init = Path(environment["XDG_CONFIG_HOME"]) / "nvim" / "init.lua"
    init.parent.mkdir()
    init.write_text(configuration, encoding="utf-8")
    done = subprocess.run(
        [str(neovim(version)), "--headless", "-i", "NONE", "-S", str(HERE / "run.lua")],
        **{"cwd": project, "env": environment, "stdin": subprocess.DEVNULL, "timeout": 90},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True},
    )
    left = still_alive(daemons_of(folder), ENDS_WITHIN + SLACK)
    assert not left, left
    cases = [json.loads(line) for line in results.read_text("utf-8").splitlines()] if results.exists() else []
    assert len(cases) == 1, done.stdout
    assert cases[0].get("problem") is None, f"{cases[0]['problem']}\n{done.stdout}"
    assert done.returncode == 0


@pytest.mark.parametrize("version", ["0.10", "0.11", "0.12"])
def test_as_a_package(version: str, tmp_path: Path, programs: Path) -> None:
    """By ``cag-daemon client neovim --install``."""
    environment = home_of(tmp_path, programs)
    installed = [str(programs / "cag-daemon"), "client", "neovim", "--install"]
    subprocess.run(installed, env=environment, check=True, capture_output=True, timeout=60)
    run(version, enabled(version), tmp_path, programs)


def test_the_daemon_prints_the_folder(tmp_path: Path, programs: Path) -> None:
    printed = [str(programs / "cag-daemon"), "client", "neovim"]
    done = subprocess.run(printed, env=home_of(tmp_path, programs), capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{PLUGIN}\n"


def test_on_the_runtimepath(tmp_path: Path, programs: Path) -> None:
    run("0.11", f"{block(BY_HAND)}\n{enabled('0.11')}", tmp_path, programs)


def test_with_vim_pack(tmp_path: Path, programs: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(PLUGIN, repository / "editor-clients" / "neovim")
    git = ["git", "-C", str(repository), "-c", "user.name=tests", "-c", "user.email=tests@localhost"]
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], check=True, capture_output=True, timeout=30)
    configuration = block("vim.pack.add").replace("file:///a/clone/of/cag-daemon", repository.as_uri())
    configuration = configuration.replace("{\n  load", "{\n  confirm = false,\n  load")
    run("0.12", f"{configuration}\n{enabled('0.12')}", tmp_path, programs)


def test_in_a_folder_that_cannot_be_written(tmp_path: Path, programs: Path) -> None:
    """As in a wheel: the help's tags come along."""
    copy = tmp_path / "site-packages" / "neovim"
    shutil.copytree(PLUGIN, copy)
    for path in (copy, *copy.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        configuration = block(BY_HAND).replace(str(PLUGIN), str(copy))
        run("0.11", f"{configuration}\nrequire('cag').setup()", tmp_path, programs)
    finally:
        for path in (copy, *copy.rglob("*")):
            path.chmod(0o755)


@pytest.mark.parametrize("version", ["0.10", "0.11", "0.12"])
def test_with_lazy(version: str, tmp_path: Path, programs: Path) -> None:
    """``CAG_LAZY_NVIM``: the folder of lazy.nvim's sources."""
    lazy = os.environ.get("CAG_LAZY_NVIM")
    if not lazy:
        pytest.skip("lazy.nvim is not there; CAG_LAZY_NVIM names its folder")
    configuration = f"""\
-- lazy.nvim looks for Neovim's own parsers beside its binary; those of a Debian that was unpacked lie elsewhere.
local parser = vim.api.nvim_get_runtime_file('parser/vimdoc.so', false)[1]
vim.opt.rtp:prepend({json.dumps(lazy)})
require('lazy').setup({{ {block("name = 'cag'")} }}, {{
  root = {json.dumps(str(tmp_path / "lazy"))},
  lockfile = {json.dumps(str(tmp_path / "lazy-lock.json"))},
  install = {{ missing = false }},
  rocks = {{ enabled = false }},
  checker = {{ enabled = false }},
  change_detection = {{ enabled = false }},
  performance = {{ rtp = {{ paths = {{ vim.fs.dirname(vim.fs.dirname(parser)) }} }} }},
}})
"""
    run(version, configuration, tmp_path, programs)
