"""The forwarder as an editor starts it: a real process, real sockets, and fronts that do what a test tells them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import psutil
import pytest

from cag_daemon import runtime
from tests.client import CANCELLED_BY_DAEMON, ENDS_WITHIN, INVALID_REQUEST, ROOT, SLACK

pytestmark = pytest.mark.skipif(not runtime.shareable(), reason="shared mode needs unix sockets")

PATIENCE = 30.0
MEGABYTES = 1e6
# The forwarder by itself, as the command line starts it; a test may give another program for the front.
PROGRAM = """
import os, sys
from cag_daemon import runtime
from cag_daemon.front.shim import forward
runtime.FRONT = sys.argv.pop(1) or runtime.FRONT
real = os.dup(1)
os.dup2(2, 1)
try:
    code = forward(sys.stdin.buffer, os.fdopen(real, "wb"), sys.argv[1:])
except runtime.RuntimeUnusable as error:
    os.write(2, f"alone: {error}".encode())
    code = 77
os._exit(code)
"""
# A front in its own process: it answers what it is asked, writes down what it hears, and dies when told.
FRONT = """
import json, os, sys, threading, time
sys.path[0] = sys.argv.pop(1)
from cag_daemon import runtime
claim = runtime.Claim.take()
if claim is None:
    sys.exit(0)
book = os.path.join(os.environ["XDG_RUNTIME_DIR"], "fronts")
with open(book, "a") as file:
    file.write(f"{os.getpid()}\\n")
def serve(connection):
    with connection, connection.makefile("rwb") as stream:
        stream.readline()
        stream.write(b'{"welcome": {"version": "0", "pid": %d}}\\n' % os.getpid())
        stream.flush()
        while line := stream.readline():
            length = int(line.split(b":")[1])
            stream.readline()
            message = json.loads(stream.read(length))
            if "id" in message and "method" in message:
                body = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": {"pid": os.getpid()}}).encode()
                stream.write(b"Content-Length: %d\\r\\n\\r\\n%b" % (len(body), body))
                stream.flush()
            if message.get("method") == "die":
                os._exit(9)
while True:
    connection, _ = claim.listener.accept()
    threading.Thread(target=serve, args=(connection,), daemon=True).start()
"""


def frame(**message: Any) -> bytes:
    body = json.dumps({"jsonrpc": "2.0", **message}, ensure_ascii=False).encode()
    return b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def read(stream: BinaryIO) -> tuple[bytes, dict[str, Any]] | None:
    """The next frame, raw and read; None: the end, which may not come within a frame."""
    header = b""
    while not header.endswith(b"\r\n\r\n"):
        line = stream.readline()
        if not line:
            assert not header
            return None
        header += line
    length = next(int(each.split(b":")[1]) for each in header.split(b"\r\n") if each.lower().startswith(b"content-len"))
    body = stream.read(length)
    assert len(body) == length, "half a frame has reached the editor"
    return header + body, json.loads(body)


class Editor:
    """An editor with its forwarder."""

    def __init__(self, front: str = "import sys; sys.exit('no front is to be started here')") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, front, "--model", "some"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def raw(self, data: bytes) -> None:
        self.stdin.write(data)
        self.stdin.flush()

    def send(self, **message: Any) -> bytes:
        data = frame(**message)
        self.raw(data)
        return data

    def receive(self) -> dict[str, Any]:
        found = read(self.stdout)
        assert found is not None, self.process.stderr and self.process.stderr.read()
        return found[1]

    def ask(self, id: Any, method: str = "cag/ask", **params: Any) -> dict[str, Any]:
        self.send(id=id, method=method, params=params)
        answer = self.receive()
        assert answer["id"] == id
        return answer

    def ended(self, within: float = ENDS_WITHIN + SLACK) -> int:
        return self.process.wait(within)

    def stderr(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def close(self) -> None:
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()
        self.process.wait()


class Front:
    """A front in the test's own hands."""

    def __init__(self, answer: dict[str, Any] | None = None) -> None:
        claim = runtime.Claim.take()
        assert claim is not None
        self.claim = claim
        self.connections: list[Connection] = []
        self.answer = answer or {"welcome": {"version": "0", "pid": 1}}
        claim.listener.settimeout(PATIENCE)

    def accept(self) -> Connection:
        while True:
            connection, _ = self.claim.listener.accept()
            connection.settimeout(PATIENCE)
            stream = connection.makefile("rwb")
            if line := stream.readline():
                break
            stream.close()
            connection.close()
        found = Connection(connection, stream, json.loads(line))
        self.connections.append(found)
        stream.write(json.dumps(self.answer).encode() + b"\n")
        stream.flush()
        return found

    def close(self) -> None:
        for each in self.connections:
            each.die()
        self.claim.listener.close()
        self.claim.release()


class Connection:
    def __init__(self, connection: Any, stream: Any, hello: dict[str, Any]) -> None:
        self.socket, self.stream, self.hello = connection, stream, hello

    def receive(self) -> dict[str, Any]:
        return self.frame()[1]

    def frame(self) -> tuple[bytes, dict[str, Any]]:
        found = read(self.stream)
        assert found is not None
        return found

    def at_end(self) -> bool:
        return read(self.stream) is None

    def raw(self, data: bytes) -> None:
        self.stream.write(data)
        self.stream.flush()

    def send(self, **message: Any) -> None:
        self.raw(frame(**message))

    def die(self, last: bytes = b"") -> None:
        with contextlib.suppress(OSError, ValueError):  # the other end is gone, or this one was closed before
            self.raw(last)
        with contextlib.suppress(OSError):
            self.stream.close()
        self.socket.close()

    def stop(self) -> None:
        self.die(frame(method="$/cag/stopped", params={}))


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cag") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        monkeypatch.setenv("XDG_STATE_HOME", f"{folder}/state")
        yield Path(folder)
        for pid in fronts(Path(folder)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def fronts(home: Path) -> list[int]:
    """The processes that have become the front, one after the other."""
    book = home / "fronts"
    return [int(each) for each in book.read_text().split()] if book.exists() else []


@pytest.fixture
def front() -> Iterator[Front]:
    made = Front()
    yield made
    made.close()


@pytest.fixture
def editors() -> Iterator[list[Editor]]:
    made: list[Editor] = []
    yield made
    for each in made:
        each.close()


@pytest.fixture
def editor(front: Front, editors: list[Editor]) -> Editor:
    editors.append(Editor())
    return editors[0]


def initialize(editor: Editor, connection: Connection, **params: Any) -> bytes:
    raw = editor.send(id=0, method="initialize", params={"capabilities": {}, **params})
    assert connection.frame()[0] == raw
    connection.send(id=0, result={"capabilities": {}})
    assert editor.receive()["result"] == {"capabilities": {}}
    return raw


def error_of(message: dict[str, Any]) -> tuple[int, str]:
    return message["error"]["code"], message["error"]["data"]["reason"]


def document(uri: str = "file:///a") -> dict[str, Any]:
    return {"uri": uri, "version": 1, "languageId": "x", "text": "é\u2028"}


# ── frames ──


def test_what_the_front_must_know_is_in_the_greeting(editor: Editor, front: Front) -> None:
    hello = front.accept().hello
    assert (hello["purpose"], hello["arguments"], hello["folder"]) == ("editor", ["--model", "some"], str(ROOT))
    assert hello["environment"]["XDG_RUNTIME_DIR"] == os.environ["XDG_RUNTIME_DIR"]


def test_frames_and_what_is_none_pass_as_they_are(editor: Editor, front: Front) -> None:
    connection = front.accept()
    odd = [
        b"content-length: 2\r\nContent-Type: x\r\n\r\n{}",
        b"Content-Length: 4\r\n\r\n{\xff}]",
        b"Nonsense: 1\r\n\r\n",
        b"Content-Length: many\r\n\r\n",
        b"Content-Length: 2\r\n\r\n[]",
    ]
    for data in odd:
        editor.raw(data)
        assert connection.stream.read(len(data)) == data
    back = b"Content-Type: x\r\nContent-Length: 17\r\n\r\n" + '{"method": "é"} '.encode()
    connection.raw(back)
    assert read(editor.stdout) == (back, {"method": "é"})


@pytest.mark.parametrize("seed", range(3))
def test_frames_that_come_in_pieces_stay_whole(editor: Editor, front: Front, seed: int) -> None:
    connection, chance = front.accept(), random.Random(seed)
    there = [frame(method="x", params={"n": n, "text": "é" * chance.randrange(3000)}) for n in range(60)]
    back = [frame(method="y", params={"n": n, "text": "ü" * chance.randrange(3000)}) for n in range(60)]

    def dribble(data: bytes, write: Any) -> None:
        at = 0
        while at < len(data):
            size = chance.choice((1, 2, 7, 100, 5000))
            write(data[at : at + size])
            at += size

    threads = [
        threading.Thread(target=dribble, args=(b"".join(there), editor.raw)),
        threading.Thread(target=dribble, args=(b"".join(back), connection.raw)),
    ]
    for each in threads:
        each.start()
    assert [connection.frame()[0] for _ in there] == there
    found = [read(editor.stdout) for _ in back]
    assert [each and each[0] for each in found] == back
    for each in threads:
        each.join()


def test_who_does_not_read_keeps_nobody_else_waiting(editor: Editor, front: Front) -> None:
    connection = front.accept()
    big = frame(method="big", params="x" * 1_000_000)
    for _ in range(5):
        connection.raw(big)  # the editor reads none of it
    editor.raw(big * 5)  # nor the front
    editor.send(method="last")
    for _ in range(5):
        assert connection.frame()[0] == big
    assert connection.receive()["method"] == "last"
    assert [each and each[0] for each in (read(editor.stdout) for _ in range(5))] == [big] * 5


# ── the front dies ──


def test_another_front_is_told_the_same_word_for_word(editor: Editor, front: Front) -> None:
    connection = front.accept()
    kept = [initialize(editor, connection)]

    def tell(method: str, keep: bool = True, **params: Any) -> None:
        raw = editor.send(method=method, params=params)
        assert connection.frame()[0] == raw
        if keep:
            kept.append(raw)

    changed: dict[str, Any] = {"range": {"start": {"line": 0, "character": 0}, "end": {"line": 0, "character": 0}}}
    tell("initialized")
    tell("workspace/didChangeConfiguration", keep=False, settings={"cag": {"threads": 1}})
    tell("textDocument/didOpen", textDocument=document("file:///a"))
    tell("textDocument/didOpen", keep=False, textDocument=document("file:///b"))
    tell("workspace/didChangeWorkspaceFolders", event={"added": [], "removed": []})
    tell("textDocument/didChange", keep=False, textDocument={"uri": "file:///a"}, contentChanges=[changed])
    tell("textDocument/didChange", keep=False, textDocument={"uri": "file:///b"}, contentChanges=[changed])
    tell("textDocument/didSave", keep=False, textDocument={"uri": "file:///a"})
    tell("textDocument/didChange", textDocument={"uri": "file:///a"}, contentChanges=[{"text": "whole"}])
    tell("textDocument/didChange", textDocument={"uri": "file:///a"}, contentChanges=[changed | {"text": "ü"}])
    tell("$/setTrace", keep=False, value="off")
    tell("workspace/didChangeConfiguration", settings={"cag": {"threads": 2}})
    tell("textDocument/didClose", keep=False, textDocument={"uri": "file:///b"})
    tell("textDocument/didSave", textDocument={"uri": "file:///a"})
    connection.die()
    connection = front.accept()
    assert [connection.frame()[0] for _ in kept] == kept
    connection.send(id=0, result={"second": True})  # the editor knows already
    connection.send(method="news")
    assert editor.receive()["method"] == "news"
    editor.send(id=0, method="cag/ask")  # an id that may be used again
    connection.receive()
    connection.send(id=0, result={})
    assert editor.receive() == {"jsonrpc": "2.0", "id": 0, "result": {}}


def test_what_is_open_is_answered_once_when_the_front_dies(editor: Editor, front: Front) -> None:
    connection = front.accept()
    initialize(editor, connection)
    for id in (1, "1", 2):
        editor.send(id=id, method="cag/ask")
        connection.receive()
    connection.send(id=2, error={"code": -32800, "message": "Cancelled."})
    assert editor.receive()["id"] == 2
    connection.die(b'Content-Length: 100\r\n\r\n{"jsonrpc": "2.0", "id": 1, "resu')  # no more than half a frame
    answers = [editor.receive(), editor.receive()]
    assert [(each["id"], *error_of(each)) for each in answers] == [
        (1, CANCELLED_BY_DAEMON, "workerRestarted"),
        ("1", CANCELLED_BY_DAEMON, "workerRestarted"),
    ]
    editor.send(id=3, method="cag/ask")  # waits for the next front
    connection = front.accept()
    assert [connection.receive()["method"] for _ in range(2)] == ["initialize", "cag/ask"]
    connection.send(id=0, result={})
    connection.send(id=3, result={})
    assert editor.receive()["id"] == 3


def test_an_initialize_that_was_not_answered_is_answered_by_the_next_front(editor: Editor, front: Front) -> None:
    connection = front.accept()
    editor.send(id="i", method="initialize", params={})
    connection.receive()
    connection.die()
    connection = front.accept()
    assert connection.receive()["method"] == "initialize"
    connection.send(id="i", result={"from": "the second"})
    assert editor.receive()["result"] == {"from": "the second"}


def test_an_answer_for_a_front_that_is_gone_reaches_no_other(editor: Editor, front: Front) -> None:
    connection = front.accept()
    initialize(editor, connection)
    connection.send(id=7, method="workspace/configuration", params={})
    connection.send(method="$/progress", params={"token": "t", "value": {"kind": "begin", "title": "Reading"}})
    assert [editor.receive()["method"] for _ in range(2)] == ["workspace/configuration", "$/progress"]
    connection.die()
    connection = front.accept()
    connection.receive()
    # What was shown of the first does not stay for ever.
    assert editor.receive()["params"] == {"token": "t", "value": {"kind": "end"}}
    editor.send(id=7, result="for the first")
    connection.send(id=8, method="workspace/configuration", params={})
    assert editor.receive()["id"] == 8
    editor.send(id=8, result="for the second")
    assert connection.receive()["result"] == "for the second"


def test_a_front_that_dies_again_and_again_is_given_up(editor: Editor, front: Front) -> None:
    connection = front.accept()
    initialize(editor, connection)
    for _ in range(5):
        connection.die()
        connection = front.accept()
        connection.receive()
    editor.send(id=1, method="cag/ask")
    connection.receive()
    connection.die()
    assert error_of(editor.receive()) == (CANCELLED_BY_DAEMON, "workerRestarted")
    shown = editor.receive()
    assert (shown["method"], shown["params"]["type"]) == ("window/showMessage", 1)
    assert runtime.log_file() in shown["params"]["message"]
    assert editor.ended() == 1


def test_shutdown_is_answered_though_the_front_dies_over_it(editor: Editor, front: Front) -> None:
    connection = front.accept()
    initialize(editor, connection)
    editor.send(id=1, method="shutdown")
    connection.receive()
    connection.die()
    assert editor.receive() == {"jsonrpc": "2.0", "id": 1, "result": None}
    editor.send(id=2, method="cag/ask")
    assert editor.receive()["error"]["code"] == INVALID_REQUEST
    editor.send(method="exit")
    assert editor.ended() == 0


# ── the front is stopped ──


def test_after_a_stop_nothing_starts_until_the_editor_asks(editor: Editor, front: Front) -> None:
    connection = front.accept()
    kept = [initialize(editor, connection)]
    editor.send(id=1, method="cag/ask")
    connection.receive()
    connection.stop()
    assert error_of(editor.receive()) == (CANCELLED_BY_DAEMON, "shuttingDown")
    kept.append(editor.send(method="textDocument/didOpen", params={"textDocument": document()}))
    front.claim.listener.settimeout(0.7)
    with pytest.raises(TimeoutError):
        front.accept()
    front.claim.listener.settimeout(PATIENCE)
    kept.append(editor.send(id=2, method="cag/ask"))
    connection = front.accept()
    assert [connection.frame()[0] for _ in kept] == kept
    connection.send(id=0, result={})
    connection.send(id=2, result={})
    assert editor.receive()["id"] == 2


def test_an_editor_ends_well_after_a_stop(editor: Editor, front: Front) -> None:
    connection = front.accept()
    initialize(editor, connection)
    editor.send(id=1, method="cag/ask")
    connection.receive()
    connection.stop()
    assert editor.receive()["id"] == 1
    assert editor.ask(2, "shutdown")["result"] is None
    editor.send(method="exit")
    assert editor.ended() == 0


# ── the end ──


@pytest.mark.parametrize(("polite", "code"), [(True, 0), (False, 1)])
def test_exit_hands_on_the_last_words(editor: Editor, front: Front, polite: bool, code: int) -> None:
    connection = front.accept()
    if polite:
        editor.send(id=1, method="shutdown")
        connection.receive()
    editor.send(method="exit")
    assert connection.receive()["method"] == "exit"
    assert connection.at_end()
    connection.die(frame(method="goodbye"))
    assert editor.receive()["method"] == "goodbye"
    assert editor.ended() == code


def test_exit_does_not_wait_for_a_front_that_says_nothing(editor: Editor, front: Front) -> None:
    connection = front.accept()
    editor.send(method="exit")
    assert connection.receive()["method"] == "exit"
    assert editor.ended() == 1


def test_the_end_of_stdin_is_the_end_though_the_front_does_not_read(editor: Editor, front: Front) -> None:
    front.accept()
    editor.raw(frame(method="big", params="x" * 3_000_000))
    editor.stdin.close()
    assert editor.ended() == 0


def test_the_end_of_stdin_is_the_end_while_a_front_is_awaited(editors: list[Editor]) -> None:
    editors.append(Editor("import time; time.sleep(20)"))
    time.sleep(1)
    editors[0].stdin.close()
    assert editors[0].ended() == 0


def test_the_end_of_stdout_is_the_end(editor: Editor, front: Front) -> None:
    connection = front.accept()
    editor.stdout.close()
    connection.send(method="news")
    assert editor.ended() == 1


def test_the_end_of_the_editors_process_is_the_end(editor: Editor, front: Front) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        connection = front.accept()
        initialize(editor, connection, processId=other.pid)
        time.sleep(1)
        assert editor.process.poll() is None
        other.kill()  # it stays a zombie for now: that is dead enough
        assert editor.ended() == 0


def test_a_process_that_was_not_alive_is_not_watched(editor: Editor, front: Front) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    connection = front.accept()
    initialize(editor, connection, processId=gone.pid)
    time.sleep(1.2)
    assert editor.process.poll() is None


def test_who_is_refused_is_told_why(editors: list[Editor]) -> None:
    front = Front({"refused": "There is no flag --model.", "code": 2})
    editors.append(Editor())
    front.accept()
    assert editors[0].ended() == 2
    assert editors[0].stderr() == "cag-daemon: There is no flag --model.\n"
    front.close()


# ── starting a front ──


def test_a_front_is_started_and_is_nobodys_child(editors: list[Editor], home: Path) -> None:
    editors.append(Editor(FRONT))
    pid = editors[0].ask(1)["result"]["pid"]
    assert fronts(home) == [pid]
    assert psutil.Process(editors[0].process.pid).children() == []  # an editor may kill a server with its children
    assert os.getsid(pid) != os.getsid(0)
    editors[0].send(method="exit")
    assert editors[0].ended() == 1
    assert psutil.pid_exists(pid)


def test_editors_that_start_at_the_same_instant_get_one_front(editors: list[Editor], home: Path) -> None:
    for _ in range(4):
        editors.append(Editor(FRONT))
    pids = {each.ask(1)["result"]["pid"] for each in editors}
    assert fronts(home) == list(pids)
    names = {each.name.partition(".")[2] for each in runtime.runtime_folder().iterdir()}
    assert names == {"sock", "sock.lock"}


def test_a_front_that_was_killed_is_started_again(editors: list[Editor], home: Path) -> None:
    editors.extend((Editor(FRONT), Editor(FRONT)))
    first = {each.ask(0, "initialize")["result"]["pid"] for each in editors}
    os.kill(first.pop(), signal.SIGKILL)  # its socket stays, and nobody listens to it
    second = set()
    for each in editors:
        answer = each.ask(1)
        if "error" in answer:  # it came before the end was seen
            assert error_of(answer) == (CANCELLED_BY_DAEMON, "workerRestarted")
            answer = each.ask(2)
        second.add(answer["result"]["pid"])
    assert len(fronts(home)) == 2
    assert fronts(home)[1:] == list(second)


def test_a_front_that_cannot_start_is_reported_with_its_last_words(editors: list[Editor]) -> None:
    editors.append(Editor("import sys; sys.exit('the disk is on fire')"))
    assert editors[0].ended(PATIENCE) == 77
    said = editors[0].stderr()
    assert "the disk is on fire" in said
    assert runtime.log_file() in said
    assert Path(runtime.log_file()).stat().st_mode & 0o077 == 0


def test_it_takes_a_dozen_megabytes(editor: Editor, front: Front) -> None:
    connection = front.accept()
    began = time.perf_counter()
    initialize(editor, connection)
    took = time.perf_counter() - began
    used = psutil.Process(editor.process.pid).memory_info().rss / MEGABYTES
    assert used <= 15, f"{used:.1f} MB; initialize took {took * 1000:.1f} ms"


def test_it_imports_only_the_standard_library() -> None:
    code = "import sys, cag_daemon.front.shim; print(*{name.partition('.')[0] for name in sys.modules})"
    told = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"asyncio", "dataclasses", "inspect", "pathlib", "subprocess", "logging", "hashlib"}
    names = set(told.stdout.split())
    assert names - {"cag_daemon"} <= {*sys.stdlib_module_names, "__main__"}
    assert not names & heavy
