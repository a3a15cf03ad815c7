"""Whose text is read next: what is waited for first, everybody in turn, nothing lost, never two at once."""

from __future__ import annotations

import asyncio
import gc
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cag_daemon.front.turns import Turns


async def ticks(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


class Reading:
    """Something that takes several steps, and goes on from where it was stopped."""

    def __init__(self, name: str, order: list[str], wanted: bool = False, steps: int = 3) -> None:
        self.name, self.order, self.wanted, self.steps = name, order, wanted, steps
        self.running = False
        self.done = 0

    async def work(self) -> str:
        self.order.append(f"{self.name} begins")
        self.running = True
        try:
            while self.done < self.steps:
                await asyncio.sleep(0)
                self.done += 1
        finally:
            self.running = False
        self.order.append(f"{self.name} ends")
        return self.name

    def at(self, turns: Turns) -> asyncio.Task[str]:
        return asyncio.ensure_future(turns.run(self.work, lambda: self.wanted))


def test_one_after_the_other_in_the_order_in_which_they_came() -> None:
    async def main() -> list[str]:
        turns, order = Turns(), []
        await asyncio.gather(*(Reading(name, order).at(turns) for name in "abc"))
        return order

    assert asyncio.run(main()) == ["a begins", "a ends", "b begins", "b ends", "c begins", "c ends"]


def test_what_is_waited_for_stops_what_is_not_and_that_goes_on_afterwards() -> None:
    async def main() -> list[str]:
        turns, order = Turns(), []
        idle, other = Reading("idle", order, steps=50), Reading("other", order)
        urgent = Reading("urgent", order, wanted=True)
        first, second = idle.at(turns), other.at(turns)
        await ticks(6)
        assert idle.running
        third = urgent.at(turns)
        assert await asyncio.gather(first, second, third) == ["idle", "other", "urgent"]
        return order

    order = asyncio.run(main())
    assert order.index("urgent ends") < order.index("idle ends")
    assert order.count("idle begins") == 2, "stopped once, and gone on with"


def test_what_is_waited_for_is_never_stopped() -> None:
    async def main() -> list[str]:
        turns, order = Turns(), []
        tasks = [Reading(name, order, wanted=True, steps=20).at(turns) for name in "ab"]
        await asyncio.gather(*tasks)
        return order

    assert asyncio.run(main()) == ["a begins", "a ends", "b begins", "b ends"]


def test_who_begins_to_wait_is_put_before_the_others_when_that_is_said() -> None:
    async def main() -> list[str]:
        turns, order = Turns(), []
        first = Reading("first", order, steps=100)
        tasks = [first.at(turns), Reading("second", order).at(turns)]
        third = Reading("third", order)
        tasks.append(third.at(turns))
        await ticks(6)
        third.wanted = True
        turns.look()
        await asyncio.gather(*tasks)
        return order

    order = asyncio.run(main())
    assert order.index("third ends") < order.index("second begins")


def test_a_failure_goes_to_who_asked_and_the_next_begins() -> None:
    async def main() -> None:
        turns, order = Turns(), []

        async def fails() -> str:
            raise ValueError("no")

        failing = asyncio.ensure_future(turns.run(fails, lambda: False))
        after = Reading("after", order).at(turns)
        with pytest.raises(ValueError, match="no"):
            await failing
        assert await after == "after"

    asyncio.run(main())


def test_nobody_complains_of_a_failure_whose_asker_went_at_the_same_time() -> None:
    told: list[object] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        turns, fail = Turns(), asyncio.Event()

        async def fails() -> str:
            await fail.wait()
            raise ValueError("no")

        asking = asyncio.ensure_future(turns.run(fails, lambda: False))
        await ticks(3)
        fail.set()
        await ticks(2)  # it has failed, and who asked has not yet heard of it
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        del asking
        gc.collect()
        await ticks(2)

    asyncio.run(main())
    assert not told


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_comes_and_goes_everything_ends_and_never_two_at_once(seed: int) -> None:
    async def main() -> None:
        dice, turns, order = random.Random(seed), Turns(), []
        readings = [Reading(str(at), order, dice.random() < 0.3, dice.randint(1, 12)) for at in range(8)]
        tasks: list[asyncio.Task[str]] = []
        cancelled = set()
        for at, reading in enumerate(readings):
            tasks.append(reading.at(turns))
            for _ in range(dice.randint(0, 6)):
                await asyncio.sleep(0)
                assert sum(each.running for each in readings) <= 1
            if dice.random() < 0.3:
                other = dice.randrange(at + 1)
                tasks[other].cancel()
                cancelled.add(other)
            if dice.random() < 0.3:
                readings[dice.randrange(at + 1)].wanted ^= True
                turns.look()
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        for at, result in enumerate(results):
            assert result == str(at) or (at in cancelled and isinstance(result, asyncio.CancelledError))

    asyncio.run(main())
