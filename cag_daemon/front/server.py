"""The language server: one short handler per method; errors become codes; status goes out.

One `CagServer` serves one connection. It translates between LSP and `Session`, and knows nothing of models.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import psutil
from lsprotocol import types
from pygls.protocol import default_converter, lsp_method

from cag_daemon import __version__
from cag_daemon.config import Problem, Settings, resolve
from cag_daemon.errors import CagError, CancelledByDaemon, InvalidParams
from cag_daemon.front import neighbours, protocol
from cag_daemon.front.announce import Announcer
from cag_daemon.front.commands import Commands, file_path, plain_range
from cag_daemon.front.document import Document
from cag_daemon.front.jsonrpc import Protocol, QuietServer, serve
from cag_daemon.front.pool import Pool
from cag_daemon.front.protocol import (
    AskParams,
    AskResult,
    LocateParams,
    LocateResult,
    RefreshParams,
    RefreshResult,
    Status,
    TypingParams,
    parse,
)
from cag_daemon.front.session import GIVEN_UP, Session
from cag_daemon.front.status import status_of

logger = logging.getLogger(__name__)

PARENT_SECONDS = 0.5
GOODBYE_SECONDS = 1.2  # the worker gets to bring its caches to the disk


class CagProtocol(Protocol):
    """The standard methods that pygls would keep for itself, with our capabilities and our texts."""

    _server: CagServer

    @lsp_method(types.INITIALIZE)
    def lsp_initialize(self, params: types.InitializeParams) -> types.InitializeResult:  # type: ignore[override]
        """Answer at once: nothing is loaded for this."""
        self.initialized = True
        self.client_capabilities = params.capabilities
        self._server.initialize(params)
        return types.InitializeResult(capabilities=capabilities(), server_info=self.server_info)

    @lsp_method(types.INITIALIZED)
    def lsp_initialized(self, *args: Any) -> None:
        """From now on the client may be asked things."""
        self._server.begin()

    @lsp_method(types.TEXT_DOCUMENT_DID_OPEN)
    def lsp_text_document__did_open(self, params: types.DidOpenTextDocumentParams) -> None:
        """A buffer."""
        if (path := file_path(params.text_document.uri)) is not None:
            self._server.session.opened(path, params.text_document.text)

    @lsp_method(types.TEXT_DOCUMENT_DID_CHANGE)
    def lsp_text_document__did_change(self, params: types.DidChangeTextDocumentParams) -> None:
        """A keystroke: costs the lines that it touches."""
        if (path := file_path(params.text_document.uri)) is None:
            return
        changes = [
            (
                plain_range(change.range) if isinstance(change, types.TextDocumentContentChangePartial) else None,
                change.text,
            )
            for change in params.content_changes
        ]
        self._server.session.edited(path, changes)

    @lsp_method(types.TEXT_DOCUMENT_DID_CLOSE)
    def lsp_text_document__did_close(self, params: types.DidCloseTextDocumentParams) -> None:
        """The disk counts again."""
        if (path := file_path(params.text_document.uri)) is not None:
            self._server.session.closed(path)

    @lsp_method(types.WORKSPACE_DID_CHANGE_WORKSPACE_FOLDERS)
    async def lsp_workspace__did_change_workspace_folders(self, params: types.DidChangeWorkspaceFoldersParams) -> None:
        """Folders come and go."""
        await self._server.change_folders(params.event)

    @lsp_method(types.TEXT_DOCUMENT_DID_SAVE)
    def lsp_text_document__did_save(self, params: types.DidSaveTextDocumentParams) -> None:
        """The disk counts from now on."""
        if (path := file_path(params.text_document.uri)) is not None:
            self._server.session.saved(path)

    @lsp_method(types.WORKSPACE_DID_CHANGE_CONFIGURATION)
    async def lsp_workspace__did_change_configuration(self, params: types.DidChangeConfigurationParams) -> None:
        """Settings at run time."""
        await self._server.change_configuration(params.settings)

    @lsp_method(types.TEXT_DOCUMENT_CODE_ACTION)
    def lsp_text_document__code_action(self, params: types.CodeActionParams) -> list[types.CodeAction]:
        """The selection as a question."""
        return self._server.commands.code_actions(params)

    @lsp_method(protocol.ASK)
    async def cag_ask(self, params: Any) -> AskResult:
        """A question."""
        return await self._server.ask(params)

    @lsp_method(protocol.STATUS)
    async def cag_status(self, params: Any) -> Status:
        """The state at this moment."""
        return status_of(self._server.session)

    @lsp_method(protocol.REFRESH)
    async def cag_refresh(self, params: Any) -> RefreshResult:
        """Read the document now."""
        return await self._server.refresh(params)

    @lsp_method(protocol.LOCATE)
    async def cag_locate(self, params: Any) -> LocateResult:
        """Where words stand now."""
        return await self._server.locate(params)

    @lsp_method(protocol.TYPING)
    def cag_typing(self, params: Any) -> None:
        """A question is being typed."""
        self._server.typing(params)

    @lsp_method(protocol.UNLOAD)
    async def cag_unload(self, params: Any) -> dict[str, Any]:
        """Have the model leave memory."""
        return await self._server.unload()

    async def finish(self) -> None:
        """Everything that is open gets its reply before ``shutdown`` does."""
        await self._server.finish()

    @lsp_method(types.WORKSPACE_EXECUTE_COMMAND)
    async def lsp_workspace__execute_command(self, params: types.ExecuteCommandParams) -> Any:  # type: ignore[override]
        """A command, for editors without a client of ours."""
        return await self._server.commands.execute(params.command, list(params.arguments or []))


class CagServer(QuietServer):
    """One connection.

    Args:
        flags: settings from the command line, by field name.
        pool: where the model is, which others may share.
        client: what is known of the program that started it; None: all is as in this process.
    """

    protocol: CagProtocol
    session: Session

    def __init__(self, flags: Mapping[str, Any], pool: Pool, client: Surroundings | None = None) -> None:
        super().__init__("cag-daemon", __version__, protocol_cls=CagProtocol, converter_factory=_converter)
        self.ended = asyncio.Event()
        self.name = "an editor"
        self.process_id: int | None = None
        self.on_documents: Callable[[], None] = lambda: None  # its documents are others now
        self._client = client or Surroundings(os.environ, None)
        self._alone = client is None
        self._flags = flags
        self._editor: dict[str, Any] = {}
        self._folders: list[Path] = []
        self._problems_shown: set[str] = set()
        self._asking: set[str] = set()
        self._starting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        settings, self._problems = self._resolve({})
        self.commands = Commands(self)
        self.announcer = Announcer(self, lambda: self.session)
        environment = {} if self._alone else self._client.environment
        self.session = Session(
            settings, pool, environment, self.announcer.status_changed, self._document_changed, self._notice
        )

    # ── start and end ──

    def initialize(self, params: types.InitializeParams) -> None:
        """Take down what the client said of itself."""
        options = params.initialization_options
        self._editor = dict(options) if isinstance(options, dict) else {}
        if options is not None and not isinstance(options, dict):
            self._problems.append(Problem(f"initializationOptions: {options!r} is not accepted (an object)", "none"))
        show_answers = self._editor.pop("showAnswers", True)
        self.commands.show_answers = show_answers if isinstance(show_answers, bool) else True
        if not isinstance(show_answers, bool):
            self._problems.append(Problem(f"showAnswers: {show_answers!r} is not accepted (true or false)", "true"))
        uris = [folder.uri for folder in params.workspace_folders or []]
        if not uris and params.root_uri:
            uris = [params.root_uri]
        self._folders = [path for uri in uris if (path := file_path(uri)) is not None]
        if not uris and params.root_path:
            self._folders = [Path(params.root_path).absolute()]
        if params.client_info is not None:
            self.name = params.client_info.name
        self.process_id = params.process_id
        if params.process_id is not None and self._alone:  # else the forwarder does
            self._watch_parent(params.process_id)

    def begin(self) -> None:
        """Start the session; once."""
        if self._starting is None:
            self._starting = self._spawn(self._begin())

    async def _begin(self) -> None:
        await self._configure(self._editor)
        await self.session.start(self._folders)
        self.on_documents()

    async def started(self) -> Session:
        """The session; a request may come before ``initialized``."""
        self.begin()
        assert self._starting is not None
        if not self._starting.done():
            # Not awaited itself: `finish` cancels it, and that is not the caller's end.
            await asyncio.wait({self._starting})
        if self.session.over:
            raise CancelledByDaemon(GIVEN_UP["shuttingDown"], "shuttingDown")
        self._starting.result()
        return self.session

    def close(self) -> None:
        """End the session, begun or just beginning; nothing can be asked afterwards."""
        self.session.close(self.linger)
        if self._starting is not None:
            self._starting.cancel()

    @property
    def linger(self) -> float:
        """Seconds for which what is cached stays when this client has gone."""
        return 0 if self._alone else self.session.settings.linger_seconds

    async def finish(self) -> None:
        """Give up whatever is open, and see it answered."""
        own = asyncio.current_task()
        self.close()
        everything: list[Any] = list(self.protocol._request_futures.values())
        open_ones = [each for each in everything if isinstance(each, asyncio.Task) and each is not own]
        if open_ones:
            await asyncio.wait(open_ones, timeout=1)

    def _watch_parent(self, pid: int) -> None:
        try:
            parent = psutil.Process(pid)
        except (psutil.Error, ValueError, OverflowError, TypeError):
            return  # it was not alive then: nothing follows from its absence

        async def watch() -> None:
            while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
                await asyncio.sleep(PARENT_SECONDS)

        self._spawn(watch()).add_done_callback(lambda _: self.ended.set())

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ── settings ──

    async def change_configuration(self, settings: Any) -> None:
        """Settings, pushed as ``{cag: {…}}``, or to be fetched by those who can."""
        pushed = settings.get("cag") if isinstance(settings, dict) else None
        if pushed is None:
            workspace = self.client_capabilities.workspace
            if workspace is None or not workspace.configuration:
                return
            item = types.ConfigurationItem(section="cag")
            answer = await self.workspace_configuration_async(types.ConfigurationParams(items=[item]))
            pushed = answer[0] if answer else None
        if isinstance(pushed, dict):
            await self.started()
            self._editor = self._editor | pushed
            await self._configure(self._editor)

    async def _configure(self, editor: Mapping[str, Any]) -> None:
        settings, problems = self._resolve(editor)
        for problem in (*self._problems, *problems):
            if str(problem) not in self._problems_shown:
                self._problems_shown.add(str(problem))
                self.show(str(problem), types.MessageType.Warning)
        self._problems = []
        await self.session.configure(settings)

    def _resolve(self, editor: Mapping[str, Any]) -> tuple[Settings, list[Problem]]:
        """The settings in force; paths in them are as the client means them."""
        settings, problems = resolve(self._flags, self._client.environment, editor)
        return settings.model_copy(update=self._client.absolute(settings)), problems

    async def change_folders(self, event: types.WorkspaceFoldersChangeEvent) -> None:
        """Folders were added to the workspace, or removed from it."""
        session = await self.started()
        added, removed = (
            [path for folder in folders if (path := file_path(folder.uri)) is not None]
            for folders in (event.added, event.removed)
        )
        await session.change_folders(added, removed)
        self.on_documents()

    # ── requests ──

    async def ask(self, params: Any) -> AskResult:
        """``cag/ask``."""
        asked = parse(AskParams, params).checked()
        if asked.id is None:
            return await self._ask(asked, lambda piece: None)
        if asked.id in self._asking:
            raise InvalidParams(
                f"id: {asked.id!r} is in use by a question that is not answered yet; choose another.", parameter="id"
            )
        self._asking.add(asked.id)
        seq = 0

        def partial(piece: str) -> None:
            nonlocal seq
            self.protocol.notify(protocol.PARTIAL, {"id": asked.id, "seq": seq, "text": piece})
            seq += 1

        try:
            return await self._ask(asked, partial)
        finally:
            self._asking.discard(asked.id)

    async def _ask(self, asked: AskParams, on_piece: Callable[[str], None]) -> AskResult:
        session = await self.started()
        return await session.ask(asked, self.document(session, asked.document), on_piece)

    def document(self, session: Session, uri: str | None) -> Document:
        """The document that a URI selects; None: the first folder's."""
        if uri is None:
            return session.select(None)
        path = file_path(uri)
        if path is None:
            raise InvalidParams(f"document: {uri!r} is no file's URI; send one that begins with file://.", "document")
        return session.select(path)

    def typing(self, params: Any) -> None:
        """``cag/typing``: a hint, to which nothing is said, whatever is wrong with it."""
        if self._starting is None or not self._starting.done() or self.session.over:
            return
        with suppress(CagError):
            typed = parse(TypingParams, params).checked()
            if typed.question:
                self.session.typing(typed, self.document(self.session, typed.document))

    async def refresh(self, params: Any) -> RefreshResult:
        """``cag/refresh``."""
        asked = parse(RefreshParams, params)
        session = await self.started()
        return await session.refresh(self.document(session, asked.document), bool(asked.force))

    async def locate(self, params: Any) -> LocateResult:
        """``cag/locate``."""
        asked = parse(LocateParams, params).checked()
        session = await self.started()
        return await session.locate(self.document(session, asked.document), asked.text)

    async def unload(self) -> dict[str, Any]:
        """``cag/unload``."""
        await (await self.started()).unload()
        return {}

    # ── what goes out ──

    def _document_changed(self, cost: RefreshResult) -> None:
        self.protocol.notify(protocol.DOCUMENT_CHANGED, cost)

    def _notice(self, sentence: str) -> None:
        self.show(sentence, types.MessageType.Warning)

    def show(self, message: str, kind: types.MessageType) -> None:
        """A message to the user."""
        self.window_show_message(types.ShowMessageParams(type=kind, message=message))

    def _log(self, message: str) -> None:
        self.window_log_message(types.LogMessageParams(type=types.MessageType.Info, message=message))


@dataclass(frozen=True)
class Surroundings:
    """Where a client's daemon was started: its environment, and its working folder if that is not ours."""

    environment: Mapping[str, str]
    folder: Path | None

    def absolute(self, settings: Settings) -> dict[str, str]:
        """Those settings that name a path relative to the working folder, by field name."""
        found: dict[str, str] = {}
        if self.folder is None:
            return found
        if settings.model not in ("auto", "embedded") and (self.folder / Path(settings.model).expanduser()).is_dir():
            found["model"] = str(self.folder / Path(settings.model).expanduser())
        if not Path(settings.cache_directory).expanduser().is_absolute():
            found["cache_directory"] = str(self.folder / settings.cache_directory)
        return found


@functools.cache
def _converter() -> Any:
    """One for all connections: to make it takes a tenth of a second, and several megabytes."""
    return default_converter()  # type: ignore[no-untyped-call]


def capabilities() -> types.ServerCapabilities:
    """What this server can do."""
    return types.ServerCapabilities(
        position_encoding=types.PositionEncodingKind.Utf16,
        text_document_sync=types.TextDocumentSyncOptions(
            open_close=True, change=types.TextDocumentSyncKind.Incremental, save=types.SaveOptions(include_text=False)
        ),
        code_action_provider=types.CodeActionOptions(resolve_provider=False),
        execute_command_provider=types.ExecuteCommandOptions(commands=list(protocol.COMMANDS)),
        workspace=types.WorkspaceOptions(
            workspace_folders=types.WorkspaceFoldersServerCapabilities(supported=True, change_notifications=True)
        ),
        experimental={
            "cag": {"protocolVersion": protocol.PROTOCOL_VERSION, "features": list(protocol.FEATURES)},
        },
    )


def run(stdin: BinaryIO, stdout: BinaryIO, flags: Mapping[str, Any]) -> int:
    """Serve one editor on these streams until it is gone; return the exit code.

    The thread that reads ``stdin`` may be blocked for ever: end the process by `os._exit`.
    """

    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # It logs whole messages, and so the document; what matters of its errors is logged here.
    logging.getLogger("pygls").setLevel(logging.CRITICAL)

    async def main() -> int:
        pool = Pool(on_loaded=neighbours.greet, on_emptied=neighbours.leave)
        server = CagServer(flags, pool)
        try:
            return await serve(server, stdin, stdout, server.ended)
        finally:
            server.close()
            neighbours.leave()
            await pool.ended(GOODBYE_SECONDS)

    # Not asyncio.run, which would wait for that thread.
    return asyncio.new_event_loop().run_until_complete(main())
