"""What an edit and a restart cost beside reading the whole document, on the engine's own path.

    python -m benchmarks.refresh [--shape 0.5b] [--tokens 8000] [--plot FILE] [--json]

Edits: a random Mistral ("small", 20 million parameters) knows a document by heart, and a word is changed at some place.
What is computed does not depend on the model; how long that takes beside reading everything is measured in the same
run. Restart and memory: a random Mistral of ``--shape``, a document of half as many tokens; from "model loaded" to
"whole cache", read and restored from the disk; and what a refresh takes on top of what there is. Beside each number is
what is allowed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from cag_daemon.config import DEFAULT_SYSTEM_PROMPT
from cag_daemon.engine.document_cache import common_length
from cag_daemon.engine.engine import Engine, Reading
from cag_daemon.engine.model import LoadedModel, Wanted, load_model
from cag_daemon.engine.prompt import PromptTemplate
from tests.models import save_model

SHAPES: dict[str, dict[str, int]] = {
    "small": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8},
    "0.5b": {"hidden_size": 1024, "intermediate_size": 5120, "num_hidden_layers": 28, "num_attention_heads": 16},
}
HEADS = {"num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 32768}
PLACES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
RESTORING = 30.0  # times as fast as reading, at least
SLACK = 0.05  # of weights, cache and the new end, on top of them
THINGS = [
    "lantern",
    "ladder",
    "barrel",
    "anchor",
    "compass",
    "kettle",
    "pulley",
    "winch",
    "rudder",
    "bell",
    "chart",
    "ledger",
]
NAMES = ["Ada", "Bruno", "Clara", "Dmitri", "Elsa", "Farid", "Greta", "Hugo", "Ines", "Jonas"]


@dataclass(frozen=True)
class Edit:
    """One edit of the long document, and what it cost.

    Attributes:
        place: of the first changed token, as a share of the document; None: nothing was changed.
        allowed: tokens that may be computed.
        ratio: of its time to that of reading everything.
    """

    what: str
    place: float | None
    tokens: int
    computed: int
    allowed: int
    ratio: float


@dataclass(frozen=True)
class Restart:
    """Reading and restoring, in seconds, medians."""

    tokens: int
    parameters: int
    reading: float
    restoring: float
    bytes: int

    @property
    def ratio(self) -> float:
        """How many times as fast restoring is."""
        return self.reading / self.restoring


@dataclass(frozen=True)
class Memory:
    """What a refresh from the middle of the document takes at its peak, in bytes, on top of the process before."""

    weights: int
    cache: int
    end: int
    grown: int

    @property
    def allowed(self) -> int:
        """The new end, and a little."""
        return round(self.end + SLACK * (self.weights + self.cache + self.end))


def lines(many: int) -> list[str]:
    """So many sentences, no two alike."""
    return [
        f"On day {at} {NAMES[at % len(NAMES)]} put the {THINGS[at % len(THINGS)]} number {at * 7 % 1009} into "
        f"room {at % 31}."
        for at in range(many)
    ]


def document(loaded: LoadedModel, tokens: int) -> list[str]:
    """Lines of a document of about so many tokens."""
    each = len(loaded.tokenizer("\n".join(lines(100))).input_ids) / 100
    return lines(round(tokens / each))


def edits(folder: Path, tokens: int) -> tuple[list[Edit], int]:
    """Edits of a document at some places, each undone before the next."""
    loaded = model(folder / "small", "small")
    text = document(loaded, tokens)
    engine = Engine(loaded)
    everything = [read(engine, "\n".join(text), force=True)[1] for _ in range(2)]
    reading = min(everything)
    found = [edit(engine, "nothing changed", text, text, reading)]
    for place in PLACES:
        at = min(len(text) - 1, round(place * len(text)))
        changed = [*text[:at], text[at].replace(" put ", " laid "), *text[at + 1 :]]
        found.append(edit(engine, f"a word at {place:.0%}", text, changed, reading))
    found.append(edit(engine, "a line appended", text, [*text, "The end of it was written by Klara."], reading))
    return found, loaded.chunk


def edit(engine: Engine, what: str, before: list[str], after: list[str], reading: float) -> Edit:
    """One edit, and its undoing; ``reading``: seconds that all of it takes."""
    template = PromptTemplate(engine.loaded.tokenizer, DEFAULT_SYSTEM_PROMPT)
    texts = ["\n".join(each) for each in (before, after)]
    one, other = (template.document_ids(text) for text in texts)
    first = len(other) if one == other else common_length(one, other)
    refreshed, took = read(engine, texts[1])
    assert read(engine, texts[0])[0].computed == 0, "undoing costs nothing"
    if one == other:
        allowed = 0
    elif what.endswith("appended"):
        allowed = 2 * engine.loaded.chunk
    else:
        allowed = refreshed.tokens - first + engine.loaded.chunk
    place = None if one == other else first / refreshed.tokens
    return Edit(what, place, refreshed.tokens, refreshed.computed, allowed, took / reading)


def restart(folder: Path, shape: str, tokens: int, times: int) -> tuple[Restart, Memory]:
    """What a restart and a refresh of the larger model cost."""
    loaded = model(folder / shape, shape)
    text = document(loaded, tokens)
    joined, file = "\n".join(text), str(folder / "document.txt")
    weights = sum(each.nbytes for each in loaded.model.parameters())
    engine = Engine(loaded, keep_in=str(folder / "cache"))
    first, reading = read(engine, joined, file)
    assert engine.keeping is not None
    engine.keeping.finish()
    # 1. Restored into engines that know nothing.
    restoring = []
    for _ in range(times):
        restored, took = read(Engine(loaded, keep_in=str(folder / "cache")), joined, file)
        assert restored.computed == 0, "nothing is read"
        restoring.append(took)
    # 2. Refreshed from the middle on, in the engine that has it.
    engine.keep(None, None)
    middle = len(text) // 2
    changed = "\n".join([*text[:middle], text[middle].replace(" put ", " laid "), *text[middle + 1 :]])
    with peak() as grown:
        refreshed, _ = read(engine, changed)
    end = refreshed.computed * first.bytes // first.tokens
    parameters = sum(each.numel() for each in loaded.model.parameters())
    return (
        Restart(first.tokens, parameters, reading, statistics.median(restoring), first.bytes),
        Memory(weights, first.bytes, end, grown[0]),
    )


def read(engine: Engine, text: str, file: str | None = None, *, force: bool = False) -> tuple[Reading, float]:
    """Have the engine know a text; what it cost, and seconds."""
    before = time.perf_counter()
    found = engine.prepare("document", str(hash(text)), text, file=file, saved=True, force=force)
    return found, time.perf_counter() - before


def model(folder: Path, shape: str) -> LoadedModel:
    """A random Mistral of a shape, loaded as the daemon loads one."""
    if not folder.exists():
        save_model(folder, torch.float32, **SHAPES[shape], **HEADS)
    return load_model(Wanted(str(folder), device="cpu", dtype="float32"))


@contextmanager
def peak() -> Iterator[list[int]]:
    """Bytes by which this process grew at most, in the list, when it is over."""
    process, grown, over = psutil.Process(), [0], threading.Event()
    before = process.memory_info().rss

    def look() -> None:
        while not over.wait(0.002):
            grown[0] = max(grown[0], process.memory_info().rss - before)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield grown
    finally:
        over.set()
        thread.join()


def plot(file: Path, found: list[Edit], chunk: int) -> None:
    """Computed tokens and time by the place of an edit, as shares of all."""
    from matplotlib import pyplot

    places = sorted((each.place, each) for each in found if each.place is not None)
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot([0, 1], [1, 0], color="0.8", label="what stands behind the edit")
    x = [place for place, _ in places]
    axes.plot(x, [each.computed / each.tokens for _, each in places], "o-", label="tokens computed")
    axes.plot(x, [each.ratio for _, each in places], "s--", label="time")
    axes.set_xlabel("where in the document a word is changed")
    axes.set_ylabel("beside reading everything")
    axes.set_title(f"A document of {places[0][1].tokens:,} tokens, read in chunks of {chunk}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.legend()
    figure.savefig(file)


def main() -> None:
    """Measure, and print what was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.refresh", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="0.5b", help="of the model that is restarted (default 0.5b)")
    parser.add_argument("--tokens", type=int, default=8000, help="of the edited document, about (default 8000)")
    parser.add_argument("--times", type=int, default=3, help="a restart is measured (default 3)")
    parser.add_argument("--plot", type=Path, help="draw the edits into this file (.png, .svg)")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of tables")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as name, Console(stderr=True).status("Measuring …"):
        found, chunk = edits(Path(name), options.tokens)
        started, memory = restart(Path(name), options.shape, options.tokens // 2, options.times)
    if options.plot:
        plot(options.plot, found, chunk)
    if options.json:
        values: dict[str, Any] = {"chunk": chunk, "edits": [asdict(each) for each in found]}
        values["restart"] = asdict(started) | {"ratio": started.ratio}
        values["memory"] = asdict(memory) | {"allowed": memory.allowed}
        json.dump(values, sys.stdout, indent=2)
        return
    show(found, started, memory)


def show(found: list[Edit], started: Restart, memory: Memory) -> None:
    """Print tables."""

    def marked(text: str, good: bool) -> str:
        return f"[{'green' if good else 'red'}]{text}[/]"

    console = Console()
    table = Table(f"of {found[0].tokens:,} tokens", "computed", "allowed", "time", box=None, pad_edge=False)
    for each in found:
        computed = marked(f"{each.computed:,}", each.computed <= each.allowed)
        table.add_row(each.what, computed, f"{each.allowed:,}", f"{each.ratio:.1%} of reading all")
    console.print(table)
    console.print(
        f"\nRestart, {started.tokens:,} tokens, {started.parameters / 1e9:.1f} billion parameters: reading "
        f"{started.reading:.1f} s, restoring {started.restoring:.2f} s ({decimal(started.bytes)} of cache): "
        f"{marked(f'{started.ratio:.0f} ×', started.ratio >= RESTORING)} as fast, {RESTORING:.0f} × wanted"
    )
    console.print(
        f"Memory while refreshing from the middle on: {marked(decimal(memory.grown), memory.grown <= memory.allowed)} "
        f"more than before, {decimal(memory.allowed)} allowed (new end {decimal(memory.end)}, weights "
        f"{decimal(memory.weights)}, cache {decimal(memory.cache)})"
    )


if __name__ == "__main__":
    main()
