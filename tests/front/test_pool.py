"""What several sessions at one backend agree on. The worker's side is played here: what it is told is what counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cag_daemon import messages
from cag_daemon.config import Settings
from cag_daemon.front.backend import Backend, WorkerGone
from cag_daemon.front.pool import Pool, Seat
from cag_daemon.front.session import Session


class Guest:
    """A session, as a seat sees it."""

    busy = False

    def __init__(self, pool: Pool, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.last_use = time.monotonic()
        self.requests: set[asyncio.Task[Any]] = set()
        self.heard: list[str] = []
        self.seat: Seat = pool.seat(self, {})
        self.seat.move()

    def set(self, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.seat.settle()

    def backend_changed(self) -> None:
        pass

    def dropped(self, document: str, wrong: bool) -> None:
        self.heard.append(f"dropped {document}")

    def worker_gone(self, gone: WorkerGone) -> None:
        self.heard.append("gone")

    def emptied(self) -> None:
        self.heard.append("emptied")

    def notice(self, sentence: str) -> None:
        self.heard.append(sentence)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[messages.Message]:
    """What workers are told."""
    found: list[messages.Message] = []
    monkeypatch.setattr(Backend, "send", lambda self, message: found.append(message))
    return found


def prepare(text: str = "text") -> messages.Prepare:
    return messages.Prepare(0, "uri", "version", text, None, 1, file="/file", saved=True)


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 10))  # type: ignore[arg-type]


def test_same_settings_share_and_others_do_not(told: list[messages.Message]) -> None:
    async def main() -> None:
        pool = Pool()
        one, two, three = Guest(pool), Guest(pool, max_new_tokens=7), Guest(pool, threads=7)
        assert [len(shared.seats) for shared in pool] == [2, 1]
        assert one.seat.name_of("x") != two.seat.name_of("x")
        for guest in (one, two, three):
            guest.seat.leave()
        assert list(pool) == []

    run(main)


def test_the_newest_word_counts_and_that_of_who_has_gone_does_not(told: list[messages.Message]) -> None:
    async def main() -> None:
        pool = Pool()
        first = Guest(pool, cache_directory="/one", cache_max_gigabytes=5)
        second = Guest(pool, cache_directory="/two")
        assert told[-1] == messages.Keep("/two", None)
        first.set(cache_directory="/three", cache_max_gigabytes=1)
        assert told[-1] == messages.Keep("/three", 10**9)
        second.set(cache_directory="/two", memory_max_gigabytes=1)
        assert messages.Limit(10**9) in told
        assert told[-1] == messages.Keep("/two", None)
        second.seat.leave()
        assert told[-1] == messages.Keep("/three", 10**9)

    run(main)


def test_who_wants_nothing_written_has_that_and_forbids_it_to_nobody(told: list[messages.Message]) -> None:
    async def main() -> None:
        pool = Pool()
        Guest(pool, cache_directory="/one")
        silent = Guest(pool, cache_max_gigabytes=0)
        assert not [each for each in told if isinstance(each, messages.Keep) and each.cache_directory is None]
        silent.seat.tell_saved("uri", "version", "/file")
        assert not [each for each in told if isinstance(each, messages.Saved)]

    run(main)


def test_what_is_set_while_a_text_waits_for_its_turn_counts(
    told: list[messages.Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        pool, goes_on, read = Pool(), asyncio.Event(), []

        async def reading(self: Backend, message: Any, on_event: Any = None, owner: Any = None) -> Any:
            read.append(message)
            await goes_on.wait()
            return message

        monkeypatch.setattr(Backend, "run", reading)
        first, second = Guest(pool), Guest(pool)
        tasks = [
            asyncio.ensure_future(each.seat.read(prepare(), lambda _: None, lambda: True)) for each in (first, second)
        ]
        await asyncio.sleep(0.01)
        assert len(read) == 1
        second.set(cache_max_gigabytes=0)
        goes_on.set()
        await asyncio.gather(*tasks)
        assert [(each.file, each.saved) for each in read] == [("/file", True), (None, False)]
        assert len({each.document for each in read}) == 2

    run(main)


def test_to_unload_waits_for_what_others_ask_meanwhile_too(
    told: list[messages.Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        pool, stops = Pool(), []
        one, other = Guest(pool), Guest(pool)
        monkeypatch.setattr(Backend, "stop", lambda self, reason: stops.append({*other.requests}))

        async def question(seconds: float) -> None:
            await asyncio.sleep(seconds)
            other.requests.discard(asyncio.current_task())  # type: ignore[arg-type]

        other.requests = {asyncio.ensure_future(question(0.05))}
        unloading = asyncio.ensure_future(one.seat.unload())
        await asyncio.sleep(0.02)
        other.requests.add(asyncio.ensure_future(question(0.1)))
        await unloading
        assert stops == [set()]
        assert (one.heard, other.heard) == (["emptied"], ["emptied"])

    run(main)


def test_what_others_had_cached_stays_while_they_may_come_back(
    told: list[messages.Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        pool, stops = Pool(), []
        monkeypatch.setattr(Backend, "stop", lambda self, reason: stops.append(reason))
        first = Guest(pool)
        first.seat.documents.add("uri")
        first.seat.leave(0.2)
        # Somebody comes and goes at once: that does not end what lingers.
        Guest(pool).seat.leave(0)
        await asyncio.sleep(0.05)
        assert stops == []
        assert not [each for each in told if isinstance(each, messages.Forget)]
        await asyncio.sleep(0.3)
        assert stops == ["shuttingDown"]
        assert list(pool) == []

    run(main)


def test_who_is_most_patient_decides_when_the_model_leaves(told: list[messages.Message]) -> None:
    async def main() -> None:
        pool = Pool()
        Guest(pool, idle_unload_minutes=1)
        (shared,) = pool
        shared.backend.state = "ready"
        assert shared.unloads_in == pytest.approx(60, abs=5)
        patient = Guest(pool, idle_unload_minutes=20)
        assert shared.unloads_in == pytest.approx(1200, abs=5)
        patient.set(idle_unload_minutes=0)
        assert shared.unloads_in is None
        patient.busy = True
        patient.set(idle_unload_minutes=1)
        assert shared.unloads_in is None

    run(main)


def test_a_session_that_is_closed_while_it_starts_loads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        loads = []

        async def load(self: Backend) -> None:
            loads.append(self)

        monkeypatch.setattr(Backend, "_load", load)
        (tmp_path / "document.txt").write_text("A text.\n", encoding="utf-8")
        pool = Pool()
        session = Session(Settings(), pool, {}, lambda: None, lambda _: None, lambda _: None)
        await session.configure(Settings(max_new_tokens=5))
        starting = asyncio.ensure_future(session.start([tmp_path]))
        await asyncio.sleep(0)
        session.close()
        await starting
        await session.configure(Settings(threads=5))
        await asyncio.sleep(0.1)
        assert loads == []
        assert list(pool) == []
        assert not session.started

    run(main)


def test_a_text_that_kills_is_known_to_all_and_costs_nobody_elses_model(
    told: list[messages.Message], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def main() -> None:
        deaths = []

        async def load(self: Backend) -> None:
            self.model = messages.Loaded(1, "m", "", "cpu", "float32", "none", 1, 1, 64, 4096)
            self._loading = None
            self._set("ready")

        async def reading(self: Backend, message: Any, on_event: Any = None, owner: Any = None) -> Any:
            await asyncio.sleep(0.01)
            if "kills" in message.text:
                deaths.append(message.document)
                on_event(messages.Reading(1, 1, 10, 100))
                gone = WorkerGone(-9)
                self.model = None
                self._set("stopped")
                asyncio.get_running_loop().call_soon(self._on_gone, gone)
                raise gone
            return messages.Prepared(1, message.version, 10, 0, 10, 100, 1, 1)

        monkeypatch.setattr(Backend, "_load", load)
        monkeypatch.setattr(Backend, "run", reading)
        pool, sessions = Pool(), []
        for name, text in (("one", "It kills."), ("two", "It kills."), ("three", "It does not.")):
            folder = tmp_path / name
            folder.mkdir()
            (folder / "document.txt").write_text(text, encoding="utf-8")
            session = Session(Settings(), pool, {}, lambda: None, lambda _: None, lambda _: None)
            await session.configure(Settings(max_new_tokens=5))
            await session.start([folder])
            sessions.append(session)
        while not all(each.has_failed() or each.held for session in sessions for each in session.documents.values()):
            await asyncio.sleep(0.01)
        documents = [document for session in sessions for document in session.documents.values()]
        assert len(deaths) == 2
        assert [each.has_failed() is not None for each in documents] == [True, True, False]
        assert documents[2].held is not None
        for session in sessions:
            session.close()

    run(main)
