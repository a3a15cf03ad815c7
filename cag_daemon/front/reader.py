"""What is read next: one document at a time, questions first, the newest text wins.

A text is read because somebody waits for it, or because it is *due*. A reading that nobody waits for is stopped for a
newer text of its document, or for another document that is waited for; one that is waited for is never put off.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from dataclasses import replace

from cag_daemon import messages
from cag_daemon.config import Settings
from cag_daemon.errors import ModelFailed, OutOfMemory, RequestFailed, Stopped
from cag_daemon.front.backend import WorkerGone
from cag_daemon.front.document import Document, Held, Reading
from cag_daemon.front.pool import Seat
from cag_daemon.front.protocol import RefreshResult
from cag_daemon.text import Text

logger = logging.getLogger(__name__)

MOST_CHARACTERS = 8_000_000  # no model's context holds more, and sending them would keep the event loop
UNASKED_SECONDS = 10.0  # `refresh: auto` reads a change at once where it is estimated to take less


class Reader:
    """The reading of one session's documents.

    Args:
        backend: what reads.
        settings: in force now.
        on_status: called when a status may have changed.
        on_document: called with the params of ``cag/documentChanged``.
    """

    def __init__(
        self,
        backend: Seat,
        settings: Settings,
        on_status: Callable[[], None],
        on_document: Callable[[RefreshResult], None],
    ) -> None:
        self.documents: list[Document] = []
        self.settings = settings
        self.running = False
        self._backend, self._on_status, self._on_document = backend, on_status, on_document
        self._task: asyncio.Task[None] | None = None
        self._tokens_per_second = 0.0

    @property
    def busy(self) -> bool:
        """Whether something is being read, or loaded to read with."""
        return self._task is not None

    def is_due(self, document: Document) -> bool:
        """Whether the newest text is to be read without a question, by the setting ``refresh``."""
        if document.known is None or document.is_held(self.settings.system_prompt):
            return False
        estimate = self.estimate(document)
        if document.held is None:
            # Where nobody knows how long it takes, the first chunks will tell: see `patience`.
            return estimate is None or estimate < UNASKED_SECONDS
        refresh, saved = self.settings.refresh, document.source == "disk"
        return refresh != "ask" and (saved or (refresh == "auto" and (estimate or 0) < UNASKED_SECONDS))

    def estimate(self, document: Document) -> float | None:
        """Seconds that reading the newest text will take, by what the last reading took; None: nobody knows yet."""
        held, text = document.held, document.text
        if text is None or not self._tokens_per_second:
            return None
        a_character = held.tokens / max(1, len(held.text.normalised)) if held else document.tokens_a_character
        return len(text.normalised) * a_character / self._tokens_per_second

    def postponed(self, document: Document) -> float | None:
        """Seconds that a first reading would take, where it is so long that it does not begin unasked; else None."""
        if document.held is not None or document.reading is not None or document.due or document.waiters:
            return None
        estimate = self.estimate(document)
        return estimate if estimate is not None and estimate >= UNASKED_SECONDS else None

    def forget_speed(self) -> None:
        """Another model will read from now on."""
        self._tokens_per_second = 0.0

    async def wait(self, document: Document) -> RefreshResult:
        """Wait for the document's newest known text to be read; what that cost.

        Who gives up waiting stops the reading, unless it is due or others wait, too.

        Raises:
            CagError: it could not be read, or the model not be loaded.
        """
        if self._backend.error is not None:
            raise self._backend.error
        future: asyncio.Future[RefreshResult] = asyncio.get_running_loop().create_future()
        document.waiters[future] = document.sequence
        try:
            self.next()
            return await future
        finally:
            del document.waiters[future]
            self._backend.reconsider()
            if future.cancelled() and not document.due and not document.waiters:
                document.force = False
                self.stop(document)

    def next(self) -> None:
        """Look whether something else is to be read than what is being read, and turn to it."""
        if self._backend.error is not None:
            for document in self.documents:
                document.settle_waiters(document.sequence, self._backend.error)
        elif self._task is not None:
            self._preempt()
        elif self.running and (following := self._choose()) is not None:
            assert following.text is not None
            # From this moment on, not from when the task gets its turn: nobody shall be told "ready" in between.
            following.reading = Reading(following.text, following.sequence, following.source == "disk")
            self._task = asyncio.ensure_future(self._read(following, following.reading))
            self._task.add_done_callback(functools.partial(self._done, following))
        self._backend.reconsider()

    def stop(self, document: Document | None = None) -> None:
        """Stop what is being read, or that only where it is this document."""
        if self._task is not None and (document is None or document.reading is not None):
            self._task.cancel()

    def stop_unwanted(self) -> None:
        """Stop what is being read, if nobody waits for it."""
        if not any(document.reading is not None and document.waiters for document in self.documents):
            self.stop()

    def _done(self, document: Document, task: asyncio.Task[None]) -> None:
        self._task = document.reading = None
        self._backend.used()
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a reading failed in an unexpected way", exc_info=error)
        self.next()
        self._on_status()

    def _choose(self) -> Document | None:
        candidates = [document for document in self.documents if self._wants_reading(document)]
        asked = (document for document in candidates if document.waiters)
        return next(asked, None) or next((document for document in candidates if document.due), None)

    def _wants_reading(self, document: Document) -> bool:
        if document.text is None or document.has_failed() is not None:
            return False
        return document.force or not document.is_held(self.settings.system_prompt)

    def _preempt(self) -> None:
        current = next((document for document in self.documents if document.reading is not None), None)
        if current is None or current.reading is None or current.waited_for(current.reading.sequence):
            return
        following = self._choose()
        # A newer text that is neither held nor to be read now is no reason: the older one is better than none.
        newer = current.reading.sequence < current.sequence
        outdated = newer and (following is current or current.is_held(self.settings.system_prompt))
        if outdated or (following is not None and following is not current and following.waiters):
            self.stop(current)

    async def _read(self, document: Document, reading: Reading) -> None:
        """Have a text of the document read."""
        text, sequence, force, settings = reading.text, reading.sequence, document.force, self.settings
        document.remember(text)
        self._on_status()

        def progress(message: messages.Message) -> None:
            if isinstance(message, messages.Reading):
                reading.tell(message.done, message.total, message.max_tokens + settings.max_new_tokens)
                self._on_status()

        try:
            await self._backend.ready(max(len(each.text.normalised) for each in self.documents if each.text))
            prepare = messages.Prepare(
                job=0,
                document=document.uri,
                version=text.version,
                text=text.normalised[:MOST_CHARACTERS],
                characters=len(text.normalised) if len(text.normalised) > MOST_CHARACTERS else 0,
                system_prompt=settings.system_prompt,
                max_new_tokens=settings.max_new_tokens,
                force=force,
                patience=None if document.waiters or document.held else UNASKED_SECONDS,
                file=str(document.path),
                saved=reading.saved,
            )
            wanted = functools.partial(document.waited_for, sequence)
            prepared = await self._backend.read(prepare, progress, wanted)
            if isinstance(prepared, messages.Postponed):
                # Whoever has come to wait for it meanwhile gets it: `next` looks for that.
                self._tokens_per_second = prepared.tokens / prepared.seconds
                document.tokens_a_character = prepared.tokens / max(1, len(text.normalised))
                document.due = False
                return
            assert isinstance(prepared, messages.Prepared)
        except Stopped:
            pass
        except WorkerGone as gone:
            if gone.unasked and reading.total:
                self._died_reading(document, reading, gone)
        except RequestFailed as error:
            if error is not self._backend.error:
                self._fail(document, text, sequence, error)
        else:
            self._backend.forgive(text.version)
            limit = prepared.max_tokens + settings.max_new_tokens
            document.held = Held(
                text,
                sequence,
                settings.system_prompt,
                prepared.tokens,
                prepared.computed,
                limit,
                prepared.bytes,
                reading.saved,
            )
            self.tell_saved(document)
            if sequence == document.sequence:
                document.due = document.force = False
            if prepared.computed and prepared.milliseconds:
                self._tokens_per_second = prepared.computed / prepared.milliseconds * 1000
            cost = cost_of(document, prepared.kept, prepared.computed, prepared.milliseconds)
            self._on_document(cost)
            document.settle_waiters(sequence, cost)

    def tell_saved(self, document: Document) -> None:
        """What was typed and read, and only then saved, or while it was read, may now be kept on disk."""
        held = document.held
        if held is not None and not held.saved and document.source == "disk" and document.is_held(held.system_prompt):
            document.held = replace(held, saved=True)
            self._backend.tell_saved(document.uri, held.text.version, str(document.path))

    def _died_reading(self, document: Document, reading: Reading, gone: WorkerGone) -> None:
        """The first death may be chance, and the text is tried again; the second is the text's doing, whoever asks."""
        kind, why = (OutOfMemory, "memory ran out, probably; ") if gone.signal == 9 else (ModelFailed, "")
        error = kind(
            f"{gone} twice while reading {document.path.name} ({reading.done:,} of {reading.total:,} tokens); "
            f"{why}shorten the document or choose a smaller model."
        )
        if self._backend.died(reading.text.version, error):
            self._fail(document, reading.text, reading.sequence, error)

    def _fail(self, document: Document, text: Text, sequence: int, error: RequestFailed) -> None:
        document.failure = (text.version, error)
        document.due = document.force = False
        document.settle_waiters(sequence, error)


def cost_of(document: Document, kept: int, computed: int, milliseconds: int) -> RefreshResult:
    """What having the held text cost, in tokens: ``kept + computed = total``."""
    held = document.held
    assert held is not None
    return {
        "document": {"uri": document.uri, "version": held.text.version, "tokens": held.tokens},
        "tokens": {"total": kept + computed, "kept": kept, "computed": computed},
        "milliseconds": milliseconds,
    }
