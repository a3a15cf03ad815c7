"""No network for this process from now on, and a note of what wanted it: how `doctor --offline` proves it."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
EVENTS = frozenset(
    {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.sendto"}
)


class Blocked:
    """What was refused since `block`.

    Attributes:
        tried: what wanted the network, in words.
        kernel: whether the system itself keeps this process off it, native code included.
    """

    def __init__(self) -> None:
        self.tried: list[str] = []
        self.kernel = False


def block() -> Blocked:
    """Refuse every connection and every look-up of a name, for the rest of this process's life.

    Python's own sockets are refused by an audit hook. On Linux, where it is allowed, the process also leaves for an
    empty network of its own: call this before there are threads.
    """
    blocked = Blocked()

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and not _local(arguments):
            blocked.tried.append(f"{event.removeprefix('socket.')} {arguments[-1] if arguments else ''}".strip())
            raise PermissionError(f"{event}: no network, this is a test")

    sys.addaudithook(refuse)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        flags = CLONE_NEWNET if os.geteuid() == 0 else CLONE_NEWUSER | CLONE_NEWNET
        blocked.kernel = libc.unshare(flags) == 0
    return blocked


def _local(arguments: tuple[Any, ...]) -> bool:
    """A socket of this machine's own: its address is a path."""
    return len(arguments) > 1 and isinstance(arguments[1], str | bytes) and not isinstance(arguments[0], str)
