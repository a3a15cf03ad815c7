"""Ten editors at once on three documents, edited, cancelled, killed: each reply is right for its text and its editor.

One thread plays all editors, by chance that a seed decides, and writes down which text each of them had when. What came
back is judged afterwards, by that and by a model that reads each text afresh. Each text has a number that no other has.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from cag_daemon.engine.engine import Engine
from cag_daemon.engine.model import load_model
from cag_daemon.engine.plan import Wanted
from tests.client import (
    CANCELLED,
    CANCELLED_BY_DAEMON,
    ENDS_WITHIN,
    PATIENCE,
    REQUEST_FAILED,
    SHARED,
    SLACK,
    Client,
    Pending,
    ask_front,
    range_of,
    slice16,
    squeezed,
    text_at,
    version_of,
)
from tests.documents import BOOKSHOP, GREENHOUSE, LIGHTHOUSE, Change, Document

pytestmark = pytest.mark.skipif(not SHARED, reason="this run is about --standalone")

logger = logging.getLogger(__name__)

EDITORS = 10
TOKENS = 24  # of an answer: the numbers come early
MOST_OPEN = 2  # questions of one editor
NOTICED_WITHIN = 5.0  # seconds until everybody knows of a death
WORKERS_DEATHS = 3  # that a front puts up with in five minutes
FAULTS_OF_A_MINUTE = {"forwarder": 8, "worker": 2, "front": 2, "suspend": 4, "socket": 4}
# What an editor does, and how often beside the others.
ACTIONS = {"ask": 50, "edit": 16, "save": 5, "close": 4, "write": 3, "cancel": 4, "refresh": 4, "status": 4}


# ── texts ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Subject:
    """A document with a place for a number, and the question about it."""

    document: Document
    old: str
    new: str
    question: str

    @property
    def changes(self) -> list[Change]:
        return [change for change in self.document.changes if change.old not in self.old]

    @property
    def questions(self) -> list[str]:
        return [self.question, *(change.question for change in self.changes)]


SUBJECTS = (
    Subject(LIGHTHOUSE, "212 steps", "{} steps", "How many steps does the keeper climb?"),
    Subject(GREENHOUSE, "extension 417", "extension {}", "How can the caretaker be reached?"),
    Subject(BOOKSHOP, "in a fireproof safe", "in safe {}", "Where are rare books kept?"),
)


@dataclass(frozen=True)
class Draft:
    """A text of a document: with a number of its own, and some of the changes."""

    subject: Subject
    number: int
    changes: tuple[Change, ...] = ()

    @property
    def mark(self) -> str:
        return self.subject.new.format(self.number)

    @property
    def text(self) -> str:
        text = self.subject.document.text.replace(self.subject.old, self.mark)
        for change in self.changes:
            text = text.replace(change.old, change.new)
        return text

    @property
    def version(self) -> str:
        return version_of(self.text)


@dataclass
class File:
    """A document on disk: what it said, each from when its writing began until the next one's had ended."""

    path: Path
    subject: Subject
    draft: Draft
    history: list[tuple[float, str]] = field(default_factory=list)  # when its writing began
    ends: list[float] = field(default_factory=list)  # when the writing of the next had ended

    def write(self, draft: Draft) -> None:
        self.history.append((time.monotonic(), draft.version))
        new = self.path.with_suffix(".new")
        new.write_text(draft.text, encoding="utf-8")
        new.replace(self.path)
        if len(self.history) > 1:
            self.ends.append(time.monotonic())
        self.draft = draft

    def versions(self, since: float, until: float) -> set[str]:
        """What somebody who looked between these times can have seen."""
        ends = [*self.ends, float("inf")]
        return {
            version
            for (began, version), ended in zip(self.history, ends, strict=True)
            if began <= until and ended >= since
        }


# ── editors ─────────────────────────────────────────────────────────────────────────────────


@dataclass
class Asked:
    """A request, and what must be known to judge its reply."""

    pending: Pending
    file: File
    question: str | None  # None: a refresh
    previous: bool = False
    cancelled: bool = False


@dataclass
class Moment:
    """From then on the editor's text of a file is its buffer's, or the file's.

    ``buffer``: of the buffer; ``disk``: it may be the file's. Both: opened as it is on disk, which is saved or unsaved
    according to when the daemon compares.
    """

    at: float
    buffer: str | None
    disk: bool


class Editor:
    """One editor's process, its buffers, and which text it had when."""

    def __init__(self, number: int, client: Client, files: list[File], starting: Future[Any], began: float) -> None:
        self.number, self.client, self.files, self.starting = number, client, files, starting
        self.buffers: dict[Path, Draft] = {}
        self.dirty: set[Path] = set()
        self.asked: list[Asked] = []
        self.names = itertools.count()  # the same with every editor: what goes astray is seen
        self.began = began
        self.moments = {file.path: [Moment(began, None, True)] for file in files}

    @property
    def ready(self) -> bool:
        if not self.starting.done():
            return False
        self.starting.result()
        return True

    @property
    def open_requests(self) -> list[Asked]:
        return [each for each in self.asked if not each.pending.answered]

    def note(self, file: File, buffer: Draft | None, disk: bool) -> None:
        """What the editor's text is, from before the daemon is told."""
        self.moments[file.path].append(Moment(time.monotonic(), buffer and buffer.version, disk))

    def versions(self, file: File, since: float, until: float) -> set[str]:
        """The versions of its text between a request and its reply."""
        moments = self.moments[file.path]
        first = max(index for index, each in enumerate(moments) if each.at <= since)
        found: set[str] = set()
        for each in moments[first:]:
            if each.at <= until:
                found |= {each.buffer} if each.buffer is not None else set()
                found |= file.versions(max(since, each.at), until) if each.disk else set()
        return found

    def earlier(self, file: File, until: float) -> set[str]:
        """All versions that its text ever had."""
        return self.versions(file, self.began, until)

    # ── what it does ──

    def ask(self, file: File, question: str, streamed: bool = False, previous: bool = False) -> None:
        more = {"id": str(next(self.names))} if streamed else {}
        if previous:
            more["whileRefreshing"] = "previous"
        pending = self.client.ask(question, document=file.path.as_uri(), **more)
        self.asked.append(Asked(pending, file, question, previous))

    def refresh(self, file: File, force: bool = False) -> None:
        pending = self.client.request("cag/refresh", {"document": file.path.as_uri(), "force": force})
        self.asked.append(Asked(pending, file, None))

    def open(self, file: File) -> None:
        self.buffers[file.path] = file.draft
        self.note(file, file.draft, True)
        self.client.open(file.path, file.draft.text)

    def edit(self, file: File, draft: Draft, whole: bool) -> None:
        before, self.buffers[file.path] = self.buffers[file.path], draft
        self.dirty.add(file.path)
        self.note(file, draft, False)
        if whole:
            self.client.change(file.path, draft.text)
        else:
            self.client.change(file.path, (range_of(before.text, before.mark), draft.mark))

    def save(self, file: File) -> None:
        file.write(self.buffers[file.path])
        self.dirty.discard(file.path)
        self.note(file, None, True)
        self.client.save(file.path)

    def close(self, file: File) -> None:
        del self.buffers[file.path]
        self.dirty.discard(file.path)
        self.note(file, None, True)
        self.client.close(file.path)


# ── the storm ───────────────────────────────────────────────────────────────────────────────


class Storm:
    """All editors, and what happens to them."""

    def __init__(self, seed: int, base: Path, runtime: Path) -> None:
        self.chance = random.Random(seed)
        self.base, self.runtime = base, runtime
        self.editors: list[Editor] = []
        self.gone: list[Editor] = []
        self.kills: list[tuple[float, str]] = []
        self.counts: Counter[str] = Counter()
        self._drafts: dict[str, Draft] = {}
        numbers = list(range(100, 1000))
        self.chance.shuffle(numbers)
        self._numbers = itertools.cycle(numbers)
        self._faults: list[tuple[float, str]] = []
        self._suspended: tuple[psutil.Process, float] | None = None
        self._workers_deaths = 0  # of the present front
        self._starters = ThreadPoolExecutor(EDITORS)
        self.files = [self._file(number, subject) for number, subject in enumerate(SUBJECTS)]

    def _file(self, number: int, subject: Subject) -> File:
        folder = self.base / f"folder {number}"
        folder.mkdir()
        file = File(folder / "document.txt", subject, self.draft(subject))
        file.write(file.draft)
        return file

    def draft(self, subject: Subject, changes: tuple[Change, ...] | None = None) -> Draft:
        """A text that nobody has had."""
        if changes is None:
            changes = tuple(change for change in subject.changes if self.chance.random() < 0.3)
        draft = Draft(subject, next(self._numbers), changes)
        self._drafts[draft.version] = draft
        return draft

    def start_editor(self, number: int) -> Editor:
        """Nobody waits for it; some have two documents."""
        files = [self.files[(number + each) % len(self.files)] for each in range(2 if number % 3 == 0 else 1)]
        began = time.monotonic()
        cwd = self.base / "elsewhere"
        cwd.mkdir(exist_ok=True)
        client = Client(cwd, home=self.base / "home", runtime=self.runtime)
        options = {"showAnswers": False, "maxNewTokens": TOKENS, "threads": 1}
        folders = [file.path.parent for file in files]
        starting = self._starters.submit(client.initialize, folders, options, name=f"editor {number}")
        return Editor(number, client, files, starting, began)

    def run(self, seconds: float, faults: Counter[str]) -> None:
        """Let them all do what they do for so long, with so many faults."""
        self.editors = [self.start_editor(number) for number in range(EDITORS)]
        for editor in self.editors:
            editor.starting.result(PATIENCE)
        self.editors[0].client.wait_status("ready")
        began = time.monotonic()
        self._faults = sorted(
            (began + self.chance.uniform(0.05, 0.85) * seconds, kind) for kind in sorted(faults.elements())
        )
        while time.monotonic() < began + seconds or self._faults or self._suspended:
            self._go_wrong()
            ready = [editor for editor in self.editors if editor.ready]
            if ready:
                self._act(self.chance.choice(ready))
            time.sleep(self.chance.uniform(0, 0.06))

    # ── what editors do ──

    def _act(self, editor: Editor) -> None:
        chance, file = self.chance, self.chance.choice(editor.files)
        (what,) = chance.choices(list(ACTIONS), list(ACTIONS.values()))
        is_open, is_dirty = file.path in editor.buffers, file.path in editor.dirty
        waiting = editor.open_requests
        if what == "ask" and len(waiting) < MOST_OPEN:
            question = file.subject.question if chance.random() < 0.6 else chance.choice(file.subject.questions)
            editor.ask(file, question, streamed=chance.random() < 0.5, previous=chance.random() < 0.25)
        elif what == "refresh" and len(waiting) < MOST_OPEN:
            editor.refresh(file, force=chance.random() < 0.3)
        elif what == "edit" and not is_open:
            what = "open"
            editor.open(file)
        elif what == "edit":
            whole = chance.random() < 0.5
            draft = self.draft(file.subject, None if whole else editor.buffers[file.path].changes)
            editor.edit(file, draft, whole)
        elif what == "save" and is_dirty:
            editor.save(file)
        elif what == "close" and is_open:
            editor.close(file)
        elif what == "write":
            file.write(self.draft(file.subject))
        elif what == "cancel" and waiting:
            asked = chance.choice(waiting)
            asked.cancelled = True
            asked.pending.cancel()
        elif what == "status":
            editor.client.request("cag/status")
        else:
            return
        self.counts[what] += 1

    # ── what goes wrong ──

    def _go_wrong(self) -> None:
        now = time.monotonic()
        if self._suspended is not None and now > self._suspended[1]:
            self.wake()
        while self._faults and self._faults[0][0] <= now:
            _, kind = self._faults.pop(0)
            if self._fault(kind):
                self.counts[f"{kind}: fault"] += 1
            else:  # there is nothing to hit just now
                self._faults.append((now + 0.5, kind))
                self._faults.sort()

    def _fault(self, kind: str) -> bool:
        if kind == "forwarder":
            return self._kill_forwarder()
        if kind == "socket":
            return self._delete_socket()
        return self._suspend() if kind == "suspend" else self._kill(kind)

    def _kill_forwarder(self) -> bool:
        index = self.chance.randrange(EDITORS)
        editor = self.editors[index]
        if not editor.ready:
            return False
        editor.client.kill()
        self.gone.append(editor)
        self.editors[index] = self.start_editor(editor.number)
        return True

    def _delete_socket(self) -> bool:
        paths = list((self.runtime / "cag-daemon").glob("*.sock"))
        for path in paths:
            path.unlink(missing_ok=True)
        return bool(paths)

    def _kill(self, kind: str) -> bool:
        if kind == "worker" and self._workers_deaths == WORKERS_DEATHS:
            return not any(each == "front" for _, each in self._faults)  # one more would be an error of the test's
        found = self.processes(kind)
        if found:
            self.kills.append((time.monotonic(), kind))
            found[0].kill()
            self._workers_deaths = self._workers_deaths + 1 if kind == "worker" else 0
        return bool(found)

    def _suspend(self) -> bool:
        found = self.processes("front")
        if self._suspended is None and found:
            self._suspended = found[0], time.monotonic() + self.chance.uniform(0.2, 1.0)
            found[0].suspend()
            return True
        return False

    def wake(self) -> None:
        """The front goes on, if it was suspended."""
        if self._suspended is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._suspended[0].resume()
            self._suspended = None

    def processes(self, kind: str | None = None) -> list[psutil.Process]:
        """All that have our runtime folder in their environment; of a kind: those that have begun to work, too."""
        found = []
        for each in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if each.environ().get("XDG_RUNTIME_DIR") == str(self.runtime):
                    told = each.cmdline()
                    module = {"front": "front.host", "worker": "engine.worker"}.get(kind or "", "")
                    if kind is None or (
                        told[:1] == [sys.executable]
                        and any(module in part for part in told)
                        and time.time() - each.create_time() > 1.5
                    ):
                        found.append(each)
        return found

    # ── the end ──

    def calm_down(self) -> None:
        """What is open is answered; then each editor gets an answer, about the text that it has now."""
        self.wake()
        for editor in self.editors:
            editor.starting.result(PATIENCE)
            for pending in editor.client.pendings:
                pending.reply()
        time.sleep(NOTICED_WITHIN if self.kills and time.monotonic() - self.kills[-1][0] < NOTICED_WITHIN else 0)
        for editor in self.editors:
            file = editor.files[-1]
            editor.refresh(file)  # a text that was read at two deaths is not tried again unasked
            editor.ask(file, file.subject.question, streamed=True)
        for editor in self.editors:
            for asked in editor.asked[-2:]:
                asked.pending.result()
        assert len(self.processes("front")) == 1
        deadline = time.monotonic() + 2 * NOTICED_WITHIN
        while (told := ask_front(self.runtime, "status")) is None and time.monotonic() < deadline:
            time.sleep(0.1)  # the socket was deleted just now
        assert told is not None
        assert sorted(each["name"] for each in told["result"]["clients"]) == sorted(
            f"editor {editor.number}" for editor in self.editors
        )

    def leave(self) -> None:
        """All editors end as they should, and then there is nothing."""
        for editor in self.editors:
            editor.client.stop()
        for editor in self.gone:
            editor.client.check()
        folder, deadline = self.runtime / "cag-daemon", time.monotonic() + 2 * (ENDS_WITHIN + SLACK)
        while (left := [*self.processes(), *folder.iterdir()]) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left == []
        assert list(self.runtime.iterdir()) == [folder]

    def kill(self) -> None:
        """Leaves nothing behind, whatever happened."""
        for editor in self.editors:
            editor.client.kill()
        for each in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self._starters.shutdown()

    # ── the judgement ──

    def judge(self) -> None:
        """Each reply was right for its text."""
        answers: dict[str, list[tuple[Asked, dict[str, Any]]]] = {}
        for editor in (*self.editors, *self.gone):
            self._judge_notes(editor)
            for asked in editor.asked:
                for reply in asked.pending.replies:
                    what = f"editor {editor.number}, {asked}"
                    if "error" in reply.message:
                        self._judge_error(asked, reply.message["error"], reply.at, what)
                        continue
                    result = reply.message["result"]
                    version = result["document"]["version"]
                    self._judge_version(editor, asked, result, reply.at, what)
                    if asked.question is not None:
                        answers.setdefault(version, []).append((asked, result))
        self._judge_answers(answers)

    def _judge_notes(self, editor: Editor) -> None:
        """What it was told without asking is of its own texts, too."""
        files = {file.path.as_uri(): file for file in editor.files}
        for entry in editor.client.log:
            params = entry.message.get("params")
            if entry.sent or not isinstance(params, dict):
                continue
            for told in (*params.get("documents", ()), *filter(None, [params.get("document")])):
                had = editor.earlier(files[told["uri"]], entry.at)
                for version in (told.get("version"), told.get("cached", {}).get("version")):
                    assert version is None or version in had, f"editor {editor.number}: {entry}, {self._whose(version)}"

    def _judge_error(self, asked: Asked, error: dict[str, Any], at: float, what: str) -> None:
        self.counts[f"error {error['code']}"] += 1
        what = f"{what}: {error}; kills: {self.kills}"
        if error["code"] == CANCELLED:
            assert asked.cancelled, what
        elif error["code"] == CANCELLED_BY_DAEMON:
            assert error["data"]["reason"] == "workerRestarted", what
            assert any(asked.pending.sent_at - NOTICED_WITHIN < each < at for each, _ in self.kills), what
        else:
            # A text that was being read at two deaths is thought to be the cause.
            assert error["code"] == REQUEST_FAILED, what
            assert error["data"]["reason"] == "outOfMemory", what
            assert sum(each < at and kind == "worker" for each, kind in self.kills) > 1, what

    def _judge_version(self, editor: Editor, asked: Asked, result: dict[str, Any], at: float, what: str) -> None:
        version, sent = result["document"]["version"], asked.pending.sent_at
        had = editor.earlier(asked.file, at) if asked.previous else editor.versions(asked.file, sent, at)
        assert version in had, (
            f"{what}: from {version}, {self._whose(version)}; it had {[self._whose(each) for each in had]}"
        )
        if asked.question is not None and not asked.previous and len(had) == 1:
            assert result["snapshot"] == "current", f"{what}: {result}"

    def _judge_answers(self, answers: dict[str, list[tuple[Asked, dict[str, Any]]]]) -> None:
        fresh = Engine(load_model(Wanted("embedded", threads=1)))
        for version, all_of_it in answers.items():
            draft = self._drafts[version]
            fresh.prepare("d", version, draft.text, force=True)
            expected: dict[str, str] = {}
            for asked, result in all_of_it:
                assert asked.question is not None
                if asked.question not in expected:
                    expected[asked.question] = fresh.ask("d", asked.question, max_new_tokens=TOKENS).text
                assert result["answer"] == expected[asked.question], f"{asked}: {result}, {self._whose(version)}"
                assert result["document"]["uri"] == asked.file.path.as_uri()
                self.counts["right answers"] += 1
                self.counts["with their number"] += (
                    asked.question == draft.subject.question and str(draft.number) in result["answer"]
                )
                self.counts["citations"] += len(result["citations"])
                for citation in result["citations"]:
                    quoted = text_at(draft.text, citation["location"]["range"])
                    assert squeezed(slice16(result["answer"], *citation["answerRange"])) == squeezed(quoted)
                    assert citation["location"]["uri"] == asked.file.path.as_uri()
        self.counts["texts"] = len(answers)

    def _whose(self, version: str) -> str:
        """In words, for who reads of a failure."""
        draft = self._drafts.get(version)
        if draft is None:
            return f"{version}: nobody's"
        owners = {
            editor.number
            for editor in (*self.editors, *self.gone)
            for moments in editor.moments.values()
            if any(each.buffer == version for each in moments)
        }
        return f"{draft.subject.document.name} {draft.number} of editors {sorted(owners)}"


@contextlib.contextmanager
def storm(seed: int, base: Path) -> Iterator[Storm]:
    """A storm's place; what fails in it is told with the seed."""
    with tempfile.TemporaryDirectory(prefix="cag-") as runtime:  # the name of a socket may not be long
        made = Storm(seed, base, Path(runtime))
        try:
            yield made
        except AssertionError as error:
            raise AssertionError(f"{error}\nseed {seed}, so far {dict(made.counts)}, kills {made.kills}") from error
        finally:
            made.wake()
            made.kill()


def run(seed: int, seconds: float, faults: Counter[str], base: Path) -> Counter[str]:
    with storm(seed, base) as made:
        made.run(seconds, faults)
        made.calm_down()
        made.leave()
        made.judge()
        counts = made.counts
        logger.info("seed %d: %s, kills %s", seed, dict(sorted(counts.items())), made.kills)
        # The numbers show in the answers: what one editor has not saved would show with another.
        assert counts["with their number"] >= EDITORS, "the test is void"
        assert counts["right answers"] >= 2 * EDITORS, "the test is void"
        assert all(counts[f"{kind}: fault"] for kind in FAULTS_OF_A_MINUTE), "the test is void"
        return counts


def seed_of_this_run() -> int:
    return int(os.environ.get("CAG_STORM_SEED", 0)) or random.randrange(1, 1_000_000)


@pytest.mark.timeout(300)
def test_ten_editors_get_right_answers_whatever_happens_to_them(tmp_path: Path) -> None:
    run(seed_of_this_run(), 10, Counter(dict.fromkeys(FAULTS_OF_A_MINUTE, 1)), tmp_path)


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
def test_ten_editors_get_right_answers_for_a_minute(tmp_path: Path) -> None:
    run(seed_of_this_run(), 60, Counter(FAULTS_OF_A_MINUTE), tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_ten_editors_get_right_answers_for_long(tmp_path: Path) -> None:
    minutes, base = float(os.environ.get("CAG_SOAK_MINUTES", 30)), tmp_path
    began = time.monotonic()
    for number in itertools.count():
        if time.monotonic() - began > minutes * 60:
            break
        (base / str(number)).mkdir()
        run(
            seed_of_this_run() + number,
            120,
            Counter({k: 2 * n for k, n in FAULTS_OF_A_MINUTE.items()}),
            base / str(number),
        )
