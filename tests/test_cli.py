"""The command line: real processes, as a user starts them. A model is loaded five times."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from subprocess import DEVNULL, PIPE, CompletedProcess, Popen
from types import SimpleNamespace
from typing import Any

import pytest

from cag_daemon import __version__, once
from cag_daemon.config import FLAGS, Settings
from cag_daemon.errors import CagError, InvalidParams
from cag_daemon.flags import parse_flags
from cag_daemon.front.protocol import AskResult
from tests.client import (
    ANSWER,
    METHOD_NOT_FOUND,
    ROOT,
    Client,
    check_no_null,
    check_shape,
    range_of,
    text_at,
    version_of,
)
from tests.fake_front import Editor, FakeFront, front, runtime_home
from tests.models import EMBEDDED

__all__ = ["front", "runtime_home"]  # fixtures

EXAMPLE = ROOT / "examples" / "document.txt"
QUESTION = "Who donated the lathe?"
ANSWERED = "The lathe was donated by a retired clockmaker named Anselm Brandt."
LINE = 11

# A module that leaves a trace when it is imported, and one that cuts the network for whoever has it on the path.
EVIL = "import pathlib; pathlib.Path({trace!r}).write_text(__name__)\nraise SystemExit('evil')\n"
CUT = """
import pathlib, socket
real = socket.socket.connect
def refuse(*arguments, **_):
    if getattr(arguments[0], "family", None) == getattr(socket, "AF_UNIX", "none here"):
        return real(*arguments)  # a file of this machine, where the front is
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
    with runtime_folder() as runtime:
        environment = Client.environment(cwd / ".home", {"XDG_RUNTIME_DIR": runtime, **(env or {})})
        return subprocess.run(
            command, cwd=cwd, env=environment, stdin=DEVNULL, capture_output=True, text=True, timeout=timeout
        )


def runtime_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for sockets, so that no front of the user's is met; pytest's own have names too long for sockets."""
    return tempfile.TemporaryDirectory(prefix="cag-", ignore_cleanup_errors=True)


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

    def __init__(self, *arguments: str, cwd: Path, home: Path, env: Mapping[str, str]) -> None:
        pty = pytest.importorskip("pty", reason="no terminals to pretend to be on this system")
        self._seen, (self._master, slave) = bytearray(), pty.openpty()
        stdin = DEVNULL if arguments else slave
        self._runtime = runtime_folder()
        of_its_own = {"XDG_RUNTIME_DIR": self._runtime.name, "CAG_LINGER_SECONDS": "0"}
        environment = Client.environment(home, {"TERM": "xterm-256color", "COLUMNS": "120", **of_its_own, **env})
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

    def close(self) -> None:
        """Leave nothing behind."""
        self.process.kill()
        self.process.communicate()
        self._runtime.cleanup()

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

    def start(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> Terminal:
        started.append(Terminal(*arguments, cwd=cwd, home=tmp_path / "home", env=env or {}))
        return started[-1]

    yield start
    for each in started:
        each.close()


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


# ── a question through a running front ──────────────────────────────────────────────────────

unix = pytest.mark.skipif(sys.platform == "win32", reason="no unix sockets here")

RESULT: dict[str, Any] = {
    "answer": ANSWERED,
    "finishReason": "stop",
    "model": {"name": "embedded", "quantization": "none"},
    "document": {"uri": EXAMPLE.as_uri(), "version": version_of(EXAMPLE.read_text("utf-8")), "tokens": 1234},
    "snapshot": "current",
    "citations": [
        {
            "answerRange": [0, len(ANSWERED)],
            "location": {"uri": EXAMPLE.as_uri(), "range": range_of(EXAMPLE.read_text("utf-8"), ANSWERED)},
            "match": "exact",
        }
    ],
    "tokens": {"cached": 1234, "prompt": 12, "generated": 18, "drafted": 0, "accepted": 0},
    "milliseconds": {"queued": 0, "firstToken": 80, "total": 400},
}


def begin(editor: Editor) -> dict[str, Any]:
    """As an LSP server, until the question is there: its params, with its id and what ``initialize`` said."""
    first = editor.expect("initialize")
    editor.send(id=first["id"], result={"capabilities": {}})
    editor.expect("initialized")
    asked = editor.expect("cag/ask")
    return {"number": asked["id"], "client": first["params"], **asked["params"]}


def status(state: str, **more: Any) -> dict[str, Any]:
    return {"state": state, "short": state, "message": state, "queue": 0, "documents": [], **more}


class Served:
    """A front that answers in pieces; what it was asked."""

    def __init__(self, front: FakeFront, *before: dict[str, Any], **reply: Any) -> None:
        self.asked: dict[str, Any] = {}
        self.replies: list[dict[str, Any] | None] = []
        self._before, self._reply = before, reply or {"result": RESULT}
        front.serve = self._serve

    def _serve(self, editor: Editor) -> None:
        self.asked = begin(editor)
        editor.send(id="r1", method="workspace/configuration", params={"items": []})
        editor.send(id="r2", method="client/registerCapability", params={"registrations": []})
        self.replies = [editor.receive(), editor.receive()]
        for message in self._before:
            editor.send(**message)
            time.sleep(0.15)  # for what is shown in between
        for number, piece in enumerate(("The lathe was ", ANSWERED[14:]) if "result" in self._reply else ()):
            editor.send(method="cag/partial", params={"id": "another's", "seq": 0, "text": "nothing of ours"})
            editor.send(method="cag/partial", params={"id": self.asked["id"], "seq": number, "text": piece})
        editor.send(id=self.asked["number"], **self._reply)
        self.ends = [editor.receive(), editor.receive(), editor.receive()]


@unix
def test_ask_joins_a_running_front(front: FakeFront, tmp_path: Path) -> None:
    served = Served(front)
    shutil.copy(EXAMPLE, tmp_path / "notes.txt")
    words = ("ask", f"  {QUESTION}\n", "--document", "notes.txt", "--max-new-tokens", "99", "--model", "-odd one")
    done = cag_daemon(*words, cwd=tmp_path, env=front.env)
    assert (done.returncode, done.stdout, done.stderr) == (0, ANSWERED + "\n", "")
    (hello,) = front.hellos
    assert (hello["purpose"], hello["folder"]) == ("editor", str(tmp_path))
    assert sorted(hello["arguments"]) == [
        *(f"--document={tmp_path / 'notes.txt'}", "--max-new-tokens=99", "--model=-odd one")
    ]
    given = {name: value for name, value in parse_flags(hello["arguments"]).items() if value is not None}
    assert given == {"document": str(tmp_path / "notes.txt"), "max_new_tokens": "99", "model": "-odd one"}
    assert served.asked["question"] == QUESTION
    client = served.asked["client"]
    assert client["clientInfo"]["name"] == "cag-daemon ask"
    assert client["initializationOptions"] == {"showAnswers": False}
    assert isinstance(client["processId"], int)
    assert not client.get("workspaceFolders")
    first, second = served.replies
    assert first is not None
    assert (first["id"], first["error"]["code"]) == ("r1", METHOD_NOT_FOUND)
    assert second == {"jsonrpc": "2.0", "id": "r2", "result": None}
    assert [each and each["method"] for each in served.ends] == ["shutdown", "exit", None]


@unix
def test_ask_through_a_front_prints_the_same_json(front: FakeFront, tmp_path: Path) -> None:
    Served(front)
    done = cag_daemon("ask", "--json", QUESTION, "--document", str(EXAMPLE), cwd=tmp_path, env=front.env)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == json.dumps(RESULT, ensure_ascii=False, indent=2) + "\n"


@unix
@pytest.mark.parametrize(
    ("code", "data", "ends"),
    [
        (-32803, {"reason": "documentTooLong", "tokens": 9, "maxTokens": 5, "line": 3}, 1),
        (-32803, {"reason": "new one"}, 1),
        (-32802, {"reason": "workerRestarted"}, 1),
        (-32602, {"parameter": "question"}, 2),
        (-32603, None, 1),
    ],
)
def test_an_error_of_the_front_is_a_sentence(
    front: FakeFront, code: int, data: dict[str, Any] | None, ends: int, tmp_path: Path
) -> None:
    Served(front, error={"code": code, "message": "It went wrong; try another."} | ({"data": data} if data else {}))
    done = cag_daemon("ask", QUESTION, "--document", str(EXAMPLE), cwd=tmp_path, env=front.env)
    assert check_sentence(done, ends) == "cag-daemon: It went wrong; try another."


@unix
def test_what_a_front_does_for_it_is_shown_on_a_terminal(front: FakeFront, terminal: Any) -> None:
    def reading(done: int) -> dict[str, Any]:
        document = {"uri": EXAMPLE.as_uri(), "state": "reading", "source": "disk", "tokens": 1234, "read": done}
        return {"method": "cag/statusChanged", "params": status("reading", documents=[document])}

    steps = (
        {"method": "cag/statusChanged", "params": status("loading", percent=37)},
        *(reading(100), reading(777)),
        {"method": "window/showMessage", "params": {"type": 2, "message": "Another [model] is loaded."}},
        {"method": "window/logMessage", "params": {"type": 3, "message": "chatter"}},
        {"method": "cag/statusChanged", "params": status("answering")},
    )
    Served(front, *steps, result=RESULT | {"finishReason": "length", "notice": "It is long."})
    running = terminal("ask", QUESTION, "--document", "examples/document.txt", cwd=ROOT, env=front.env)
    assert running.end() == (0, ANSWERED + "\n")
    for words in ("Loading the model (auto)", "37%", "Reading document.txt", "777/1234 tokens", "Another [model] is"):
        assert words in running.shown
    for words in ("It is long.", "Cut at 18 tokens; more with --max-new-tokens."):
        assert re.search(rf"^{re.escape(words)}$", running.shown, re.MULTILINE), running.shown
    assert re.search(rf"^examples/document\.txt:{LINE}:\d+  {ANSWERED[:40]}", running.shown, re.MULTILINE)
    assert "chatter" not in running.shown


@unix
def test_an_interrupt_cancels_the_question_in_the_front(front: FakeFront, tmp_path: Path, terminal: Any) -> None:
    seen: list[Any] = []
    done = threading.Event()

    def serve(editor: Editor) -> None:
        asked = begin(editor)
        editor.send(method="cag/statusChanged", params=status("loading", percent=37))
        seen.append((asked["number"], editor.receive()))
        done.set()

    front.serve = serve
    running = terminal("ask", QUESTION, "--document", str(EXAMPLE), cwd=tmp_path, env=front.env)
    running.wait_for("37%")
    running.process.send_signal(signal.SIGINT)
    assert running.end() == (130, "")
    assert done.wait(5)
    ((number, cancel),) = seen
    assert (cancel["method"], cancel["params"]) == ("$/cancelRequest", {"id": number})
    assert "Traceback" not in running.shown


def _dies_at_once(editor: Editor) -> None:
    editor.expect("initialize")


def _dies_in_a_frame(editor: Editor) -> None:
    begin(editor)
    editor._stream.write(b"Content-Length: 99\r\n\r\n{")


def _is_stopped(editor: Editor) -> None:
    begin(editor)
    editor.send(method="$/cag/stopped", params={})
    assert editor.receive() is None  # who is asked closes first


def _shuts_down(editor: Editor) -> None:
    asked = begin(editor)
    error = {"code": -32802, "message": "It is shutting down.", "data": {"reason": "shuttingDown"}}
    editor.send(id=asked["number"], error=error)


def _babbles(editor: Editor) -> None:
    begin(editor)
    editor._stream.write(b"Content-Length: 3\r\n\r\n{]}")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """No model is loaded in this process: the answer is this."""
    engine = SimpleNamespace(keeping=None)
    answer = RESULT | {"answer": "from this process"}
    monkeypatch.setattr(once, "_load", lambda *_: engine)
    monkeypatch.setattr(once, "_read", lambda *_: None)
    monkeypatch.setattr(once, "_answer", lambda *_: answer)
    return answer


def ask_here(*, as_json: bool = True, standalone: bool = False) -> int:
    flags = {"document": str(EXAMPLE), "model": None}
    return once.ask_once(QUESTION, as_json, Settings(document=str(EXAMPLE)), flags, standalone)


@unix
@pytest.mark.parametrize(
    "serve",
    [_dies_at_once, _dies_in_a_frame, _is_stopped, _shuts_down, _babbles, None, "too new"],
    ids=lambda serve: getattr(serve, "__name__", str(serve)),
)
def test_a_front_that_cannot_answer_is_done_without(
    serve: Any, front: FakeFront, alone: dict[str, Any], capsys: Any
) -> None:
    if callable(serve):
        front.serve = serve
    elif serve is None:
        front.close()
    else:
        front.results["editor"] = "This front is another version's."
    assert ask_here() == 0
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == (alone, "")


@unix
def test_a_folder_of_another_keeps_no_question_from_its_answer(
    runtime_home: Path, alone: dict[str, Any], capsys: Any
) -> None:
    runtime_home.joinpath("cag-daemon").mkdir()
    runtime_home.joinpath("cag-daemon").chmod(0o777)
    assert ask_here() == 0
    assert json.loads(capsys.readouterr().out) == alone


@unix
def test_standalone_asks_no_front(front: FakeFront, alone: dict[str, Any], capsys: Any) -> None:
    assert ask_here(standalone=True) == 0
    assert json.loads(capsys.readouterr().out) == alone
    assert front.hellos == []


@unix
def test_a_front_that_dies_in_the_midst_of_its_answer_is_said(
    front: FakeFront, alone: dict[str, Any], capsys: Any
) -> None:
    def serve(editor: Editor) -> None:
        asked = begin(editor)
        editor.send(method="cag/partial", params={"id": asked["id"], "seq": 0, "text": "The lathe"})

    front.serve = serve
    with pytest.raises(CagError, match="in the midst of its answer"):
        ask_here(as_json=False)
    assert capsys.readouterr().out == "The lathe\n"
    assert ask_here() == 0  # as JSON nothing has been printed that could not be taken back
    assert json.loads(capsys.readouterr().out) == alone


@unix
def test_words_are_quoted_from_the_version_that_was_answered_from(
    front: FakeFront, tmp_path: Path, terminal: Any
) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("Something else.")

    def serve(editor: Editor) -> None:
        asked = begin(editor)
        path.write_text("The lathe was Anselm Brandt's.")
        place = {"uri": path.as_uri(), "range": range_of(path.read_text(), "Anselm Brandt")}
        found = {"answerRange": [0, 13], "location": place, "match": "exact"}
        told = {"uri": path.as_uri(), "version": version_of(path.read_text()), "tokens": 12}
        result = RESULT | {"citations": [found], "document": told}
        editor.send(method="cag/partial", params={"id": asked["id"], "seq": 0, "text": "Anselm Brandt"})
        editor.send(id=asked["number"], result=result)

    front.serve = serve
    running = terminal("ask", QUESTION, "--document", "notes.txt", cwd=tmp_path, env=front.env)
    assert running.end() == (0, "Anselm Brandt\n")
    assert re.search(r"^notes\.txt:1:15  Anselm Brandt$", running.shown, re.MULTILINE), running.shown


# ── an editor ───────────────────────────────────────────────────────────────────────────────

SERVE = """
import sys
import cag_daemon.front.shim as shim
from cag_daemon.runtime import RuntimeUnusable
def forward(stdin, stdout, arguments):
    heavy = {{"click", "pydantic", "pygls", "asyncio", "cag_daemon.config", "rich"}} & set(sys.modules)
    print("forwarded", arguments, sorted(heavy), file=sys.stderr)
    stdout.write(b"frames")
    stdout.flush()
    print("never on stdout")
    {then}
shim.forward = forward
import cag_daemon.cli as cli
{before}
cli.main()
"""


def frame(method: str, **more: Any) -> str:
    body = json.dumps({"jsonrpc": "2.0", "method": method, **more})
    return f"Content-Length: {len(body)}\r\n\r\n{body}"


def serve(tmp_path: Path, *arguments: str, then: str = "return 7", before: str = "") -> CompletedProcess[str]:
    """``cag-daemon …`` with another forwarder, and an editor that is soon content."""
    command = [sys.executable, "-c", SERVE.format(then=then, before=before), *arguments]
    said = frame("initialize", id=1, params={"capabilities": {}}) + frame("shutdown", id=2) + frame("exit")
    with runtime_folder() as runtime:
        environment = Client.environment(tmp_path / ".home", {"XDG_RUNTIME_DIR": runtime})
        return subprocess.run(
            command, cwd=tmp_path, env=environment, input=said, capture_output=True, text=True, timeout=60
        )


@unix
@pytest.mark.parametrize(
    ("arguments", "passed"),
    [
        ([], []),
        (["serve"], []),
        (["--stdio"], []),
        (["serve", "--stdio", "--clientProcessId=5", "--model", "x"], ["--model", "x"]),
        (["--clientProcessId", "5", "--document=a b", "--stdio"], ["--document=a b"]),
        (["serve", "--nonsense", "word"], ["--nonsense", "word"]),  # the front says what is wrong with it
    ],
    ids=" ".join,
)
def test_an_editor_is_handed_on_to_the_front(arguments: list[str], passed: list[str], tmp_path: Path) -> None:
    done = serve(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (7, "frames")
    assert done.stderr == f"forwarded {passed} []\nnever on stdout\n"


@unix
def test_where_there_can_be_no_front_the_editor_gets_a_daemon_of_its_own(tmp_path: Path) -> None:
    done = serve(tmp_path, "--stdio", then="raise RuntimeUnusable('The folder /x is not yours; remove it.')")
    assert done.returncode == 0, done.stderr
    assert '"serverInfo"' in done.stdout
    said = "cag-daemon: The folder /x is not yours; remove it. Until then this editor has a daemon of its own."
    assert said in done.stderr.splitlines()
    assert "Traceback" not in done.stderr


@unix
def test_an_interrupt_ends_the_forwarder_without_a_traceback(tmp_path: Path) -> None:
    done = serve(tmp_path, then="raise KeyboardInterrupt")
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


@unix
@pytest.mark.parametrize("how", ["--standalone", "no sockets"])
def test_standalone_hands_nothing_on(how: str, tmp_path: Path) -> None:
    arguments, before = (
        (["--standalone"], "")
        if how == "--standalone"
        else ([], "import cag_daemon.runtime as runtime; runtime.shareable = lambda: False")
    )
    done = serve(tmp_path, *arguments, before=before)
    assert done.returncode == 0, done.stderr
    assert '"serverInfo"' in done.stdout
    assert "forwarded" not in done.stderr
    assert done.stderr.count("one daemon for all editors needs Unix") == (how == "no sockets")


def test_the_front_understands_what_an_editor_was_started_with() -> None:
    arguments = ["--stdio", "--clientProcessId", "5", "--standalone", "--model=m", "--max-new-tokens", "7"]
    flags = parse_flags(arguments)
    assert set(flags) == set(Settings.model_fields)
    assert {name: value for name, value in flags.items() if value is not None} == {"model": "m", "max_new_tokens": "7"}
    everything = parse_flags([word for name, flag in FLAGS.items() for word in (flag, name)])
    assert everything == {name: name for name in Settings.model_fields}


@pytest.mark.parametrize("wrong", [["--nonsense"], ["--model"], ["word"], ["--help"]], ids=" ".join)
def test_what_it_does_not_understand_is_said(wrong: list[str]) -> None:
    with pytest.raises(InvalidParams) as raised:
        parse_flags(wrong)
    assert wrong[0].lstrip("-") in raised.value.message
    assert raised.value.message.endswith(" `cag-daemon serve --help` lists the flags.")


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
    for what in (
        "cag-daemon",
        "torch",
        "machine",
        "device",
        "model",
        "embedded",
        "document",
        "network",
        "daemon",
        "log",
    ):
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


@unix
def test_doctor_says_where_the_log_is_and_whether_a_front_runs(front: FakeFront, tmp_path: Path) -> None:
    log = str(tmp_path / ".home" / "state" / "cag-daemon" / "log" / "daemon.log")
    front.results["status"] = {"version": "1.2.3", "pid": 4242, "log": log, "clients": [], "models": []}

    def found() -> dict[str, Any]:
        done = cag_daemon("doctor", "--json", "--offline", "--check", "nowhere", cwd=tmp_path, env=front.env)
        return {each["what"]: each for each in json.loads(done.stdout)["findings"]}

    running = found()
    assert {name: running["daemon"][name] for name in ("verdict", "running", "pid", "version")} == {
        **{"verdict": "ok", "running": True, "pid": 4242, "version": "1.2.3"},
    }
    assert running["daemon"]["found"] == "1.2.3 is running as process 4242; `cag-daemon status` tells more"
    assert running["log"]["path"] == log
    front.close()
    alone = found()
    assert (alone["daemon"]["running"], alone["log"]["path"]) == (False, log)
    assert alone["daemon"]["found"] == "none is running; an editor starts it"


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
    assert re.findall(r"^  (\w+)  ", done.stdout, re.MULTILINE) == [
        *("ask", "clean", "client", "doctor", "pull", "serve", "status", "stop", "unload"),
    ]


def test_version(tmp_path: Path) -> None:
    done = cag_daemon("--version", cwd=tmp_path, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"cag-daemon, version {__version__}\n", "")
