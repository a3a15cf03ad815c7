"""The command line: real processes, as a user starts them. A model is loaded five times."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from subprocess import DEVNULL, PIPE, CompletedProcess, Popen
from typing import Any

import pytest

from cag_daemon import __version__
from cag_daemon.config import FLAGS, Settings
from cag_daemon.front.protocol import AskResult
from tests.client import ANSWER, ROOT, Client, check_no_null, check_shape, text_at, version_of
from tests.models import EMBEDDED

EXAMPLE = ROOT / "examples" / "document.txt"
QUESTION = "Who donated the lathe?"
ANSWERED = "The lathe was donated by a retired clockmaker named Anselm Brandt."
LINE = 11

# A module that leaves a trace when it is imported, and one that cuts the network for whoever has it on the path.
EVIL = "import pathlib; pathlib.Path({trace!r}).write_text(__name__)\nraise SystemExit('evil')\n"
CUT = """
import pathlib, socket
def refuse(*arguments, **_):
    pathlib.Path({trace!r}).write_text(repr(arguments))
    raise OSError("the network is cut")
socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = socket.getaddrinfo = refuse
pathlib.Path({cut!r}).touch()
"""


def cag_daemon(
    *arguments: str, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 100
) -> CompletedProcess[str]:
    """``cag-daemon …`` to its end, with no terminal anywhere."""
    command = [sys.executable, "-m", "cag_daemon", *arguments]
    environment = Client.environment(cwd / ".home", env or {})
    return subprocess.run(
        command, cwd=cwd, env=environment, stdin=DEVNULL, capture_output=True, text=True, timeout=timeout
    )


def check_sentence(done: CompletedProcess[str], code: int) -> str:
    """The one sentence of a failure, which is all that was said."""
    assert (done.returncode, done.stdout) == (code, ""), done
    (line,) = done.stderr.splitlines()
    assert line.startswith("cag-daemon: ")
    assert line.endswith(".")
    return line


# ── a question ──────────────────────────────────────────────────────────────────────────────


class Trap:
    """A workspace full of evil modules, and a network that is cut."""

    def __init__(self, base: Path) -> None:
        self.workspace = base / "workspace"
        self.workspace.mkdir()
        self.evil, self.tried, self.cut = base / "evil", base / "tried", base / "cut"
        shutil.copy(EXAMPLE, self.workspace)
        for name in ("torch", "json", "click", "pydantic", "pygls", "transformers", "rich", "watchdog", "tokenizers"):
            (self.workspace / f"{name}.py").write_text(EVIL.format(trace=str(self.evil)))
        guard = base / "guard"
        guard.mkdir()
        (guard / "sitecustomize.py").write_text(CUT.format(trace=str(self.tried), cut=str(self.cut)))
        self.env = {"PYTHONPATH": str(guard)}

    def check(self) -> None:
        assert self.cut.exists(), "nothing was cut, and nothing is shown"
        assert not self.tried.exists(), self.tried.read_text()
        assert not self.evil.exists(), self.evil.read_text()


@pytest.fixture(scope="module")
def trap(tmp_path_factory: pytest.TempPathFactory) -> Trap:
    return Trap(tmp_path_factory.mktemp("trap"))


@pytest.fixture(scope="module")
def asked(trap: Trap) -> CompletedProcess[str]:
    return cag_daemon("ask", QUESTION, cwd=trap.workspace, env=trap.env)


def test_ask_answers_truly_and_says_nothing_else(asked: CompletedProcess[str]) -> None:
    assert (asked.returncode, asked.stdout, asked.stderr) == (0, ANSWERED + "\n", "")


def test_ask_neither_uses_the_network_nor_imports_the_workspace(asked: CompletedProcess[str], trap: Trap) -> None:
    trap.check()


def test_the_daemon_neither_uses_the_network_nor_imports_the_workspace(trap: Trap) -> None:
    trap.cut.unlink(missing_ok=True)
    client = Client(trap.workspace, env=trap.env)
    try:
        client.initialize([trap.workspace])
        assert client.answer(QUESTION) == ANSWERED
        client.stop()
    finally:
        client.kill()
    trap.check()


@pytest.mark.exhaustive
def test_ask_with_json_prints_the_result_of_cag_ask_alone(tmp_path: Path) -> None:
    done = cag_daemon("ask", "--json", QUESTION, "--document", str(EXAMPLE), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    text = EXAMPLE.read_text("utf-8")
    assert set(result) == set(AskResult.__annotations__) - {"notice"}
    check_shape(result, ANSWER, "ask --json")
    check_no_null(result, "ask --json")
    assert result["answer"] == ANSWERED
    assert result["finishReason"] == "stop"
    assert result["snapshot"] == "current"
    assert result["document"]["uri"] == EXAMPLE.as_uri()
    assert result["document"]["version"] == version_of(text)
    (citation,) = result["citations"]
    assert citation["location"]["uri"] == EXAMPLE.as_uri()
    assert text_at(text, citation["location"]["range"]) == ANSWERED[slice(*citation["answerRange"])] == ANSWERED


class Terminal:
    """A process whose stderr is a terminal; without arguments its stdin, too."""

    def __init__(self, *arguments: str, cwd: Path, home: Path) -> None:
        pty = pytest.importorskip("pty", reason="no terminals to pretend to be on this system")
        self._seen, (self._master, slave) = bytearray(), pty.openpty()
        stdin = DEVNULL if arguments else slave
        environment = Client.environment(home, {"TERM": "xterm-256color", "COLUMNS": "120"})
        self.process = Popen(
            [sys.executable, "-m", "cag_daemon", *arguments],
            **{"cwd": cwd, "env": environment, "stdin": stdin, "stdout": PIPE, "stderr": slave},
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while chunk := os.read(self._master, 4096):
                self._seen += chunk
        except OSError:  # how Linux says that nobody holds the other end any more
            pass

    @property
    def raw(self) -> str:
        return self._seen.decode()

    @property
    def shown(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", self.raw)

    def wait_for(self, words: str) -> None:
        deadline = time.monotonic() + 60
        while words not in self.shown:
            assert time.monotonic() < deadline, self.shown
            assert self.process.poll() is None, self.shown
            time.sleep(0.02)

    def end(self) -> tuple[int, str]:
        """The exit code, and all of stdout."""
        stdout, _ = self.process.communicate(timeout=100)
        self._reader.join(5)
        os.close(self._master)
        return self.process.returncode, stdout.decode()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Any]:
    """The factory of a test's own terminals."""
    started: list[Terminal] = []

    def start(*arguments: str, cwd: Path) -> Terminal:
        started.append(Terminal(*arguments, cwd=cwd, home=tmp_path / "home"))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.communicate()


@pytest.mark.exhaustive
def test_a_document_that_is_too_long_for_the_model_is_answered_with_a_notice(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(EMBEDDED, model)
    card = json.loads((model / "cag.json").read_text())
    (model / "cag.json").write_text(json.dumps(card | {"reads": 100}))
    words = ("ask", QUESTION, "--document", str(EXAMPLE), "--model", str(model))
    notice = "the embedded model is good for about 100"
    assert notice in json.loads(cag_daemon(*words, "--json", cwd=tmp_path).stdout)["notice"]
    done = cag_daemon(*words, cwd=tmp_path)
    assert (done.returncode, notice in " ".join(done.stderr.split())) == (0, True)
    assert done.stdout == ANSWERED + "\n"


def test_on_a_terminal_progress_is_shown_and_where_the_answer_stands(terminal: Any) -> None:
    running = terminal("ask", QUESTION, "--document", "examples/document.txt", cwd=ROOT)
    assert running.end() == (0, ANSWERED + "\n")
    assert "Loading the model" in running.shown
    assert "Reading document.txt" in running.shown
    words = ANSWERED[:40]
    assert re.search(rf"^examples/document\.txt:{LINE}:\d+  {words}", running.shown, re.MULTILINE), running.shown
    assert re.search(r"\x1b\[2m.*document\.txt", running.raw), "it is not dimmed"


def test_who_starts_the_language_server_by_hand_is_told_what_it_waits_for(tmp_path: Path, terminal: Any) -> None:
    running = terminal(cwd=tmp_path)
    running.wait_for("waiting for an editor on stdin")
    running.wait_for("cag-daemon ask QUESTION")


def test_an_interrupt_ends_it_with_130_and_no_traceback(tmp_path: Path, terminal: Any) -> None:
    running = terminal("ask", QUESTION, "--document", str(EXAMPLE), cwd=tmp_path)
    running.wait_for("Loading the model")
    time.sleep(0.5)  # into the import of torch
    running.process.send_signal(signal.SIGINT)
    # Where the interrupt meets an `exec` within an import, Python ends by the signal at last, though it was handled: a
    # shell calls both 130.
    code, said = running.end()
    assert code in (130, -signal.SIGINT)
    assert said == ""
    assert "Traceback" not in running.shown
    assert "Error" not in running.shown


# ── what cannot be answered ─────────────────────────────────────────────────────────────────


def _missing(path: Path) -> None:
    pass


def _fifo(path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes in the file system here")
    os.mkfifo(path)


BAD_DOCUMENTS = {
    "missing": _missing,
    "empty": lambda path: path.write_bytes(b""),
    "blank": lambda path: path.write_bytes(b" \r\n\t\n"),
    "binary": lambda path: path.write_bytes(b"text\0text"),
    "Latin-1": lambda path: path.write_bytes("Zürich".encode("latin-1")),
    "a folder": lambda path: path.mkdir(),
    "a pipe": _fifo,
    "a link to itself": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("what", BAD_DOCUMENTS)
def test_a_document_that_is(what: str, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    BAD_DOCUMENTS[what](path)
    done = cag_daemon("ask", QUESTION, "--document", "notes.txt", cwd=tmp_path, timeout=20)
    assert str(path) in check_sentence(done, 1)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    done = cag_daemon("ask", QUESTION, "--document", str(EXAMPLE), "--model", "nowhere", cwd=tmp_path)
    assert "nowhere" in check_sentence(done, 1)


@pytest.mark.parametrize("question", ["", "  \t\n"])
def test_a_blank_question(question: str, tmp_path: Path) -> None:
    done = cag_daemon("ask", question, "--document", str(EXAMPLE), cwd=tmp_path, timeout=20)
    assert "blank" in check_sentence(done, 2)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["ask"], "QUESTION"),
        (["ask", QUESTION, "--threads", "many"], "--threads"),
        (["ask", QUESTION, "--quantization", "int3"], "--quantization"),
        (["ask", QUESTION, "--max-new-tokens", "0"], "--max-new-tokens"),
        (["ask", QUESTION, "--nonsense"], "--nonsense"),
        (["doctor", "--device", "abacus"], "abacus"),
        (["nonsense"], "nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage(arguments: list[str], named: str, tmp_path: Path) -> None:
    done = cag_daemon(*arguments, cwd=tmp_path, timeout=20)
    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bad_variable_of_the_environment_is_wrong_usage(tmp_path: Path) -> None:
    done = cag_daemon("ask", QUESTION, cwd=tmp_path, env={"CAG_DTYPE": "int3"}, timeout=20)
    assert (done.returncode, done.stdout) == (2, "")
    assert "CAG_DTYPE: 'int3' is not accepted" in done.stderr


# ── what it says of itself ──────────────────────────────────────────────────────────────────


def test_doctor_finds_everything_in_its_place(tmp_path: Path) -> None:
    shutil.copy(EXAMPLE, tmp_path)
    done = cag_daemon("doctor", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for what in ("cag-daemon", "torch", "machine", "device", "model", "embedded", "document", "network"):
        assert re.search(rf"\b{what}\b", done.stdout), what
    assert done.stdout.endswith("Everything is there to answer offline.\n")


def test_doctor_with_json_prints_its_findings_alone(tmp_path: Path) -> None:
    done = cag_daemon("doctor", "--json", "--model", "nowhere", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    report = json.loads(done.stdout)
    assert report["ok"] is False
    found = {each["what"]: each for each in report["findings"]}
    assert all(each["verdict"] in ("ok", "note", "problem") and each["found"] for each in report["findings"])
    assert found["model"]["verdict"] == "problem"
    assert "nowhere" in found["model"]["found"]
    assert found["document"]["verdict"] == "note"
    assert [each["what"] for each in report["findings"] if each["verdict"] == "problem"] == ["model"]


def test_doctor_puts_the_model_to_the_test_with_no_network_at_all(tmp_path: Path) -> None:
    done = cag_daemon("doctor", "--check", "--offline", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    found = {each["what"]: each for each in json.loads(done.stdout)["findings"]}
    assert found["cached answers"]["verdict"] == "ok"
    assert found["cached answers"]["same"] == found["cached answers"]["compared"] > 10
    assert "bit for bit the same" in found["cached answers"]["found"]
    assert found["speed"]["readTokensPerSecond"] > 100
    assert found["speed"]["writtenTokensPerSecond"] > 3
    assert found["network"]["found"].endswith("with every connection refused: none was tried")


def test_doctor_checks_the_model_that_is_named(tmp_path: Path) -> None:
    done = cag_daemon("doctor", "--check", "nowhere", "--json", cwd=tmp_path)
    assert done.returncode == 1
    problems = [each for each in json.loads(done.stdout)["findings"] if each["verdict"] == "problem"]
    assert [each["what"] for each in problems] == ["model", "check"]
    assert all("no model folder nowhere" in each["found"] for each in problems)


def test_doctor_says_what_would_not_fit(tmp_path: Path) -> None:
    (tmp_path / "document.txt").write_text("word " * 300)
    done = cag_daemon("doctor", "--json", "--memory-max-gigabytes", "0.001", cwd=tmp_path)
    assert done.returncode == 0
    found = {each["what"]: each for each in json.loads(done.stdout)["findings"]}
    assert found["memory"]["verdict"] == "note"
    assert re.search(r"MB of weights \(float32\), .* free on cpu: ", found["memory"]["found"])


@pytest.mark.parametrize("command", ["ask", "serve", "doctor"])
def test_help_names_every_setting(command: str, tmp_path: Path) -> None:
    done = cag_daemon(command, "--help", cwd=tmp_path, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    said = " ".join(done.stdout.split())
    for name, field in Settings.model_fields.items():
        assert f"{FLAGS[name]} … {field.description}" in said


def test_help_names_every_command(tmp_path: Path) -> None:
    done = cag_daemon("--help", cwd=tmp_path, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"^  (\w+)  ", done.stdout, re.MULTILINE) == ["ask", "clean", "client", "doctor", "pull", "serve"]


def test_version(tmp_path: Path) -> None:
    done = cag_daemon("--version", cwd=tmp_path, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"cag-daemon, version {__version__}\n", "")
