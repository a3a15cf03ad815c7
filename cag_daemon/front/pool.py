"""Who shares what: one backend for all sessions with the same engine settings, and a seat at it for each of them.

A session knows only its `Seat`. It answers for what several of them must agree on: whose text is read next, when nobody
has asked for so long that the model leaves memory, and that nobody's jobs end because of another.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Protocol

from cag_daemon import messages
from cag_daemon.config import WORKER_FIELDS, Settings
from cag_daemon.errors import ModelFailed, RequestFailed
from cag_daemon.front.backend import Backend, BackendState, WorkerGone
from cag_daemon.front.turns import Turns
from cag_daemon.messages import Loaded, Message

logger = logging.getLogger(__name__)

# What of a client's environment decides where models are found, and on what they run.
ENGINE_VARIABLES = (
    *("HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
)
DEADLY = 2  # so many workers died reading a text: that is the text's doing


class Guest(Protocol):
    """What a seat needs to know of its session, and tells it."""

    settings: Settings

    @property
    def busy(self) -> bool:
        """Whether it has a request open, or something is read for it."""

    @property
    def last_use(self) -> float:
        """When it last had a request, by the monotonic clock."""

    @property
    def requests(self) -> set[asyncio.Task[Any]]:
        """Its open requests."""

    def backend_changed(self) -> None:
        """The state of the backend has changed."""

    def dropped(self, document: str, wrong: bool) -> None:
        """The cache of a document of its had to leave memory; ``wrong``: it was not what it should have been."""

    def worker_gone(self, gone: WorkerGone) -> None:
        """A worker ended that nobody had stopped."""

    def emptied(self) -> None:
        """The model left memory, because somebody wanted that, or nobody asked anything."""

    def notice(self, sentence: str) -> None:
        """Something that the user should know."""


class Shared:
    """A backend and those who share it.

    Args:
        pool: which of it this is one.
        settings: those that decide what is loaded are the same for all.
        environment: see `Backend`.
    """

    def __init__(self, pool: Pool, settings: Settings, environment: Mapping[str, str]) -> None:
        self.seats: dict[int, Seat] = {}
        self.backend = Backend(settings, self._changed, self._dropped, self._gone, environment, pool.log_worker)
        self.turns = Turns()
        self._pool = pool
        self._state: BackendState = "stopped"
        self._deaths: dict[str, tuple[int, RequestFailed]] = {}  # of workers, by the version that they were reading
        self._until = 0.0  # how long somebody who has gone may come back
        self._idle_timer: asyncio.TimerHandle | None = None
        self._ending: asyncio.TimerHandle | None = None

    # ── who is here ──

    def join(self, seat: Seat) -> None:
        """A session sits down, or has other settings: its word is the newest."""
        self.seats.pop(seat.number, None)
        self.seats[seat.number] = seat
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        self.agree()

    def leave(self, seat: Seat, linger: float) -> None:
        """A session goes. What it had cached stays for so many seconds; after the last one the worker, too."""
        self.seats.pop(seat.number, None)
        loop = asyncio.get_running_loop()
        self._until = max(self._until, loop.time() + linger)
        if self.seats:
            loop.call_later(linger, self._forget, seat)
            self.agree()
        elif self._until <= loop.time():
            self.close()
        else:
            loop.call_later(linger, self._forget, seat)
            if self._ending is not None:
                self._ending.cancel()
            self._ending = loop.call_at(self._until, self.close)

    def close(self) -> None:
        """Nobody is left: end the worker."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self.backend.stop("shuttingDown")
        self._pool.discard(self)

    def _forget(self, seat: Seat) -> None:
        for document in seat.documents:
            self.backend.send(messages.Forget(seat.name_of(document), write=True))

    # ── what they agree on ──

    def agree(self) -> None:
        """Settings of the whole worker, from what those who share it want.

        The newest word counts for memory and disk; who wants nothing written gets that for its own texts (see `Seat`),
        and does not forbid it to the others.
        """
        wanted = [seat.guest.settings for seat in self.seats.values()]
        if not wanted:
            return
        newest = wanted[-1]
        keeping = next((each for each in reversed(wanted) if each.kept_in is not None), newest)
        memory = next((each for each in reversed(wanted) if each.memory_max_gigabytes is not None), newest)
        agreed = newest.model_copy(
            update={
                "cache_directory": keeping.cache_directory,
                "cache_max_gigabytes": keeping.cache_max_gigabytes,
                "memory_max_gigabytes": memory.memory_max_gigabytes,
            }
        )
        before, self.backend.settings = self.backend.settings, agreed
        if before.memory_bytes != agreed.memory_bytes:
            self.backend.limit_memory(agreed.memory_bytes)
        if (before.kept_in, before.cache_bytes) != (agreed.kept_in, agreed.cache_bytes):
            self.backend.send(messages.Keep(agreed.kept_in, agreed.cache_bytes))
        self.watch_idleness()

    @property
    def idle_minutes(self) -> float:
        """How long the model stays without a question: as long as whoever is most patient; 0: for ever."""
        wanted = [seat.guest.settings.idle_unload_minutes for seat in self.seats.values()]
        return 0.0 if 0 in wanted else max(wanted, default=0.0)

    @property
    def unloads_in(self) -> float | None:
        """Seconds until the model leaves memory for want of questions; None: it does not."""
        guests = [seat.guest for seat in self.seats.values()]
        if not self.idle_minutes or self.backend.state != "ready" or any(guest.busy for guest in guests):
            return None
        last = max((guest.last_use for guest in guests), default=time.monotonic())
        return max(0.0, last + self.idle_minutes * 60 - time.monotonic())

    def watch_idleness(self) -> None:
        """Look again when the model would have been idle for too long."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        if self.idle_minutes:
            left = self.unloads_in
            wait = self.idle_minutes * 60 if left is None else left
            self._idle_timer = asyncio.get_running_loop().call_later(max(wait, 0.05), self._unload_if_idle)

    def _unload_if_idle(self) -> None:
        left = self.unloads_in
        if left is not None and left <= 0.01:
            self.unload()
        else:
            self.watch_idleness()

    def unload(self) -> None:
        """The model leaves memory now; whoever asks next brings it back."""
        self.backend.stop("workerRestarted")
        for seat in list(self.seats.values()):
            seat.guest.emptied()

    # ── texts that kill ──

    def died(self, version: str, error: RequestFailed) -> bool:
        """A worker died reading that text; whether it is not to be tried again."""
        times = self._deaths.get(version, (0, error))[0] + 1
        self._deaths[version] = (times, error)
        return times >= DEADLY

    def deadly(self, version: str) -> RequestFailed | None:
        """Why that text is not to be read."""
        times, error = self._deaths.get(version, (0, None))
        return error if times >= DEADLY else None

    def forgive(self, version: str) -> None:
        """Try that text again."""
        self._deaths.pop(version, None)

    # ── what the backend says ──

    def _changed(self) -> None:
        state, self._state = self._state, self.backend.state
        if self._state == "ready" and state != "ready":
            self._pool.loaded(self)
        elif state == "ready" and self._state != "ready":
            self._pool.on_emptied()
        for seat in list(self.seats.values()):
            seat.guest.backend_changed()

    def _dropped(self, name: str, wrong: bool) -> None:
        number, _, document = name.partition(":")
        if (seat := self.seats.get(int(number))) is not None:
            seat.guest.dropped(document, wrong)

    def _gone(self, gone: WorkerGone) -> None:
        for seat in list(self.seats.values()):
            seat.guest.worker_gone(gone)


class Pool:
    """All backends of this process.

    Args:
        log_worker: takes what the workers print, a line at a time; None: it goes where this process's stderr goes.
        on_loaded: told of a model that is in memory now; returns what its users should know of others, or None.
        on_emptied: told when one is so no longer.
    """

    def __init__(
        self,
        log_worker: Callable[[str], None] | None = None,
        on_loaded: Callable[[Loaded], str | None] = lambda model: None,
        on_emptied: Callable[[], None] = lambda: None,
    ) -> None:
        self.log_worker, self.on_emptied = log_worker, on_emptied
        self._on_loaded = on_loaded
        self._shared: dict[tuple[Any, ...], Shared] = {}
        self._leaving: list[Backend] = []
        self._numbers = itertools.count(1)

    def __iter__(self) -> Iterator[Shared]:
        return iter(list(self._shared.values()))

    def seat(self, guest: Guest, environment: Mapping[str, str]) -> Seat:
        """A seat for a session, at the backend that its settings ask for."""
        return Seat(self, next(self._numbers), guest, environment)

    def shared(self, settings: Settings, environment: Mapping[str, str]) -> Shared:
        """The backend for these settings, which others may have, too."""
        key = (
            *(getattr(settings, name) for name in sorted(WORKER_FIELDS)),
            *(environment.get(name) for name in ENGINE_VARIABLES),
        )
        if key not in self._shared:
            self._shared[key] = Shared(self, settings, environment)
        return self._shared[key]

    def discard(self, shared: Shared) -> None:
        """A backend that has ended."""
        self._shared = {key: each for key, each in self._shared.items() if each is not shared}
        self._leaving = [each for each in self._leaving if each.ending] + [shared.backend]

    def close(self) -> None:
        """End all workers."""
        for each in self:
            each.close()

    async def ended(self, seconds: float) -> None:
        """Wait for the workers that were stopped to be gone, so long at most."""
        leaving, self._leaving = self._leaving, []
        if leaving:
            await asyncio.gather(*(backend.ended(seconds) for backend in leaving))

    def loaded(self, shared: Shared) -> None:
        """A model is in memory now: those who did not want to share one are told what that costs."""
        model = shared.backend.model
        if model is None:
            return
        others = [each.backend.model for each in self if each is not shared and each.seats]
        names = [f"{each.name} ({size(each.bytes)})" for each in others if each is not None]
        words = self._on_loaded(model)
        if names:
            words = (
                f"{model.name} takes {size(model.bytes)} of memory beside {' and '.join(names)}, which other editors "
                "use; with the same model, device, dtype, quantization and threads they would share one."
            )
        if words is not None:
            for seat in list(shared.seats.values()):
                if words not in seat.told:
                    seat.told.add(words)
                    seat.guest.notice(words)


class Seat:
    """One session's place at a backend: what it says of documents is said under names that are the session's own.

    It is taken with the first `move`, when the session knows its settings.

    Args:
        pool: of all backends.
        number: of no other seat.
        guest: whose it is.
        environment: of the session's client.
    """

    def __init__(self, pool: Pool, number: int, guest: Guest, environment: Mapping[str, str]) -> None:
        self.number, self.guest = number, guest
        self.documents: set[str] = set()
        self.told: set[str] = set()  # notices
        self._pool, self._environment = pool, environment
        self._asking = asyncio.Lock()
        self._shared: Shared | None = None

    def name_of(self, document: str) -> str:
        """What the worker calls a document of this session's."""
        return f"{self.number}:{document}"

    # ── as the backend is ──

    @property
    def state(self) -> BackendState:
        """Of the backend."""
        return self._shared.backend.state if self._shared is not None else "stopped"

    @property
    def model(self) -> Loaded | None:
        """That is loaded."""
        return self._shared.backend.model if self._shared is not None else None

    @property
    def percent(self) -> int:
        """Of loading."""
        return self._shared.backend.percent if self._shared is not None else 0

    @property
    def error(self) -> RequestFailed | None:
        """Why there is no model."""
        return self._shared.backend.error if self._shared is not None else None

    @property
    def unloads_in(self) -> float | None:
        """See `Shared`."""
        return self._shared.unloads_in if self._shared is not None else None

    def retry(self) -> None:
        """Forget a failure: the next `ready` tries again."""
        self._here().backend.retry()

    def _here(self) -> Shared:
        """What one sits at.

        Raises:
            WorkerGone: the session has ended.
        """
        if self._shared is None:
            raise WorkerGone(None, "shuttingDown")
        return self._shared

    async def ready(self, characters: int) -> Loaded:
        """The model, loaded now if it was not, with room for a document of so many characters.

        Raises:
            RequestFailed: it could not be loaded.
            WorkerGone: the seat was left meanwhile.
        """
        shared, backend = self._here(), self._here().backend
        backend.characters = max(backend.characters, characters)
        model = await backend.ready()
        if shared is not self._shared:
            raise WorkerGone(None, "settingsChanged")
        return model

    # ── jobs ──

    async def ask(self, question: messages.Ask, on_event: Callable[[Message], None]) -> Message:
        """Have a question answered; one at a time for each session, so that they take turns.

        Raises:
            RequestFailed, WorkerGone: see `Backend.run`.
        """
        shared = self._here()
        async with self._asking:
            if shared is not self._shared:
                raise WorkerGone(None, "settingsChanged")
            if shared.backend.model is None:  # it has gone while others' questions, or our own, were answered
                raise ModelFailed("internal: the document must be read first.", notCached=True)
            named = dataclasses.replace(question, document=self.name_of(question.document))
            return await shared.backend.run(named, on_event, owner=self)

    async def read(
        self, text: messages.Prepare, on_event: Callable[[Message], None], wanted: Callable[[], bool]
    ) -> Message:
        """Have a text read when it is its turn; ``wanted``: whether somebody waits for it.

        Raises:
            RequestFailed, WorkerGone, Stopped: see `Backend.run`.
        """
        shared = self._here()

        def work() -> Awaitable[Message]:
            # What is known and set at this moment counts: it may have been long until now.
            if (error := shared.deadly(text.version)) is not None:
                raise error
            self.documents.add(text.document)
            kept = self.guest.settings.kept_in is not None
            name, file = self.name_of(text.document), text.file if kept else None
            named = dataclasses.replace(text, document=name, file=file, saved=text.saved and kept)
            return shared.backend.run(named, on_event, owner=self)

        return await shared.turns.run(work, wanted)

    def reconsider(self) -> None:
        """Somebody waits now, or no longer does: look whose turn it is."""
        if self._shared is not None:
            self._shared.turns.look()

    def typing(self, typed: messages.Typing) -> None:
        """A question about a document is being typed: a hint, if there is a model to read it."""
        if self._shared is not None and self._shared.backend.model is not None:
            self._shared.backend.send(dataclasses.replace(typed, document=self.name_of(typed.document)))

    def tell_saved(self, document: str, version: str, file: str) -> None:
        """What is cached of that document is what its file says."""
        if self._shared is not None and self.guest.settings.kept_in is not None:
            self._shared.backend.send(messages.Saved(self.name_of(document), version, file))

    def forget(self, document: str) -> None:
        """Nobody of this session will ask about that document any more."""
        self.documents.discard(document)
        if self._shared is not None:
            self._shared.backend.send(messages.Forget(self.name_of(document)))

    def died(self, version: str, error: RequestFailed) -> bool:
        """A worker died reading that text; whether it is not to be tried again, by nobody."""
        return self._here().died(version, error)

    def forgive(self, version: str) -> None:
        """Try that text again."""
        self._here().forgive(version)

    # ── settings, and the end ──

    def is_for(self, settings: Settings) -> bool:
        """Whether this is the backend that those settings ask for."""
        if self._shared is None:
            return False
        mine = self._shared.backend.settings
        return all(getattr(mine, name) == getattr(settings, name) for name in WORKER_FIELDS)

    def settle(self) -> None:
        """The session's settings have changed in what a worker can change at once."""
        self._here().join(self)

    def used(self) -> None:
        """A request came or went, or something was read."""
        if self._shared is not None:
            self._shared.watch_idleness()

    def move(self) -> None:
        """The session's settings ask for another backend: its jobs end here, and nobody else's do."""
        self._go("settingsChanged", 0)
        self._shared = self._pool.shared(self.guest.settings, self._environment)
        self._shared.join(self)

    def leave(self, linger: float = 0) -> None:
        """The session has ended; what it had cached stays for so many seconds."""
        self._go("shuttingDown", linger)

    def _go(self, reason: str, linger: float) -> None:
        shared, self._shared = self._shared, None
        if shared is not None:
            shared.backend.fail(self, WorkerGone(None, reason))
            shared.leave(self, linger)

    async def unload(self) -> None:
        """The model leaves memory as soon as nobody else has a request open."""
        shared = self._here()
        while others := [task for seat in shared.seats.values() if seat is not self for task in seat.guest.requests]:
            await asyncio.wait(others)
        shared.unload()


def size(bytes_: int) -> str:
    """``850 MB``, ``14.5 GB``."""
    return f"{bytes_ / 1e9:.1f} GB" if bytes_ >= 1e9 else f"{max(1, round(bytes_ / 1e6))} MB"
