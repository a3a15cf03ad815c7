"""What goes out unasked about the state: ``cag/statusChanged``, diagnostics, and the editor's own progress."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from lsprotocol import types
from pygls.exceptions import JsonRpcException

from cag_daemon.errors import DocumentTooLong
from cag_daemon.front import protocol
from cag_daemon.front.jsonrpc import QuietServer
from cag_daemon.front.protocol import Status
from cag_daemon.front.session import Session
from cag_daemon.front.status import status_of

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 0.1  # status goes out at most so often while only numbers change
PATIENCE_SECONDS = 1.0  # work that lasts longer shows as progress in the editor


class Announcer:
    """Tells a server's client what has changed.

    Args:
        server: whose client it is.
        session: gives what it is about; not called before the first change.
    """

    def __init__(self, server: QuietServer, session: Callable[[], Session]) -> None:
        self._server = server
        self._session = session
        self._status_timer: asyncio.TimerHandle | None = None
        self._status_sent: tuple[Status | None, float] = (None, 0.0)
        self._progress: asyncio.Task[None] | None = None
        self._diagnosed: set[str] = set()

    def status_changed(self) -> None:
        """Send the status where it differs: at once, or a tenth of a second later where only numbers moved."""
        if not self._server.protocol.listening:
            return
        before, sent = self._status_sent
        now = status_of(self._session())
        wait = sent + PROGRESS_SECONDS - time.monotonic()
        if before is not None and wait > 0 and _outline(before) == _outline(now):
            if self._status_timer is None:
                self._status_timer = asyncio.get_running_loop().call_later(wait, self._send_status)
        else:
            self._send_status()

    def _send_status(self) -> None:
        if self._status_timer is not None:
            self._status_timer.cancel()
            self._status_timer = None
        if not self._server.protocol.listening:
            return
        now = status_of(self._session())
        if _timeless(now) == _timeless(self._status_sent[0]):
            return
        self._status_sent = (now, time.monotonic())
        self._server.protocol.notify(protocol.STATUS_CHANGED, now)
        self._diagnose()
        if now["state"] in ("loading", "reading") and self._progress is None and self._can_show_progress():
            self._progress = asyncio.ensure_future(self._show_progress())

    def _diagnose(self) -> None:
        """A line of information where the model stops seeing a document that is too long."""
        wanted: dict[str, types.Diagnostic] = {}
        for document in self._session().documents.values():
            error = document.failure[1] if document.failure is not None else None
            if isinstance(error, DocumentTooLong) and document.error is None and "line" in error.details:
                line = int(error.details["line"])
                start, end = types.Position(line, 0), types.Position(line + 1, 0)
                wanted[document.uri] = types.Diagnostic(
                    range=types.Range(start, end),
                    message=error.message,
                    severity=types.DiagnosticSeverity.Information,
                    source="cag-daemon",
                    code="documentTooLong",
                )
        for uri in sorted(self._diagnosed | set(wanted)):
            self._server.text_document_publish_diagnostics(
                types.PublishDiagnosticsParams(uri=uri, diagnostics=[wanted[uri]] if uri in wanted else [])
            )
        self._diagnosed = set(wanted)

    def _can_show_progress(self) -> bool:
        window = self._server.client_capabilities.window
        return bool(window is not None and window.work_done_progress)

    async def _show_progress(self) -> None:
        """Loading and reading as the editor's own progress, once it has lasted a second."""
        progress = self._server.work_done_progress
        try:
            await asyncio.sleep(PATIENCE_SECONDS)
            status = status_of(self._session())
            if status["state"] not in ("loading", "reading"):
                return
            token = f"cag-daemon/{time.monotonic_ns()}"
            await progress.create_async(token)
            progress.begin(
                token, types.WorkDoneProgressBegin(title="cag-daemon", message=status["message"], percentage=0)
            )
            told = None
            while (status := status_of(self._session()))["state"] in ("loading", "reading"):
                # Of reading only: loading has a hundred per cent of its own, and a percentage may only rise.
                percent = status.get("percent") if status["state"] == "reading" else None
                report = types.WorkDoneProgressReport(message=status["message"], percentage=percent)
                if report != told:
                    progress.report(token, report)
                    told = report
                await asyncio.sleep(0.25)
            progress.end(token, types.WorkDoneProgressEnd(message=status["message"]))
            progress.tokens.pop(token, None)
        except JsonRpcException as error:
            logger.warning("the editor would not show progress: %s", error)
        finally:
            self._progress = None


def _timeless(status: Status | None) -> Any:
    return None if status is None else {key: value for key, value in status.items() if key != "unloadsInSeconds"}


def _outline(status: Status) -> Any:
    """What of a status is more than progress."""
    documents = [(each["uri"], each["state"], each.get("version"), each["source"]) for each in status["documents"]]
    return status["state"], status["queue"], documents
