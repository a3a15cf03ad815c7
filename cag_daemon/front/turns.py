"""Whose text is read next, where several sessions share a worker.

One text at a time. What somebody waits for comes before what nobody waits for, and stops it; among equals whoever came
first. As a session never has more than one text to be read, that is taking turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(eq=False)
class Turn:
    """Something that is to be read, or is being read."""

    wanted: Callable[[], bool]
    begins: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    task: asyncio.Future[Any] | None = None
    put_off: bool = False


class Turns:
    """The order in which texts are read."""

    def __init__(self) -> None:
        self._waiting: list[Turn] = []
        self._current: Turn | None = None

    async def run(self, work: Callable[[], Awaitable[T]], wanted: Callable[[], bool]) -> T:
        """Do the work when it is its turn; it may be stopped for something more urgent, and then begins again.

        Args:
            work: can be cancelled, and goes on from where it was when it is called again.
            wanted: whether somebody waits for it now.

        Raises:
            what ``work`` raises.
        """
        while True:
            turn = Turn(wanted)
            self._waiting.append(turn)
            try:
                self.look()
                await turn.begins
                task = asyncio.ensure_future(work())
                task.add_done_callback(_heard)
                turn.task = task
                self.look()  # something more urgent may have come just now
                try:
                    await asyncio.wait({task})
                finally:
                    if not task.done():
                        task.cancel()
                if not (task.cancelled() and turn.put_off):
                    return task.result()
            finally:
                if turn in self._waiting:
                    self._waiting.remove(turn)
                if self._current is turn:
                    self._current = None
                self.look()

    def look(self) -> None:
        """See whether somebody's turn has come, or what is being read is less urgent than what waits."""
        following = next((turn for turn in self._waiting if turn.wanted()), None)
        current = self._current
        if current is None:
            following = following or next(iter(self._waiting), None)
            if following is not None:
                self._waiting.remove(following)
                self._current = following
                if not following.begins.done():
                    following.begins.set_result(None)
        elif following is not None and not current.wanted() and not current.put_off and current.task is not None:
            current.put_off = True
            current.task.cancel()


def _heard(task: asyncio.Future[Any]) -> None:
    """Whoever wanted it may have been cancelled as it failed: then nobody asks why, and asyncio would complain."""
    if not task.cancelled():
        task.exception()
