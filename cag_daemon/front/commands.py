"""For editors without a client of ours: the commands, and the code action that asks about a selection.

Some of them show nobody what a command returns, nor why it failed. So what comes of it is shown as a message, unless
the client said that it shows answers itself.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, Protocol

from lsprotocol import types
from pygls.uris import to_fs_path

from cag_daemon.errors import CagError, InvalidParams, RequestFailed
from cag_daemon.front import protocol
from cag_daemon.front.document import Document
from cag_daemon.front.protocol import AskResult, RefreshResult, parse
from cag_daemon.front.session import Session
from cag_daemon.front.status import status_of
from cag_daemon.text import read


class Requests(Protocol):
    """What the commands need of the server."""

    session: Session

    async def started(self) -> Session:
        """The session, started."""

    async def ask(self, params: Any) -> AskResult:
        """``cag/ask``."""

    async def refresh(self, params: Any) -> RefreshResult:
        """``cag/refresh``."""

    async def unload(self) -> dict[str, Any]:
        """``cag/unload``."""

    def document(self, session: Session, uri: str | None) -> Document:
        """The document that a URI selects."""

    def show(self, message: str, kind: types.MessageType) -> None:
        """A message to the user."""


class Commands:
    """The commands of one connection.

    Args:
        requests: what carries them out.
    """

    def __init__(self, requests: Requests) -> None:
        self.show_answers = True
        self._requests = requests

    def code_actions(self, params: types.CodeActionParams) -> list[types.CodeAction]:
        """The selection as a question, for editors without a client of ours; never a light bulb unasked."""
        empty = params.range.start == params.range.end
        automatic = params.context.trigger_kind == types.CodeActionTriggerKind.Automatic
        only = params.context.only
        if empty or automatic or not self.show_answers or (only is not None and "" not in only):
            return []
        command = types.Command(
            title="Ask the document",
            command="cag.askSelection",
            arguments=[params.text_document.uri, plain_range(params.range)],
        )
        return [types.CodeAction(title="Ask the document about the selection", command=command)]

    async def execute(self, command: str, arguments: list[Any]) -> Any:
        """A command of the contract; each returns what its request returns.

        Raises:
            CagError: as its request.
        """
        try:
            return await self._execute(command, arguments)
        except CagError as error:
            if self.show_answers:
                self._requests.show(error.message, types.MessageType.Error)
            raise

    async def _execute(self, command: str, arguments: list[Any]) -> Any:
        if command == "cag.ask":
            params = {"question": _argument(arguments, 0, "question")}
            if len(arguments) > 1 and arguments[1] is not None:
                params["selection"] = await self._selection(arguments[1])
            return await self._answer(params)
        if command == "cag.askSelection":
            where = {"uri": _argument(arguments, 0, "uri"), "range": _argument(arguments, 1, "range")}
            selection = await self._selection(where)
            return await self._answer({"question": selection["text"], "document": self._known(where["uri"])})
        if command == "cag.refresh":
            return await self._requests.refresh(arguments[0] if arguments else {})
        if command == "cag.status":
            status = status_of(self._requests.session)
            if self.show_answers:
                self._requests.show(status["message"], types.MessageType.Info)
            return status
        if command == "cag.unload":
            return await self._requests.unload()
        raise InvalidParams(
            f"command: there is no {command!r}; there are {', '.join(protocol.COMMANDS)}.", parameter="command"
        )

    async def _answer(self, params: dict[str, Any]) -> AskResult:
        result = await self._requests.ask(params)
        if self.show_answers:
            self._requests.show(result["answer"] or "(no answer)", types.MessageType.Info)
        return result

    def _known(self, uri: Any) -> str | None:
        """The URI, if a document belongs to it: a selection may stand in any file."""
        try:
            self._requests.document(self._requests.session, uri)
            return str(uri)
        except CagError:
            return None

    async def _selection(self, where: Any) -> dict[str, Any]:
        """The selection with its text, from the editor's buffer or the disk."""
        session = await self._requests.started()
        path = file_path(where.get("uri")) if isinstance(where, dict) else None
        if path is None:
            raise InvalidParams("uri: the selection needs the URI of a file.", parameter="uri")
        text = session.buffer_text(path)
        if text is None:
            try:
                text = await asyncio.to_thread(read, path)
            except RequestFailed as error:
                raise InvalidParams(f"uri: {error.message}", parameter="uri") from None
        parsed = parse(_Where, where)
        selected = text.slice(parsed.range.model_dump())
        return {"uri": parsed.uri, "range": parsed.range.model_dump(), "text": selected}


class _Where(protocol._Params):
    """Where a selection is."""

    uri: str
    range: protocol.Range


def file_path(uri: Any) -> Path | None:
    """The path of a ``file:`` URI; None for any other. ``file:///c%3A/x`` and ``file:///c:/x`` are one."""
    if not isinstance(uri, str) or not uri.lower().startswith("file:"):
        return None
    path = to_fs_path(uri)
    if not path or "\0" in path:
        return None
    if os.name == "nt" and path[1:2] == ":":
        path = path[0].upper() + path[1:]
    return Path(os.path.normpath(path))


def plain_range(where: types.Range) -> dict[str, dict[str, int]]:
    """A range as the contract's JSON."""
    return {
        "start": {"line": where.start.line, "character": where.start.character},
        "end": {"line": where.end.line, "character": where.end.character},
    }


def _argument(arguments: list[Any], index: int, name: str) -> Any:
    if len(arguments) <= index:
        raise InvalidParams(f"{name}: it is missing; it is argument {index + 1} of this command.", parameter=name)
    return arguments[index]
