"""What another editor costs, and what unloading gives back: shared mode, measured on real processes.

    python -m benchmarks.sharing [--editors 8]

Memory is resident memory; of a forwarder most of it is the interpreter, whose pages all of them share.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from tests.client import Client
from tests.documents import LIGHTHOUSE

ATTACH, MEGABYTES = 300.0, 15.0  # milliseconds and megabytes allowed


def main() -> None:
    """Measure, and print what was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sharing", description=__doc__)
    parser.add_argument("--editors", type=int, default=8, help="more of them, beside the first (default 8)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Console(stderr=True).status("Measuring …"):
        rows = measure(Path(folder), options.editors)
    table = Table("what", "measured", "allowed", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def measure(base: Path, editors: int) -> list[tuple[str, str, str]]:
    """Each row: what, how much, how much is allowed."""
    (base / "document.txt").write_text(LIGHTHOUSE.text, "utf-8")

    def editor(beside: Client | None = None) -> tuple[Client, float]:
        before = time.monotonic()
        shared = {} if beside is None else {"runtime": beside.runtime}
        client = Client(base, home=base / "home", **shared)
        client.initialize([base])
        return client, (time.monotonic() - before) * 1000

    def megabytes(process: psutil.Process | None) -> float:
        return process.memory_info().rss / 1e6 if process is not None else 0.0

    first, began = editor()
    more: list[Client] = []
    try:
        first.wait_status("ready")
        front, worker = first.front(), first.worker()
        alone, attached = megabytes(front), []
        for _ in range(editors):
            client, took = editor(first)
            more.append(client)
            attached.append(took)
            client.wait_status("ready")
        each = (megabytes(front) - alone) / editors
        forwarder = max(megabytes(client.watched) for client in more)
        model = megabytes(worker)
        first.request("cag/unload").result()
        first.wait_until(lambda: not first.worker_pids(), 20, "the end of the worker")
        unloaded, before = megabytes(front), time.monotonic()
        first.answer("Where is the logbook kept?")
        back = time.monotonic() - before
        for client in more:
            client.stop()
        first.stop()
    finally:
        for client in (*more, first):
            client.kill()
    return [
        ("the first editor, start to `initialize`", f"{began:.0f} ms", "–"),
        (
            f"another one, start to `initialize`, {editors} times",
            f"{statistics.median(attached):.0f} ms median, {max(attached):.0f} ms at most",
            f"{ATTACH:.0f} ms",
        ),
        ("memory of a forwarder, at most", f"{forwarder:.1f} MB", ""),
        ("memory of another editor in all", f"{forwarder + each:.1f} MB", f"{MEGABYTES:.0f} MB"),
        ("the front, with one editor", f"{alone:.0f} MB", "–"),
        ("the worker with the embedded model", f"{model:.0f} MB", "–"),
        ("all but forwarders, after unloading", f"{unloaded:.0f} MB", "–"),
        ("from unloaded to an answer", f"{back:.1f} s", "–"),
    ]


if __name__ == "__main__":
    main()
