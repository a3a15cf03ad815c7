"""Daemons for tests: real processes over real stdio, each in folders of its own."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.client import SERVE, Client
from tests.daemon.slow import make_slow_model
from tests.documents import LIGHTHOUSE

# For the slow model: read in no time; in some seconds; in much longer than a test has patience for.
SHORT = "The cat sleeps in a copper kettle.\n"
MEDIUM = LIGHTHOUSE.text
LONG = "".join(f"Chapter {number}. {LIGHTHOUSE.text}\n" for number in range(30))


class Daemons:
    """Starts daemons, and ends them: each is asked to go, and its whole exchange is checked."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._numbers = itertools.count(1)
        self._started: list[Client] = []

    def workspace(self, text: str | bytes | None = LIGHTHOUSE.text, name: str = "workspace") -> Path:
        """A new folder with a ``document.txt`` of that text; of None without one."""
        folder = self._base / f"{name} {next(self._numbers)}"
        folder.mkdir()
        if text is not None:
            (folder / "document.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
        return folder

    def __call__(
        self,
        text: str | bytes | None = LIGHTHOUSE.text,
        *,
        folders: Sequence[Path] | None = None,
        options: Mapping[str, Any] | None = None,
        capabilities: Mapping[str, Any] | None = None,
        initialize: bool = True,
        process_id: int | None = None,
        arguments: Sequence[str] = SERVE,
        flags: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        settings: Any = None,
        beside: Client | None = None,
    ) -> Client:
        """A daemon with one workspace folder, unless told otherwise; ``client.folder`` and ``client.document``.

        ``beside``: another client, whose front this one shares.
        """
        folders = [self.workspace(text)] if folders is None else folders
        elsewhere = self._base / f"elsewhere {next(self._numbers)}"  # a relative document is not one of the cwd
        elsewhere.mkdir()
        home, runtime = (beside.home, beside.runtime) if beside is not None else (None, None)
        client = Client(elsewhere, arguments=arguments, flags=flags, env=env, home=home, runtime=runtime)
        self._started.append(client)
        client.settings = settings
        if folders:
            client.folder = folders[0]
            client.document = folders[0] / "document.txt"
        if initialize:
            client.initialize(folders, options, capabilities, process_id=process_id)
        return client

    def close(self) -> None:
        """Ends all; the first law that one of them broke is raised when all are gone."""
        failures = []
        for client in reversed(self._started):
            try:
                client.stop()
            except AssertionError as failure:
                failures.append(failure)
        if failures:
            raise failures[0]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemons]:
    """The factory of this test's own daemons."""
    daemons = Daemons(tmp_path)
    yield daemons
    daemons.close()


@pytest.fixture(scope="module")
def module_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemons]:
    """The factory of daemons that the tests of a module share."""
    daemons = Daemons(tmp_path_factory.mktemp("daemons"))
    yield daemons
    daemons.close()


@pytest.fixture(scope="session")
def session_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemons]:
    """The factory of daemons that all tests share."""
    daemons = Daemons(tmp_path_factory.mktemp("daemons"))
    yield daemons
    daemons.close()


@pytest.fixture(scope="session")
def calm(session_daemon: Daemons) -> Client:
    """A daemon with the embedded model and LIGHTHOUSE, whose document no test may change."""
    client = session_daemon()
    client.wait_status("ready")
    return client


@pytest.fixture(scope="session")
def bare(session_daemon: Daemons) -> Client:
    """A daemon with a folder and no document: nothing is loaded, and all manners can be tested at once."""
    client = session_daemon(None)
    client.wait_status("noDocument")
    return client


@pytest.fixture(scope="session")
def quiet(session_daemon: Daemons) -> Client:
    """A daemon with the embedded model whose client shows answers itself; its document may be changed."""
    client = session_daemon(options={"showAnswers": False})
    client.wait_status("ready")
    return client


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Mistral of some 0.3 billion parameters, with the embedded model's tokenizer."""
    return make_slow_model(tmp_path_factory.mktemp("models") / "slow")


@pytest.fixture(scope="session")
def slow_flags(slow_model: Path) -> list[str]:
    """What starts a daemon with the slow model, as slow as on a small machine.

    float32: some processors take minutes for what is bfloat16. Nothing is kept: what was read once would be there.
    """
    return [
        "--cache-max-gigabytes",
        "0",
        "--model",
        str(slow_model),
        "--dtype",
        "float32",
        "--device",
        "cpu",
        "--threads",
        "1",
    ]


@pytest.fixture(scope="session")
def slow_daemon(session_daemon: Daemons, slow_flags: list[str]) -> Client:
    """A daemon with the slow model, which reads only when asked."""
    return session_daemon(SHORT, options={"refresh": "ask"}, flags=slow_flags)


@pytest.fixture
def slow(slow_daemon: Client) -> Client:
    """The same, with a short document that is read, nothing to do, and nothing known of any other text."""
    slow_daemon.document.write_text(SHORT, encoding="utf-8")
    slow_daemon.request("cag/refresh", {"force": True}).result()
    slow_daemon.ask("What?", maxNewTokens=1).result()
    slow_daemon.wait_status("ready")
    return slow_daemon


def at_rest(process: psutil.Process, timeout: float = 20) -> bool:
    """Waits until the process computes nothing any more."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        before = sum(process.cpu_times()[:2])
        time.sleep(0.5)
        if sum(process.cpu_times()[:2]) - before < 0.1:
            return True
    return False
