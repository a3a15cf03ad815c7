"""A workspace: its folders' documents, the editor's buffers, the settings, the questions. It lives on one event loop.

Nothing here knows LSP, and nothing here knows models: a question is a `Document` and a string, an answer is what the
contract says. Which text is read when is the `Reader`'s; who reads is the `Backend`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cag_daemon import messages
from cag_daemon.config import Settings
from cag_daemon.errors import CancelledByDaemon, DocumentNotFound, InvalidParams, RequestFailed
from cag_daemon.front.backend import WorkerGone
from cag_daemon.front.document import Document, OpenFile, file_key
from cag_daemon.front.pool import Pool
from cag_daemon.front.protocol import (
    AskParams,
    AskResult,
    Client,
    LocateResult,
    RefreshResult,
    Selection,
    TypingParams,
    ask_result,
    cite,
)
from cag_daemon.front.reader import Reader, cost_of
from cag_daemon.front.watch import Watcher
from cag_daemon.text import Buffer, Text, normalise

TYPING_SECONDS = 0.3  # a buffer is looked at when nobody has typed for so long
FILE_SECONDS = 0.05  # the events of one saving come together

GIVEN_UP = {
    "shuttingDown": "The daemon is shutting down.",
    "settingsChanged": "The settings changed before the answer was whole; ask again.",
}


class Session:
    """The documents of one client, and its seat at a backend, which others may share.

    Args:
        settings: in force now; see `configure`.
        pool: where a backend is found for them.
        environment: of the client.
        on_status: called when a status may have changed.
        on_document: called with the params of ``cag/documentChanged``.
        on_notice: called with a sentence that the user should see.
    """

    def __init__(
        self,
        settings: Settings,
        pool: Pool,
        environment: Mapping[str, str],
        on_status: Callable[[], None],
        on_document: Callable[[RefreshResult], None],
        on_notice: Callable[[str], None],
    ) -> None:
        self.settings = settings
        self.started = False
        self.unloaded = False
        self.over = False
        self._failed = False  # the backend, when it was looked at last
        self.stopped = False  # on purpose, for all clients
        self.clients: Callable[[], list[Client] | None] = lambda: None  # of the process, where it has several
        self.documents: dict[Path, Document] = {}
        self.last_use = time.monotonic()
        self._requests: dict[asyncio.Task[Any], Document] = {}
        self.backend = pool.seat(self, environment)
        self.reader = Reader(self.backend, settings, on_status, on_document)
        self._on_status, self._on_notice = on_status, on_notice
        self._folders: list[Path] = []
        self._open: dict[str, OpenFile] = {}
        self._watcher: Watcher | None = None
        self._unloading: set[asyncio.Task[Any]] = set()
        self._given_up: dict[asyncio.Task[Any], CancelledByDaemon] = {}
        self._questions: set[asyncio.Task[Any]] = set()
        self._begun: set[asyncio.Task[Any]] = set()
        self._looks: set[asyncio.Task[None]] = set()
        self._settling: dict[Document, asyncio.TimerHandle] = {}

    # ── folders and settings ──

    async def start(self, folders: Iterable[Path]) -> None:
        """Watch, then look for the first time, then read."""
        if self.over:
            return
        self._watcher = Watcher(self._file_event, asyncio.get_running_loop())
        self._folders = list(folders)
        await self._arrange()
        if self.over:
            return
        self.started = self.reader.running = True
        self.reader.next()
        self.backend.used()
        self._on_status()

    async def change_folders(self, added: Iterable[Path], removed: Iterable[Path]) -> None:
        """Folders came into the workspace or left it."""
        gone = set(removed)
        self._folders = [folder for folder in self._folders if folder not in gone]
        self._folders += [folder for folder in added if folder not in self._folders]
        await self._arrange()

    async def configure(self, settings: Settings) -> None:
        """Other settings from now on: each takes effect as the contract's table says."""
        if self.over:
            return
        old, self.settings = self.settings, settings
        changed = {name for name in Settings.model_fields if getattr(old, name) != getattr(settings, name)}
        self.reader.settings = settings
        if old.kept_in is not None and settings.kept_in is None:
            for document in self.documents.values():  # of what is cached, too, nothing is to be written
                self.backend.forget(document.uri)
                document.held = None
        if self.backend.is_for(settings):
            self.backend.settle()
        else:
            self.reader.forget_speed()
            self.reader.stop()
            self.backend.move()
            self._forget_caches(due=True)
        for document in self.documents.values():
            # What failed under the old settings is worth another try.
            document.failure = None if changed else document.failure
            document.sequence += "system_prompt" in changed
            document.due = document.due or (bool(changed) and not self.unloaded and self.reader.is_due(document))
        if "document" in changed and self.started:
            await self._arrange()
        self.reader.next()
        self._on_status()

    def close(self, linger: float = 0) -> None:
        """Give up every request and leave the backend. Nothing can be asked afterwards.

        Args:
            linger: seconds for which what is cached stays, should the client come back.
        """
        if self.over:
            return
        self.over = True
        self.started = self.reader.running = False
        for task in (*self._requests, *self._unloading):
            self._give_up(task, "shuttingDown")
        for look in self._looks:
            look.cancel()
        for handle in self._settling.values():
            handle.cancel()
        self.reader.stop()
        self.backend.leave(linger)
        if self._watcher is not None:
            # In a thread: it waits for one of its own, which may be at a drive that does not answer.
            asyncio.get_running_loop().run_in_executor(None, self._watcher.close)

    async def _arrange(self) -> None:
        """Have a `Document` for the file of each folder, and no other; watched before it is looked at."""
        assert self._watcher is not None
        paths = dict.fromkeys(self._document_paths())
        for path in self.documents.keys() - paths.keys():
            document = self.documents[path]
            self._watcher.unwatch(path)
            for task, asked in self._requests.items():
                if asked is document:
                    self._give_up(task, "settingsChanged")
            self.reader.stop(document)
            self.backend.forget(document.uri)
        new = [path for path in paths if path not in self.documents]
        self.documents = {path: self.documents.get(path) or Document(path) for path in paths}
        self.reader.documents = list(self.documents.values())
        for path in new:
            await asyncio.to_thread(self._watcher.watch, path)
            await self._look(self.documents[path])
        self._on_status()

    def _document_paths(self) -> list[Path]:
        name = Path(self.settings.document).expanduser()
        return [Path(os.path.normpath(folder / name)) for folder in ([Path()] if name.is_absolute() else self._folders)]

    def select(self, path: Path | None) -> Document:
        """The document of the folder that a file is in; None: the first folder's.

        Raises:
            DocumentNotFound: no folder is open, and the setting is relative.
            InvalidParams: the file is in none of the folders.
        """
        if not self.documents:
            raise DocumentNotFound(
                f"No folder is open that {self.settings.document} could be in; open one, or set an absolute path."
            )
        if path is None or Path(self.settings.document).expanduser().is_absolute():
            return next(iter(self.documents.values()))
        if path in self.documents:
            return self.documents[path]
        real = Path(os.path.realpath(path))
        inside = [
            (len(folder.parts), document)
            for folder, document in zip(self._folders, self._document_paths(), strict=True)
            if path.is_relative_to(folder) or real.is_relative_to(os.path.realpath(folder))
        ]
        if not inside:
            raise InvalidParams(f"document: {path} is in no folder of this workspace.", parameter="document")
        return self.documents[max(inside)[1]]

    # ── the editor's buffers, and the files' events ──

    def opened(self, path: Path, text: str) -> None:
        """A file was opened in the editor. If it is the document, its model is wanted soon."""
        self._open[file_key(path)] = OpenFile(Buffer(text))
        self._settle_file(path, 0, interest=True)

    def edited(self, path: Path, changes: Iterable[tuple[Mapping[str, Any] | None, str]]) -> None:
        """An open file was changed: (range, or None for all of it; new text), in order.

        Raises:
            ValueError: a range is none.
        """
        file = self._open.get(file_key(path))
        if file is not None:
            file.changes += 1
            file.dirty = True
            for where, text in changes:
                file.buffer.apply(where, text)
            self._settle_file(path, TYPING_SECONDS)

    def saved(self, path: Path) -> None:
        """An open file was written to the disk: that counts from now on."""
        if (file := self._open.get(file_key(path))) is not None:
            file.dirty = False
        self._settle_file(path, 0)

    def closed(self, path: Path) -> None:
        """A file was closed in the editor, with or without its changes."""
        self._open.pop(file_key(path), None)
        self._settle_file(path, 0)

    def buffer_text(self, path: Path) -> Text | None:
        """The text of an open file; None: it is not open."""
        file = self._open.get(file_key(path))
        return None if file is None else Text.of(file.buffer.text)

    def _settle_file(self, path: Path, seconds: float, interest: bool = False) -> None:
        key = file_key(path)
        for document in self.documents.values():
            if document.path == path or file_key(document.path) == key:
                if interest and self.unloaded:
                    self.unloaded = False
                    self.last_use = time.monotonic()
                    self.backend.used()
                    document.due = document.known is not None
                    self.reader.next()
                self._settle(document, seconds)

    def _file_event(self, path: Path) -> None:
        document = self.documents.get(path)
        # Not put off by the next event: some files are written to all the time.
        if document is not None and document not in self._settling:
            self._settle(document, FILE_SECONDS)

    def _settle(self, document: Document, seconds: float) -> None:
        if (pending := self._settling.pop(document, None)) is not None:
            pending.cancel()
        self._settling[document] = asyncio.get_running_loop().call_later(seconds, self._settled, document)

    def _settled(self, document: Document) -> None:
        self._settling.pop(document, None)
        task = asyncio.ensure_future(self._look(document))
        self._looks.add(task)
        task.add_done_callback(self._looks.discard)

    async def _look(self, document: Document) -> None:
        """See what the document's text is; have it read where that is due."""
        before = document.known
        changed = await document.look(self._open)
        self.reader.tell_saved(document)
        if not changed:
            return
        if document.known is not before and self.backend.error is not None:
            self.backend.retry()
        document.due = not self.unloaded and self.reader.is_due(document)
        self.reader.next()
        self._on_status()

    async def _text(self, document: Document) -> Text:
        """The document's text as it stands at this moment, or the error that says why there is none."""
        await self._look(document)
        if document.error is not None:
            raise document.error
        assert document.text is not None
        return document.text

    # ── requests ──

    async def ask(self, params: AskParams, document: Document, on_piece: Callable[[str], None]) -> AskResult:
        """Answer a question; ``on_piece`` gets its text as it comes.

        Raises:
            CagError: as the contract says.
        """
        arrival = time.monotonic()
        times: dict[str, int] = {}

        def on_event(message: messages.Message) -> None:
            if isinstance(message, messages.Piece):
                on_piece(message.text)
            elif isinstance(message, messages.Began | messages.FirstToken):
                times[type(message).__name__] = round((time.monotonic() - arrival) * 1000)
                self._begun.add(task)
                self._on_status()

        async with self._request(document) as task:
            self._questions.add(task)
            self._on_status()  # one more waits
            answered = await self._answer(params, document, on_event)
            text = document.recall(answered.version)  # now: a newer one may be held in a moment
            model = self.backend.model
            name, quantization = (model.name, model.quantization) if model is not None else ("", "none")
            await self._look(document)
            newest = document.known is not None and document.known.version == answered.version
            total = round((time.monotonic() - arrival) * 1000)
            # In a thread: looking for the words of a long answer in a long document takes its time.
            return await asyncio.to_thread(
                ask_result,
                answered,
                text,
                document.uri,
                {"name": name, "quantization": quantization},
                "current" if newest else "previous",
                {"queued": times.get("Began", total), "firstToken": times.get("FirstToken", total), "total": total},
                model.reads if model is not None else None,
            )

    def typing(self, params: TypingParams, document: Document) -> None:
        """A question is being typed: have it read behind the document meanwhile, if that is read whole."""
        if document.is_held(self.settings.system_prompt):
            self.backend.typing(messages.Typing(document.uri, params.question, _words(params.selection)))

    async def _answer(
        self, params: AskParams, document: Document, on_event: Callable[[messages.Message], None]
    ) -> messages.Answered:
        question = messages.Ask(
            job=0,
            document=document.uri,
            question=params.question,
            selection=_words(params.selection),
            max_new_tokens=params.maxNewTokens or self.settings.max_new_tokens,
        )
        while True:
            previous = params.whileRefreshing == "previous"
            await self._whole(document, previous)
            # An older text, of a buffer that was closed just now, may have been read whole meanwhile: not that one.
            version = None if previous or document.held is None else document.held.text.version
            try:
                answered = await self.backend.ask(replace(question, version=version), on_event)
                assert isinstance(answered, messages.Answered)
                return answered
            except WorkerGone as gone:
                words = GIVEN_UP.get(gone.reason, f"{gone} before the answer was whole; ask again.")
                raise CancelledByDaemon(words, gone.reason) from None
            except RequestFailed as error:
                if not error.details.get("notCached"):
                    raise
                document.held = None  # it had to leave memory for another document's cache, just now

    async def _whole(self, document: Document, previous: bool) -> None:
        """Wait until a whole cache holds the text as it stands now; ``previous``: whatever one holds will do."""
        self.unloaded = False
        try:
            await self._text(document)
        except RequestFailed:
            if previous and document.held is not None:
                return
            raise
        if document.is_held(self.settings.system_prompt) or (previous and document.held is not None):
            return
        if (failure := document.has_failed()) is not None:
            raise failure
        await self.reader.wait(document)

    async def refresh(self, document: Document, force: bool) -> RefreshResult:
        """Have the text, as it stands now, read now; ``force``: keep nothing. What it cost.

        Raises:
            CagError: as the contract says.
        """
        async with self._request(document):
            self.unloaded = False
            self.backend.retry()
            await self._text(document)
            if document.is_held(self.settings.system_prompt) and not force:
                assert document.held is not None
                return cost_of(document, kept=document.held.tokens, computed=0, milliseconds=0)
            document.failure = None
            self.backend.forgive(document.text.version if document.text is not None else "")
            if force:
                document.force = True
                document.sequence += 1
            return await self.reader.wait(document)

    async def locate(self, document: Document, words: str) -> LocateResult:
        """Where words of an answer stand in the document's text as it is now.

        Raises:
            RequestFailed: there is no text now.
        """
        text = await self._text(document)
        citations = await asyncio.to_thread(cite, words, text, document.uri)
        return {"document": {"uri": document.uri, "version": text.version}, "citations": citations}

    async def unload(self) -> None:
        """The model leaves memory, now or when what others have asked is answered; the next question brings it back."""
        task = asyncio.current_task()
        assert task is not None
        self._unloading.add(task)
        try:
            await self.backend.unload()
        except asyncio.CancelledError:
            if (error := self._given_up.pop(task, None)) is not None:
                raise error from None
            raise
        finally:
            self._unloading.discard(task)

    @contextlib.asynccontextmanager
    async def _request(self, document: Document) -> AsyncIterator[asyncio.Task[Any]]:
        """While a request is open it is counted, and the daemon can give it up."""
        task = asyncio.current_task()
        assert task is not None
        self._requests[task] = document
        self.last_use = time.monotonic()
        self._on_status()
        try:
            yield task
        except asyncio.CancelledError:
            if (error := self._given_up.get(task)) is not None:
                raise error from None
            raise
        finally:
            del self._requests[task]
            self._given_up.pop(task, None)
            self._questions.discard(task)
            self._begun.discard(task)
            self.last_use = time.monotonic()
            self.backend.used()
            self._on_status()

    def _give_up(self, task: asyncio.Task[Any], reason: str) -> None:
        self._given_up[task] = CancelledByDaemon(GIVEN_UP[reason], reason)
        task.cancel()

    @property
    def answering(self) -> bool:
        """Whether the worker is at a question."""
        return bool(self._begun)

    @property
    def queue(self) -> int:
        """How many questions the worker has not turned to yet."""
        return len(self._questions - self._begun)

    # ── what the seat tells, and asks: see `pool.Guest` ──

    @property
    def busy(self) -> bool:
        """Whether a request is open, or something is read."""
        return bool(self._requests) or self.reader.busy

    @property
    def requests(self) -> set[asyncio.Task[Any]]:
        """The open requests."""
        return set(self._requests)

    @property
    def unloads_in(self) -> float | None:
        """Seconds until the model leaves memory for want of questions; None: it does not."""
        return self.backend.unloads_in

    def backend_changed(self) -> None:
        """The state of the backend is another, or how far loading has come."""
        failed, self._failed = self._failed, self.backend.state == "failed"
        if failed and not self._failed:  # somebody tries again
            asyncio.get_running_loop().call_soon(self.reader.next)
        if self.unloaded and self.backend.state == "ready":  # somebody else has brought the model back
            self.unloaded = False
            for document in self.documents.values():
                document.due = self.reader.is_due(document)
            self.reader.next()
        self._on_status()

    def notice(self, sentence: str) -> None:
        """Something that the user should know."""
        self._on_notice(sentence)

    def dropped(self, document: str, wrong: bool) -> None:
        """The cache of a document had to leave memory."""
        for each in self.documents.values():
            if each.uri == document:
                each.held = None
                each.due = each.due or (wrong and each.known is not None)
        if wrong:
            self.reader.next()
        self._on_status()

    def worker_gone(self, gone: WorkerGone) -> None:
        """A worker ended that nobody had stopped."""
        self._on_notice(self.backend.error.message if self.backend.error else f"{gone}; it is being started again.")
        self._forget_caches(due=True)

    def emptied(self) -> None:
        """The model has left memory."""
        # Where a question waits for its text, it brings the model back at once.
        self.unloaded = not any(document.waiters for document in self.documents.values())
        self.reader.stop_unwanted()
        self._forget_caches(due=False)

    def _forget_caches(self, due: bool) -> None:
        for document in self.documents.values():
            document.held = None
            document.due = due and document.known is not None
        self.reader.next()
        self._on_status()


def _words(selection: Selection | None) -> str | None:
    """What is given to the model of a selection; None: there is nothing in it."""
    return (normalise(selection.text).strip() or None) if selection is not None else None
