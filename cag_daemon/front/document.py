"""One document: what its text is at this moment, and what the worker holds of it.

The text is the editor's buffer while that has unsaved changes, else the file. Nobody's word is taken for it, the
watcher's least of all: to `look` is a stat, and a read where that differs.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cag_daemon.errors import CagError, DocumentEmpty, DocumentNotFound, DocumentUnreadable, RequestFailed
from cag_daemon.front.protocol import RefreshResult
from cag_daemon.text import Buffer, Stamp, Text, read, settled, stamp

SAVING_SECONDS = 1.0  # missing or empty for less than this is an editor that saves
LARGE_TEXT = 200_000  # characters; normalising and hashing more than that leaves the event loop

Source = Literal["disk", "buffer"]


@dataclass
class OpenFile:
    """A file that is open in the editor. ``dirty``: has unsaved changes; None: not compared with the disk yet."""

    buffer: Buffer
    dirty: bool | None = None
    changes: int = 0


@dataclass(frozen=True)
class Held:
    """What the worker's whole cache of a document holds.

    Attributes:
        text, system_prompt: what was read.
        sequence: which of the document's texts that is.
        tokens, computed: with the template around it; and how many of them were not kept, or copied from the disk.
        limit: of tokens, before room for an answer is taken off.
        bytes: that the cache takes.
        saved: whether the worker knows that this is what the file says.
    """

    text: Text
    sequence: int
    system_prompt: str | None
    tokens: int
    computed: int
    limit: int
    bytes: int
    saved: bool


@dataclass
class Reading:
    """A reading under way; the numbers are of tokens. ``saved``: the text is the file's."""

    text: Text
    sequence: int
    saved: bool
    done: int = 0
    total: int = 0
    limit: int = 0
    kept: int | None = None
    since: float = field(default_factory=time.monotonic)

    def tell(self, done: int, total: int, limit: int) -> None:
        """So many tokens are there, of how many, of at most how many; those there from the start were kept."""
        if self.kept is None:
            self.kept, self.since = done, time.monotonic()
        self.done, self.total, self.limit = done, total, limit

    @property
    def seconds_left(self) -> int | None:
        """What is left at the rate so far; None before the first chunk."""
        read = self.done - (self.kept or 0)
        return round((time.monotonic() - self.since) / read * (self.total - self.done)) if read else None


class Document:
    """One file and what is known of it.

    Attributes:
        text: the newest text that was seen; ``error`` says why there is none now.
        sequence: counts the texts seen: a question waits for a number, not for a name.
        failure: the version that could not be read, and why.
        due: to be read without a question; ``force``: with nothing kept.
        tokens_a_character: about, for an estimate of what reading it costs.
        waiters: who waits for which text, and is told what its reading cost.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.uri = path.as_uri()
        self.text: Text | None = None
        self.source: Source = "disk"
        self.error: RequestFailed | None = None
        self.sequence = 0
        self.failure: tuple[str, RequestFailed] | None = None
        self.due = False
        self.force = False
        self.tokens_a_character = 0.25  # of English prose, until the text itself was counted
        self.held: Held | None = None
        self.reading: Reading | None = None
        self.waiters: dict[asyncio.Future[RefreshResult], int] = {}
        self._looking = asyncio.Lock()
        self._stamp: Stamp | None = None
        self._disk: Text | None = None
        self._disk_error: RequestFailed | None = None
        self._edited: tuple[OpenFile, int, Text] | None = None
        self._answered_from: dict[str, Text] = {}

    # ── its text ──

    async def look(self, open_files: Mapping[str, OpenFile]) -> bool:
        """See what the text is at this moment; whether anything is new.

        ``text``, ``source`` and ``error`` say what. Missing or empty for less than a second is not seen at all.
        """
        async with self._looking:
            patience = time.monotonic() + SAVING_SECONDS
            while True:
                text, source, error = await self._see(open_files)
                gone = isinstance(error, DocumentNotFound | DocumentEmpty)
                if not gone or self.text is None or self.error is not None or time.monotonic() > patience:
                    return self._note(text, source, error)
                await asyncio.sleep(0.05)

    async def _see(self, open_files: Mapping[str, OpenFile]) -> tuple[Text | None, Source, RequestFailed | None]:
        before = self._disk
        await self._read_disk()
        text, source, error = self._disk, "disk", self._disk_error
        file = open_files.get(file_key(self.path))
        if file is not None and file.dirty is not False:
            edited = await self._read_buffer(file)
            # What an editor has just opened may be compared with the file as it was then, too.
            equal = [each for each in (text, before if file.dirty is None else None) if each is not None]
            file.dirty = all(edited.version != each.version for each in equal)
            if file.dirty:
                text, source, error = edited, "buffer", None
        if text is not None and "\0" in text.normalised:
            text, error = None, DocumentUnreadable(f"{self.path} has a NUL in it, so it is no text; remove it.")
        if text is not None and text.blank:
            text, error = None, DocumentEmpty(f"{self.path} is empty; write something in it and save it.")
        return text, "buffer" if source == "buffer" else "disk", error

    async def _read_disk(self) -> None:
        # In a thread, both: a file may lie on a drive that does not answer.
        now = await asyncio.to_thread(stamp, self.path)
        if now is None or now != self._stamp or not settled(now):
            self._stamp = now
            try:
                self._disk, self._disk_error = await asyncio.to_thread(read, self.path), None
            except RequestFailed as error:
                self._disk, self._disk_error = None, error

    async def _read_buffer(self, file: OpenFile) -> Text:
        while self._edited is None or self._edited[0] is not file or self._edited[1] != file.changes:
            changes, raw = file.changes, file.buffer.text
            text = Text.of(raw) if len(raw) < LARGE_TEXT else await asyncio.to_thread(Text.of, raw)
            self._edited = (file, changes, text)
        return self._edited[2]

    def _note(self, text: Text | None, source: Source, error: RequestFailed | None) -> bool:
        changed = (source, str(error)) != (self.source, str(self.error))
        self.source, self.error = source, error
        if text is not None and (self.text is None or self.text.version != text.version):
            self.text, self.failure = text, None
            self.sequence += 1
            changed = True
        return changed

    @property
    def known(self) -> Text | None:
        """The newest text, if there is one now."""
        return None if self.error is not None else self.text

    # ── what is cached of it ──

    def is_held(self, system_prompt: str | None) -> bool:
        """Whether the newest known text is in a whole cache, behind that prompt."""
        held, text = self.held, self.text
        if held is None or text is None:
            return False
        return held.text.version == text.version and held.system_prompt == system_prompt

    def has_failed(self) -> RequestFailed | None:
        """Why the newest text could not be read, if that was so."""
        if self.text is not None and self.failure is not None and self.failure[0] == self.text.version:
            return self.failure[1]
        return None

    def waited_for(self, sequence: int) -> bool:
        """Whether somebody waits for that text, or an older one."""
        return any(wanted <= sequence for wanted in self.waiters.values())

    def settle_waiters(self, sequence: int, outcome: RefreshResult | CagError) -> None:
        """Let go, or fail, all that wait for this text or an older one."""
        for future, wanted in self.waiters.items():
            if wanted <= sequence and not future.done():
                if isinstance(outcome, CagError):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)

    def remember(self, text: Text) -> None:
        """Keep a text that may be answered from: the answer's words are looked up in it."""
        self._answered_from.pop(text.version, None)
        self._answered_from[text.version] = text
        while len(self._answered_from) > 3:
            self._answered_from.pop(next(iter(self._answered_from)))

    def recall(self, version: str) -> Text | None:
        """The text of a version that is held, or was read lately."""
        if self.held is not None and self.held.text.version == version:
            return self.held.text
        return self._answered_from.get(version)


def file_key(path: Path) -> str:
    """What is the same for two names of one file."""
    return os.path.normcase(os.path.realpath(path))
