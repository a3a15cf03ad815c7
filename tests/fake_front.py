"""A front that is none: it holds the real socket, shakes hands, and says what a test has written down for it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from cag_daemon import __version__, runtime

Line = dict[str, Any]


class Editor:
    """A connection as the front sees it, for LSP."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def receive(self) -> Line | None:
        """The next message; None: the other end is closed."""
        length = 0
        while line := self._stream.readline().strip():
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        return json.loads(self._stream.read(length)) if length else None

    def send(self, **message: Any) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message}, ensure_ascii=False).encode()
        self._stream.write(b"Content-Length: %d\r\nContent-Type: x\r\n\r\n%b" % (len(body), body))
        self._stream.flush()

    def expect(self, method: str) -> Line:
        message = self.receive()
        assert message is not None
        assert message.get("method") == method, message
        return message


class FakeFront:
    """It lives in a thread of the test.

    Attributes:
        hellos: what those who connected have said first.
        results: the answer for each purpose; a string: that it refuses.
        serve: what is done with an editor after the handshake.
        failures: what has gone wrong in here.
        env: with which another process finds it.
    """

    def __init__(self) -> None:
        claim = runtime.Claim.take()
        assert claim is not None, "another front has this socket"
        self._claim = claim
        self.hellos: list[Line] = []
        self.results: dict[str, Any] = {"editor": {}}
        self.serve: Callable[[Editor], None] = lambda editor: None
        self.failures: list[BaseException] = []
        self.env = {"XDG_RUNTIME_DIR": os.environ["XDG_RUNTIME_DIR"]}
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._claim.listener.accept()
                threading.Thread(target=self._welcome, args=(connection,), daemon=True).start()

    def _welcome(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rwb") as stream:
                line = stream.readline()
                if not line:
                    return  # only a test whether somebody listens
                hello = json.loads(line)
                self.hellos.append(hello)
                result = self.results[hello["purpose"]]
                result = result() if callable(result) else result
                answer: Line = {"welcome": {"version": __version__, "pid": 1}}
                if isinstance(result, str):
                    answer = {"refused": result, "code": 2}
                elif hello["purpose"] != "editor":
                    answer["result"] = result
                stream.write(json.dumps(answer).encode() + b"\n")
                stream.flush()
                if hello["purpose"] == "editor" and "welcome" in answer:
                    self.serve(Editor(stream))  # type: ignore[arg-type]
        except (BrokenPipeError, ConnectionResetError):
            pass
        except BaseException as failure:
            self.failures.append(failure)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # it is closed already
            self._claim.listener.shutdown(socket.SHUT_RDWR)  # wakes the thread, which closing does not
        self._claim.listener.close()
        self._claim.release()


@pytest.fixture
def runtime_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime folder of this test alone, with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="cag") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


@pytest.fixture
def front(runtime_home: Path) -> Iterator[FakeFront]:
    fake = FakeFront()
    yield fake
    fake.close()
    assert fake.failures == []
