"""The engine seen from the front: a worker process, started when needed, watched, restarted within a budget."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from cag_daemon import messages, runtime
from cag_daemon.config import Settings
from cag_daemon.errors import ModelFailed, RequestFailed, Stopped, failure
from cag_daemon.messages import Answered, Ask, Cancel, Failed, Halted, Limit, Load, Loaded, Message, Prepared

logger = logging.getLogger(__name__)

RESTARTS = 3
RESTART_SECONDS = 300.0
END_SECONDS = 3.0  # a worker that was asked to end takes one of them
PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])
# sys.path[0] is ours, never the workspace's: an edited project must not choose the code that runs.
WORKER = "import sys; sys.path[0] = sys.argv.pop(1); from cag_daemon.engine.worker import main; main()"

BackendState = Literal["stopped", "loading", "ready", "failed"]


class WorkerGone(Exception):
    """There is no worker (any more). ``signal``: what ended it, or 0; ``reason``: as in `CancelledByDaemon`."""

    def __init__(self, code: int | None, reason: str = "workerRestarted") -> None:
        self.reason = reason
        self.unasked = code is not None
        self.device_failed = code == messages.DEVICE_FAILED
        self.signal = -code if code is not None and code < 0 else 0
        how = f"was ended by {_signal_name(self.signal)}" if self.signal else f"ended with exit code {code}"
        if self.device_failed:
            how = "lost its device (as after a suspend, or an error of the driver)"
        super().__init__(f"The model's process {how if code is not None else 'was stopped'}")


def _signal_name(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


def _kill(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()


async def _collect(process: Process) -> None:
    try:
        await asyncio.wait_for(process.wait(), END_SECONDS)
    except asyncio.TimeoutError:
        _kill(process)
        await process.wait()


async def _log_lines(process: Process, log: Callable[[str], None]) -> None:
    """Hand on what a process prints, to its end; a line that is longer than a line should be, in pieces."""
    assert process.stderr is not None
    while piece := await process.stderr.read(8192):
        for line in piece.decode("utf-8", "replace").splitlines():
            log(line)


class Backend:
    """One worker with one model.

    Args:
        settings: what to load; the worker keeps them for life.
        on_change: called when ``state`` has changed.
        on_dropped: called with the name of a document whose cache had to leave memory, and whether it was wrong.
        on_gone: called when a worker ended that nobody had stopped.
        environment: of whoever wants the model, which counts before this process's; empty: that is this process's.
        log_worker: takes what the worker prints, a line at a time; None: it goes where our own stderr goes.
    """

    def __init__(
        self,
        settings: Settings,
        on_change: Callable[[], None],
        on_dropped: Callable[[str, bool], None],
        on_gone: Callable[[WorkerGone], None],
        environment: Mapping[str, str],
        log_worker: Callable[[str], None] | None = None,
    ) -> None:
        self.settings = settings
        self.state: BackendState = "stopped"
        self.model: Loaded | None = None
        self.percent = 0  # of loading
        self.error: RequestFailed | None = None
        self.characters = 0  # of the longest document, when a model is loaded for it
        self._on_change, self._on_dropped, self._on_gone = on_change, on_dropped, on_gone
        self._environment, self._log_worker = environment, log_worker
        self._device: str | None = None  # where the model was; it is not somewhere else after a failure, unasked
        self._process: Process | None = None
        self._loading: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._collecting: asyncio.Future[None] | None = None
        self._jobs = itertools.count(1)
        self._open: dict[int, tuple[asyncio.Future[Message], Callable[[Message], None], object]] = {}
        self._deaths: deque[float] = deque(maxlen=RESTARTS + 1)
        self._device_failed = -RESTART_SECONDS

    @property
    def ending(self) -> bool:
        """Whether a worker that was stopped has not gone yet."""
        return self._collecting is not None and not self._collecting.done()

    @property
    def pid(self) -> int | None:
        """Of the worker; None: there is none."""
        return None if self._process is None else self._process.pid

    async def ready(self) -> Loaded:
        """The model, loaded now if it was not. A failure stays until `retry`."""
        while self.model is None:
            if self.error is not None:
                raise self.error
            if self._loading is None:
                self._loading = asyncio.ensure_future(self._load())
            # Not awaited itself: `stop` cancels it, and that is not the caller's end.
            await asyncio.wait({self._loading})
        return self.model

    async def run(
        self, message: Message, on_event: Callable[[Message], None] = lambda _: None, owner: object = None
    ) -> Message:
        """Have a job done (a message with ``job`` 0, which is set here) and return what came of it.

        Args:
            message: the job.
            on_event: called with what the worker says of it on the way.
            owner: whose it is, see `fail`.

        Raises:
            RequestFailed: the worker says why.
            Stopped: somebody called `cancel`.
            WorkerGone: there is no worker any more.
        """
        job = next(self._jobs)
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._open[job] = (future, on_event, owner)
        try:
            self.send(dataclasses.replace(message, job=job))  # type: ignore[call-arg]
            result = await future
        except asyncio.CancelledError:
            # The worker may be in the midst of it; what it still says of this job is not listened to.
            self.send(Cancel(job))
            raise
        finally:
            self._open.pop(job, None)
        if isinstance(result, Failed):
            raise failure(result.reason, result.message, result.details)
        if isinstance(result, Halted):
            raise Stopped
        return result

    def send(self, message: Message) -> None:
        """Send what needs no answer; silently nothing where no worker runs: it has forgotten everything anyway."""
        if self._process is not None and self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(messages.encode(message))
        elif isinstance(message, Ask | messages.Prepare | Load):
            raise WorkerGone(None)

    def fail(self, owner: object, gone: WorkerGone) -> None:
        """End the open jobs of one owner; the worker stops doing them."""
        for job, (future, _, whose) in list(self._open.items()):
            if whose is owner and not future.done():
                self.send(Cancel(job))
                future.set_exception(gone)

    def limit_memory(self, memory_bytes: int | None) -> None:
        """How much all caches together may take, from now on."""
        self.send(Limit(memory_bytes))

    def retry(self) -> None:
        """Forget a failure: the next `ready` tries again."""
        if self.error is not None:
            self.error = None
            self._set("stopped")

    def stop(self, reason: str = "workerRestarted") -> None:
        """End the worker; open jobs end with a `WorkerGone` of that reason now, and nobody is told otherwise."""
        self._end(reason, gently=True)
        self.error = None
        self._set("stopped")

    async def ended(self, seconds: float) -> None:
        """Wait for the worker that was stopped to be gone, so long at most."""
        if self._collecting is not None:
            await asyncio.wait({self._collecting}, timeout=seconds)

    def _end(self, reason: str, gently: bool = False) -> None:
        """End the worker: at once, or when it has brought its caches to the disk, for which it takes a second."""
        process, self._process = self._process, None
        for task in (self._watching, self._loading):
            if task is not None:
                task.cancel()
        self._watching = self._loading = None
        if process is not None and process.returncode is None:
            assert process.stdin is not None
            if gently:
                process.stdin.close()
            else:
                _kill(process)
            # Collect it, so that no zombie stays for as long as the front lives.
            self._collecting = asyncio.ensure_future(_collect(process))
        self._fail_open(WorkerGone(None, reason))
        self.model, self.percent = None, 0

    async def _load(self) -> None:
        self.percent = 0
        self._set("loading")
        try:
            self._process = await self._spawn(self.settings)
            self._watching = asyncio.ensure_future(self._watch(self._process))
            wanted = self.settings
            load = Load(
                job=0,
                model=wanted.model,
                device=self._device if self._device is not None and wanted.device == "auto" else wanted.device,
                dtype=wanted.dtype,
                threads=wanted.threads,
                quantization=wanted.quantization,
                characters=self.characters,
                max_new_tokens=wanted.max_new_tokens,
                memory_bytes=wanted.memory_bytes,
                cache_directory=wanted.kept_in,
                cache_bytes=wanted.cache_bytes,
            )
            loaded = await self.run(load, self._loaded_so_far)
            assert isinstance(loaded, Loaded)
            self.limit_memory(self.settings.memory_bytes)  # it may have changed meanwhile
            self.model, self._device = loaded, "cuda" if "," in loaded.device else loaded.device
            self._set("ready")
        except RequestFailed as error:
            self._fail(error)
        except OSError as error:
            self._fail(ModelFailed(f"The model's process could not be started: {error.strerror}; free some resources."))
        except WorkerGone:
            pass  # `_watch` has counted it, and `ready` looks again.
        finally:
            # After a `stop` there may be another one already.
            if self._loading is asyncio.current_task():
                self._loading = None

    def _loaded_so_far(self, message: Message) -> None:
        assert isinstance(message, messages.Loading)
        self.percent = message.percent
        self._on_change()

    def _fail(self, error: RequestFailed) -> None:
        self._loading = None
        self._end("workerRestarted")
        self.error = error
        self._set("failed")

    async def _spawn(self, settings: Settings) -> Process:
        # Where a client has told its environment, ours is not its: it was another's who started us.
        ours = {name: each for name, each in os.environ.items() if not (self._environment and runtime.is_told(name))}
        environment = (
            ours
            | dict(self._environment)
            | {
                "CAG_PARENT_PID": str(os.getpid()),
                "CAG_THREADS": str(settings.threads),
                "OMP_NUM_THREADS": str(settings.threads),
                "HF_HUB_OFFLINE": "1",
                "TRANSFORMERS_OFFLINE": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "TOKENIZERS_PARALLELISM": "false",
            }
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", WORKER, PACKAGE_PARENT),
            stdin=PIPE,
            stdout=PIPE,
            stderr=None if self._log_worker is None else PIPE,
            env=environment,
        )
        if self._log_worker is not None:
            self._logging = asyncio.ensure_future(_log_lines(process, self._log_worker))
        return process

    async def _watch(self, process: Process) -> None:
        """Hand out what the worker says; when it ends unasked, say so, and count it."""
        assert process.stdout is not None
        try:
            while True:
                header = await process.stdout.readexactly(messages.HEADER.size)
                (length,) = messages.HEADER.unpack(header)
                self._hand_out(messages.decode(await process.stdout.readexactly(length)))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except Exception:
            logger.exception("what the worker said could not be understood")
            process.kill()
        gone = WorkerGone(await process.wait())
        logger.warning("%s", gone)
        self._process = None
        self.model, self.percent = None, 0
        now = time.monotonic()
        self._deaths.append(now)
        if gone.device_failed:
            again, self._device_failed = now - self._device_failed < RESTART_SECONDS, now
            if again:
                self.error = ModelFailed(
                    f"{gone}, again. Another device is not chosen by itself: restart the machine or its driver and "
                    "refresh, or set device to cpu."
                )
        if len(self._deaths) > RESTARTS and now - self._deaths[0] < RESTART_SECONDS:
            self.error = ModelFailed(
                f"{gone}, and so it did {RESTARTS} times before within {RESTART_SECONDS / 60:.0f} minutes. "
                "See the log; change the settings or the document, or refresh."
            )
            self._deaths.clear()
        self._fail_open(gone)
        self.state = "failed" if self.error else "stopped"
        self._on_gone(gone)
        self._on_change()

    def _hand_out(self, message: Message) -> None:
        if isinstance(message, messages.Dropped):
            self._on_dropped(message.document, message.wrong)
            return
        future, on_event, _ = self._open.get(getattr(message, "job", 0), (None, None, None))
        if future is None or on_event is None or future.done():
            return
        if isinstance(message, Loaded | Prepared | messages.Postponed | Answered | Failed | Halted):
            future.set_result(message)
        else:
            on_event(message)

    def _fail_open(self, gone: WorkerGone) -> None:
        for future, _, _ in self._open.values():
            if not future.done():
                future.set_exception(gone)

    def _set(self, state: BackendState) -> None:
        if state != self.state:
            self.state = state
            self._on_change()
