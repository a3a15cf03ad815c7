"""docs/EDITORS.md in the real Helix and the real Emacs: what is run here are the blocks of that page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cag_daemon.front.protocol import COMMANDS
from tests.client import ROOT
from tests.editors.conftest import daemons_of
from tests.editors.found import missing, need

PAGE = (ROOT / "docs" / "EDITORS.md").read_text("utf-8")
PATIENCE = 40.0  # seconds; the first answer comes after the model is loaded, on a busy machine

ACTION = "Ask the document about the selection"
LATHE = "The lathe was donated by a retired clockmaker named Anselm Brandt."
LOCKS = "Lost keys must be reported to Ingrid Solberg, who looks after the locks."


def blocks(section: str, language: str) -> list[str]:
    """The code of a section of the page."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


class Terminal:
    """A terminal of our own, in which one program runs; its tmux has a socket that nobody else knows."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        self.place = tempfile.mkdtemp(prefix="cag-")  # a socket's path must be short; tmp_path is not
        self.environment = {name: value for name, value in environment.items() if name != "TMUX"}
        self.environment |= {"LC_ALL": "C.UTF-8", "TERM": "tmux-256color"}
        size = ["-d", "-x", "120", "-y", "30", "-c", str(folder)]
        self.tmux("-f", "/dev/null", "new-session", *size, *command)

    def tmux(self, *arguments: str) -> str:
        command = [str(need("tmux")), "-u", "-S", f"{self.place}/socket", *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=20)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def press(self, *keys: str) -> None:
        self.tmux("send-keys", *keys)

    def type(self, text: str) -> None:
        self.tmux("send-keys", "-l", "--", text)

    def screen(self) -> str:
        return self.tmux("capture-pane", "-p")

    def sees(self, text: str) -> None:
        """Wait until it is on the screen."""
        until(lambda: text in self.screen(), lambda: f"never saw {text!r}, but:\n{self.screen()}")

    def ended(self) -> bool:
        """No program, no session, no server of tmux."""
        command = [str(need("tmux")), "-S", f"{self.place}/socket", "has-session"]
        return subprocess.run(command, env=self.environment, capture_output=True, timeout=20).returncode != 0

    def close(self) -> None:
        command = [str(need("tmux")), "-S", f"{self.place}/socket", "kill-server"]
        subprocess.run(command, env=self.environment, capture_output=True, timeout=20)
        shutil.rmtree(self.place)


def until(happens: Callable[[], bool], otherwise: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happens():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.1)


Opens = Callable[..., Terminal]


@pytest.fixture
def opens(environment: dict[str, str]) -> Iterator[Opens]:
    """Start an editor in a folder, on one file; at the end it is gone."""
    terminals: list[Terminal] = []

    def start(editor: str, folder: Path, file: str) -> Terminal:
        terminals.append(
            Terminal([str(need(editor)), *(["-nw"] if editor == "emacs" else []), file], folder, environment)
        )
        return terminals[-1]

    try:
        yield start
    finally:
        for terminal in terminals:
            terminal.close()


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A project without a document."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name in ("notes.md", "notes.txt"):
        (folder / name).write_text("Who donated the lathe?\n", encoding="utf-8")
    return folder


def nobody_starts(tmp_path: Path) -> None:
    for _ in range(15):
        assert daemons_of(tmp_path) == []
        time.sleep(0.1)


# ── Helix ───────────────────────────────────────────────────────────────────────────────────

HELIX = "helix/bin/hx"


@pytest.fixture
def helix(environment: dict[str, str]) -> tuple[int, int]:
    """Helix with the page's configuration; its version."""
    found = subprocess.run([need(HELIX), "--version"], capture_output=True, text=True, check=True, timeout=20).stdout
    languages, keys = blocks("Helix", "toml")
    folder = Path(environment["XDG_CONFIG_HOME"], "helix")
    folder.mkdir()
    (folder / "languages.toml").write_text(languages, encoding="utf-8")
    (folder / "config.toml").write_text(keys, encoding="utf-8")
    (version,) = re.findall(r"helix (\d+)\.(\d+)", found)
    return int(version[0]), int(version[1])


@pytest.mark.usefixtures("helix")
@pytest.mark.parametrize("place", ["", pytest.param("sub/folder", marks=pytest.mark.exhaustive)])
def test_helix_asks_with_the_selection(opens: Opens, project: Path, tmp_path: Path, place: str) -> None:
    if place:
        (project / place).mkdir(parents=True)
        (tmp_path / ".git").mkdir()  # the document's folder is inside a repository, the file deeper still
    (project / place / "questions.txt").write_text("Notes\n\nWho donated the lathe?\n", encoding="utf-8")
    screen = opens(HELIX, project, str(Path(place, "questions.txt")))
    # Its worker is started when Helix has been told what the daemon can do.
    until(lambda: len(daemons_of(tmp_path)) >= 3, screen.screen)
    screen.press("3", "g", "g", "x")
    screen.press("Space", "a")
    screen.sees(ACTION)
    screen.press("Enter")
    screen.sees(LATHE)
    screen.type(":q!")
    screen.press("Enter")
    until(screen.ended, lambda: "Helix did not end")


def test_helix_asks_what_was_typed_where_it_can(
    opens: Opens, project: Path, tmp_path: Path, helix: tuple[int, int]
) -> None:
    screen = opens(HELIX, project, "notes.md")
    until(lambda: len(daemons_of(tmp_path)) >= 3, screen.screen)
    screen.press("Space", "q")
    screen.sees(':lsp-workspace-command cag.ask ""')
    screen.type("Who looks after the locks?")
    screen.press("Enter")
    screen.sees(LOCKS if helix >= (25, 7) else "`cag.ask Who looks after the locks?` is not supported")


@pytest.mark.usefixtures("helix")
def test_helix_starts_nothing_without_a_document(opens: Opens, elsewhere: Path, tmp_path: Path) -> None:
    screen = opens(HELIX, elsewhere, "notes.md")
    screen.sees("Who donated the lathe?")
    screen.press("x")
    screen.press("Space", "a")
    screen.sees("No configured language server supports code actions")
    nobody_starts(tmp_path)


# ── Emacs ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def emacs(environment: dict[str, str]) -> None:
    """Emacs with the page's configuration."""
    folder = Path(environment["HOME"], ".emacs.d")
    folder.mkdir()
    # It would compile its own libraries in the background, and tell of it in a window.
    quiet = "(setq native-comp-deferred-compilation nil native-comp-jit-compilation nil)\n"
    (folder / "early-init.el").write_text(quiet, encoding="utf-8")
    look = [need("emacs"), "--batch", "--eval", '(unless (locate-library "eglot") (kill-emacs 3))']
    if subprocess.run(look, env=environment, capture_output=True, timeout=30).returncode == 3:
        missing("Emacs has no eglot; .ci/editors installs it")
    (configuration,) = blocks("Emacs with eglot", "elisp")
    (folder / "init.el").write_text(configuration, encoding="utf-8")


def meta_x(screen: Terminal, command: str) -> None:
    screen.press("M-x")
    screen.sees("\nM-x")
    screen.type(command)
    screen.press("Enter")


@pytest.mark.usefixtures("emacs")
def test_emacs_asks_from_any_buffer_and_with_the_region(opens: Opens, project: Path) -> None:
    (project / "sub").mkdir()
    (project / "sub" / "code.py").write_text("lathe = 1\n", encoding="utf-8")
    questions = project / "sub" / "questions.txt"
    questions.write_text("Who looks after the locks?\n", encoding="utf-8")
    screen = opens("emacs", project, "sub/code.py")
    screen.sees("lathe = 1")
    meta_x(screen, "cag-ask")
    screen.sees("\nAsk the document:")
    screen.type("Who donated the lathe?")
    screen.press("Enter")
    screen.sees(f"\n{LATHE}")

    screen.press("C-x", "C-f", "C-a", "C-k")
    screen.type(str(questions))
    screen.press("Enter")
    screen.sees("[eglot:project")
    screen.press("C-x", "h")
    meta_x(screen, "eglot-code-actions")
    screen.sees(f"(default {ACTION})")
    screen.press("Enter")
    screen.sees(LOCKS)

    screen.press("C-x", "C-c")
    until(screen.ended, lambda: "Emacs did not end")


@pytest.mark.usefixtures("emacs")
def test_emacs_starts_nothing_without_a_document(opens: Opens, elsewhere: Path, tmp_path: Path) -> None:
    screen = opens("emacs", elsewhere, "notes.txt")
    screen.sees("Who donated the lathe?")
    meta_x(screen, "cag-ask")
    screen.sees("\nAsk the document:")
    screen.type("Who?")
    screen.press("Enter")
    screen.sees("There is no document.txt")
    nobody_starts(tmp_path)


# ── the page ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("section", ["Kate", "Sublime Text with the LSP package"])
def test_what_no_test_can_start_can_be_read_at_least(section: str) -> None:
    code = blocks(section, "json")
    assert code
    for each in code:
        json.loads(each)
    for each in blocks(section, "python"):
        compile(each, section, "exec")


def test_the_page_names_commands_and_actions_that_there_are() -> None:
    named = set(re.findall(r"\bcag\.\w+", PAGE)) - {"cag.ask", *COMMANDS}
    assert named == set()
    assert f"*{ACTION}*" in PAGE


def test_the_page_says_of_every_editor_whether_it_was_tried() -> None:
    rows = re.findall(r"^\| \[.*?\]\(#(.*?)\) \|.*\| (.*?) \|$", PAGE, re.MULTILINE)
    titles = [title.lower().replace(" ", "-") for title in re.findall(r"^## (.*)$", PAGE, re.MULTILINE)]
    assert [place for place, _ in rows] == titles[:-1]
    for (place, tried), title in zip(rows, re.findall(r"^## (.*)$", PAGE, re.MULTILINE), strict=False):
        assert tried.startswith("**not tried**") == (f"## {title}\nNot tried" in PAGE), place
