"""One question from the command line: through a running front, else in this process; the answer and where it stands."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from cag_daemon import joined, messages, text
from cag_daemon.config import FLAGS, Settings
from cag_daemon.errors import CagError, DocumentEmpty, InvalidParams
from cag_daemon.front.protocol import ask_result

if TYPE_CHECKING:
    from cag_daemon.engine.engine import Engine

QUOTE_CHARACTERS = 60


def ask_once(
    question: str, as_json: bool, settings: Settings, flags: Mapping[str, Any], standalone: bool = False
) -> int:
    """Answer on stdout; progress and places on stderr, where that is a terminal.

    Args:
        settings: the settings in force here; what a front makes of the same flags and environment is the same.
        flags: those that were given, by field name.
        standalone: in this process, whether a front runs or not.

    Raises:
        CagError: with the sentence for the user.
    """
    asked = text.normalise(question).strip()
    if not asked:
        raise InvalidParams("The question is blank; ask something.", parameter="question")
    path = Path(settings.document).expanduser().absolute()
    document = text.read(path)
    if document.blank:
        raise DocumentEmpty(f"{path} is empty; write something in it and save it.")

    # An answer with a character that a pipe's encoding lacks is better than a traceback.
    with contextlib.suppress(AttributeError):
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    terminal = Console(stderr=True, highlight=False)
    shown = _Shown(as_json, path, document, terminal)
    if not standalone and (result := _through_front(asked, settings, flags, shown)) is not None:
        shown.finish(result)
        return 0
    engine = _load(document, settings, terminal)
    _read(engine, path, document, settings, terminal)
    shown.finish(_answer(engine, asked, settings, shown))
    if engine.keeping is not None and engine.keeping.busy:
        with terminal.status("Keeping what was read …"):
            engine.keeping.finish()
    return 0


class _Shown:
    """What the user gets to see, wherever it comes from.

    Attributes:
        begun: a piece of the answer has been printed, and cannot be taken back.
    """

    def __init__(self, as_json: bool, path: Path, document: text.Text, terminal: Console) -> None:
        self._as_json = as_json
        self.path, self.document, self.terminal = path, document, terminal
        self.begun = False

    def piece(self, words: str) -> None:
        """The next words of the answer."""
        if not self._as_json:
            self.begun = True
            sys.stdout.write(words)
            sys.stdout.flush()

    def broken_off(self) -> None:
        """End the line of an answer that is not whole."""
        if self.begun:
            print(flush=True)

    def finish(self, result: Mapping[str, Any]) -> None:
        """The result of ``cag/ask``, or what of it the pieces have not said."""
        if self._as_json:
            print(json.dumps(result, ensure_ascii=False, indent=2))
            return
        print(flush=True)  # before what stderr says of it
        self._places(result)
        if "notice" in result:
            self.terminal.print(result["notice"], style="dim")
        if result["finishReason"] == "length":
            cut = f"Cut at {result['tokens']['generated']} tokens; more with --max-new-tokens."
            self.terminal.print(cut, style="dim")

    def _places(self, result: Mapping[str, Any]) -> None:
        """Under the answer, dimmed: line and words, so that a terminal makes a link of it."""
        if not self.terminal.is_terminal:
            return
        document = self._answered_from(result["document"]["version"])
        for citation in result["citations"]:
            place = citation["location"]["range"]
            words = " ".join(document.slice(place).split()) if document is not None else ""
            quote = words if len(words) <= QUOTE_CHARACTERS else words[: QUOTE_CHARACTERS - 1] + "…"
            line, character = place["start"]["line"] + 1, place["start"]["character"] + 1
            where = f"{_short(self.path)}:{line}:{character}"
            self.terminal.print(f"{where}  {quote}".rstrip(), style="dim", markup=False, soft_wrap=True)
        if not result["citations"]:
            self.terminal.print("Not found word for word in the document.", style="dim")

    def _answered_from(self, version: str) -> text.Text | None:
        """The text of that version: a front looks at the file later than we did. None: it has changed once more."""
        if self.document.version != version:
            with contextlib.suppress(CagError):
                self.document = text.read(self.path)
        return self.document if self.document.version == version else None


# ── through a front ─────────────────────────────────────────────────────────────────────────


def _through_front(question: str, settings: Settings, flags: Mapping[str, Any], shown: _Shown) -> dict[str, Any] | None:
    """The result; None: no front runs that could give it, and nothing has been printed.

    Raises:
        CagError: the front's error; or its end, in the midst of an answer.
    """
    given = {name: value for name, value in flags.items() if value is not None} | {"document": str(shown.path)}
    arguments = [f"{FLAGS[name]}={value}" for name, value in given.items()]
    terminal = shown.terminal

    def told(words: str) -> None:
        if terminal.is_terminal:
            terminal.print(words, style="dim", markup=False)

    with _Progress(settings, shown.path, terminal) as progress:

        def piece(words: str) -> None:
            progress.close()
            shown.piece(words)

        try:
            return joined.ask(question, arguments, piece, progress.show, told)
        except joined.Lost:
            if not shown.begun:
                return None
            shown.broken_off()
            raise CagError("The daemon ended in the midst of its answer; ask again.") from None
        except CagError:
            shown.broken_off()
            raise


class _Progress:
    """The bars of loading and reading, as the front's status tells it."""

    def __init__(self, settings: Settings, path: Path, terminal: Console) -> None:
        self._settings, self._path, self._terminal = settings, path, terminal
        self._open = contextlib.ExitStack()
        self._state = ""
        self._update: Callable[..., None]

    def __enter__(self) -> _Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def show(self, status: Mapping[str, Any]) -> None:
        """A ``cag/statusChanged``."""
        if status["state"] != self._state:
            self.close()
            self._state = status["state"]
            if self._state == "loading":
                self._update = self._open.enter_context(_loading(self._settings, self._terminal))
            elif self._state == "reading":
                self._update = self._open.enter_context(_reading(self._path, self._terminal))
        if self._state == "loading" and "percent" in status:
            self._update(completed=status["percent"])
        reading: Mapping[str, Any] = next((each for each in status["documents"] if each["state"] == "reading"), {})
        if self._state == "reading" and "read" in reading:
            self._update(completed=reading["read"], total=reading["tokens"])

    def close(self) -> None:
        """Take the bar off the terminal."""
        self._state = ""
        self._open.close()


# ── in this process ─────────────────────────────────────────────────────────────────────────


def _answer(engine: Engine, question: str, settings: Settings, shown: _Shown) -> Mapping[str, Any]:
    arrival = time.monotonic()
    times: dict[str, int] = {}

    def elapsed(name: str) -> None:
        times.setdefault(name, round((time.monotonic() - arrival) * 1000))

    uri = shown.path.as_uri()
    answer = engine.ask(
        uri,
        question,
        None,
        settings.max_new_tokens,
        on_first_token=lambda: elapsed("firstToken"),
        on_piece=shown.piece,
    )
    elapsed("total")
    return ask_result(
        messages.Answered(job=0, **asdict(answer)),
        shown.document,
        uri,
        {"name": engine.loaded.name, "quantization": engine.loaded.quantization},
        "current",
        {"queued": 0, "firstToken": times["total"], **times},
        engine.loaded.reads,
    )


def _load(document: text.Text, settings: Settings, terminal: Console) -> Engine:
    # Before the libraries are imported: they read these once.
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    with _loading(settings, terminal) as update:
        from cag_daemon.engine.engine import Engine
        from cag_daemon.engine.model import load_model
        from cag_daemon.engine.plan import Wanted
        from cag_daemon.engine.self_test import self_test

        wanted = Wanted.by(settings, len(document.normalised))
        loaded = load_model(wanted, lambda percent: update(completed=percent))
        tested = self_test(loaded, settings.kept_in)
        kept = (settings.kept_in, settings.cache_bytes)
        engine = Engine(loaded, None, *kept, tested.passed, widths=tested.widths)
    engine.limit(settings.memory_bytes)
    return engine


def _read(engine: Engine, path: Path, document: text.Text, settings: Settings, terminal: Console) -> None:
    with _reading(path, terminal) as update:
        engine.prepare(
            path.as_uri(),
            document.version,
            document.normalised,
            settings.system_prompt,
            settings.max_new_tokens,
            file=str(path),
            saved=True,
            progress=lambda done, total, _limit: update(completed=done, total=total),
        )


# ── bars ────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _loading(settings: Settings, terminal: Console) -> Iterator[Callable[..., None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with _bar(columns, terminal) as bar:
        yield partial(bar.update, bar.add_task(f"Loading the model ({settings.model})", total=100))


@contextlib.contextmanager
def _reading(path: Path, terminal: Console) -> Iterator[Callable[..., None]]:
    columns = (TextColumn("Reading {task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"))
    with _bar((*columns, TimeRemainingColumn()), terminal) as bar:
        yield partial(bar.update, bar.add_task(path.name, total=None))


def _bar(columns: Iterable[ProgressColumn], terminal: Console) -> Progress:
    return Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal)


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
