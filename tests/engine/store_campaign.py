"""Processes that write caches and die, or share a folder: run by `test_store_campaign`, each campaign in a new process.

    python -m tests.engine.store_campaign kill FOLDER STRIDE
    python -m tests.engine.store_campaign share FOLDER PROCESSES ROUNDS

A fork of a process with threads may hang: so this one never has any, and pytest's is not forked.
"""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from cag_daemon.engine import keeping, store
from cag_daemon.engine.engine import Engine
from tests.engine.caches import BAKERY, fresh, identical, kv
from tests.models import embedded_tokenizer, loaded_random

torch.set_num_threads(1)
store.FREE_AFTERWARDS = 0
LOADED = dataclasses.replace(loaded_random(embedded_tokenizer()), key="a model")
TEXTS = [BAKERY + end for end in ("", "More.", "More and more. " * 9)]
WATCHED = (store.__file__, keeping.__file__)


def read(folder: Path, document: str, text: str, most: int | None = None) -> tuple[Engine, Any]:
    """A new engine that knows the text, as after a restart."""
    engine = Engine(LOADED, keep_in=str(folder), keep_bytes=most)
    return engine, engine.prepare("d", f"{len(text)}", text, file=document, saved=True)


def finish(engine: Engine) -> None:
    """Bring it to the disk."""
    assert engine.keeping is not None
    engine.keeping.finish()


def forked(work: Callable[[], object]) -> int:
    """The id of a process that does this, and nothing else."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def ended(child: int) -> int:
    """How it ended: 0, 1, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(line: int, work: Callable[[], object]) -> Callable[[], object]:
    """The work, and kill -9 before the so many-th line of the store's code."""
    left = line

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    def traced() -> None:
        sys.settrace(trace)
        work()

    return traced


def kill(folder: Path, stride: int) -> None:
    """A text is written over an older one, and the process is killed: at every so many-th line, until it lives."""
    before, document = folder / "before", str(folder / "d.txt")
    engine, _ = read(before, document, TEXTS[0])
    finish(engine)
    line, killed = 0, 0
    while True:
        there = folder / "cache"
        shutil.copytree(before, there)
        engine, _ = read(there, document, TEXTS[2])
        how = ended(forked(killed_at(line, lambda: finish(engine))))  # noqa: B023
        assert how in (0, -signal.SIGKILL), how
        for text in (TEXTS[2], TEXTS[0]):
            after, reading = read(there, document, text)
            assert identical(kv(after), fresh(engine, text)[0]), (line, text)
            assert reading.kept == reading.tokens or (how, text) == (-signal.SIGKILL, TEXTS[2]), (line, reading)
            finish(after)
            assert read(there, document, text)[1].computed == 0, line
        shutil.rmtree(there)
        if how == 0:
            break
        killed += 1
        line += stride
    sys.stdout.write(f"killed {killed} times, {line} lines\n")


def share(folder: Path, processes: int, rounds: int) -> None:
    """Several at once: each reads, writes, makes room and throws away, in one folder."""
    document = str(folder / "d.txt")
    engine, reading = read(folder / "size", document, TEXTS[2])
    for text in TEXTS:
        fresh(engine, text)

    def one(number: int) -> None:
        chance = random.Random(number)
        for _ in range(rounds):
            text = chance.choice(TEXTS)
            most = chance.choice((None, None, 3 * reading.bytes // 2, 1000))
            name = chance.choice((document, document + ".other"))
            mine, _ = read(folder / "cache", name, text, most)
            assert identical(kv(mine), fresh(engine, text)[0])
            what = chance.random()
            if what < 0.7:
                finish(mine)
            elif what < 0.8:
                shutil.rmtree(folder / "cache", ignore_errors=True)
            elif what < 0.9:
                assert mine.keeping is not None
                mine.keeping._text(name, mine._caches.get("d").text.ids).drop()
            assert identical(kv(mine), fresh(engine, text)[0])

    children = [forked(lambda number=number: one(number)) for number in range(processes)]  # type: ignore[misc]
    how = [ended(child) for child in children]
    assert how == [0] * processes, how
    again, _ = read(folder / "cache", document, TEXTS[1])
    finish(again)
    assert read(folder / "cache", document, TEXTS[1])[1].computed == 0
    sys.stdout.write(f"{processes} processes, {rounds} rounds each\n")


if __name__ == "__main__":
    campaign, where, *numbers = sys.argv[1:]
    {"kill": kill, "share": share}[campaign](Path(where), *map(int, numbers))
