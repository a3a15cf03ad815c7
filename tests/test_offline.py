"""`doctor --offline` refuses the network, and notes who wanted it."""

from __future__ import annotations

import subprocess
import sys

import pytest

TRIES = {
    "a name": "socket.create_connection(('example.invalid', 80), timeout=5)",
    "an address": "socket.create_connection(('127.0.0.1', port), timeout=5)",
    "a datagram": "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', port))",
    "a library": "import urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{port}/', timeout=5)",
}
CODE = """
import socket, threading
from cag_daemon.offline import block
server = socket.create_server(("127.0.0.1", 0)); port = server.getsockname()[1]
{before}
try:
    {attempt}
except OSError as error:
    print("refused", type(error).__name__)
else:
    print("through")
{after}
"""


def run(**parts: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", CODE.format(**parts)], check=True, capture_output=True, text=True, timeout=60
    ).stdout


@pytest.mark.parametrize("what", TRIES)
def test_what_wants_the_network_is_refused_and_noted(what: str) -> None:
    before, after = "blocked = block()", "print(len(blocked.tried) > 0)"
    assert "refused" in (said := run(before=before, attempt=TRIES[what], after=after))
    assert said.endswith("True\n")


def test_without_it_there_is_a_way_through() -> None:
    assert run(before="", attempt=TRIES["an address"], after="") == "through\n"


def test_sockets_of_the_machine_itself_are_no_network(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("s") / "s"
    before = f"blocked = block(); own = socket.socket(socket.AF_UNIX); own.bind({str(path)!r}); own.listen()"
    attempt = f"socket.socket(socket.AF_UNIX).connect({str(path)!r})"
    assert run(before=before, attempt=attempt, after="print(blocked.tried)") == "through\n[]\n"
