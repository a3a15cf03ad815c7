"""The process: messages in, messages out. Started by the front, ``python -m cag_daemon.engine.worker``.

Two threads. One reads the pipe: a `Cancel` counts at once, the rest is queued, and when the pipe ends so does the
process, whatever it is doing. The other owns the tensors and takes the messages in order; while it reads a document it
answers, between chunks, the questions that a whole cache can answer.

Nothing heavy is imported before the pipe is out of everybody's reach.
"""

from __future__ import annotations

import ctypes
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from cag_daemon import messages
from cag_daemon.engine.devices import device_failed
from cag_daemon.errors import ModelFailed, Postponed, RequestFailed, Stopped, one_line
from cag_daemon.messages import Ask, Cancel, Failed, Forget, Halted, Limit, Load, Message, Prepare

if TYPE_CHECKING:
    from cag_daemon.engine.engine import Engine

log = logging.getLogger(__name__)

READING_SECONDS = 0.1  # between two messages about progress
QUIET_SECONDS = 10.0  # without a message, and what is cached is brought to the disk
END_SECONDS = 1.0  # for that, once the front has gone
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class End(Message):
    """The pipe has ended. It never travels."""


class Worker:
    """The work of the process, on a pair of streams.

    Args:
        source, sink: the pipe's ends; blocking.
    """

    def __init__(self, source: BinaryIO, sink: BinaryIO) -> None:
        self._source = source
        self._sink = sink
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._waiting: deque[Message] = deque()
        self._cancelled: set[int] = set()
        self._engine: Engine | None = None
        self._load_error: RequestFailed | None = None
        self._limit = Limit(None)
        self._typing: messages.Typing | None = None  # the newest that was not looked at

    def run(self) -> None:
        """Serve until the pipe ends; never returns."""
        threading.Thread(target=self._read, daemon=True, name="pipe").start()
        while True:
            self._serve(self._waiting.popleft() if self._waiting else self._next())

    def _next(self) -> Message:
        """The next message; while none comes, what is cached is brought to the disk, a little at a time."""
        while True:
            if self._typing is not None and self._inbox.empty():
                self._read_typed()
            keeping = self._engine.keeping if self._engine is not None else None
            if keeping is None or not keeping.busy:
                return self._inbox.get()
            with suppress(queue.Empty):
                return self._inbox.get(timeout=QUIET_SECONDS)
            assert self._engine is not None
            self._engine.quiet()
            while keeping.busy and self._inbox.empty():
                keeping.work(lambda: not self._inbox.empty())

    # ── the thread that reads the pipe ──

    def _read(self) -> None:
        try:
            while (message := messages.read(self._source)) is not None:
                if isinstance(message, Cancel):
                    self._cancelled.add(message.job)
                else:
                    self._inbox.put(message)
        except BaseException:
            log.exception("The pipe from the front can't be read.")
        self._end_soon()

    def _end_soon(self) -> None:
        """The front has closed the pipe: who has nothing to do brings what is cached to the disk, for a second."""
        _outlive_the_front()
        self._inbox.put(End())
        time.sleep(END_SECONDS)
        # Not sys.exit: a native call may run for seconds, and nobody wants its result.
        os._exit(0)

    # ── the thread that owns the tensors ──

    def _serve(self, message: Message) -> None:
        if isinstance(message, End):
            late = time.monotonic() + 0.8 * END_SECONDS
            with suppress(Exception):
                if self._engine is not None and self._engine.keeping is not None:
                    self._engine.keeping.finish(until=lambda: time.monotonic() > late)
            os._exit(0)
        elif isinstance(message, Load):
            self._end(message, self._load)
        elif isinstance(message, Prepare):
            self._end(message, self._prepare)
        elif isinstance(message, Ask):
            self._end(message, self._ask)
        elif isinstance(message, Limit):
            self._limit = message
            if self._engine:
                self._engine.limit(message.memory_bytes)
        elif isinstance(message, messages.Typing):
            self._typing = message
        elif isinstance(message, messages.Keep) and self._engine:
            self._engine.keep(message.cache_directory, message.cache_bytes)
        elif isinstance(message, messages.Saved) and self._engine:
            self._engine.saved(message.document, message.version, message.file)
        elif isinstance(message, Forget) and self._engine:
            self._engine.forget(message.document, message.write)

    def _end(self, message: Any, work: Callable[[Any], Message]) -> None:
        """Do a job; whatever happens, exactly one message ends it."""
        try:
            if message.job in self._cancelled:
                raise Stopped
            end = work(message)
        except Stopped:
            end = Halted(message.job)
        except Postponed as put_off:
            end = messages.Postponed(message.job, put_off.tokens, put_off.max_tokens, put_off.seconds)
        except RequestFailed as error:
            end = Failed(message.job, str(error.reason), error.message, error.details)
        except Exception as error:
            if device_failed(error):
                log.error("The device failed: %s", one_line(error))
                os._exit(messages.DEVICE_FAILED)  # the front starts another worker, on the same device
            log.exception("Job %s failed.", message.job)
            end = Failed(message.job, "modelFailed", f"internal: {one_line(error)}; see the log, and please report it.")
        self._cancelled.discard(message.job)
        self._send(end)

    def _load(self, message: Load) -> Message:
        # Read once, when torch is imported. Threads that wait actively would take the editor's time.
        os.environ.update(OMP_NUM_THREADS=str(message.threads), OMP_WAIT_POLICY="PASSIVE")
        from cag_daemon.engine.model import load_model
        from cag_daemon.engine.plan import Wanted

        last = -1

        def progress(percent: int) -> None:
            nonlocal last
            if percent > last:
                last = percent
                self._send(messages.Loading(message.job, percent))

        try:
            asked = {each.name: getattr(message, each.name) for each in fields(Wanted)}
            loaded = load_model(Wanted(**asked), progress)
            from cag_daemon.engine.engine import Engine
            from cag_daemon.engine.self_test import self_test

            tested = self_test(loaded, message.cache_directory)
            self._engine = Engine(
                loaded,
                lambda document: self._send(messages.Dropped(document)),
                message.cache_directory,
                message.cache_bytes,
                tested.passed,
                lambda document: self._send(messages.Dropped(document, wrong=True)),
                tested.widths,
            )
            self._engine.limit(self._limit.memory_bytes)
        except RequestFailed as error:
            self._load_error = error
            raise
        return messages.Loaded(
            job=message.job,
            name=loaded.name,
            why=loaded.why,
            device=loaded.device,
            dtype=loaded.dtype,
            quantization=loaded.quantization,
            parameters=loaded.parameters,
            bytes=loaded.bytes,
            chunk=loaded.chunk,
            context=loaded.context,
            reads=loaded.reads,
        )

    def _prepare(self, message: Prepare) -> Message:
        last = 0.0

        def progress(done: int, total: int, max_tokens: int) -> None:
            nonlocal last
            if done == total or time.monotonic() - last >= READING_SECONDS:
                last = time.monotonic()
                self._send(messages.Reading(message.job, done, total, max_tokens))

        reading = self._whole_engine().prepare(
            message.document,
            message.version,
            message.text,
            message.system_prompt,
            message.max_new_tokens,
            message.force,
            message.characters,
            message.patience,
            message.file,
            message.saved,
            progress=progress,
            should_stop=lambda: message.job in self._cancelled,
            between_chunks=lambda: self._meanwhile(message),
        )
        return messages.Prepared(message.job, **asdict(reading))

    def _ask(self, message: Ask) -> Message:
        engine = self._whole_engine()
        self._send(messages.Began(message.job))
        answer = engine.ask(
            message.document,
            message.question,
            message.selection,
            message.max_new_tokens,
            message.version,
            on_first_token=lambda: self._send(messages.FirstToken(message.job)),
            on_piece=lambda text: self._send(messages.Piece(message.job, text)),
            should_stop=lambda: message.job in self._cancelled,
        )
        return messages.Answered(message.job, **asdict(answer))

    def _read_typed(self) -> None:
        """What is typed is read until anything else comes."""
        typing, self._typing = self._typing, None
        try:
            if self._engine is not None and typing is not None:
                self._engine.typing(typing.document, typing.question, typing.selection, lambda: not self._inbox.empty())
        except Exception as error:  # the question will say what is wrong, if anything is
            if device_failed(error):
                log.error("The device failed: %s", one_line(error))
                os._exit(messages.DEVICE_FAILED)
            log.info("A question that is being typed could not be read: %s", one_line(error))
            if self._engine is not None:
                self._engine.quiet()

    def _meanwhile(self, reading: Prepare) -> None:
        """Between two chunks of a document: all that needs no reading."""
        engine = self._whole_engine()
        with suppress(queue.Empty):
            while True:
                self._waiting.append(self._inbox.get_nowait())
        for message in [self._waiting.popleft() for _ in range(len(self._waiting))]:
            if isinstance(message, Forget):
                # Also what was asked for before it and would bring the document back.
                for each in (reading, *self._waiting):
                    if isinstance(each, Prepare) and each.document == message.document:
                        self._cancelled.add(each.job)
            ready = isinstance(message, Ask) and engine.has(message.document)
            cancelled = getattr(message, "job", None) in self._cancelled
            now = Forget | Limit | messages.Keep | messages.Saved | messages.Typing
            if ready or cancelled or isinstance(message, now):
                self._serve(message)
            else:
                self._waiting.append(message)

    def _whole_engine(self) -> Engine:
        if self._engine is None:
            raise self._load_error or ModelFailed("internal: a model must be loaded first.")
        return self._engine

    def _send(self, message: Message) -> None:
        try:
            self._sink.write(messages.encode(message))
            self._sink.flush()
        except OSError:  # the front is gone
            os._exit(0)


def main() -> None:
    """Be a worker on fds 0 and 1."""
    source, sink = _take_pipe()
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the front decides
    _step_back()
    Worker(source, sink).run()


def _take_pipe() -> tuple[BinaryIO, BinaryIO]:
    """Move the pipe away from fds 0 and 1: what anybody prints, native code too, goes to stderr."""
    source, sink = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return os.fdopen(source, "rb"), os.fdopen(sink, "wb")


def _outlive_the_front() -> None:
    """For the second that is left: the front may go before."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0)


def _step_back() -> None:
    """End with the front, come after everybody else, and be the first to go when memory runs out."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("800")
        if os.environ.get("CAG_PARENT_PID", str(os.getppid())) != str(os.getppid()):
            os._exit(0)  # the front had gone before we asked to be told
    if hasattr(os, "nice"):
        with suppress(OSError):
            os.nice(10)


if __name__ == "__main__":
    main()
