"""The worker as the front sees it: a process and a pipe."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cag_daemon import messages
from cag_daemon.messages import (
    Answered,
    Ask,
    Began,
    Cancel,
    Dropped,
    Failed,
    FirstToken,
    Forget,
    Halted,
    Limit,
    Load,
    Loaded,
    Message,
    Piece,
    Prepare,
    Prepared,
    Reading,
    Typing,
)
from tests.models import save_model

ENDS = (Loaded, Prepared, Answered, Failed, Halted)
BAKERY = "The bakery opens at six. Anna bakes the rye bread. The oven was built in 1912 by Tom Reed.\n"
MODULE = ["-m", "cag_daemon.engine.worker"]

# Everything that could print into the pipe does: Python, the C library's fd, a child.
NOISY = """
import os, sys
from cag_daemon.engine import worker
send = worker.Worker._send
def noisy(self, message):
    print("noise")
    os.write(1, b"noise")
    os.system("echo noise")
    assert os.read(0, 1) == b""
    send(self, message)
worker.Worker._send = noisy
worker.main()
"""


class Process:
    """A worker and what it has said so far."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *(arguments or MODULE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | environment,
        )
        self.inbox: queue.Queue[Message] = queue.Queue()
        self.said: list[Message] = []
        self.log = b""
        self.job = 0
        self.threads = [threading.Thread(target=self._listen), threading.Thread(target=self._log)]
        for thread in self.threads:
            thread.start()

    def _listen(self) -> None:
        while (message := messages.read(self.process.stdout)) is not None:
            self.inbox.put(message)

    def _log(self) -> None:
        self.log = self.process.stderr.read()

    def send(self, kind: type[Message], *values: Any, **fields: Any) -> int:
        """Send a message; jobs are numbered."""
        if "job" in kind.__dataclass_fields__ and kind is not Cancel:
            self.job += 1
            values = (self.job, *values)
        self.process.stdin.write(messages.encode(kind(*values, **fields)))
        self.process.stdin.flush()
        return self.job

    def next(self, job: int, *kinds: type[Message], timeout: float = 40) -> Any:
        """The next message of these kinds about that job."""
        deadline = time.monotonic() + timeout
        while True:
            message = self.inbox.get(timeout=max(0.1, deadline - time.monotonic()))
            self.said.append(message)
            if getattr(message, "job", None) == job and isinstance(message, kinds or ENDS):
                return message
            assert getattr(message, "job", None) != job or not isinstance(message, ENDS), message

    def of(self, job: int, *kinds: type[Message]) -> list[Any]:
        return [each for each in self.said if getattr(each, "job", None) == job and isinstance(each, kinds)]

    def close(self) -> float:
        """Close the pipe; how many seconds it took the process to end."""
        began = time.monotonic()
        self.process.stdin.close()
        try:
            self.process.wait(10)
        finally:
            took = time.monotonic() - began
            self.process.kill()
            for thread in self.threads:
                thread.join()
            self.process.stdout.close()
            self.process.stderr.close()
        while not self.inbox.empty():
            self.said.append(self.inbox.get())
        return took


def ended_once(worker: Process) -> bool:
    """Every job that has begun has one terminal message and no more."""
    ends = [each.job for each in worker.said if isinstance(each, ENDS)]
    return len(ends) == len(set(ends))


@pytest.fixture(scope="module")
def embedded() -> Iterator[Process]:
    worker = Process("-c", NOISY)
    loaded = worker.next(worker.send(Load, "embedded", "auto", "auto", 1))
    assert isinstance(loaded, Loaded), loaded
    assert (loaded.name, loaded.quantization, loaded.context) == ("embedded", "none", 4096)
    yield worker
    assert worker.close() < 2
    assert worker.process.returncode == 0
    assert b"noise" in worker.log
    assert ended_once(worker)


def prepare(worker: Process, document: str = "d", text: str = BAKERY, version: str = "v1", **more: Any) -> int:
    return worker.send(Prepare, document, version, text, None, 64, **more)


def ask(worker: Process, question: str = "Who bakes the rye bread?", document: str = "d", length: int = 64) -> int:
    return worker.send(Ask, document, question, None, length)


def test_a_question(embedded: Process) -> None:
    prepared = embedded.next(prepare(embedded))
    assert (prepared.version, prepared.kept, prepared.computed) == ("v1", 0, prepared.tokens)
    again = embedded.next(prepare(embedded, version="v2"))
    assert (again.version, again.kept, again.computed) == ("v2", prepared.tokens, 0)
    job = ask(embedded)
    answered = embedded.next(job)
    assert (answered.version, answered.text, answered.finish_reason) == ("v2", "Anna bakes the rye bread.", "stop")
    assert "".join(piece.text for piece in embedded.of(job, Piece)) == answered.text
    assert [type(each) for each in embedded.of(job, Message)][:3] == [Began, FirstToken, Piece]


def test_a_question_about_a_version_is_answered_from_no_other(embedded: Process) -> None:
    """Of two texts that were asked for, the older may be whole last."""
    for version, text in (("v1", BAKERY), ("v2", BAKERY.replace("Anna", "Tom"))):
        embedded.next(prepare(embedded, document="two", text=text, version=version))
    how = {"question": "Who bakes the rye bread?", "selection": None, "max_new_tokens": 64}
    failed = embedded.next(embedded.send(Ask, document="two", version="v1", **how))
    assert isinstance(failed, Failed)
    assert failed.details["notCached"]
    assert embedded.next(embedded.send(Ask, document="two", version="v2", **how)).text == "Tom bakes the rye bread."
    assert embedded.next(embedded.send(Ask, document="two", **how)).version == "v2"
    embedded.send(Forget, "two")


def test_what_is_typed_is_read_and_nothing_is_said_of_it(embedded: Process) -> None:
    embedded.send(Typing, "nobody's", "Who?", None)
    prepared = embedded.next(prepare(embedded, document="typed"))
    for words in (
        "Who",
        "Who bakes",
        "Who bakes the rye bread?",
        "Who bakes the rye bread?" * 500,
        "Who bakes the rye",
    ):
        embedded.send(Typing, "typed", words, None)
    embedded.send(Typing, "typed", "Who bakes it?", "The rye bread.")
    said = len(embedded.said)
    answered = embedded.next(ask(embedded, document="typed"))
    assert (answered.text, answered.cached) == ("Anna bakes the rye bread.", prepared.tokens)
    assert {type(each) for each in embedded.said[said:]} == {Began, FirstToken, Piece, Answered}
    embedded.send(Forget, "typed")


def test_progress_is_told_and_not_too_often(embedded: Process) -> None:
    began = time.monotonic()
    job = prepare(embedded, "p", BAKERY * 80)
    prepared = embedded.next(job)
    told = embedded.of(job, Reading)
    assert 2 <= len(told) <= 2 + 10 * (time.monotonic() - began)
    assert [each.done for each in told] == sorted({each.done for each in told})
    assert (told[0].done, told[-1].done) == (0, prepared.tokens)
    assert {(each.total, each.max_tokens) for each in told} == {(prepared.tokens, prepared.max_tokens)}


def test_bad_work_fails_and_the_worker_lives_on(embedded: Process) -> None:
    embedded.next(prepare(embedded))
    assert embedded.next(ask(embedded, "why " * 5000)).reason == "questionTooLong"
    failed = embedded.next(prepare(embedded, "e", BAKERY * 500))
    assert failed.reason == "documentTooLong"
    assert failed.details["tokens"] > failed.details["maxTokens"] > failed.details["line"] > 0
    assert embedded.next(ask(embedded, document="nobody")).details == {"notCached": True}
    unexpected = embedded.next(embedded.send(Ask, "d", None, None, 64))
    assert isinstance(unexpected, Answered | Failed)
    unexpected = embedded.next(embedded.send(Ask, "d", "Why?", None, "many"))
    assert (unexpected.reason, unexpected.message.count("\n")) == ("modelFailed", 0)
    assert unexpected.message.startswith("internal: TypeError")
    assert embedded.next(ask(embedded)).text == "Anna bakes the rye bread."


def test_cancelled_before_begun(embedded: Process) -> None:
    embedded.next(prepare(embedded))
    embedded.send(Cancel, embedded.job + 1)
    job = ask(embedded)
    assert isinstance(embedded.next(job), Halted)
    assert embedded.of(job, Began) == []
    embedded.send(Cancel, embedded.job + 1)
    assert isinstance(embedded.next(prepare(embedded, "e")), Halted)


def test_forgotten_and_dropped(embedded: Process) -> None:
    size = embedded.next(prepare(embedded, "a", "Anna." + BAKERY)).bytes
    embedded.next(prepare(embedded, "b", "Ben." + BAKERY))
    embedded.send(Forget, "a")
    assert embedded.next(ask(embedded, document="a")).details == {"notCached": True}
    embedded.send(Limit, size)
    assert embedded.next(prepare(embedded, "c", "Carl." + BAKERY)).bytes == size
    assert Dropped("b") in embedded.said
    embedded.send(Limit, None)
    assert isinstance(embedded.next(prepare(embedded)), Prepared)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A model of 0.1 billion random weights, by which nobody can be answered quickly."""
    folder = save_model(
        tmp_path_factory.mktemp("slow"),
        torch.bfloat16,
        hidden_size=1024,
        intermediate_size=3584,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=8192,
    )
    worker = Process(CAG_PARENT_PID=str(os.getpid()))
    loaded = worker.next(worker.send(Load, str(folder), "cpu", "auto", 1))
    assert isinstance(loaded, Loaded), loaded
    yield worker
    worker.close()
    (folder / "model.safetensors").unlink()


LONG = "A long one. " + BAKERY * 120  # about 5,000 tokens, and another from the first on


def test_asks_are_served_and_jobs_cancelled_while_a_document_is_read(slow: Process) -> None:
    assert isinstance(slow.next(prepare(slow)), Prepared)
    # 1. A long reading, another one behind it, and questions meanwhile.
    reading = prepare(slow, text=LONG, version="v2")
    first = slow.next(reading, Reading)
    assert first.done <= 64  # the prompt before it is that of the other text
    assert first.total > 4000
    behind, unanswerable, question = prepare(slow, "e"), ask(slow, document="f", length=2), ask(slow, length=2)
    answered = slow.next(question)
    assert (answered.version, answered.generated) == ("v1", 2)
    assert not slow.of(reading, *ENDS)
    # 2. Cancelled: between two layers, and what waits is done.
    slow.send(Cancel, unanswerable)
    slow.send(Cancel, reading)
    began = time.monotonic()
    assert isinstance(slow.next(reading), Halted)
    assert time.monotonic() - began < 10
    assert isinstance(slow.next(behind), Prepared)
    ends = slow.of(unanswerable, *ENDS) or [slow.next(unanswerable)]
    assert [type(end) for end in ends] == [Halted]
    # 3. The previous version still answers.
    assert slow.next(ask(slow, length=1)).version == "v1"


def test_an_answer_is_cancelled(slow: Process) -> None:
    slow.next(prepare(slow))
    job = ask(slow, length=4000)
    slow.next(job, Piece)
    slow.send(Cancel, job)
    began = time.monotonic()
    assert isinstance(slow.next(job), Halted)
    assert time.monotonic() - began < 5
    text = [slow.next(ask(slow, length=3)).text for _ in range(2)]
    assert text[0] == text[1]


def test_what_is_forgotten_is_not_read_on(slow: Process) -> None:
    reading = prepare(slow, "g", LONG)
    slow.next(reading, Reading)
    again = prepare(slow, "g", LONG)
    slow.send(Forget, "g")
    last = prepare(slow, "g", BAKERY)
    assert isinstance(slow.next(last), Prepared)
    assert [type(each) for job in (reading, again) for each in slow.of(job, *ENDS)] == [Halted, Halted]


def test_the_end_of_the_pipe_is_the_end(slow: Process) -> None:
    """The last test of this worker: it ends at once, however busy."""
    job = prepare(slow, "h", LONG)
    slow.next(job, Reading)
    time.sleep(0.5)
    assert slow.close() < 2
    assert slow.process.returncode == 0
    assert ended_once(slow)
    assert slow.of(job, *ENDS) == []


def test_the_end_of_the_pipe_while_loading() -> None:
    worker = Process()
    worker.send(Load, "embedded", "cpu", "auto", 1)
    time.sleep(1)
    assert worker.close() < 2


def test_half_a_message_is_the_end_of_the_pipe() -> None:
    worker = Process()
    worker.process.stdin.write(b"\0\0\1\0{")
    assert worker.close() < 2
    assert worker.process.returncode == 0


def test_what_is_asked_of_a_model_that_failed_to_load_fails_alike() -> None:
    worker = Process()
    early = worker.next(ask(worker))
    assert (early.reason, "must be loaded" in early.message) == ("modelFailed", True)
    failed = worker.next(worker.send(Load, "nowhere/at all", "cpu", "auto", 1))
    assert (failed.reason, type(failed)) == ("modelNotFound", Failed)
    for job in (prepare(worker), ask(worker)):
        assert worker.next(job) == Failed(job, failed.reason, failed.message, failed.details)
    assert worker.close() < 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_it_comes_after_everybody_else_and_never_outlives_its_parent() -> None:
    worker = Process()
    worker.next(ask(worker))
    process = Path(f"/proc/{worker.process.pid}")
    assert (process / "oom_score_adj").read_text().strip() == "800"
    assert os.getpriority(os.PRIO_PROCESS, worker.process.pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)
    os.kill(worker.process.pid, 2)  # the front decides, not the terminal
    assert isinstance(worker.next(ask(worker)), Failed)
    worker.close()
    orphan = Process(CAG_PARENT_PID="1")
    assert orphan.process.wait(10) == 0
    orphan.close()
