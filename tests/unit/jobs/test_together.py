"""Group commit: who goes with whom, and who is told what."""

import asyncio

import pytest

from services.common.errors import Kind, Reason, VoxfleetError
from services.common.together import Together


class Runs:
    """Answers each ask with its double, once it is let go."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.gate = asyncio.Event()

    async def __call__(self, asked):
        self.seen.append(list(asked))
        await self.gate.wait()
        if any(each < 0 for each in asked):
            raise ValueError("negative")
        return [2 * each for each in asked]


async def settled(*tasks: "asyncio.Task[int]") -> None:
    """Lets every task come as far as it can by itself."""
    for _ in range(5 + len(tasks)):
        await asyncio.sleep(0)


def ask(together, *asks: int, keys=None):
    return [asyncio.create_task(together(each, keys or [each])) for each in asks]


async def test_a_lone_ask_goes_at_once_and_those_behind_it_go_together():
    runs = Runs()
    together = Together(runs, most=10)
    first = ask(together, 1)
    await settled(*first)
    assert runs.seen == [[1]]
    behind = ask(together, 2, 3, 4)
    await settled(*behind)
    assert runs.seen == [[1]]
    runs.gate.set()
    assert await asyncio.gather(*first, *behind) == [2, 4, 6, 8]
    assert runs.seen == [[1], [2, 3, 4]]


async def test_more_than_goes_into_one_run_goes_beside_it():
    runs = Runs()
    together = Together(runs, most=2, at_once=2)
    tasks = ask(together, 1, 2, 3, 4, 5)
    await settled(*tasks)
    assert runs.seen == [[1], [2, 3]]  # as many beside one another as may be; the rest waits
    runs.gate.set()
    assert await asyncio.gather(*tasks) == [2, 4, 6, 8, 10]
    assert runs.seen == [[1], [2, 3], [4, 5]]


async def test_no_key_stands_twice_in_one_run():
    runs = Runs()
    runs.gate.set()
    together = Together(runs, most=10)
    tasks = [*ask(together, 1), *ask(together, 2, 3, 4, keys=["same"])]
    assert await asyncio.gather(*tasks) == [2, 4, 6, 8]
    assert runs.seen == [[1], [2], [3], [4]]


async def test_one_ask_that_cannot_be_answered_does_not_spoil_the_others():
    runs = Runs()
    together = Together(runs, most=10)
    tasks = ask(together, 1, 2, -3, 4)
    await settled(*tasks)
    runs.gate.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert (found[0], found[1], found[3]) == (2, 4, 8)
    assert isinstance(found[2], ValueError)


async def test_what_concerns_all_is_told_to_all_and_tried_once():
    tries = 0

    async def unavailable(_):
        nonlocal tries
        tries += 1
        raise VoxfleetError(Reason.DATABASE_UNAVAILABLE, "gone", kind=Kind.UNAVAILABLE)

    together = Together(unavailable, most=10)
    found = await asyncio.gather(*ask(together, 1, 2, 3), return_exceptions=True)
    assert [each.reason for each in found] == [Reason.DATABASE_UNAVAILABLE] * 3
    assert tries == 2  # the first alone, the others together


async def test_a_caller_that_goes_away_takes_nobody_along():
    runs = Runs()
    unwanted: list[int] = []
    together = Together(runs, most=10, unwanted=unwanted.append)
    first, gone, last = ask(together, 1, 2, 3)
    await settled(first, gone, last)
    gone.cancel()
    runs.gate.set()
    assert await asyncio.gather(first, last) == [2, 6]
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert unwanted == [4]
