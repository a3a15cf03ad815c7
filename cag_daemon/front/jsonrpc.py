"""LSP's manners over stdio: every request gets exactly one reply, with the right code, whatever was sent.

pygls routes, frames and serialises. This room mends where it would stay silent, or say too much: requests without
params or with params that do not fit, before ``initialize`` and after ``shutdown``, ids in use, tracebacks in replies,
a client that does not read. No method of ours is known here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any, BinaryIO

from lsprotocol import types
from pygls.exceptions import JsonRpcException
from pygls.io_ import StdinAsyncReader, run_async
from pygls.lsp.server import LanguageServer
from pygls.protocol import JsonRPCNotification, JsonRPCRequestMessage, LanguageServerProtocol, lsp_method

from cag_daemon.errors import CagError, InvalidParams, InvalidRequest, MethodNotFound, NotInitialized

logger = logging.getLogger(__name__)

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
INTERNAL_ERROR = -32603
REQUEST_CANCELLED = -32800

MOST_UNREAD = 200_000_000  # bytes that wait for a client


class Protocol(LanguageServerProtocol):
    """pygls's protocol, with raw params for methods that LSP does not know, and strict about the order of things."""

    # On the class: pygls looks at every attribute before ours could be set.
    initialized = False

    def __init__(self, server: LanguageServer, converter: Any) -> None:
        super().__init__(server, converter)
        self.on_exit: Callable[[], None] = lambda: None

    @property
    def listening(self) -> bool:
        """Whether the client may be told things: after ``initialize`` and before ``shutdown``."""
        return self.initialized and not self._shutdown

    # ── in ──

    def structure_message(self, data: Any) -> Any:
        """Leave every object as it is: json calls this for nested ones, too."""
        return data

    def handle_message(self, message: Any) -> None:
        """Sort a message: a request that cannot be served is answered here, at once."""
        if not isinstance(message, dict) or message.get("jsonrpc") != self.VERSION:
            self._refuse(message, InvalidRequest("This is no JSON-RPC 2.0 message; send an object with jsonrpc 2.0."))
        elif "method" not in message:
            self._handle_reply(message)
        elif "id" not in message:
            self._handle_note(message)
        else:
            try:
                self._check_request(message)
                super().handle_message(self._typed(message))
            except CagError as error:
                self._refuse(message, error)

    def _check_request(self, message: dict[str, Any]) -> None:
        msg_id, method = message["id"], message["method"]
        if isinstance(msg_id, bool) or not isinstance(msg_id, int | str) or not isinstance(method, str):
            raise InvalidRequest("A request needs an id (a string or an integer) and a method (a string).")
        if msg_id in self._request_futures:
            raise InvalidRequest(f"The id {msg_id!r} is in use by a request that is not answered yet; use another.")
        if self._shutdown:
            raise InvalidRequest(f"{method} came after shutdown; the only thing left to send is exit.")
        if self.initialized and method == types.INITIALIZE:
            raise InvalidRequest("initialize was sent before; a server is initialized once.")
        if not self.initialized and method != types.INITIALIZE:
            raise NotInitialized(f"{method} came before initialize; send initialize first.")
        if method not in self.fm.builtin_features:
            raise MethodNotFound(f"There is no method {method}.")

    def _handle_note(self, message: dict[str, Any]) -> None:
        method = message["method"]
        if method == types.EXIT:
            self._exit()
        elif self.listening and isinstance(method, str):
            try:
                super().handle_message(self._typed(message))
            except CagError as error:
                logger.warning("notification %s was left out: %s", method, error)

    def _handle_reply(self, message: dict[str, Any]) -> None:
        msg_id = message.get("id")
        if not isinstance(msg_id, int | str) or msg_id not in self._result_types:
            logger.warning("a reply to a request that nobody made")
            return
        try:
            super().handle_message(super().structure_message(message))
        except Exception as error:
            logger.warning("a reply that does not fit: %s", error)
            if (future := self._request_futures.pop(msg_id, None)) is not None:
                future.cancel()

    def _typed(self, message: dict[str, Any]) -> Any:
        """The message as pygls wants it: typed where LSP knows the method, else with params as they came."""
        method, params = message["method"], message.get("params")
        if self.get_message_type(method) is None:
            if "id" in message:
                return JsonRPCRequestMessage(message["id"], method, self.VERSION, params)
            return JsonRPCNotification(method, self.VERSION, params)
        if params is None and method not in (types.SHUTDOWN, types.EXIT):
            message = message | {"params": {}}
        if method == types.INITIALIZE and isinstance(message["params"], dict):
            # Required by LSP, left out by simple clients; nothing of ours depends on it.
            message = message | {"params": {"capabilities": {}} | message["params"]}
        try:
            return super().structure_message(message)
        except JsonRpcException:
            raise InvalidParams(f"The params of {method} do not fit the protocol.", parameter="params") from None

    # ── out ──

    def _refuse(self, message: Any, error: CagError) -> None:
        msg_id = message.get("id") if isinstance(message, dict) else None
        if isinstance(msg_id, bool) or not isinstance(msg_id, int | str):
            msg_id = None
        if isinstance(message, dict) and "method" in message and "id" not in message:
            return
        self.reply_error(msg_id, error.code, error.message, error.data)

    def reply_error(self, msg_id: int | str | None, code: int, message: str, data: Any = None) -> None:
        """Send an error reply; ``data`` is left out where it is None."""
        error = {"code": code, "message": message} | ({} if data is None else {"data": data})
        self._send_data({"jsonrpc": self.VERSION, "id": msg_id, "error": error})

    def _send_handler_result(self, future: Any, *, msg_id: int | str) -> None:
        """Reply with what a handler returned or raised; never a traceback."""
        self._request_futures.pop(msg_id, None)
        if future.cancelled():
            self.reply_error(msg_id, REQUEST_CANCELLED, "Cancelled.")
            return
        error = future.exception()
        if error is None:
            self._send_response(msg_id, result=future.result())
        elif isinstance(error, CagError):
            self.reply_error(msg_id, error.code, error.message, error.data)
        else:
            logger.error("a handler failed", exc_info=error)
            self.reply_error(
                msg_id, INTERNAL_ERROR, f"Something unexpected happened ({type(error).__name__}); the log has more."
            )

    # ── life ──

    @lsp_method(types.SHUTDOWN)
    async def lsp_shutdown(self, *args: Any) -> None:  # type: ignore[override]
        """Answer what is open, then this; only ``exit`` may follow."""
        self._shutdown = True
        await self.finish()

    async def finish(self) -> None:
        """Have every request that is open answered."""

    def _exit(self) -> None:
        self.on_exit()


class QuietServer(LanguageServer):
    """A server whose errors go to the log, not to the user's screen; malformed JSON gets its reply."""

    protocol: Protocol

    def report_server_error(self, error: Exception, source: Any) -> None:
        """Log what pygls would pop up; answer what could not even be parsed."""
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError | RecursionError):
            self.protocol.reply_error(None, PARSE_ERROR, "That was no JSON.")
        else:
            logger.error("%s: %s", type(error).__name__, error)


class ThreadWriter:
    """Writes in a thread of its own: a client that does not read must not stop the event loop."""

    def __init__(self, stream: BinaryIO, on_broken: Callable[[], None]) -> None:
        self._stream = stream
        self._on_broken = on_broken
        self._frames: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="stdout", daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> None:
        """Have the frame written, in order."""
        self._frames.put(data)

    def close(self) -> None:
        """Write what is left, for half a second at most."""
        self._frames.put(None)
        self._thread.join(timeout=0.5)

    def _run(self) -> None:
        try:
            while (frame := self._frames.get()) is not None:
                self._stream.write(frame)
                self._stream.flush()
        except (OSError, ValueError):
            self._on_broken()


class SocketWriter:
    """Writes to a client over a socket; one that does not read what it is sent, for very long, is let go."""

    def __init__(self, stream: asyncio.StreamWriter, on_broken: Callable[[], None]) -> None:
        self._stream, self._on_broken = stream, on_broken

    def write(self, data: bytes) -> None:
        """Have the frame written, in order."""
        if self._stream.transport.get_write_buffer_size() > MOST_UNREAD:
            logger.warning("a client reads nothing of what it is sent; the connection is closed")
            self._stream.transport.abort()
            self._on_broken()
        elif not self._stream.is_closing():
            self._stream.write(data)

    def close(self) -> None:
        """What is left is written; the connection is closed by who opened it."""


async def serve(server: QuietServer, stdin: BinaryIO, stdout: BinaryIO, until: asyncio.Event) -> int:
    """Serve one client until ``exit``, the end of its input, or ``until``; return the exit code (0 or 1).

    The thread that reads may still be blocked afterwards: the process has to end by `os._exit`.
    """
    loop = asyncio.get_running_loop()

    def broken() -> None:
        loop.call_soon_threadsafe(until.set)

    writer = ThreadWriter(stdout, on_broken=broken)
    return await converse(server, StdinAsyncReader(stdin), writer, until)


async def converse(server: QuietServer, reader: Any, writer: Any, until: asyncio.Event) -> int:
    """As `serve`, on any reader and writer that pygls can use."""
    server.protocol.set_writer(writer)
    server.protocol.on_exit = until.set
    reading = asyncio.ensure_future(
        run_async(
            stop_event=threading.Event(),
            reader=reader,
            protocol=server.protocol,
            logger=logging.getLogger("pygls"),  # quiet: what it would print is a traceback of the client's mistake
            error_handler=server._report_server_error,
        )
    )
    ending = asyncio.ensure_future(until.wait())
    await asyncio.wait({reading, ending}, return_when=asyncio.FIRST_COMPLETED)
    ending.cancel()
    reading.cancel()
    with contextlib.suppress(asyncio.CancelledError, asyncio.IncompleteReadError, OSError, ValueError):
        await asyncio.wait_for(reading, 0.01)
    writer.close()
    return 0 if server.protocol._shutdown else 1
