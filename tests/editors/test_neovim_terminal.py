"""Neovim in a real terminal: a session that is typed, and pictures of it.

The pictures go to the folder that ``CAG_PICTURES`` names, else to the test's own: look at them.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.editors.found import need
from tests.editors.neovim.drive import PLUGIN, neovim

COLUMNS, LINES = 100, 28
PATIENCE = 60

INIT = f"""
vim.opt.runtimepath:prepend({str(PLUGIN)!r})
vim.o.termguicolors = true
vim.o.swapfile = false
vim.o.hlsearch = false
vim.o.number = true
vim.o.linebreak = true
vim.o.laststatus = 2
vim.o.ruler = false
vim.o.statusline = " %f %m%=%{{v:lua.require'cag'.status()}} "
vim.lsp.enable('cag')
"""


class Terminal:
    """A terminal in tmux, on a server of its own."""

    def __init__(self, command: str, cwd: Path, environment: dict[str, str], pictures: Path) -> None:
        self._socket = tempfile.mktemp(prefix="cag-", suffix=".tmux")  # short: a socket's path may not be long
        self._pictures = pictures
        self.tmux(
            "-f",
            os.devnull,
            "new-session",
            "-d",
            "-x",
            str(COLUMNS),
            "-y",
            str(LINES),
            command,
            cwd=cwd,
            env=environment,
        )
        self.tmux("set", "-g", "status", "off")

    def tmux(self, *arguments: str, **options: object) -> str:
        command = [str(need("tmux")), "-S", self._socket, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30, **options).stdout  # type: ignore[call-overload,no-any-return]

    def type(self, *keys: str) -> None:
        self.tmux("send-keys", *keys)

    def screen(self) -> str:
        return self.tmux("capture-pane", "-p")

    def wait(self, words: str, timeout: float = PATIENCE) -> str:
        """Waits until these words, as a regular expression, are on the screen."""
        deadline = time.monotonic() + timeout
        while not re.search(words, screen := self.screen()):
            assert time.monotonic() < deadline, f"never seen: {words}\n{screen}"
            time.sleep(0.05)
        return screen

    def picture(self, name: str) -> Path:
        """A picture of the screen, as PNG."""
        self._pictures.mkdir(parents=True, exist_ok=True)
        colours = self.tmux("capture-pane", "-e", "-N", "-p")
        done = subprocess.run(
            [str(need("aha")), "--black", "--title", name], input=colours, capture_output=True, text=True, check=True
        )
        style = "font: 14px/16px DejaVu Sans Mono, monospace; margin: 0; padding: 8px; background: #14161b"
        page = self._pictures / f"{name}.html"
        html = done.stdout.replace("<pre>", f'<pre style="{style}">').replace(
            "background-color:black", "background:#14161b"
        )
        page.write_text(html, encoding="utf-8")
        picture = page.with_suffix(".png")
        with tempfile.TemporaryDirectory() as profile:
            subprocess.run(
                [
                    *(str(need("chromium")), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
                    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
                    *(f"--user-data-dir={profile}", "--hide-scrollbars"),
                    *("--window-size=859,464", f"--screenshot={picture}", page.as_uri()),
                ],
                **{"check": True, "capture_output": True, "timeout": 60},
            )
        page.unlink()
        return picture

    def close(self) -> None:
        subprocess.run([str(need("tmux")), "-S", self._socket, "kill-server"], capture_output=True, check=False)
        Path(self._socket).unlink(missing_ok=True)


@pytest.fixture
def terminal(tmp_path: Path, project: Path, environment: dict[str, str]) -> Iterator[Terminal]:
    init = tmp_path / "init.lua"
    init.write_text(INIT, encoding="utf-8")
    pictures = Path(os.environ.get("CAG_PICTURES") or tmp_path / "pictures")
    command = f"env TERM=tmux-256color COLORTERM=truecolor {neovim('0.11')} -u {init} -i NONE document.txt"
    opened = Terminal(command, project, environment, pictures)
    yield opened
    opened.close()


def test_a_session(terminal: Terminal) -> None:
    terminal.wait("The Halden Street workshop")
    terminal.wait(r"cag loading \d+ %")
    terminal.type(":Cag ask Who donated the lathe?", "Enter")
    terminal.wait(r"loading \d+ % …")
    terminal.picture("neovim-waiting")
    terminal.wait(r"embedded model, a stand-in for a real Mistral · version [0-9a-f]{7} · ")
    screen = terminal.wait(r"cag ready · \d{3} of 3\.6k tokens")
    assert "The lathe was donated by a retired clockmaker named Anselm Brandt." in screen
    assert re.search(r'document\.txt:11  "The lathe was donated', screen)
    assert re.search(r"╭ Cag ─+╮", screen)
    assert re.search(r"╰─+ <CR> go there  q close  g\? keys ╯", screen)
    terminal.picture("neovim-answer")

    terminal.type("Enter")
    terminal.wait(r"(?s)\A(?!.*╭ Cag).*Anselm Brandt")
    terminal.picture("neovim-jump")

    terminal.type(":%s/Anselm Brandt/Selma Okoye/", "Enter")
    terminal.wait("Selma Okoye")
    terminal.type(":Cag ask Who donated the lathe?", "Enter")
    screen = terminal.wait(r"╭ Cag · 2 of 2 (?s:.*)· version")
    assert "named Selma Okoye." in screen
    assert re.search(r"2 of 2 ─+╮.*\n.*│ *Who donated the lathe\?", screen), "the question is scrolled out"
    terminal.type("[[")
    terminal.wait(r"Cag · 1 of 2 (?s:.*)document\.txt has changed since – r asks again")
    terminal.picture("neovim-changed")

    terminal.type("g?")
    terminal.wait("show these keys, or hide them")
    terminal.picture("neovim-keys")

    terminal.type("q")
    terminal.type(":lua require('cag').setup({ window = { kind = 'vsplit', width = 46 } })", "Enter")
    terminal.type(":7", "Enter", "0", "V", ":Cag ask How long does the course take?", "Enter")
    screen = terminal.wait(r"(?s)about document\.txt:7.*version [0-9a-f]{7}")
    assert "three hours" in screen
    terminal.picture("neovim-split")

    terminal.type(":qa!", "Enter")
    deadline = time.monotonic() + 10
    while (
        subprocess.run([str(need("tmux")), "-S", terminal._socket, "has-session"], capture_output=True).returncode == 0
    ):
        assert time.monotonic() < deadline, terminal.screen()
        time.sleep(0.05)
