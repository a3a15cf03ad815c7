"""The product beside the other ways to ask a document, on the same weights, in one run.

    python -m benchmarks [--lengths 512 4000 16000] [--threads N] [--json FILE] [--plots FOLDER]

The model is a random Mistral of half a billion parameters in bfloat16: what is measured does not depend on what the
weights say. Random weights quote nobody, so for the rows about quoted answers they are made to say the embedded model's
answers, after computing all that they compute anyway; each answer stands in the document. Ratios are of times in this
run; the greater, the better. What could not be run is named.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.ways import Answered, InThePrompt, LlamaCpp, Ours, Retrieval, Tutorial
from cag_daemon.engine.devices import default_chunk
from cag_daemon.engine.kv_cache import bytes_per_token
from cag_daemon.engine.linear import pack_linears
from cag_daemon.engine.model import LoadedModel, load_model
from cag_daemon.engine.self_test import self_test
from tests.models import random_mistral

SHAPE = {
    **{"vocab_size": 32000, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24},
    **{"num_attention_heads": 14, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 32768},
}
LENGTHS = (512, 4000, 16000)
QUESTION, ANSWER, TIMES = 16, 16, 3  # tokens, tokens, runs of what is quick
ASKED = (
    "Who donated the lathe?",
    "How much does membership cost?",
    "When is the workshop open?",
    "How thick may plywood be?",
)
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "document.txt"


@dataclass(frozen=True)
class Row:
    """A ratio, or a share, and what is wanted of it; ``goal`` None: nothing is."""

    what: str
    length: int
    value: float | None
    goal: float | None = None
    unit: str = "×"
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether it is what is wanted; None: nothing is, or it was not run."""
        return None if self.goal is None or self.value is None else self.value >= self.goal


@dataclass
class Found:
    """Seconds, by what and length, and the rows made of them."""

    seconds: dict[str, dict[int, float]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    same: list[tuple[int, int]] = field(default_factory=list)  # tokens that llama.cpp chose, too; of how many

    def took(self, what: str, length: int, seconds: float) -> float:
        """Keep a time."""
        self.seconds.setdefault(what, {})[length] = seconds
        return seconds


@dataclass(frozen=True)
class Bench:
    """What is measured with."""

    plain: Any
    ours: Ours
    llama: LlamaCpp | None
    quotes: list[list[int]]
    document: Callable[[int], list[int]]
    bandwidth: float  # bytes a second
    weights: int  # bytes that a token reads


def measure(bench: Bench, lengths: list[int], found: Found, told: Callable[[str], None]) -> None:
    """Every way, at every length."""
    question = torch.randint(3, 3000, (QUESTION,), generator=torch.Generator().manual_seed(7)).tolist()
    tutorial, in_the_prompt, retrieval = Tutorial(bench.plain), InThePrompt(bench.plain), Retrieval(bench.ours)
    for length in lengths:
        document = bench.document(length)
        ours, llama = bench.ours, bench.llama
        told(f"{length:,} tokens: reading")
        found.took("read: cag-daemon", length, ours.read(document))
        tutorial.fill(ours.cache)
        told(f"{length:,} tokens: asking")
        # One after the other, again and again: what else this machine does meets all of them.
        asked: dict[str, list[Answered]] = {}
        for _ in range(TIMES):
            asked.setdefault("cag-daemon", []).append(ours.ask(question, ANSWER, drafted=False))
            asked.setdefault("the tutorial's loop", []).append(tutorial.ask(question, ANSWER))
            for quote in bench.quotes:
                asked.setdefault("quoting", []).append(ours.ask(question, len(quote), told=quote))
        if llama is not None:
            told(f"{length:,} tokens: llama.cpp")
            found.took("read: llama.cpp", length, llama.read(document))
            for _ in range(TIMES):
                asked.setdefault("llama.cpp", []).append(llama.ask(question, ANSWER))
                asked["cag-daemon"].append(ours.ask(question, ANSWER, drafted=False))
            pairs = list(zip(asked["cag-daemon"][0].tokens, asked["llama.cpp"][0].tokens, strict=True))
            differs = next((at for at, (one, other) in enumerate(pairs) if one != other), len(pairs))
            found.same.append((differs, len(pairs)))
        for way, answers in asked.items():
            found.took(f"first token: {way}", length, statistics.median(each.first for each in answers))
            found.took(f"a token: {way}", length, statistics.median(each.a_token for each in answers))
        del tutorial.cache
        told(f"{length:,} tokens: the document in the prompt")
        found.took("first token: document in the prompt", length, in_the_prompt.ask(document, question))
        try:
            found.took("first token: BM25", length, retrieval.ask(document, question))
        except ImportError:
            found.missing.append("BM25: pip install rank-bm25")
        found.rows += rows(found, bench, length)


def rows(found: Found, bench: Bench, length: int) -> list[Row]:
    """The table's lines for a length."""
    at = {what: by_length[length] for what, by_length in found.seconds.items() if length in by_length}

    def ratio(slow: str, quick: str) -> float | None:
        return at[slow] / at[quick] if slow in at and quick in at else None

    wanted = 150.0 if length >= 4000 else None
    decode_goal = 0.85 if length < 4000 else 1.1
    moved = bench.weights + length * bytes_per_token(bench.ours.model.config, torch.bfloat16)
    limit = moved / bench.bandwidth
    first = "first token: cag-daemon"
    return [
        Row(
            "first token, warm, against the document in the prompt",
            length,
            ratio("first token: document in the prompt", first),
            wanted,
        ),
        Row("first token, warm, against the tutorial's loop", length, ratio("first token: the tutorial's loop", first)),
        Row("first token, warm, against llama.cpp with its cache", length, ratio("first token: llama.cpp", first), 1.5),
        Row(
            "first token, warm, against BM25 with three pieces in the prompt", length, ratio("first token: BM25", first)
        ),
        Row(
            "decoding, nothing drafted, against the tutorial's loop",
            length,
            ratio("a token: the tutorial's loop", "a token: cag-daemon"),
        ),
        Row(
            "decoding, nothing drafted, against llama.cpp",
            length,
            ratio("a token: llama.cpp", "a token: cag-daemon"),
            decode_goal,
        ),
        Row(
            "decoding a quoted answer, against llama.cpp", length, ratio("a token: llama.cpp", "a token: quoting"), 2.5
        ),
        Row(
            "decoding a quoted answer, against the tutorial's loop",
            length,
            ratio("a token: the tutorial's loop", "a token: quoting"),
        ),
        Row("reading, against llama.cpp", length, ratio("read: llama.cpp", "read: cag-daemon"), 1.3),
        Row(
            "a pass, against the limit of memory",
            length,
            100 * limit / at["a token: cag-daemon"],
            70.0 if length < 16000 else 60.0,
            "%",
        ),
    ]


def bandwidth() -> float:
    """Bytes a second that come from memory, at best."""
    much = torch.ones(2**26, dtype=torch.int64)
    took = []
    for _ in range(5):
        began = time.perf_counter()
        much.sum()
        took.append(time.perf_counter() - began)
    return much.nbytes / min(took)


def quoted() -> tuple[list[int], list[list[int]]]:
    """The example's ids, and the embedded model's answers to some questions about it that stand in it."""
    from cag_daemon.engine.engine import Engine

    loaded = load_model("embedded")
    engine = Engine(loaded, widths=self_test(loaded, None).widths)
    text = EXAMPLE.read_text("utf-8")
    engine.prepare("d", "1", text)
    answers = [engine.ask("d", question).text for question in ASKED]
    plain = " ".join(text.split())
    kept = [each for each in answers if " ".join(each.split()) in plain]
    encode = loaded.tokenizer.encode
    return encode(text, add_special_tokens=False), [encode(" " + each, add_special_tokens=False)[1:] for each in kept]


def show(found: Found, how: str) -> None:
    """Print the table."""
    table = Table("", "tokens", "measured", "goal", box=None, pad_edge=False, title=how, title_justify="left")
    for row in sorted(found.rows, key=lambda row: [each.what for each in found.rows].index(row.what)):
        digits = 1 if row.value is not None and row.value < 100 and row.unit == "×" else 0
        value = "not run" if row.value is None else f"{row.value:,.{digits}f} {row.unit}"
        colour = {True: "green", False: "red", None: "default"}[row.met]
        goal = "" if row.goal is None else f"≥ {row.goal:g} {row.unit}"
        table.add_row(row.what, f"{row.length:,}", f"[{colour}]{value}[/]", goal)
    console = Console(width=max(100, Console().width))
    console.print(table)
    for agreed, of in found.same:
        console.print(f"llama.cpp, on the same weights, chose the same first {agreed} of {of} tokens.")
    for each in dict.fromkeys(found.missing):
        console.print(f"Not run: {each}")


def plots(folder: Path, found: Found) -> None:
    """First tokens and decoding, by the length of the document."""
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    for name, start, title, unit in (
        ("first-token", "first token: ", "A question about a document: the first token", "seconds"),
        ("decoding", "a token: ", "Decoding: a token", "seconds"),
    ):
        figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
        for what, by_length in found.seconds.items():
            if what.startswith(start) and not (name == "first-token" and what.endswith("quoting")):
                label = what.removeprefix(start).replace("quoting", "cag-daemon, quoting the document")
                axes.plot(list(by_length), list(by_length.values()), "o-", label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        lengths = sorted({length for by_length in found.seconds.values() for length in by_length})
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axes.minorticks_off()
        axes.set_xlabel("tokens of the document")
        axes.set_ylabel(unit)
        axes.set_title(title)
        axes.legend()
        figure.savefig(folder / f"{name}.png")


def main() -> None:
    """Measure, and print what was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="tokens of the documents")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of every way (default: cores)")
    parser.add_argument("--json", type=Path, help="write all numbers into this file")
    parser.add_argument("--plots", type=Path, help="draw plots into this folder")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    found, errors = Found(), Console(stderr=True)
    with tempfile.TemporaryDirectory() as name, errors.status("Making a model …") as status:
        example, quotes = quoted()
        torch.set_default_dtype(torch.bfloat16)
        plain = random_mistral(packed=False, **SHAPE)
        torch.set_default_dtype(torch.float32)
        weights = sum(each.nbytes for each in plain.parameters()) - plain.get_input_embeddings().weight.nbytes
        llama = _llama(plain, Path(name) / "model.gguf", max(options.lengths) + 512, options.threads, found)
        ours, chunk = copy.deepcopy(plain), default_chunk(torch.device("cpu"), torch.bfloat16)
        pack_linears(ours)
        way = Ours(ours, chunk, ())
        loaded = LoadedModel(
            ours,
            range(SHAPE["vocab_size"]),
            "random",
            "",
            "cpu",
            "bfloat16",
            weights // 2,
            weights,
            chunk,
            max(options.lengths) + 512,
        )
        way.widths = self_test(dataclasses.replace(loaded), None).widths

        def document(length: int) -> list[int]:
            """The example behind as many other tokens as are needed."""
            other = torch.randint(3, 3000, (length,), generator=torch.Generator().manual_seed(length)).tolist()
            return [*other, *example][-length:]

        bench = Bench(plain, way, llama, quotes, document, bandwidth(), weights)
        measure(bench, options.lengths, found, lambda words: status.update(words + " …"))
    how = (
        f"{weights / 2e9:.2f} billion weights in bfloat16, {options.threads} threads, "
        f"{bench.bandwidth / 1e9:.0f} GB/s from memory, widths {list(way.widths)}"
    )
    show(found, how)
    if options.json:
        rows_ = [asdict(row) | {"met": row.met} for row in found.rows]
        options.json.write_text(
            json.dumps({"how": how, "seconds": found.seconds, "rows": rows_, "missing": found.missing}, indent=2)
        )
    if options.plots:
        plots(options.plots, found)


def _llama(model: Any, file: Path, context: int, threads: int, found: Found) -> LlamaCpp | None:
    try:
        from benchmarks.gguf_file import write_gguf

        write_gguf(model, file, context)
        return LlamaCpp(str(file), context, threads)
    except ImportError as error:
        found.missing.append(f"llama.cpp: pip install llama-cpp-python gguf ({error})")
    return None


if __name__ == "__main__":
    sys.exit(main())
