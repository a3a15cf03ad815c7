"""``cag-daemon client``: where the editors' clients are, and how they get into the editor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cag_daemon import clients
from cag_daemon.errors import CagError
from tests.client import ROOT


def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | more
    command = [sys.executable, "-m", "cag_daemon", "client", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Neovim keeps its data."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("NVIM_APPNAME", raising=False)
    return tmp_path / "data"


@pytest.fixture
def vsix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that has a .vsix."""
    file = tmp_path / "package" / "editor_clients" / clients.VSIX
    file.parent.mkdir(parents=True)
    file.write_bytes(b"PK")
    monkeypatch.setattr(clients, "PACKAGE", tmp_path / "package")
    return file


def program(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    file.chmod(0o755)
    return file


def test_it_prints_the_plugins_folder_and_nothing_else() -> None:
    done = run("neovim")
    assert (done.returncode, done.stderr) == (0, "")
    folder = Path(done.stdout.removesuffix("\n"))
    assert (folder / "plugin" / "cag.lua").is_file()
    assert (folder / "doc" / "tags").is_file()  # the folder may not be ours to write in


def test_the_plugin_is_linked_into_neovims_packages(data: Path) -> None:
    for _ in range(2):
        assert "vim.lsp.enable('cag')" in clients.install_neovim()
    place = data / "nvim" / "site" / "pack" / "cag-daemon" / "start" / "cag-daemon"
    assert place.is_symlink()
    assert place.resolve() == clients.neovim_folder()


def test_another_configuration_of_neovim_has_packages_of_its_own(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIM_APPNAME", "lazyvim")
    clients.install_neovim()
    assert (data / "lazyvim" / "site" / "pack" / "cag-daemon" / "start" / "cag-daemon" / "lua" / "cag").is_dir()


def test_where_nothing_can_be_linked_the_plugin_is_copied_anew(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError("a privilege is not held")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    place = data / "nvim" / "site" / "pack" / "cag-daemon" / "start" / "cag-daemon"
    assert "after an upgrade" in clients.install_neovim()
    (place / "plugin" / "cag.lua").write_text("of an older version", encoding="utf-8")
    clients.install_neovim()
    current = (clients.neovim_folder() / "plugin" / "cag.lua").read_text("utf-8")
    assert (place / "plugin" / "cag.lua").read_text("utf-8") == current


def test_what_is_not_ours_is_left_alone(data: Path) -> None:
    place = data / "nvim" / "site" / "pack" / "cag-daemon" / "start" / "cag-daemon"
    place.mkdir(parents=True)
    (place / "mine.lua").write_text("-- mine", encoding="utf-8")
    with pytest.raises(CagError, match="move it away"):
        clients.install_neovim()
    assert (place / "mine.lua").is_file()
    (place / "mine.lua").unlink()
    (place / "lua" / "cag").mkdir(parents=True)  # a clone, where somebody works on the plugin
    (place / ".git").mkdir()
    with pytest.raises(CagError, match="move it away"):
        clients.install_neovim()
    assert (place / ".git").is_dir()


def test_naming_who_installs_without_installing_is_wrong_usage() -> None:
    done = run("vscode", "--with", "codium")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--install" in done.stderr


def test_the_vsix_that_was_built_is_named(vsix: Path) -> None:
    assert clients.vscode_vsix() == vsix


def test_without_a_vsix_it_says_how_to_build_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "PACKAGE", tmp_path / "package")
    with pytest.raises(CagError, match=r"npm ci --ignore-scripts && npm run package.*then install cag-daemon"):
        clients.vscode_vsix()


def test_how_to_build_it_is_what_the_extension_knows() -> None:
    scripts = json.loads((ROOT / "editor-clients" / "vscode" / "package.json").read_text("utf-8"))["scripts"]
    assert clients.BUILD.endswith("npm run package")
    assert f"dist/{clients.VSIX}" in scripts["package"]


def test_the_first_vs_code_on_path_installs_it(vsix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "told"
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    program(tmp_path / "bin", "codium", f'echo codium "$@" > {told}')
    assert "codium" in clients.install_vscode(None)
    assert told.read_text("utf-8") == f"codium --install-extension {vsix} --force\n"
    program(tmp_path / "bin", "code", f'echo code "$@" > {told}')
    said = clients.install_vscode(None)
    assert told.read_text("utf-8").startswith("code ")
    assert "codium (choose it with --with)" in said
    clients.install_vscode("codium")
    assert told.read_text("utf-8").startswith("codium ")


def test_a_vs_code_that_refuses_is_quoted(vsix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/bin")
    program(tmp_path / "bin", "code", "echo first >&2; echo 'it is too old' >&2; exit 3")
    with pytest.raises(CagError, match=r"would not install .*: it is too old\.$"):
        clients.install_vscode(None)


def test_without_a_vs_code_it_says_where_the_vsix_is(vsix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    for named, tried in ((None, "code, code-insiders"), ("nonsense", "tried nonsense")):
        with pytest.raises(CagError, match=tried) as raised:
            clients.install_vscode(named)
        assert str(vsix) in raised.value.message


def test_a_failure_is_one_sentence_on_stderr(tmp_path: Path) -> None:
    place = tmp_path / "nvim" / "site" / "pack" / "cag-daemon" / "start" / "cag-daemon"
    place.mkdir(parents=True)
    done = run("neovim", "--install", XDG_DATA_HOME=str(tmp_path), NVIM_APPNAME="nvim")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("cag-daemon: ")
    assert done.stderr.count("\n") == 1
