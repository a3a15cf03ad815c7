"""The forwarder, which an editor starts: stdio ⇄ the socket of the front that all editors share.

Standard library only, blocking reads and threads, a dozen megabytes. It hands whole frames on as they are, and looks
into them only for what it needs should the front die: then it answers what is open, joins another front, and tells that
one what the editor has told before, word for word.

Four threads do one thing each, and none waits for another's end of a pipe: from the editor, to the editor, with the
front (join, listen, join again), and to the front. The one that called waits for the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import socket
import threading
import time

from cag_daemon import runtime

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, BinaryIO

LOOK_SECONDS = 0.5  # between two looks whether the editor's process lives
EXIT_SECONDS = 1.5  # for the front's last words after `exit`
END_SECONDS = 0.5  # and after the end of stdin, when hardly anybody listens
FLUSH_SECONDS = 0.3  # for an editor to read them
DEATHS, DEATH_SECONDS = 5, 60.0
PIECE = 1 << 20
INVALID_REQUEST = -32600
CANCELLED_BY_DAEMON = -32802
DIED = "The daemon's process ended before the answer was whole; it is started again, ask again."
STOPPED = "The daemon was stopped; ask again to start it."
SHUT_DOWN = "The editor shuts down, and the daemon's process has ended before."
AFTER_SHUTDOWN = "This came after shutdown; the only thing left to send is exit."
GIVEN_UP = f"The daemon ended {DEATHS + 1} times within a minute and is not started again; restart it, or see"
STOPPED_METHOD = "$/cag/stopped"
JOINING, CONNECTED, DORMANT = "joining", "connected", "dormant"


def forward(stdin: BinaryIO, stdout: BinaryIO, arguments: list[str]) -> int:
    """Connect an editor to the front until it goes; the exit code.

    Threads may be blocked afterwards: end the process by `os._exit`.

    Args:
        stdin, stdout: the editor's end.
        arguments: of ``serve``, as they were typed; the front understands them.

    Raises:
        runtime.RuntimeUnusable: there is no front and none can be started; nothing was read of stdin yet.
    """
    return Forwarder(stdin, stdout, runtime.hello("editor", arguments)).run()


class Refused(Exception):
    """The front does not take us: its sentence, and the exit code."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(str(answer["refused"]))
        code = answer.get("code", 2)
        self.code = code if isinstance(code, int) else 2


class Frame:
    """One message as it came.

    Attributes:
        raw: its bytes.
        value: what it says; None where that is no JSON object.
        method: of a request or a notification.
        id: of a request or a reply, where it is one; None where the front will say that it is none.
        is_request, is_reply: what it is; a notification is neither.
    """

    __slots__ = ("id", "is_reply", "is_request", "method", "raw", "value")

    def __init__(self, raw: bytes, body: bytes) -> None:
        self.raw = raw
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            value = None
        self.value: dict[str, Any] = value if isinstance(value, dict) else {}
        method, id_ = self.value.get("method"), self.value.get("id")
        self.method = method if isinstance(method, str) else None
        self.id = id_ if isinstance(id_, int | str) and not isinstance(id_, bool) else None
        # What cannot be read is answered too, with an error.
        self.is_request = not isinstance(value, dict) or ("method" in self.value and "id" in self.value)
        self.is_reply = "method" not in self.value and ("result" in self.value or "error" in self.value)

    def params(self, *names: str) -> Any:
        """What stands there in the params; None: nothing."""
        found: Any = self.value.get("params")
        for name in names:
            found = found.get(name) if isinstance(found, dict) else None
        return found


def read_frame(stream: BinaryIO) -> Frame | None:
    """The next frame of a stream; None at its end, also in the midst of a frame. Bytes that are no frame come as one.

    The front is the judge of what is malformed: a header that says no length is handed on by itself.
    """
    header, length = b"", None
    while True:
        line = stream.readline(1 << 16)
        if not line:
            return None
        header += line
        if line.lower().startswith(b"content-length:"):
            with contextlib.suppress(ValueError):
                length = int(line.partition(b":")[2])
        if not line.strip() and length is not None and length >= 0:
            break
        if not line.strip() or len(header) > PIECE:
            return Frame(header, b"")
    pieces, left = [header], length
    while left:  # in pieces: the length may be a lie that no memory would hold
        piece = stream.read(min(left, PIECE))
        if not piece:
            return None
        pieces.append(piece)
        left -= len(piece)
    return Frame(b"".join(pieces), b"".join(pieces[1:]))


class Kept:
    """What another front must be told: frames as they came, in their order, and no more of them than needed."""

    def __init__(self) -> None:
        self._frames: list[tuple[str, str, bytes]] = []  # method, document, frame

    def note(self, frame: Frame) -> None:
        """Keep it, if it belongs to what a front must know."""
        method = frame.method or ""
        if method.startswith("textDocument/"):
            self._note_document(method.removeprefix("textDocument/"), frame)
            return
        if method in ("initialize", "initialized", "workspace/didChangeConfiguration"):
            if method.startswith("initialize") and any(method == each for each, _, _ in self._frames):
                return
            self._drop(lambda each, _: each == method)
        elif method != "workspace/didChangeWorkspaceFolders":
            return
        self._frames.append((method, "", frame.raw))

    def forget_initialize(self) -> None:
        """It failed: the editor may try another."""
        self._drop(lambda method, _: method == "initialize")

    def _note_document(self, method: str, frame: Frame) -> None:
        uri = frame.params("textDocument", "uri")
        if not isinstance(uri, str):
            return
        if method in ("didOpen", "didClose"):
            self._drop(lambda _, document: document == uri)
        elif method == "didChange":
            changes = frame.params("contentChanges")
            if isinstance(changes, list) and any(isinstance(each, dict) and "range" not in each for each in changes):
                # The whole text: whatever it was before is of no account.
                self._drop(lambda each, document: document == uri and each != "didOpen")
        elif method == "didSave":
            # The last one says as much as all of them.
            self._drop(lambda each, document: document == uri and each == "didSave")
        opened = any(document == uri for _, document, _ in self._frames)
        if method == "didOpen" or (method in ("didChange", "didSave") and opened):
            self._frames.append((method, uri, frame.raw))

    def _drop(self, which: Any) -> None:
        self._frames = [each for each in self._frames if not which(each[0], each[1])]

    def frames(self) -> list[bytes]:
        """All of them, in order."""
        return [raw for _, _, raw in self._frames]


class Forwarder:
    """Between one editor and whichever front there is.

    Args:
        stdin, stdout: the editor's end.
        hello: what each front is greeted with.
    """

    def __init__(self, stdin: BinaryIO, stdout: BinaryIO, hello: dict[str, Any]) -> None:
        self._stdin, self._stdout, self._hello = stdin, stdout, hello
        self._to_editor: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._changed = threading.Condition()  # guards all that follows
        self._state = JOINING
        self._fronts = 0  # how many there were
        self._connection: socket.socket | None = None
        self._to_front: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()  # the present one
        self._kept = Kept()
        self._replay: list[bytes] = []  # what the next front is told first
        self._waiting: list[bytes] = []  # what came since there is none, in order
        self._open: dict[Any, list[str]] = {}  # requests of the editor that are not answered: id, methods
        self._asked: set[Any] = set()  # requests of the present front that the editor has not answered
        self._progress: set[Any] = set()  # what the present front has begun to show, and not ended
        self._initialize: Any = None  # the id of that request
        self._initialized = False  # it was answered
        self._answered_before: Any = None  # the id of the request that the present front will answer a second time
        self._shut_down = False
        self._deaths: list[float] = []
        self._failure: Exception | None = None  # of the first time to join
        self._editor: tuple[int, str] | None = None  # the process that must live: its number and birth
        self._leaving: float | None = None  # until when the front may still say something
        self._exit_code = 0  # after that
        self._code: int | None = None  # how it ends

    # ── life ──

    def run(self) -> int:
        """Forward until the editor goes; the exit code."""
        self._thread(self._with_front)
        if not self._wait_for_front():
            return 0
        if isinstance(self._failure, Refused):
            _complain(str(self._failure))
            return self._failure.code
        if self._failure is not None:
            raise self._failure
        writing = self._thread(self._write_editor)
        self._thread(self._read_editor)
        code = self._wait_for_end()
        self._to_editor.put(None)
        writing.join(FLUSH_SECONDS)
        return code

    def _thread(self, work: Any, *arguments: Any) -> threading.Thread:
        thread = threading.Thread(target=self._guarded, args=(work, *arguments), daemon=True)
        thread.start()
        return thread

    def _guarded(self, work: Any, *arguments: Any) -> None:
        try:
            work(*arguments)
        except Exception as error:
            with self._changed:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self._fronts:
            self._failure = error
            self._changed.notify_all()
        elif isinstance(error, runtime.RuntimeUnusable | Refused):
            self._give_up(str(error), getattr(error, "code", 1))
        else:
            self._give_up(f"The connection to the daemon failed ({type(error).__name__}: {error}); start it again.", 1)

    def _wait_for_front(self) -> bool:
        """Wait until there is one, or there can be none; False: the editor has gone meanwhile.

        Nothing is read from stdin yet, so that another can do so if there is no front.
        """
        late = None
        with self._changed:
            while not self._fronts and self._failure is None:
                if late is None and _is_closed(self._stdin):
                    late = time.monotonic() + EXIT_SECONDS
                if late is not None and time.monotonic() > late:
                    return False
                self._changed.wait(0.1)
        return True

    def _wait_for_end(self) -> int:
        with self._changed:
            while self._code is None:
                now = time.monotonic()
                if self._editor is not None and runtime.birth(self._editor[0]) != self._editor[1]:
                    self._code = 0
                elif self._leaving is not None and now >= self._leaving:
                    self._code = self._exit_code
                elif self._leaving is not None:
                    self._changed.wait(self._leaving - now)
                else:
                    self._changed.wait(None if self._editor is None else LOOK_SECONDS)
            if self._connection is not None:
                _cut(self._connection)
            return self._code

    def _end(self, code: int) -> None:
        if self._code is None:
            self._code = code
        self._changed.notify_all()

    def _leave(self, code: int, seconds: float, raw: bytes | None = None) -> None:
        """Nothing more comes from the editor: hand on the last of it, and what the front still has to say."""
        with self._changed:
            if self._state != CONNECTED:
                self._end(code)
                return
            if raw is not None:
                self._to_front.put(raw)
            self._to_front.put(None)
            self._exit_code, self._leaving = code, time.monotonic() + seconds
            self._changed.notify_all()

    # ── the editor's words ──

    def _read_editor(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while (frame := read_frame(self._stdin)) is not None:
                if frame.method == "exit" and not frame.is_request:
                    self._leave(0 if self._shut_down else 1, EXIT_SECONDS, frame.raw)
                    return
                with self._changed:
                    self._hand_on(frame)
        self._leave(0, END_SECONDS)

    def _hand_on(self, frame: Frame) -> None:
        if frame.is_request:
            if not self._expect_reply(frame):
                return
        elif self._state == DORMANT:
            self._kept.note(frame)
            return
        elif frame.is_reply and frame.id is not None:
            if frame.id not in self._asked and (self._fronts > 1 or self._state != CONNECTED):
                return  # a front asked that is no more
            self._asked.discard(frame.id)
        self._kept.note(frame)
        if self._state == CONNECTED:
            self._to_front.put(frame.raw)
        else:
            self._waiting.append(frame.raw)

    def _expect_reply(self, frame: Frame) -> bool:
        """Take note of a request; whether a front is to answer it, and not we."""
        if frame.method == "shutdown":
            self._shut_down = True
            if self._state != CONNECTED:
                # To start a front for that would be a waste.
                self._state = DORMANT
                self._cancel_all(SHUT_DOWN, "shuttingDown")
                self._answer(frame.id, result=None)
                return False
        elif self._state == DORMANT and self._shut_down:
            self._answer(frame.id, error={"code": INVALID_REQUEST, "message": AFTER_SHUTDOWN})
            return False
        if self._state == DORMANT:
            self._join_again()
        if frame.id is not None:
            self._open.setdefault(frame.id, []).append(frame.method or "")
        if frame.method == "initialize" and self._initialize is None:
            self._initialize = frame.id
            pid = frame.params("processId")
            if isinstance(pid, int) and not isinstance(pid, bool) and (born := runtime.birth(pid)) is not None:
                self._editor = (pid, born)
                self._changed.notify_all()
        return True

    # ── the front ──

    def _with_front(self) -> None:
        """Join a front, listen to it, and again when it has gone."""
        while True:
            with self._changed:
                while self._state == DORMANT:
                    self._changed.wait()
            connection, answer = runtime.join(self._hello)
            if "refused" in answer:
                connection.close()
                raise Refused(answer)
            writing = self._attach(connection)
            if writing is not None:
                self._listen(connection)
                _cut(connection)
                self._detach()
                writing.join()
            connection.close()

    def _attach(self, connection: socket.socket) -> threading.Thread | None:
        """Begin with a front: tell it what it must know, and what came meanwhile. None: it is needed no more."""
        with self._changed:
            if self._state != JOINING:
                return None
            self._to_front = queue.SimpleQueue()
            for raw in (*self._replay, *self._waiting):
                self._to_front.put(raw)
            self._replay, self._waiting = [], []
            self._answered_before = self._initialize if self._initialized else None
            self._state, self._connection = CONNECTED, connection
            self._fronts += 1
            self._changed.notify_all()
            return self._thread(_write_front, connection, self._to_front)

    def _detach(self) -> None:
        """A front has gone."""
        with self._changed:
            self._to_front.put(None)
            self._connection = None
            if self._leaving is not None:
                self._end(self._exit_code)
            elif self._state == CONNECTED:
                self._died()

    def _died(self) -> None:
        """Nobody had stopped it: answer what is open, and join another."""
        now = time.monotonic()
        self._deaths = [each for each in self._deaths if now - each < DEATH_SECONDS] + [now]
        self._forget_front()
        if self._shut_down:
            self._state = DORMANT
            self._cancel_all(SHUT_DOWN, "shuttingDown")
        elif len(self._deaths) > DEATHS:
            self._cancel_all(DIED, "workerRestarted", but="initialize")
            self._give_up(f"{GIVEN_UP} {runtime.log_file()}.", 1)
        else:
            self._cancel_all(DIED, "workerRestarted", but="initialize")
            self._join_again()

    def _stopped(self) -> None:
        """The user has stopped it: do nothing until the editor wants something."""
        self._state = DORMANT
        self._forget_front()
        self._cancel_all(STOPPED, "shuttingDown")

    def _join_again(self) -> None:
        self._state = JOINING
        self._replay, self._waiting = self._kept.frames(), []
        self._changed.notify_all()

    def _forget_front(self) -> None:
        self._asked.clear()
        for token in self._progress:
            self._say(method="$/progress", params={"token": token, "value": {"kind": "end"}})
        self._progress.clear()

    def _cancel_all(self, message: str, reason: str, but: str = "") -> None:
        """Answer what is open; what is named by ``but`` is asked again, of another front."""
        still = {}
        for id_, methods in self._open.items():
            for method in methods:
                if method == but:
                    still[id_] = [method]
                elif method == "shutdown":
                    self._answer(id_, result=None)
                else:
                    error = {"code": CANCELLED_BY_DAEMON, "message": message, "data": {"reason": reason}}
                    self._answer(id_, error=error)
        self._open = still
        if not self._initialized and self._initialize is not None and self._initialize not in still:
            self._forget_initialize()

    def _forget_initialize(self) -> None:
        self._kept.forget_initialize()
        self._initialize = None

    def _give_up(self, words: str, code: int) -> None:
        """There is no front, and there will be none."""
        self._state = DORMANT
        self._cancel_all(words, "shuttingDown")
        self._say(method="window/showMessage", params={"type": 1, "message": f"cag-daemon: {words}"})
        _complain(words)
        self._end(code)

    def _listen(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as stream, contextlib.suppress(OSError, ValueError):
            while (frame := read_frame(stream)) is not None:
                with self._changed:
                    if frame.method == STOPPED_METHOD:
                        self._stopped()
                        return
                    if self._is_news(frame):
                        self._to_editor.put(frame.raw)

    def _is_news(self, frame: Frame) -> bool:
        """Take note of what a front says; whether the editor is to hear it."""
        if frame.is_reply:
            if frame.id is not None and frame.id == self._answered_before:
                self._answered_before = None
                return False
            self._replied(frame)
        elif frame.is_request:
            self._asked.add(frame.id)
        elif frame.method == "$/progress":
            token, kind = frame.params("token"), frame.params("value", "kind")
            if isinstance(token, int | str):
                (self._progress.discard if kind == "end" else self._progress.add)(token)
        return True

    def _replied(self, frame: Frame) -> None:
        methods = self._open.get(frame.id)
        if not methods:
            return
        if methods.pop(0) == "initialize" and frame.id == self._initialize and not self._initialized:
            self._initialized = "error" not in frame.value
            if not self._initialized:
                self._forget_initialize()
        if not methods:
            del self._open[frame.id]

    # ── to the editor ──

    def _answer(self, id_: Any, **message: Any) -> None:
        self._say(id=id_, **message)

    def _say(self, **message: Any) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message}).encode("ascii")
        self._to_editor.put(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))

    def _write_editor(self) -> None:
        """An editor that does not read must keep nobody else waiting."""
        try:
            while (raw := self._to_editor.get()) is not None:
                self._stdout.write(raw)
                self._stdout.flush()
        except (OSError, ValueError):
            with self._changed:
                self._end(0 if self._shut_down else 1)


def _write_front(connection: socket.socket, frames: queue.SimpleQueue[bytes | None]) -> None:
    """A front that does not read for a while must not keep us from seeing the editor's end."""
    try:
        while (raw := frames.get()) is not None:
            connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        _cut(connection)  # whoever listens to it sees the end


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _is_closed(stream: BinaryIO) -> bool:
    """Whether nobody can write into it any more, seen without reading; a file, or what is none, says no."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), getattr(select, "POLLRDHUP", 0))
        return any(event & ~select.POLLIN for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):
        return False


def _complain(words: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"cag-daemon: {words}\n".encode())
