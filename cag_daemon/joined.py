"""A question through the front that runs already: its model is loaded, and often the document read."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable
from typing import Any, BinaryIO, cast

from cag_daemon import __version__, runtime
from cag_daemon.errors import BY_REASON, CagError, InvalidParams, failure
from cag_daemon.front import protocol

STOPPED = "$/cag/stopped"
METHOD_NOT_FOUND = -32601
INITIALIZE, ASK, SHUTDOWN = 1, 2, 3  # ids of our requests
ASKED = "cag-daemon ask"  # the question's id
TO_BE_TOLD = 3  # window/showMessage up to this type is for the user: error, warning, info


class Lost(Exception):
    """No front answers: none runs, it refused, was stopped, or died before the reply was whole."""


def ask(
    question: str,
    arguments: list[str],
    on_piece: Callable[[str], None],
    on_status: Callable[[dict[str, Any]], None],
    on_message: Callable[[str], None],
) -> dict[str, Any]:
    """The result of ``cag/ask`` from the running front; none is started.

    Args:
        arguments: flags, as `serve` would get them, with an absolute ``--document``.
        on_piece: gets the answer as it comes.
        on_status: gets each ``cag/statusChanged``.
        on_message: gets what the front would have an editor show.

    Raises:
        Lost: there is no front, or no longer.
        CagError: its answer is an error; with the sentence for the user.
    """
    if not runtime.shareable():
        raise Lost
    try:
        connection = runtime.connect()
    except (runtime.RuntimeUnusable, OSError):
        raise Lost from None
    if connection is None:
        raise Lost
    with connection:
        answer = runtime.greet(connection, runtime.hello("editor", arguments))
        if answer is None or "welcome" not in answer:
            raise Lost
        stream = cast("BinaryIO", connection.makefile("rwb"))
        return _Question(stream, on_piece, on_status, on_message).ask(question)


class _Question:
    """One question over one connection."""

    def __init__(
        self,
        stream: BinaryIO,
        on_piece: Callable[[str], None],
        on_status: Callable[[dict[str, Any]], None],
        on_message: Callable[[str], None],
    ) -> None:
        self._stream = stream
        self._on_piece = on_piece
        self._on_status = on_status
        self._on_message = on_message

    def ask(self, question: str) -> dict[str, Any]:
        client = {
            "processId": os.getpid(),
            "clientInfo": {"name": "cag-daemon ask", "version": __version__},
            "rootUri": None,
            "capabilities": {},
            "initializationOptions": {"showAnswers": False},
        }
        self._send({"id": INITIALIZE, "method": "initialize", "params": client})
        self._reply_to(INITIALIZE)
        self._send({"method": "initialized", "params": {}})
        self._send({"id": ASK, "method": protocol.ASK, "params": {"question": question, "id": ASKED}})
        try:
            result = self._reply_to(ASK)
        except KeyboardInterrupt:
            with contextlib.suppress(Lost):
                self._send({"method": "$/cancelRequest", "params": {"id": ASK}})
            raise
        with contextlib.suppress(Lost):  # the answer is here: a goodbye, and nothing depends on it
            self._send({"id": SHUTDOWN, "method": "shutdown"})
            self._send({"method": "exit"})
        return cast("dict[str, Any]", result)

    def _reply_to(self, number: int) -> Any:
        """The result that comes for a request of ours; what else comes meanwhile is seen to."""
        while True:
            message = self._receive()
            if "method" in message:
                self._see_to(message)
            elif message.get("id") == number:
                if "error" in message:
                    raise _failure(message["error"])
                return message.get("result")

    def _see_to(self, message: dict[str, Any]) -> None:
        method, params = message["method"], message.get("params") or {}
        if "id" in message:
            self._send({"id": message["id"], **_answer(method)})
        elif method == protocol.PARTIAL and params.get("id") == ASKED:
            self._on_piece(params["text"])
        elif method == protocol.STATUS_CHANGED:
            self._on_status(params)
        elif method == "window/showMessage" and params.get("type", TO_BE_TOLD) <= TO_BE_TOLD:
            self._on_message(params["message"])
        elif method == STOPPED:
            raise Lost

    def _send(self, message: dict[str, Any]) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message}).encode("ascii")
        try:
            self._stream.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
            self._stream.flush()
        except OSError:
            raise Lost from None

    def _receive(self) -> dict[str, Any]:
        length = 0
        try:
            while line := self._stream.readline().rstrip(b"\r\n"):
                if (match := re.fullmatch(rb"Content-Length: *(\d+)", line, re.IGNORECASE)) is not None:
                    length = int(match[1])
            message = json.loads(self._stream.read(length))  # at the stream's end there is nothing, or half of one
        except (OSError, ValueError):
            raise Lost from None
        return message if isinstance(message, dict) else {}


def _answer(method: str) -> dict[str, Any]:
    """What a request of the front gets from a client that can do nothing but ask."""
    if method in ("client/registerCapability", "client/unregisterCapability", "window/showMessageRequest"):
        return {"result": None}
    return {"error": {"code": METHOD_NOT_FOUND, "message": f"{method}: not served by `cag-daemon ask`."}}


def _failure(error: dict[str, Any]) -> Exception:
    """An error of the contract as the exception that it was."""
    message, details = str(error.get("message", "")), dict(error.get("data") or {})
    reason = details.pop("reason", None)
    if reason == "shuttingDown":
        return Lost()
    if reason in BY_REASON:
        return failure(reason, message, details)
    if error.get("code") == InvalidParams.code:
        return InvalidParams(message, str(details.get("parameter", "")))
    return CagError(message)
