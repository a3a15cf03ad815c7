"""Shared mode: one front for all editors of a user. Who connects, what they are told, and when it ends.

A forwarder (`shim`) is what an editor starts; it connects here and passes frames. Each connection has a server object
of its own; models are shared, see `pool`. The front ends when its last editor has been gone for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import logging.handlers
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from cag_daemon import __version__, runtime
from cag_daemon.config import resolve
from cag_daemon.errors import CagError
from cag_daemon.flags import parse_flags
from cag_daemon.front import protocol
from cag_daemon.front.jsonrpc import SocketWriter, converse
from cag_daemon.front.pool import Pool, Shared
from cag_daemon.front.server import GOODBYE_SECONDS, CagServer, Surroundings
from cag_daemon.front.status import status_of

logger = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 5.0
FIRST_SECONDS = 1.0  # for whoever has started us to connect
LONGEST_LINE = 1 << 24  # of a greeting: it has the environment, and a prompt it may be
LOOK_SECONDS = 1.0  # between two looks whether the socket is still there
LAST_WORDS_SECONDS = 1.0  # for what a client is still to be told
LOG_BYTES = 1_000_000
STOPPED = {"jsonrpc": "2.0", "method": "$/cag/stopped", "params": {}}


class Host:
    """The front, with everybody who is connected.

    Args:
        claim: the right to be the front, and the socket.
    """

    def __init__(self, claim: runtime.Claim) -> None:
        self._claim = claim
        self._began = time.time()
        self._pool = Pool(logging.getLogger("cag_daemon.worker").warning)
        self._editors: dict[CagServer, asyncio.StreamWriter] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._end = asyncio.Event()
        self._ending: asyncio.TimerHandle | None = None
        self._linger = resolve({}, os.environ, {})[0].linger_seconds  # until an editor says something else
        self._replaced = False  # somebody else is the front by now

    async def run(self) -> None:
        """Serve until nobody is left."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._end.set)
        server = await self._listen()
        self._retire_others()
        self._soon_alone(FIRST_SECONDS)
        watching = asyncio.ensure_future(self._watch_socket(server))
        try:
            await self._end.wait()
        finally:
            watching.cancel()
            await self._stop()

    async def _listen(self) -> asyncio.AbstractServer:
        return await asyncio.start_unix_server(self._connected, sock=self._claim.listener, limit=LONGEST_LINE)

    async def _stop(self) -> None:
        """Everybody is told; open requests are answered; workers end."""
        # First of all, so that whoever comes now starts another front.
        self._claim.release()
        await asyncio.gather(*(self._dismiss(server, writer) for server, writer in list(self._editors.items())))
        # The forwarders close.
        if self._connections:
            await asyncio.wait(self._connections, timeout=LAST_WORDS_SECONDS)
        self._pool.close()
        await self._pool.ended(GOODBYE_SECONDS)

    async def _dismiss(self, server: CagServer, writer: asyncio.StreamWriter) -> None:
        server.session.stopped = True
        with contextlib.suppress(Exception):
            await server.finish()
            if server.protocol.listening:
                server.protocol.notify(protocol.STATUS_CHANGED, status_of(server.session))
            server.protocol._send_data(STOPPED)
            writer.write_eof()

    # ── who connects ──

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # it has gone
        except Exception:
            logger.exception("a connection failed in an unexpected way")
        finally:
            self._connections.discard(task)
            with contextlib.suppress(OSError):
                writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if runtime.peer(writer.get_extra_info("socket")) not in (None, os.getuid()):
            return  # the folder keeps others out; should it ever not
        try:
            line = await asyncio.wait_for(reader.readline(), HANDSHAKE_SECONDS)
            hello = json.loads(line)
            purpose = hello["purpose"]
        except (asyncio.TimeoutError, ValueError, KeyError, TypeError):
            _tell(writer, {"refused": "That was no greeting of cag-daemon's.", "code": 2})
            return
        if purpose == "editor":
            await self._editor(hello, reader, writer)
        elif purpose in ("status", "unload", "stop", "retire"):
            answers = {"status": self._status, "unload": self._unload, "stop": self._stopping, "retire": self._retire}
            _tell(writer, {"welcome": self._welcome(), "result": answers[purpose]()})
            with contextlib.suppress(OSError):
                await writer.drain()
            if self._asked_to_end(purpose):
                self._end.set()
        else:
            _tell(writer, {"refused": f"This daemon ({__version__}) does not know {purpose!r}; stop it.", "code": 2})

    def _asked_to_end(self, purpose: str) -> bool:
        return purpose == "stop" or (purpose == "retire" and not self._editors)

    def _welcome(self) -> dict[str, Any]:
        return {"version": __version__, "pid": os.getpid()}

    async def _editor(self, hello: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """An editor, until it goes."""
        try:
            flags = parse_flags([str(each) for each in hello["arguments"]])
        except CagError as error:
            _tell(writer, {"refused": error.message, "code": 2})
            if not self._editors:
                self._soon_alone()
            return
        if self._end.is_set():
            return
        _tell(writer, {"welcome": self._welcome()})
        surroundings = Surroundings(dict(hello.get("environment") or {}), Path(hello.get("folder") or "/"))
        server = CagServer(flags, self._pool, surroundings)
        server.session.clients, server.on_documents = self._clients, self._tell_all
        self._editors[server] = writer
        self._not_alone()
        try:
            await converse(server, reader, SocketWriter(writer, server.ended.set), server.ended)
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                await asyncio.wait_for(writer.drain(), LAST_WORDS_SECONDS)
        finally:
            del self._editors[server]
            self._linger = server.linger
            server.close()
            if not self._editors:
                self._soon_alone()
            self._tell_all()

    def _clients(self) -> list[protocol.Client]:
        return [
            {"name": server.name, "documents": [each.uri for each in server.session.documents.values()]}
            for server in self._editors
        ]

    def _tell_all(self) -> None:
        for server in self._editors:
            server.announcer.status_changed()

    # ── life and death ──

    def _not_alone(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None

    def _soon_alone(self, at_least: float = 0) -> None:
        self._not_alone()
        wait = 0.0 if self._replaced else max(self._linger, at_least)
        self._ending = asyncio.get_running_loop().call_later(wait, self._end.set)

    async def _watch_socket(self, server: asyncio.AbstractServer) -> None:
        """Whoever deletes the socket shall not leave us behind: make it anew, or make way for who did."""
        while not self._replaced:
            await asyncio.sleep(LOOK_SECONDS)
            if self._claim.holds():
                continue
            with contextlib.suppress(OSError):
                if self._claim.renew():
                    logger.warning("the socket was deleted, and made anew")
                    server.close()
                    server = await self._listen()
                    continue
            logger.warning("the socket is somebody else's now; this daemon ends with its last editor")
            self._replaced = True
            if not self._editors:
                self._soon_alone()

    def _retire_others(self) -> None:
        """Older versions without an editor need not wait for one."""
        for path in runtime.others():
            asyncio.get_running_loop().run_in_executor(None, _retire, path)

    # ── what is asked of the daemon as a whole ──

    def _status(self) -> dict[str, Any]:
        return {
            "version": __version__,
            "pid": os.getpid(),
            "started": self._began,
            "log": runtime.log_file(),
            "socket": str(self._claim.path),
            "memory": psutil.Process().memory_info().rss,
            "clients": [_client(server) for server in self._editors],
            "models": [_model(shared) for shared in self._pool],
        }

    def _unload(self) -> dict[str, Any]:
        freed = sum(_memory(shared.backend.pid) for shared in self._pool)
        for shared in self._pool:
            shared.unload()
        return {"freed": freed}

    def _stopping(self) -> dict[str, Any]:
        return {"pid": os.getpid()}

    def _retire(self) -> dict[str, Any]:
        return {"ended": not self._editors}


def _client(server: CagServer) -> dict[str, Any]:
    status = status_of(server.session)
    told: dict[str, Any] = {"name": server.name, "state": status["state"], "short": status["short"]}
    if server.process_id is not None:
        told["pid"] = server.process_id
    return told | {"documents": status["documents"]}


def _model(shared: Shared) -> dict[str, Any]:
    backend = shared.backend
    told: dict[str, Any] = {"name": backend.settings.model, "state": backend.state, "clients": len(shared.seats)}
    if backend.error is not None:
        told["message"] = backend.error.message
    if (model := backend.model) is not None:
        told |= {"name": model.name, "device": model.device, "dtype": model.dtype, "quantization": model.quantization}
        told["bytes"] = model.bytes
    if backend.pid is not None:
        told |= {"pid": backend.pid, "memory": _memory(backend.pid)}
    if (left := shared.unloads_in) is not None:
        told["unloadsInSeconds"] = round(left)
    return told


def _memory(pid: int | None) -> int:
    if pid is None:
        return 0
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0


def _tell(writer: asyncio.StreamWriter, what: dict[str, Any]) -> None:
    writer.write(json.dumps(what).encode("ascii") + b"\n")


def _retire(path: Path) -> None:
    """Have another front end, if it has no editors; one that died and left its socket is tidied up after."""
    with contextlib.suppress(OSError, runtime.RuntimeUnusable):
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
                other.settimeout(HANDSHAKE_SECONDS)
                other.connect(str(path))
                other.sendall(json.dumps(runtime.hello("retire")).encode("ascii") + b"\n")
                other.recv(1000)
        except ConnectionRefusedError:
            runtime.sweep(str(path))


class QuietRotatingHandler(logging.handlers.RotatingFileHandler):
    """A log on a full disk is no reason for anything."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing."""


def _start_log() -> None:
    handler = QuietRotatingHandler(runtime.log_file(), maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("cag_daemon").setLevel(logging.INFO)
    # It logs whole messages, and so the document.
    logging.getLogger("pygls").setLevel(logging.CRITICAL)


def main() -> None:
    """Be the front, if there is none."""
    gc.disable()  # on the way: lsprotocol makes thousands of classes
    os.umask(0o077)
    claim = runtime.Claim.take()
    if claim is None:
        sys.exit(0)
    with contextlib.suppress(OSError):
        _start_log()
    gc.enable()
    logger.info("the front of version %s is there", __version__)
    try:
        asyncio.new_event_loop().run_until_complete(Host(claim).run())
    except BaseException:
        logger.exception("the front failed")
        raise
    finally:
        claim.release()
        logger.info("the front has ended")
        logging.shutdown()
    os._exit(0)
