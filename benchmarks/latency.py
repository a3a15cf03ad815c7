"""How long the daemon keeps an editor waiting, measured on the real process over stdio.

    python -m benchmarks.latency [--slow] [--json]

``--slow``: a random Mistral of 0.3 billion parameters instead of the embedded one, so that loading, reading and
answering last long enough to be caught in the act. All times are in milliseconds, seen from the editor's side of the
pipe, beside what is allowed, where something is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cag_daemon.config import Settings
from cag_daemon.front.document import Document
from cag_daemon.front.pool import Pool
from cag_daemon.front.session import Session
from tests.client import Client
from tests.daemon.slow import make_slow_model
from tests.documents import LIGHTHOUSE

INITIALIZE, STATUS, KEYSTROKE = 1500.0, 100.0, 10.0  # milliseconds allowed
LARGE = 2**20  # characters of a large open document
STATES = ("loading", "reading", "answering", "ready")


@dataclass(frozen=True)
class Row:
    """One thing measured, several times."""

    what: str
    milliseconds: list[float]
    allowed: float | None = None

    @property
    def summary(self) -> dict[str, Any]:
        """The row in numbers."""
        return {
            "what": self.what,
            "n": len(self.milliseconds),
            "median": round(statistics.median(self.milliseconds), 3),
            "max": round(max(self.milliseconds), 3),
            "allowed": self.allowed,
        }


@contextmanager
def daemon(folder: Path, text: str, *flags: str) -> Iterator[Client]:
    """A daemon with one workspace, whose document has that text."""
    folder.mkdir()
    (folder / "document.txt").write_text(text, "utf-8")
    client = Client(folder, flags=flags)
    try:
        client.initialize([folder])
        yield client
        client.stop()
    finally:
        client.kill()


def starts(base: Path, times: int) -> Row:
    """From the start of the process to the reply to ``initialize``."""
    took = []
    for number in range(times):
        before = time.monotonic()
        with daemon(base / f"start {number}", LIGHTHOUSE.text) as client:
            took.append((client.pendings[0].replies[0].at - before) * 1000)
    return Row("initialize, from the start of the process", took, INITIALIZE)


def statuses(base: Path, text: str, *flags: str) -> list[Row]:
    """``cag/status``, asked again and again through a daemon's first minute, by the state that it told."""
    took: dict[str, list[float]] = defaultdict(list)

    def look(client: Client) -> str:
        status = client.request("cag/status")
        state: str = status.result()["state"]
        took[state].append(status.seconds * 1000)
        time.sleep(0.005)
        return state

    with daemon(base / "states", text, *flags) as client:
        while (state := look(client)) != "ready":
            assert state != "failed", client.status()["message"]
        question = client.ask("Where is the logbook kept?", maxNewTokens=60)
        while not question.answered:
            look(client)
        for _ in range(200):
            look(client)
    return [Row(f"cag/status while {state}", took[state], STATUS) for state in STATES if took[state]]


def answers(base: Path, text: str, *flags: str) -> list[Row]:
    """The first token of an answer: from the cache, and with the whole document read before each question."""
    cached, uncached = [], []
    with daemon(base / "answers", text, *flags) as client:
        client.answer("What is the supply boat called?", maxNewTokens=1)
        for question, _ in LIGHTHOUSE.pairs[:5]:
            read = client.request("cag/refresh", {"force": True}).result()["milliseconds"]
            first = client.ask(question, maxNewTokens=1).result()["milliseconds"]["firstToken"]
            cached.append(client.ask(question, maxNewTokens=1).result()["milliseconds"]["firstToken"])
            uncached.append(read + first)
        tokens = client.document_status()["tokens"]
    return [
        Row(f"first token, {tokens:,} tokens of document cached", cached),
        Row(f"first token, {tokens:,} tokens of document read afresh", uncached),
    ]


def keystrokes(base: Path, times: int) -> list[Row]:
    """A character typed in the midst of a large open document."""
    text = (LIGHTHOUSE.text * (LARGE // len(LIGHTHOUSE.text) + 1))[:LARGE]
    place = {"line": text.count("\n") // 2, "character": 0}
    typed = ({"start": place, "end": place}, "x")
    with daemon(base / "typing", text) as client:
        path = base / "typing" / "document.txt"
        client.wait_status("failed")  # too long to be read
        client.open(path, text)
        client.status()
        bursts, following = [], []
        for _ in range(20):
            before = time.monotonic()
            for _ in range(times):
                client.change(path, typed)
            client.status()
            bursts.append((time.monotonic() - before) * 1000 / times)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:  # pauses in which the daemon looks at the text
            client.change(path, typed)
            status = client.request("cag/status")
            status.result()
            following.append(status.seconds * 1000)
            time.sleep(0.03 if len(following) % 10 else 0.5)
    return [
        Row("a keystroke in 1 MB, in a burst with a cag/status behind it", bursts, KEYSTROKE),
        Row("cag/status behind a keystroke in 1 MB", following, STATUS),
        Row("a keystroke in 1 MB, on the event loop", asyncio.run(_in_process(text, typed, times)), KEYSTROKE),
    ]


async def _in_process(text: str, typed: tuple[dict[str, Any], str], times: int) -> list[float]:
    path, took = Path("document.txt").absolute(), []
    session = Session(Settings(), Pool(), {}, lambda: None, lambda _: None, lambda _: None)
    session.documents[path] = Document(path)
    session.opened(path, text)
    for _ in range(times):
        before = time.perf_counter()
        session.edited(path, [typed])
        took.append((time.perf_counter() - before) * 1000)
    session.close()
    return took


def main() -> None:
    """Measure, and print what was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    parser.add_argument("--slow", action="store_true", help="with a random model of 0.3 billion parameters")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of a table")
    parser.add_argument("--times", type=int, default=100, help="keystrokes in a burst (default 100)")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder, Console(stderr=True).status("Measuring …"):
        base, text, flags = Path(folder), LIGHTHOUSE.text * 8, []
        if options.slow:
            model = make_slow_model(base / "model")
            text, flags = LIGHTHOUSE.text * 4, ["--model", str(model), "--dtype", "float32", "--device", "cpu"]
        rows = [starts(base, 5), *statuses(base, text, *flags), *keystrokes(base, options.times)]
        rows += answers(base, text, *flags)

    if options.json:
        json.dump([row.summary for row in rows], sys.stdout, indent=2)
        return
    table = Table("milliseconds", "n", "median", "max", "allowed", box=None, pad_edge=False)
    for row in rows:
        numbers = row.summary
        mark = "red" if row.allowed and numbers["max"] > row.allowed else "green"
        table.add_row(
            row.what,
            str(numbers["n"]),
            f"{numbers['median']:.2f}",
            f"[{mark}]{numbers['max']:.2f}[/]",
            f"{row.allowed:.0f}" if row.allowed else "–",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
