"""One question from the command line: read the document, answer, say where that stands; in this process, then gone."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from cag_daemon import messages, text
from cag_daemon.config import Settings
from cag_daemon.errors import DocumentEmpty, InvalidParams
from cag_daemon.front.protocol import ask_result

if TYPE_CHECKING:
    from cag_daemon.engine.engine import Engine

QUOTE_CHARACTERS = 60


def ask_once(question: str, as_json: bool, settings: Settings) -> int:
    """Answer on stdout; progress and places on stderr, where that is a terminal.

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
    engine = _load(document, settings, terminal)
    _read(engine, path, document, settings, terminal)

    arrival = time.monotonic()
    times: dict[str, int] = {}

    def elapsed(name: str) -> None:
        times.setdefault(name, round((time.monotonic() - arrival) * 1000))

    def piece(words: str) -> None:
        if not as_json:
            sys.stdout.write(words)
            sys.stdout.flush()

    answer = engine.ask(
        path.as_uri(),
        asked,
        None,
        settings.max_new_tokens,
        on_first_token=lambda: elapsed("firstToken"),
        on_piece=piece,
    )
    elapsed("total")
    result = ask_result(
        messages.Answered(job=0, **asdict(answer)),
        document,
        path.as_uri(),
        {"name": engine.loaded.name, "quantization": engine.loaded.quantization},
        "current",
        {"queued": 0, "firstToken": times["total"], **times},
        engine.loaded.reads,
    )
    if as_json:
        print(json.dumps(result, ensure_ascii=False, indent=2))
    else:
        print(flush=True)  # before what stderr says of it
        _show_places(result["citations"], path, document, terminal)
        if "notice" in result:
            terminal.print(result["notice"], style="dim")
        if result["finishReason"] == "length":
            terminal.print(f"Cut at {answer.generated} tokens; more with --max-new-tokens.", style="dim")
    if engine.keeping is not None and engine.keeping.busy:
        with terminal.status("Keeping what was read …"):
            engine.keeping.finish()
    return 0


def _load(document: text.Text, settings: Settings, terminal: Console) -> Engine:
    # Before the libraries are imported: they read these once.
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as bar:
        task = bar.add_task(f"Loading the model ({settings.model})", total=100)
        from cag_daemon.engine.engine import Engine
        from cag_daemon.engine.model import load_model
        from cag_daemon.engine.plan import Wanted
        from cag_daemon.engine.self_test import self_test

        wanted = Wanted.by(settings, len(document.normalised))
        loaded = load_model(wanted, lambda percent: bar.update(task, completed=percent))
        # Where nothing is kept there is nothing to go on from, and nothing to be tested for.
        exact = settings.kept_in is None or self_test(loaded, settings.kept_in).passed
        engine = Engine(loaded, None, settings.kept_in, settings.cache_bytes, exact)
    engine.limit(settings.memory_bytes)
    return engine


def _read(engine: Engine, path: Path, document: text.Text, settings: Settings, terminal: Console) -> None:
    columns = (TextColumn("Reading {task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"))
    with Progress(
        *columns, TimeRemainingColumn(), console=terminal, transient=True, disable=not terminal.is_terminal
    ) as bar:
        task = bar.add_task(path.name, total=None)

        def progress(done: int, total: int, _limit: int) -> None:
            bar.update(task, completed=done, total=total)

        engine.prepare(
            path.as_uri(),
            document.version,
            document.normalised,
            settings.system_prompt,
            settings.max_new_tokens,
            file=str(path),
            saved=True,
            progress=progress,
        )


def _show_places(citations: list[dict[str, Any]], path: Path, document: text.Text, terminal: Console) -> None:
    """Under the answer, dimmed: line and words, so that a terminal makes a link of it."""
    if not terminal.is_terminal:
        return
    for citation in citations:
        place = citation["location"]["range"]
        words = " ".join(document.slice(place).split())
        quote = words if len(words) <= QUOTE_CHARACTERS else words[: QUOTE_CHARACTERS - 1] + "…"
        line, character = place["start"]["line"] + 1, place["start"]["character"] + 1
        terminal.print(f"{_short(path)}:{line}:{character}  {quote}", style="dim", markup=False, soft_wrap=True)
    if not citations:
        terminal.print("Not found word for word in the document.", style="dim")


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
