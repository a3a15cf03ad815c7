"""What a model folder is good for, measured by asking it, on the product's own path.

    python -m training.evaluate [FOLDER] [--kept-aside] [--only ROW …] [--failures] [--json]

FOLDER: a model folder; default: the one that is shipped. Every document is read and every question asked by
`cag_daemon.engine.engine.Engine`. Beside the model's score stands what a plain lookup by shared word stems gets, with
a mark where the model does not beat it. An answer is right if the words asked for are in it, and it is at most one
sentence of the document, verbatim but for white space; where there is no answer, if it is the refusal, to the letter.

``--kept-aside``: the third of the hand-written sets that training never looks at. It is for the end.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import cag_daemon
from cag_daemon.errors import DocumentTooLong
from training.lookup import Lookup
from training.natural import REFUSAL, Part, Question, documents, joined, of_any_document, plain, sentences

if TYPE_CHECKING:
    from cag_daemon.engine.engine import Engine

EMBEDDED = Path(cag_daemon.__file__).parent / "embedded"
LONG = {"1800": 1800, "3500": 3500}  # tokens
# Sentences of a document, how many such documents, and questions about each.
SYNTHETIC = {"synthetic10": (10, 30, 4), "synthetic40": (40, 12, 10), "synthetic80": (80, 10, 12)}
TIMED = 10  # questions
ANSWERABLE = ("prose", "manual", "paraphrases", *LONG)

# What is measured, and the goal for it; None: there is none.
ROWS: dict[str, tuple[str, float | None]] = {
    "prose": ("ordinary prose and notes", 0.98),
    "manual": ("Markdown manuals, lists, letters, FAQs, minutes, API notes", 0.95),
    "paraphrases": ("paraphrases, few or no words shared with the answer", 0.70),
    "1800": ("documents of about 1,800 tokens", 0.97),
    "3500": ("documents of about 3,500 tokens", 0.92),
    "selections": ("questions about a selection", None),
    "no answer": ("questions without an answer, greetings, summaries: it says so", 0.85),
    "refused": ("answerable ones refused (all the above but selections)", 0.02),
    "synthetic10": ("synthetic, unseen words, 10 sentences: the whole sentence", 0.98),
    "synthetic40": ("synthetic, unseen words, 40 sentences: the whole sentence", 0.96),
    "synthetic80": ("synthetic, unseen words, 80 sentences: the whole sentence", 0.93),
    "size": ("shipped folder with tokenizer", 14.0),
    "time": ("question to answer, about 1,800 tokens cached: median", 0.3),
}
AT_MOST = ("refused", "size", "time")

Rule = Literal["words", "refusal", "sentence"]


@dataclass(frozen=True)
class Asking:
    """A document and what is asked about it, for one row."""

    row: str
    name: str
    text: str
    questions: Sequence[Question]
    rule: Rule = "words"


@dataclass(frozen=True)
class Failure:
    """A wrong answer, and what should have been in it."""

    row: str
    document: str
    question: str
    selection: str | None
    expected: str
    answer: str


@dataclass(frozen=True)
class Row:
    """One line of the table; ``value`` is a share, megabytes or seconds, and None where it was not run."""

    name: str
    what: str
    goal: float | None
    value: float | None
    lookup: float | None = None
    count: int = 0

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None: there is none, or nothing was run."""
        if self.goal is None or self.value is None:
            return None
        return self.value <= self.goal if self.name in AT_MOST else self.value >= self.goal

    @property
    def beaten_by_lookup(self) -> bool:
        """Whether the plain lookup is as good as the model, or better."""
        if self.value is None or self.lookup is None:
            return False
        return self.value >= self.lookup > 0 if self.name in AT_MOST else self.value <= self.lookup


@dataclass(frozen=True)
class Report:
    """All rows, and every wrong answer."""

    rows: list[Row]
    failures: list[Failure]


@dataclass
class Tally:
    """What is counted while questions are asked, by row."""

    asked: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    lookup_right: Counter[str] = field(default_factory=Counter)
    lookup_refused: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    def add(self, asking: Asking, answers: Sequence[str]) -> None:
        """Count the answers to what was asked."""
        row, text, lookup = asking.row, asking.text, Lookup(asking.text)
        for question, answer in zip(asking.questions, answers, strict=True):
            looked_up = lookup.answer(question.text, question.selection)
            right = is_right(answer, question, text, asking.rule)
            self.asked[row] += 1
            self.right[row] += right
            self.refused[row] += answer == REFUSAL
            self.lookup_right[row] += is_right(looked_up, question, text, asking.rule)
            self.lookup_refused[row] += looked_up == REFUSAL
            if not right:
                expected = " & ".join(question.expected) or REFUSAL
                self.failures.append(Failure(row, asking.name, question.text, question.selection, expected, answer))


def is_right(answer: str, question: Question, text: str, rule: Rule = "words") -> bool:
    """Whether an answer is right.

    Args:
        rule: ``words``: those expected are in it, and it is at most one sentence of the text; ``refusal``: it is the
            refusal; ``sentence``: it is the expected sentence, the whole and nothing else.
    """
    if rule == "refusal":
        return answer == REFUSAL
    if rule == "sentence":
        return plain(answer) == plain(question.expected[0])
    return all(words in plain(answer) for words in question.expected) and is_span(answer, text)


def is_span(answer: str, text: str) -> bool:
    """Whether an answer stands in the text, white space aside, within one sentence, and cuts no word."""
    words = plain(answer)
    if not words:
        return False
    span = re.compile(rf"(?<!\w){re.escape(words)}(?!\w)" if words[0].isalnum() else rf"{re.escape(words)}(?!\w)")
    return any(span.search(sentence) for sentence in sentences(text))


def plan(part: Part, measure: Callable[[str], int]) -> list[Asking]:
    """All that is asked.

    Args:
        measure: how many tokens a text has.
    """
    own = documents(part)
    others = [] if part == "dev" else documents("dev")
    anywhere = of_any_document(part)
    found = []
    for number, each in enumerate(own):
        asked = each.asked
        nowhere = (*asked["no answer"], *anywhere[number :: len(own)])
        found += [
            Asking(each.kind, each.name, each.text, (*asked["questions"], *asked["of its own"])),
            Asking("paraphrases", each.name, each.text, asked["paraphrases"]),
            Asking("selections", each.name, each.text, asked["selections"]),
            Asking("no answer", each.name, each.text, nowhere, "refusal"),
        ]
    for start, (row, tokens) in enumerate(LONG.items()):
        for group, text in joined(own, others, tokens, measure):
            # To each length every second question: all of them would take as long as all the other rows together.
            questions = [question for each in group for question in each.asked["questions"][start::2]]
            found.append(Asking(row, " + ".join(each.name for each in group), text, questions))
    return [*found, *_synthetic()]


def _synthetic() -> Iterator[Asking]:
    """Documents of the generator, in words that training never sees; none where there is no generator."""
    try:
        from training.data.document import example
    except ImportError:
        return
    for row, (length, count, questions) in SYNTHETIC.items():
        for seed in range(count):
            made = example(seed, length, questions, True)
            asked = [_taken_apart(each.text, each.answer) for each in made.questions if not each.refused]
            yield Asking(row, f"{row}, seed {seed}", made.text, asked, "sentence")


def _taken_apart(text: str, answer: str) -> Question:
    """A question of the generator, which stands there as it does behind a document, a selection before it."""
    before, _, question = text.rpartition("Question: ")
    return Question(question, (answer,), before.removeprefix("Selected text:\n").strip() or None)


def evaluate(
    folder: Path,
    part: Part = "dev",
    device: str = "cpu",
    processes: int = 2,
    threads: int = 2,
    only: Collection[str] = tuple(ROWS),
    terminal: Console | None = None,
) -> Report:
    """Ask all there is to ask, a few minutes.

    Args:
        folder: a model folder, as the daemon takes one.
        device: as the daemon's setting.
        processes: that ask at the same time, each with one thread.
        threads: of the CPU for the questions whose time is taken, when all others have been asked.
        only: names of the rows wanted.
        terminal: for the progress bar; None: none.

    Raises:
        CagError: the folder can't be loaded.
    """
    engine = _engine(str(folder), device, threads)
    tokenizer = engine.loaded.tokenizer
    planned = plan(part, lambda text: len(tokenizer.encode(text, add_special_tokens=False)))
    askings = [each for each in planned if each.row in only]
    tally = Tally()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = terminal is not None and terminal.is_terminal
    with (
        Progress(*columns, console=terminal, transient=True, disable=not shown) as bar,
        ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool,
    ):
        task = bar.add_task("Asking", total=sum(len(each.questions) for each in askings))
        # What is asked about one document is asked in one go: it is read once. Those that take longest come first.
        together = [list(group) for _, group in groupby(askings, key=lambda each: each.text)]
        together.sort(key=lambda group: sum(len(each.questions) for each in group), reverse=True)
        waiting = {pool.submit(_answered, str(folder), device, group): group for group in together}
        for done in as_completed(waiting):
            for asking, answers in zip(waiting[done], done.result(), strict=True):
                tally.add(asking, answers)
                bar.advance(task, len(answers))
    took = _timed(engine, next(each for each in planned if each.row == "1800")) if "time" in only else []
    order = {asking.name: number for number, asking in enumerate(askings)}
    failures = sorted(tally.failures, key=lambda each: (list(ROWS).index(each.row), order[each.document]))
    return Report([row for row in _rows(tally, folder, took) if row.name in only], failures)


@functools.cache
def _engine(folder: str, device: str, threads: int) -> Engine:
    """The engine of this process."""
    # Before the libraries are imported: they read these once.
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    from cag_daemon.engine.engine import Engine
    from cag_daemon.engine.model import load_model
    from cag_daemon.engine.plan import Wanted

    return Engine(load_model(Wanted(folder, device, threads=threads), lambda percent: None))


def _answered(folder: str, device: str, askings: Sequence[Asking]) -> list[list[str]]:
    """What a process of the pool does: the answers to each."""
    engine = _engine(folder, device, 1)
    return [_answers(engine, each) for each in askings]


def _answers(engine: Engine, asking: Asking) -> list[str]:
    try:
        engine.prepare(asking.text, "", asking.text)
    except DocumentTooLong as error:
        return [str(error)] * len(asking.questions)
    return [engine.ask(asking.text, each.text, each.selection).text for each in asking.questions]


def _timed(engine: Engine, asking: Asking) -> list[float]:
    """Seconds from question to whole answer, the document being cached."""
    took = []
    with suppress(DocumentTooLong):
        engine.prepare(asking.text, "", asking.text)
        for question in asking.questions[:TIMED]:
            before = time.perf_counter()
            engine.ask(asking.text, question.text)
            took.append(time.perf_counter() - before)
    return took


def _rows(tally: Tally, folder: Path, took: Sequence[float]) -> list[Row]:
    rows = []
    for name, (what, goal) in ROWS.items():
        count, value, lookup = tally.asked[name], None, None
        if name == "refused":
            count = sum(tally.asked[each] for each in ANSWERABLE)
            if count:
                value = sum(tally.refused[each] for each in ANSWERABLE) / count
                lookup = sum(tally.lookup_refused[each] for each in ANSWERABLE) / count
        elif name == "size":
            value = sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) / 1e6
        elif name == "time":
            count, value = len(took), statistics.median(took) if took else None
        elif count:
            value, lookup = tally.right[name] / count, tally.lookup_right[name] / count
        rows.append(Row(name, what, goal, value, lookup, count))
    return rows


def _table(report: Report, title: str) -> Table:
    table = Table("", "n", "goal", "model", "lookup", "", title=title, title_justify="left", box=None, pad_edge=False)
    for row in report.rows:
        colour = {True: "green", False: "red", None: "default"}[row.met]
        sign = "≤" if row.name in AT_MOST else "≥"
        table.add_row(
            row.what,
            str(row.count or ""),
            f"{sign} {_shown(row.name, row.goal)}" if row.goal is not None else "–",
            f"[{colour}]{_shown(row.name, row.value)}[/]",
            _shown(row.name, row.lookup) if row.lookup is not None else "",
            " · ".join(["misses the goal"] * (row.met is False) + ["does not beat the lookup"] * row.beaten_by_lookup),
        )
    return table


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return "not run"
    return {"size": f"{value:.1f} MB", "time": f"{value:.2f} s"}.get(name, f"{100 * value:.1f} %")


def _show_failures(report: Report, console: Console) -> None:
    for failure in report.failures:
        selected = f" [{failure.selection}]" if failure.selection else ""
        console.print(f"\n[bold]{failure.row}[/]  {escape(failure.document)}")
        console.print(f"  asked     {escape(failure.question + selected)}")
        console.print(f"  expected  [green]{escape(failure.expected)}[/]")
        console.print(f"  answer    [red]{escape(plain(failure.answer))}[/]")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print what was measured."""
    about, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=about, epilog=details)
    parser.add_argument("folder", type=Path, nargs="?", default=EMBEDDED, help="a model folder (default: the shipped)")
    parser.add_argument("--kept-aside", action="store_true", help="the sets that training never looks at; at the end")
    parser.add_argument("--only", nargs="+", metavar="ROW", choices=ROWS, help=f"of {', '.join(ROWS)}")
    parser.add_argument("--failures", action="store_true", help="each wrong answer beside what was expected, too")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of a table")
    parser.add_argument("--device", default="cpu", help="as the daemon's --device (default cpu)")
    parser.add_argument("--processes", type=int, default=2, help="that ask at the same time (default 2)")
    parser.add_argument("--threads", type=int, default=2, help="for the questions that are timed (default 2)")
    options = parser.parse_args(arguments)

    part: Part = "kept_aside" if options.kept_aside else "dev"
    terminal = Console(stderr=True)
    only = options.only or tuple(ROWS)
    report = evaluate(options.folder, part, options.device, options.processes, options.threads, only, terminal)
    if options.json:
        rows = [asdict(row) | {"met": row.met, "beatenByLookup": row.beaten_by_lookup} for row in report.rows]
        failures: list[dict[str, Any]] = [asdict(failure) for failure in report.failures] if options.failures else []
        json.dump({"set": part, "rows": rows, "failures": failures}, sys.stdout, indent=2, ensure_ascii=False)
        return
    # In a pipe, too, a row is a line.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(_table(report, f"{options.folder.name}, {'kept aside' if options.kept_aside else 'development set'}"))
    if options.failures:
        _show_failures(report, console)


if __name__ == "__main__":
    main()
