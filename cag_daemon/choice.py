"""`pull` alone: which model this machine could run, how fast about, and which to fetch first. Nothing is fetched."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import click
import psutil
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from cag_daemon import text
from cag_daemon.advice import Advice, Machine, Row, advise
from cag_daemon.config import Settings
from cag_daemon.errors import DocumentNotFound, ModelFailed

TOKENS = 10_000  # where there is no document
BYTES_A_TOKEN = 4  # of common prose; it is more for code and other scripts
WIDE = 118  # columns from which there is room for a remark
# Of a machine's memory, what a model may take once a few programs are closed.
PART_OF_MEMORY = 0.6


def show(as_json: bool, settings: Settings) -> int:
    """Print the table, or the same as JSON; 0.

    Raises:
        DocumentNotFound, DocumentUnreadable: a document was named, and cannot be read.
        ModelFailed: torch is not there to measure with.
    """
    with contextlib.suppress(AttributeError):  # an arrow that a pipe's encoding lacks is no reason to fail
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    tokens, of_what = _tokens(settings)
    machine, words, free = _machine(settings)
    advice = advise(machine, tokens)
    if as_json:
        click.echo(json.dumps(_values(advice, machine, words, tokens), ensure_ascii=False, indent=2))
        return 0
    out = Console(highlight=False)
    out.print(words, markup=False)
    out.print(_table(advice, out.width >= WIDE))
    out.print(f"About, for {of_what}.", style="dim", markup=False)
    for number, line in enumerate(_words(advice, free)):
        out.print(line, markup=False, soft_wrap=number > 0)  # a command stays one line
    return 0


def _tokens(settings: Settings) -> tuple[int, str]:
    path = Path(settings.document).expanduser().absolute()
    try:
        document = text.read(path)
    except DocumentNotFound:
        if settings.document != Settings.model_fields["document"].default:
            raise
        return TOKENS, f"a document of {TOKENS:,} tokens: there is no {settings.document} here"
    if document.blank:
        return TOKENS, f"a document of {TOKENS:,} tokens: {path.name} is empty"
    tokens = max(1, len(document.normalised.encode()) // BYTES_A_TOKEN)
    return tokens, f"{path.name}, some {tokens:,} tokens"


def _machine(settings: Settings) -> tuple[Machine, str, int]:
    """The machine, in words, too, and the bytes that are free on it now."""
    with Console(stderr=True).status("Measuring this machine …"):
        from cag_daemon.engine import speed
        from cag_daemon.engine.devices import unused_gpu
        from cag_daemon.engine.memory import free_in_machine

        try:
            measured = speed.measure(settings.device, settings.threads)
            unused = unused_gpu()
        except ImportError as error:
            raise ModelFailed(f"torch cannot be imported ({error}): install cag-daemon again.") from error
    memory = psutil.virtual_memory()
    free = free_in_machine()
    # Programs can be closed, the limits of a container stay.
    limited = free < 0.9 * memory.available
    in_machine = free if limited else max(free, int(memory.total * PART_OF_MEMORY))
    device = measured.device.partition(":")[0]
    machine = Machine(
        device, measured.name, measured.memory or in_machine, measured.flops, bandwidth=measured.bandwidth
    )
    gpu = "no GPU that torch can use"
    if measured.memory is not None:
        gpu = f"{measured.name} with {decimal(measured.memory)} for a model"
    words = (
        f"This machine: {os.cpu_count()} cores, {decimal(free)} of {decimal(memory.total)} "
        f"memory free, {gpu}; measured in {measured.dtype}: {_flops(measured.flops)}, "
        f"{measured.bandwidth / 1e9:.0f} GB/s." + (f"\n{unused}" if unused else "")
    )
    return machine, words, free if device != "cuda" else machine.memory


def _table(advice: Advice, wide: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "model", "gated"):
        table.add_column(heading, no_wrap=True)
    for heading in ("download", "held as", "memory", "reading", "tokens/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    if wide:
        table.add_column("", style="dim")
    for row in advice.rows:
        mark, style = ("→", "bold") if row is advice.first else ("", "" if row.fits else "dim")
        figures = (
            decimal(row.model.download),
            "16 bit" if row.quantization == "none" else row.quantization,
            decimal(row.memory),
            _duration(row.read_seconds) if row.fits else "too large",
            _rate(row.tokens_a_second) if row.fits else "",
        )
        gated = "yes" if row.model.gated else "no"
        table.add_row(mark, row.model.alias, gated, *figures, *([row.model.remark] if wide else []), style=style)
    return table


def _words(advice: Advice, free: int) -> list[str]:
    first = advice.first
    if first is None:
        return [
            f"No first choice: {advice.why}. Close other programs or take a shorter document; "
            "the embedded stand-in always works."
        ]
    room = ""
    if first.memory > free:
        room = f" It needs {decimal(first.memory)}, and {decimal(free)} are free now: close other programs first."
    held = "" if first.quantization == "none" else f" --quantization {first.quantization}"
    return [
        f"→ {first.model.alias} ({first.model.id}, {first.model.license}): {advice.why}.{room}",
        f"  cag-daemon pull {first.model.alias}",
        f'  cag-daemon ask "…" --model {first.model.id}{held}',
    ]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _flops(each_second: float) -> str:
    return f"{each_second / 1e12:.1f} TFLOP/s" if each_second >= 1e12 else f"{each_second / 1e9:.0f} GFLOP/s"


def _rate(each_second: float) -> str:
    return f"{each_second:.0f}" if each_second >= 10 else f"{each_second:.1f}"


def _values(advice: Advice, machine: Machine, words: str, tokens: int) -> dict[str, Any]:
    def values(row: Row) -> dict[str, Any]:
        model = row.model
        return {
            "model": model.id,
            "alias": model.alias,
            "gated": model.gated,
            "license": model.license,
            "parameters": model.parameters,
            "context": model.context,
            "bytesToFetch": model.download,
            "quantization": row.quantization,
            "memoryBytes": row.memory,
            "fits": row.fits,
            "readSeconds": round(row.read_seconds, 1),
            "tokensPerSecond": round(row.tokens_a_second, 1),
            "remark": model.remark,
        }

    return {
        "machine": dataclasses.asdict(machine) | {"words": words},
        "documentTokens": tokens,
        "first": values(advice.first) if advice.first else None,
        "why": advice.why,
        "models": [values(each) for each in advice.rows],
    }
