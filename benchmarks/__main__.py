"""The product beside the other ways to ask a document, on the same weights, in one run.

    python -m benchmarks [--shape 0.5b|7b|tiny] [--lengths 512 4000 16000] [--threads N] [--json FILE] [--plots FOLDER]

The model is a random Mistral in bfloat16, of half a billion parameters, or of the real 7B shape on a GPU: what is
measured does not depend on what the weights say. Random weights quote nobody, so for the rows about quoted answers they
are made to say the embedded model's answers, after computing all that they compute anyway; each answer stands in the
document. Ratios are of times in this run; the greater, the better. What could not be run is named.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.goals import QUESTION, Bench, rows
from benchmarks.table import Found, plots, show
from benchmarks.ways import Answered, InThePrompt, LlamaCpp, Ours, Retrieval, Tutorial
from cag_daemon.engine.attention import install
from cag_daemon.engine.devices import default_chunk
from cag_daemon.engine.linear import pack_linears
from cag_daemon.engine.model import LoadedModel, load_model
from cag_daemon.engine.narrow import narrow
from cag_daemon.engine.quantize import KINDS, quantize_module
from cag_daemon.engine.self_test import self_test
from cag_daemon.engine.speed import measure as measure_speed
from tests.models import random_mistral

SHAPES: dict[str, dict[str, int]] = {
    "0.5b": {
        **{"vocab_size": 32000, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24},
        **{"num_attention_heads": 14, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 32768},
    },
    "7b": {
        **{"vocab_size": 32768, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
        **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 32768},
    },
    "tiny": {  # to see that everything runs
        **{"vocab_size": 7168, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 32768},
    },
}
LENGTHS = (512, 4000, 16000)
ANSWER, TIMES = 16, 3  # tokens, runs of what is quick
CHUNKS, CHUNKED = (64, 128, 256, 512), 1024  # tokens read at a time that are tried, on so many
ASKED = (
    "Who donated the lathe?",
    "How much does membership cost?",
    "When is the workshop open?",
    "How thick may plywood be?",
)
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "document.txt"


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
        if llama is not None:
            told(f"{length:,} tokens: reading, llama.cpp")
            found.took("read: llama.cpp", length, llama.read(document))
        told(f"{length:,} tokens: asking")
        # One after the other, again and again: what else this machine does meets all of them.
        asked: dict[str, list[Answered]] = {}
        for _ in range(TIMES):
            asked.setdefault("cag-daemon", []).append(ours.ask(question, ANSWER, drafted=False))
            asked.setdefault("the tutorial's loop", []).append(tutorial.ask(question, ANSWER))
            if llama is not None:
                asked.setdefault("llama.cpp", []).append(llama.ask(question, ANSWER))
            for quote in bench.quotes:
                told_ = ours.ask(question, len(quote), told=quote)
                asked.setdefault("cag-daemon, quoting the document", []).append(told_)
            for kind, way in bench.fewer.items():
                way.cache = ours.cache  # what stands in it changes no time
                asked.setdefault(f"cag-daemon, {kind}", []).append(way.ask(question, ANSWER, drafted=False))
        if llama is not None:
            pairs = list(zip(asked["cag-daemon"][0].tokens, asked["llama.cpp"][0].tokens, strict=True))
            differs = next((at for at, (one, other) in enumerate(pairs) if one != other), len(pairs))
            found.notes.append(
                f"llama.cpp, on the same weights, chose the same first {differs} of {len(pairs)} tokens "
                f"behind {length:,}."
            )
        for way_, answers in asked.items():
            found.took(f"first token: {way_}", length, statistics.median(each.first for each in answers))
            found.took(f"a token: {way_}", length, statistics.median(each.a_token for each in answers))
        del tutorial.cache
        told(f"{length:,} tokens: the document in the prompt")
        found.took("first token: document in the prompt", length, in_the_prompt.ask(document, question))
        try:
            found.took("first token: BM25", length, retrieval.ask(document, question))
        except ImportError:
            found.missing.append("BM25: pip install rank-bm25")
        found.rows += rows(found, bench, length)


def chunks(bench: Bench, found: Found, told: Callable[[str], None]) -> None:
    """How many tokens are best read at a time."""
    document, chosen = bench.document(CHUNKED), bench.ours.chunk
    rates = {}
    for chunk in CHUNKS:
        told(f"reading in chunks of {chunk}")
        bench.ours.chunk = chunk
        rates[chunk] = CHUNKED / bench.ours.read(document)
    bench.ours.chunk = chosen
    each = ", ".join(f"{chunk}: {rate:,.0f}" for chunk, rate in rates.items())
    found.notes.append(
        f"Tokens a second, reading {CHUNKED:,} in chunks of {each}. The product reads {chosen} at a time."
    )


def bandwidth(device: torch.device) -> float:
    """Bytes a second that come from memory, at best."""
    much = torch.ones(2**26 if device.type == "cpu" else 2**29, dtype=torch.int64, device=device)
    took = []
    for _ in range(5):
        began = time.perf_counter()
        much.sum().item()
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


def ours_of(model: Any, parameters: int, context: int) -> Ours:
    """The product's way with a model of so many parameters, with the widths that the product would find for it."""
    chunk, vocabulary = default_chunk(model.device, torch.bfloat16), range(model.config.vocab_size)
    way = Ours(model, chunk, ())
    loaded = LoadedModel(
        model, vocabulary, "random", "", str(model.device), "bfloat16", parameters, 2 * parameters, chunk, context
    )
    way.widths = self_test(loaded, None).widths
    return way


def another(model: Any) -> Any:
    """The same model with the same weights, to attend or multiply in another way."""
    return copy.deepcopy(model, {id(each): each for each in [*model.parameters(), *model.buffers()]})


def main() -> None:
    """Measure, and print what was measured."""
    options = _options()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device or ("cuda" if options.shape == "7b" else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no GPU here that torch can use: the 7B shape is for one. Try --shape 0.5b.")

    found, errors = Found(), Console(stderr=True)
    with tempfile.TemporaryDirectory() as name, errors.status("Making a model …") as status:
        example, quotes = quoted()
        torch.set_default_dtype(torch.bfloat16)
        plain = random_mistral(packed=False, device=str(device), **SHAPES[options.shape])
        torch.set_default_dtype(torch.float32)
        context = max(*options.lengths, CHUNKED) + 512
        llama = _llama(plain, Path(name) / "model.gguf", context, options.threads, found)
        fewer, parameters = {}, sum(each.numel() for each in plain.parameters())
        for kind in KINDS:
            status.update(f"Quantising to {kind} …")
            model = another(plain)
            quantize_module(model, kind, torch.bfloat16, device)
            narrow(model)
            fewer[kind] = ours_of(model, parameters, context)
        model = another(plain)
        pack_linears(model)
        install(model)
        narrow(model)
        way = ours_of(model, parameters, context)

        def document(length: int) -> list[int]:
            """The example behind as many other tokens as are needed."""
            other = torch.randint(3, 3000, (length,), generator=torch.Generator().manual_seed(length)).tolist()
            return [*other, *example][-length:]

        status.update("Measuring the machine …")
        flops = measure_speed(str(device), options.threads).flops
        bench = Bench(plain, way, llama, quotes, document, bandwidth(device), flops, fewer)

        def tell(words: str) -> None:
            status.update(f"{words} …")

        measure(bench, options.lengths, found, tell)
        chunks(bench, found, tell)
    how = (
        f"{parameters / 1e9:.2f} billion weights in bfloat16, "
        f"{options.threads} threads on {device}, {bench.bandwidth / 1e9:,.0f} GB/s from memory, "
        f"{flops / 1e12:.2f} TFLOP/s, widths {list(way.widths)}"
    )
    show(found, how)
    if options.json:
        rows_ = [asdict(row) | {"met": row.met} for row in found.rows]
        written = {"how": how, "seconds": found.seconds, "rows": rows_, "notes": found.notes, "missing": found.missing}
        options.json.write_text(json.dumps(written, indent=2))
    if options.plots:
        plots(options.plots, found, how)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--shape", choices=list(SHAPES), default="0.5b", help="of the model (default: 0.5b)")
    add("--device", help="where it runs (default: cpu; with --shape 7b: cuda)")
    add("--lengths", type=int, nargs="+", default=list(LENGTHS), help="tokens of the documents")
    add("--threads", type=int, default=torch.get_num_threads(), help="of every way (default: cores)")
    add("--json", type=Path, help="write all numbers into this file")
    add("--plots", type=Path, help="draw plots into this folder")
    return parser.parse_args()


def _llama(model: Any, file: Path, context: int, threads: int, found: Found) -> LlamaCpp | None:
    if model.device.type != "cpu":
        found.missing.append("llama.cpp: it is compared on a CPU only, where it is built as pip builds it")
        return None
    try:
        from benchmarks.gguf_file import write_gguf

        write_gguf(model, file, context)
        return LlamaCpp(str(file), context, threads)
    except ImportError as error:
        found.missing.append(f"llama.cpp: pip install llama-cpp-python gguf ({error})")
    return None


if __name__ == "__main__":
    main()
