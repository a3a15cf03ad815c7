"""A raw LSP client of our own: frames parsed strictly, everything recorded in order, and the laws of every exchange.

It uses no LSP library, so that what is tested is the wire and not two users of the same library.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ABSENT: Any = type("Absent", (), {"__repr__": lambda self: "ABSENT"})()
ROOT = Path(__file__).resolve().parent.parent

PATIENCE = 60.0  # seconds; what a slow and busy machine may need for anything that is not the subject of a test
ENDS_WITHIN = 2.0  # seconds; the contract's number for the end of everything
SLACK = 1.5  # seconds; what a busy machine may add to a number of the contract

# In which of the two modes daemons are started where a test does not say: shared is the default on Unix.
SHARED = os.name == "posix" and not os.environ.get("CAG_TEST_STANDALONE")
SERVE = ("serve",) if SHARED else ("serve", "--standalone")

INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
PARSE_ERROR = -32700
NOT_INITIALIZED = -32002
CANCELLED = -32800
CANCELLED_BY_DAEMON = -32802
REQUEST_FAILED = -32803

INFORMATION = 3  # a diagnostic's severity


# ── texts and positions ─────────────────────────────────────────────────────────────────────


def normalised(text: str) -> str:
    """The text as the model and the hash see it: no byte order mark, LF, no lone surrogates."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def version_of(text: str) -> str:
    return hashlib.sha256(normalised(text).encode()).hexdigest()[:12]


def units(text: str) -> bytes:
    return text.encode("utf-16-le", "surrogatepass")


def length16(text: str) -> int:
    return len(units(text)) // 2


def slice16(text: str, start: int, end: int) -> str:
    return units(text)[2 * start : 2 * end].decode("utf-16-le", "surrogatepass")


def position(text: str, offset: int) -> dict[str, int]:
    """The LSP position (UTF-16) of an offset in code points."""
    before = text[:offset].replace("\r\n", "\n")
    line = before.count("\n")
    return {"line": line, "character": length16(before[before.rfind("\n") + 1 :])}


def range_of(text: str, part: str) -> dict[str, Any]:
    """The LSP range of the first place of ``part`` in ``text``."""
    start = text.index(part)
    return {"start": position(text, start), "end": position(text, start + len(part))}


def text_at(text: str, where: Mapping[str, Any]) -> str:
    """The words that an LSP range stands for."""
    lines = text.split("\n")

    def offset(place: Mapping[str, int]) -> int:
        return sum(length16(line) + 1 for line in lines[: place["line"]]) + place["character"]

    return slice16(text, offset(where["start"]), offset(where["end"]))


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


# ── the shapes of the contract ──────────────────────────────────────────────────────────────


def number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def hexadecimal(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{12}", value) is not None


def count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


STATES = {"starting", "noDocument", "loading", "reading", "ready", "answering", "unloaded", "failed"}
POSITION = {"line": count, "character": count}
LOCATION = {"uri": str, "range": {"start": POSITION, "end": POSITION}}
DOCUMENT = {
    "uri": str,
    "state": {"missing", "waiting", "reading", "ready", "failed"},
    "message?": str,
    "version?": hexadecimal,
    "source": {"disk", "buffer"},
    "tokens?": count,
    "read?": number,
    "maxTokens?": count,
    "bytes?": count,
    "secondsLeft?": number,
    "reason?": str,
    "cached?": {"version": hexadecimal, "tokens": count, "computed": number},
    "notice?": str,
}
STATUS = {
    "state": STATES,
    "short": str,
    "message": str,
    "reason?": str,
    "percent?": count,
    "model?": {
        "name": str,
        "device": str,
        "dtype": str,
        "quantization": str,
        "parameters": count,
        "bytes": count,
        "chunk": count,
    },
    "documents": [DOCUMENT],
    "queue": count,
    "unloadsInSeconds?": number,
    "clients?": [{"name": str, "documents": list}],
}
ANSWER = {
    "answer": str,
    "finishReason": {"stop", "length"},
    "model": {"name": str, "quantization": str},
    "document": {"uri": str, "version": hexadecimal, "tokens": count},
    "snapshot": {"current", "previous"},
    "citations": [{"answerRange": [count], "location": LOCATION, "match": {"exact"}}],
    "tokens": {"cached": count, "prompt": count, "generated": count, "drafted": count, "accepted": count},
    "milliseconds": {"queued": number, "firstToken": number, "total": number},
    "notice?": str,
}
CHANGED = {
    "document": {"uri": str, "version": hexadecimal},
    "tokens": {"total": count, "kept": count, "computed": count},
    "milliseconds": number,
}
LOCATED = {"document": {"uri": str, "version": hexadecimal}, "citations": ANSWER["citations"]}
PARTIAL = {"id": str, "seq": count, "text": str}
REASONS = {
    CANCELLED_BY_DAEMON: {"shuttingDown", "workerRestarted", "settingsChanged"},
    REQUEST_FAILED: {
        "documentNotFound",
        "documentEmpty",
        "documentUnreadable",
        "documentTooLong",
        "questionTooLong",
        "modelNotFound",
        "modelFailed",
        "outOfMemory",
    },
}
NUMBERS = {"documentTooLong": {"tokens", "maxTokens", "line"}, "questionTooLong": {"tokens", "maxTokens"}}

BY_METHOD = {"cag/ask": ANSWER, "cag/status": STATUS, "cag/refresh": CHANGED, "cag/unload": {}, "cag/locate": LOCATED}
BY_COMMAND = {"cag.ask": ANSWER, "cag.askSelection": ANSWER, "cag.refresh": CHANGED, "cag.status": STATUS}
BY_NOTIFICATION = {"cag/partial": PARTIAL, "cag/statusChanged": STATUS, "cag/documentChanged": CHANGED}


def check_shape(value: Any, shape: Any, where: str) -> None:
    """That a value has the keys and types of the contract. Keys that the contract does not know are no mistake."""
    if isinstance(shape, set):
        assert value in shape, f"{where}: {value!r} is none of {sorted(shape)}"
    elif isinstance(shape, dict):
        assert isinstance(value, dict), f"{where}: {value!r} is no object"
        for key, inner in shape.items():
            name = key.removesuffix("?")
            if name in value:
                check_shape(value[name], inner, f"{where}.{name}")
            else:
                assert key.endswith("?"), f"{where}: the key {name!r} is missing from {value!r}"
    elif isinstance(shape, list):
        assert isinstance(value, list), f"{where}: {value!r} is no list"
        for index, inner in enumerate(value):
            check_shape(inner, shape[0], f"{where}[{index}]")
    elif isinstance(shape, type):
        assert isinstance(value, shape), f"{where}: {value!r} is no {shape.__name__}"
    else:
        assert shape(value), f"{where}: {value!r} is not {shape.__name__}"


def check_no_null(value: Any, where: str) -> None:
    assert value is not None, f"{where} is null"
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list):
        children = enumerate(value)
    for key, inner in children:
        check_no_null(inner, f"{where}.{key}")


def check_error(error: Any, where: str) -> None:
    """That an error has a sentence for the user, and what the contract says goes with its code."""
    assert type(error["code"]) is int, f"{where}: {error!r}"
    message = error["message"]
    assert isinstance(message, str), f"{where}: {error!r}"
    assert message.strip(), f"{where}: no words"
    for never in ("Traceback", 'File "', str(ROOT), "site-packages"):
        assert never not in json.dumps(error), f"{where}: {never!r} in {error!r}"
    code, data = error["code"], error.get("data")
    if code in REASONS:
        assert data["reason"] in REASONS[code], f"{where}: {error!r}"
        for key in NUMBERS.get(data["reason"], ()):
            assert count(data[key]), f"{where}: {key} in {error!r}"
    if data is not None:
        check_no_null(data, f"{where}.data")


# ── the client ──────────────────────────────────────────────────────────────────────────────


class ProtocolError(AssertionError):
    """What was on stdout is not the protocol."""


class DaemonEnded(AssertionError):
    """The daemon's stdout ended while something was awaited."""


@dataclass
class Entry:
    """One message, in the order in which it was seen."""

    at: float
    sent: bool
    message: dict[str, Any]


@dataclass
class Pending:
    """A request under way."""

    client: Client
    id: Any
    method: str
    params: Any
    sent_at: float
    replies: list[Entry] = field(default_factory=list)

    @property
    def answered(self) -> bool:
        return bool(self.replies)

    def reply(self, timeout: float = PATIENCE) -> dict[str, Any]:
        self.client.wait_until(lambda: self.replies, timeout, f"the reply to {self.method} {self.params!r}")
        return self.replies[0].message

    def result(self, timeout: float = PATIENCE) -> Any:
        reply = self.reply(timeout)
        assert "error" not in reply, f"{self.method} {self.params!r}: {reply['error']!r}"
        return reply["result"]

    def error(self, timeout: float = PATIENCE) -> dict[str, Any]:
        reply = self.reply(timeout)
        assert "error" in reply, f"{self.method} {self.params!r} should fail: {reply!r}"
        return reply["error"]

    def cancel(self) -> None:
        self.client.notify("$/cancelRequest", {"id": self.id})

    @property
    def seconds(self) -> float:
        """From the request to its reply."""
        self.reply()
        return self.replies[0].at - self.sent_at


class Client:
    """A daemon's process, and an editor's end of its stdio."""

    folder: Path  # the first workspace folder
    document: Path  # its document.txt

    def __init__(
        self,
        cwd: Path,
        *,
        arguments: Sequence[str] = SERVE,
        flags: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        home: Path | None = None,
        runtime: Path | None = None,
    ) -> None:
        # The name of a socket may not be long, and pytest's folders are.
        self._own_runtime = None if runtime else tempfile.TemporaryDirectory(prefix="cag-")
        self.runtime = runtime or Path(self._own_runtime.name)
        home = home or cwd / ".home"
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.settings: Any = None  # the editor's section `cag`, as workspace/configuration gives it
        self.registered: list[str] = []  # methods that the daemon registered dynamically
        self.pulled = 0  # how often the daemon asked for the configuration
        self.abandoned = False  # the daemon was stopped on purpose with requests under way
        self.initialized: dict[str, Any] | None = None
        self.versions: dict[str, int] = {}

        self.log: list[Entry] = []
        self.pendings: list[Pending] = []
        self._failure: AssertionError | None = None
        self._ended = False
        self._news = threading.Condition()
        self._writing = threading.Lock()
        self._numbers = itertools.count(1)
        self._stray: list[dict[str, Any]] = []
        self._workers: dict[int, psutil.Process] = {}
        self._front: psutil.Process | None = None
        self.shared = "--standalone" not in arguments
        self.alone = runtime is None  # nobody else is to be at the same front

        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `stop`)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cag_daemon", *arguments, *flags],
            cwd=cwd,
            env=self.environment(
                home, {"XDG_RUNTIME_DIR": str(self.runtime), "CAG_LINGER_SECONDS": "0"} | dict(env or {})
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )
        self.watched = psutil.Process(self.process.pid)
        self._reader = threading.Thread(target=self._read, name="reader", daemon=True)
        self._reader.start()

    @staticmethod
    def environment(home: Path, more: Mapping[str, str]) -> dict[str, str]:
        """The environment of the child: nothing of this user's, nothing of ours but what a test asks for."""
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("CAG_", "HF_", "XDG_", "TRANSFORMERS_", "PYTEST_"))
        }
        places = {
            "HOME": home,
            "XDG_CACHE_HOME": home / "cache",
            "XDG_CONFIG_HOME": home / "config",
            "XDG_DATA_HOME": home / "data",
            "XDG_STATE_HOME": home / "state",
        }
        for place in places.values():
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        places["XDG_RUNTIME_DIR"] = runtime_of(home)
        path = os.pathsep.join(filter(None, [more.get("PYTHONPATH", ""), str(ROOT)]))
        return kept | {key: str(place) for key, place in places.items()} | dict(more) | {"PYTHONPATH": path}

    # ── reading ──

    def _read(self) -> None:
        try:
            while (message := self._frame()) is not None:
                self._receive(message)
        except AssertionError as failure:
            with self._news:
                self._failure = failure
        except (OSError, ValueError) as failure:  # the pipe was closed under us
            with self._news:
                self._failure = self._failure or (None if self.abandoned else ProtocolError(repr(failure)))
        finally:
            with self._news:
                self._ended = True
                self._news.notify_all()

    def _frame(self) -> dict[str, Any] | None:
        stream = self.process.stdout
        assert stream is not None
        length = None
        first = True
        while True:
            line = stream.readline()
            if not line and first:
                return None
            if line == b"\r\n" and not first:
                break
            header = re.fullmatch(rb"(Content-Length|Content-Type): ([^\r\n]+)\r\n", line)
            if header is None:
                rest = line + stream.read1(2000)  # type: ignore[attr-defined]
                raise ProtocolError(f"not the protocol on stdout: {rest!r}")
            if header[1] == b"Content-Length":
                length = int(header[2])
            first = False
        if length is None:
            raise ProtocolError("a frame without Content-Length")
        body = stream.read(length)
        if len(body) < length:
            if self.abandoned:
                return None
            raise ProtocolError(f"the stream ended within a frame: {body[:200]!r}")
        try:
            message = json.loads(body)
        except ValueError as error:
            raise ProtocolError(f"a body that is no JSON: {body[:200]!r}") from error
        if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
            raise ProtocolError(f"a body that is no JSON-RPC 2.0: {message!r}")
        return message

    def _receive(self, message: dict[str, Any]) -> None:
        entry = Entry(time.monotonic(), False, message)
        with self._news:
            self.log.append(entry)
            if "method" not in message:
                if ("result" in message) == ("error" in message):
                    raise ProtocolError(f"a reply has either a result or an error: {message!r}")
                waiting = [each for each in self.pendings if each.id == message.get("id") and _same(each.id, message)]
                open_ones = [each for each in waiting if not each.replies] or waiting[-1:]
                if open_ones:
                    open_ones[0].replies.append(entry)
                else:
                    self._stray.append(message)
            self._news.notify_all()
        if "method" in message and "id" in message:
            self._answer(message)

    def _answer(self, request: dict[str, Any]) -> None:
        """What an editor replies to the requests of a server."""
        method, params = request["method"], request.get("params") or {}
        reply: dict[str, Any] = {"jsonrpc": "2.0", "id": request["id"], "result": None}
        if method == "workspace/configuration":
            self.pulled += 1
            reply["result"] = [self._section(item.get("section")) for item in params["items"]]
        elif method == "client/registerCapability":
            self.registered += [each["method"] for each in params["registrations"]]
        elif method == "workspace/workspaceFolders":
            reply["result"] = []
        elif method not in (
            "window/workDoneProgress/create",
            "client/unregisterCapability",
            "window/showMessageRequest",
        ):
            reply.pop("result")
            reply["error"] = {"code": METHOD_NOT_FOUND, "message": f"this client has no {method}"}
        with contextlib.suppress(OSError, ValueError):  # the daemon may have gone, or have been stopped by the test
            self._write(reply)

    def _section(self, name: str | None) -> Any:
        if name in (None, ""):
            return {"cag": self.settings}
        value: Any = {"cag": self.settings}
        for part in str(name).split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    # ── writing ──

    def raw(self, data: bytes) -> None:
        """These bytes, as they are."""
        stream = self.process.stdin
        assert stream is not None
        with self._writing:
            stream.write(data)
            stream.flush()

    @staticmethod
    def frame(message: Any) -> bytes:
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        return b"Content-Length: %d\r\n\r\n%s" % (len(body), body)

    def _write(self, message: dict[str, Any]) -> None:
        with self._news:
            self.log.append(Entry(time.monotonic(), True, message))
        self.raw(self.frame(message))

    def request(self, method: str, params: Any = ABSENT, *, id: Any = ABSENT) -> Pending:
        """A request; its reply is awaited through what is returned."""
        message = {"jsonrpc": "2.0", "id": next(self._numbers) if id is ABSENT else id, "method": method}
        if params is not ABSENT:
            message["params"] = params
        pending = Pending(self, message["id"], method, None if params is ABSENT else params, time.monotonic())
        with self._news:
            self.pendings.append(pending)
        self._write(message)
        return pending

    def notify(self, method: str, params: Any = ABSENT) -> None:
        message = {"jsonrpc": "2.0", "method": method}
        if params is not ABSENT:
            message["params"] = params
        self._write(message)

    # ── waiting ──

    def wait_until(self, condition: Callable[[], Any], timeout: float, what: str) -> Any:
        """Waits until a condition on what was received holds. Fails at once where the stream broke or ended."""
        deadline = time.monotonic() + timeout
        with self._news:
            while not (value := condition()):
                if self._failure is not None:
                    raise self._failure
                if self._ended:
                    raise DaemonEnded(f"the daemon ended while awaiting {what}\n{self.stderr()[-3000:]}")
                left = deadline - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"not within {timeout:.0f} s: {what}\n{self.tail()}")
                self._news.wait(min(left, 1.0))
            return value

    def mark(self) -> int:
        """A place in the log, to look only at what comes after it."""
        with self._news:
            return len(self.log)

    def messages(self, method: str | None = None, *, since: int = 0) -> list[dict[str, Any]]:
        """What was received, in order; of one method only."""
        with self._news:
            entries = self.log[since:]
        return [
            each.message
            for each in entries
            if not each.sent and (method is None or each.message.get("method") == method)
        ]

    def wait_for(
        self,
        predicate: Callable[[dict[str, Any]], Any],
        timeout: float = PATIENCE,
        *,
        since: int = 0,
        what: str = "a message",
    ) -> dict[str, Any]:
        """The first message received that the predicate holds for."""
        return self.wait_until(
            lambda: next(
                (each.message for each in self.log[since:] if not each.sent and predicate(each.message)), None
            ),
            timeout,
            what,
        )

    def wait_notification(
        self,
        method: str,
        predicate: Callable[[Any], Any] = lambda params: True,
        timeout: float = PATIENCE,
        *,
        since: int = 0,
    ) -> Any:
        """The params of the first such notification."""

        def fits(message: dict[str, Any]) -> bool:
            return message.get("method") == method and bool(predicate(message.get("params")))

        return self.wait_for(fits, timeout, since=since, what=method)["params"]

    def wait_status(
        self, predicate: str | Callable[[dict[str, Any]], Any], timeout: float = PATIENCE
    ) -> dict[str, Any]:
        """Waits for a status, as it is now or as ``cag/statusChanged`` tells it: what holds must have been told."""
        wanted = predicate
        holds = (lambda status: status["state"] == wanted) if isinstance(wanted, str) else wanted
        since = self.mark()
        now = self.status()
        if holds(now):
            return now
        try:
            return self.wait_notification("cag/statusChanged", holds, timeout, since=since)
        except AssertionError as error:
            raise AssertionError(f"{error}\nstatus: {self.status()!r}") from None

    def document_status(self, uri: str | None = None) -> dict[str, Any]:
        documents = self.status()["documents"]
        return documents[0] if uri is None else next(each for each in documents if each["uri"] == uri)

    def tail(self, count: int = 12) -> str:
        with self._news:
            entries = self.log[-count:]
        lines = [f"{'→' if each.sent else '←'} {json.dumps(each.message)[:400]}" for each in entries]
        return "\n".join([*lines, self.stderr()[-2000:]])

    # ── what an editor does ──

    def initialize(
        self,
        folders: Sequence[Path] = (),
        options: Mapping[str, Any] | None = None,
        capabilities: Mapping[str, Any] | None = None,
        *,
        process_id: int | None = None,
        name: str = "tests",
        timeout: float = PATIENCE,
    ) -> dict[str, Any]:
        params: dict[str, Any] = {
            "processId": process_id,
            "clientInfo": {"name": name},
            "rootUri": folders[0].as_uri() if folders else None,
            "capabilities": CAPABILITIES if capabilities is None else dict(capabilities),
            "workspaceFolders": [folder(each) for each in folders] or None,
        }
        if options is not None:
            params["initializationOptions"] = dict(options)
        self.initialized = self.request("initialize", params).result(timeout)
        self.notify("initialized", {})
        assert self.initialized is not None
        return self.initialized

    def status(self, timeout: float = PATIENCE) -> dict[str, Any]:
        return self.request("cag/status").result(timeout)

    def ask(self, question: Any, **more: Any) -> Pending:
        return self.request("cag/ask", {"question": question} | more)

    def answer(self, question: str, **more: Any) -> str:
        return self.ask(question, **more).result()["answer"]

    def command(self, command: str, *arguments: Any) -> Pending:
        return self.request("workspace/executeCommand", {"command": command, "arguments": list(arguments)})

    def open(self, path: Path | str, text: str, language: str = "plaintext") -> None:
        uri = _uri(path)
        self.versions[uri] = 1
        item = {"uri": uri, "languageId": language, "version": 1, "text": text}
        self.notify("textDocument/didOpen", {"textDocument": item})

    def change(self, path: Path | str, *changes: str | tuple[dict[str, Any], str]) -> None:
        """Changes of an open buffer: a whole new text, or a (range, text)."""
        uri = _uri(path)
        self.versions[uri] += 1
        content = [{"text": each} if isinstance(each, str) else {"range": each[0], "text": each[1]} for each in changes]
        identifier = {"uri": uri, "version": self.versions[uri]}
        self.notify("textDocument/didChange", {"textDocument": identifier, "contentChanges": content})

    def save(self, path: Path | str) -> None:
        self.notify("textDocument/didSave", {"textDocument": {"uri": _uri(path)}})

    def close(self, path: Path | str) -> None:
        self.notify("textDocument/didClose", {"textDocument": {"uri": _uri(path)}})

    def configure(self, settings: Any) -> None:
        """``workspace/didChangeConfiguration``, as clients push it."""
        self.notify("workspace/didChangeConfiguration", {"settings": settings})

    # ── the processes ──

    def front(self) -> psutil.Process | None:
        """The process that speaks LSP: of the editor, or the one that all share, if there is one now."""
        if not self.shared:
            return self.watched
        if self._front is None or not alive(self._front):
            told = ask_front(self.runtime, "status")
            self._front = psutil.Process(told["result"]["pid"]) if told is not None else None
        return self._front

    def workers(self) -> list[psutil.Process]:
        """The live processes below the daemon."""
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            if (front := self.front()) is not None:
                found = [each for each in front.children(recursive=True) if alive(each)]
        self._workers |= {each.pid: each for each in found}
        return found

    def worker_pids(self) -> list[int]:
        return [each.pid for each in self.workers()]

    def worker(self) -> psutil.Process:
        """The process that holds the model: the biggest below the daemon."""
        found = self.workers()
        assert found, f"there is no worker\n{self.tail()}"
        return max(found, key=lambda each: each.memory_info().rss)

    def stderr(self) -> str:
        if self._stderr.closed:
            return ""
        size = os.fstat(self._stderr.fileno()).st_size
        log = self.home / "state" / "cag-daemon" / "log" / "daemon.log"
        of_the_front = log.read_text("utf-8", "replace") if self.shared and log.exists() else ""
        return os.pread(self._stderr.fileno(), size, 0).decode(errors="replace") + of_the_front

    # ── the end ──

    def shutdown(self) -> None:
        assert self.request("shutdown").result() is None

    def exit(self) -> None:
        self.notify("exit")

    def eof(self) -> None:
        stream = self.process.stdin
        assert stream is not None
        with self._writing:
            stream.close()

    def wait_end(self, limit: float = ENDS_WITHIN) -> int:
        """Waits until daemon and workers have ended, which may take ``limit``; the daemon's exit code."""
        began = time.monotonic()
        processes = [self.watched]
        if self.alone:
            processes += [*self._workers.values(), *([self._front] if self._front is not None else [])]
        left = still_alive(processes, limit + SLACK)
        seconds = time.monotonic() - began
        assert not left, f"after {seconds:.1f} s still there: {left}\n{self.tail()}"
        return self.process.wait(PATIENCE)

    def stop(self) -> None:
        """The end of a client that lived as it should: ``shutdown``, ``exit``, code 0, and all its laws kept."""
        try:
            if self.process.poll() is None and not self.abandoned:
                self.workers()
                if self.initialized is not None:
                    self.shutdown()
                self.exit()
                code = self.wait_end()
                assert code == (0 if self.initialized is not None else 1)
            self._reader.join(PATIENCE)
            self.check()
        finally:
            self.kill()

    def kill(self) -> None:
        """Leaves nothing behind, whatever happened."""
        self.abandoned = True
        front = self.front() if self.alone and self.shared else None
        for each in [*(self.workers() if self.alone else []), *([front] if front else []), self.watched]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self.process.wait(PATIENCE)
        self._reader.join(5)
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()
        self._stderr.close()
        if self._own_runtime is not None:
            self._own_runtime.cleanup()

    def check(self) -> None:
        """The laws of every exchange, on all that was sent and received."""
        if self._failure is not None:
            raise self._failure
        stderr = self.stderr()
        assert "Traceback" not in stderr, f"a traceback on stderr:\n{stderr[-4000:]}"
        with self._news:
            entries, pendings, stray = list(self.log), list(self.pendings), list(self._stray)
        stray = [each for each in stray if each.get("id") is not None]
        assert not stray, f"replies to nothing: {stray!r}"
        for pending in pendings:
            what = f"{pending.method} {pending.params!r}"
            expected = (0, 1) if self.abandoned or self._gone_without_shutdown() else (1,)
            assert len(pending.replies) in expected, f"{what}: {[each.message for each in pending.replies]!r}"
            for reply in pending.replies:
                self._check_reply(pending, reply.message)
        for entry in entries:
            method = None if entry.sent else entry.message.get("method")
            if method is not None and method.startswith("cag/"):
                check_no_null(entry.message["params"], method)
                check_shape(entry.message["params"], BY_NOTIFICATION[method], method)
        check_partials(entries)

    def _gone_without_shutdown(self) -> bool:
        return not any(each.method == "shutdown" and each.answered for each in self.pendings)

    @staticmethod
    def _check_reply(pending: Pending, reply: dict[str, Any]) -> None:
        if "error" in reply:
            check_error(reply["error"], pending.method)
            return
        shape = BY_METHOD.get(pending.method)
        if pending.method == "workspace/executeCommand":
            shape = BY_COMMAND.get(pending.params["command"])
        if shape is not None:
            check_no_null(reply["result"], pending.method)
            check_shape(reply["result"], shape, pending.method)
            if shape is CHANGED:
                tokens = reply["result"]["tokens"]
                assert tokens["kept"] + tokens["computed"] == tokens["total"], reply


CAPABILITIES: dict[str, Any] = {
    "general": {"positionEncodings": ["utf-8", "utf-16"]},
    "window": {"workDoneProgress": True},
    "workspace": {"workspaceFolders": True},
    "textDocument": {"codeAction": {"codeActionLiteralSupport": {"codeActionKind": {"valueSet": ["", "source"]}}}},
}


def check_partials(entries: Iterable[Entry]) -> None:
    """``seq`` from 0; joined they are the answer; all before the reply, none after it; none without an ``id``."""
    streams: dict[str, tuple[Any, list[str]]] = {}
    for entry in entries:
        message = entry.message
        params = message.get("params")
        if entry.sent and message.get("method") == "cag/ask" and isinstance(params, dict):
            name = params.get("id")
            if isinstance(name, str) and name not in streams:  # a second one with that id is refused
                streams[name] = (message["id"], [])
        elif not entry.sent and message.get("method") == "cag/partial":
            name = params["id"]
            assert name in streams, f"a piece of an answer that nobody waits for: {params!r}"
            assert params["seq"] == len(streams[name][1]), f"out of order: {params!r}"
            streams[name][1].append(params["text"])
        elif not entry.sent and "method" not in message:
            for name, (request, pieces) in list(streams.items()):
                if request == message.get("id"):
                    if "result" in message:
                        assert "".join(pieces) == message["result"]["answer"], f"the pieces of {name} are {pieces!r}"
                    del streams[name]


def runtime_of(home: Path) -> Path:
    """A runtime folder that belongs to a home: the name of a socket may not be long, and pytest's folders are."""
    folder = Path(tempfile.gettempdir(), f"cag-{zlib.crc32(os.fsencode(home)):08x}")
    folder.mkdir(mode=0o700, exist_ok=True)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def ask_front(runtime: Path, purpose: str) -> dict[str, Any] | None:
    """What the front of that runtime folder says to ``status``, ``unload`` or ``stop``; None: there is none."""
    for path in (runtime / "cag-daemon").glob("*.sock"):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(str(path))
            connection.sendall(json.dumps({"purpose": purpose, "arguments": []}).encode() + b"\n")
            if line := connection.makefile("rb").readline():
                told: dict[str, Any] = json.loads(line)
                return told
    return None


def folder(path: Path) -> dict[str, str]:
    return {"uri": path.as_uri(), "name": path.name}


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def still_alive(processes: Sequence[psutil.Process], timeout: float) -> list[psutil.Process]:
    """Those that have not ended in time. A zombie has ended: somebody else has not looked yet."""
    deadline = time.monotonic() + timeout
    left = [each for each in processes if alive(each)]
    while left and time.monotonic() < deadline:
        time.sleep(0.02)
        left = [each for each in left if alive(each)]
    return left


def _uri(path: Path | str) -> str:
    return path if isinstance(path, str) else path.as_uri()


def _same(id: Any, message: dict[str, Any]) -> bool:
    return type(id) is type(message.get("id"))  # 1, 1.0, True and "1" are different ids
