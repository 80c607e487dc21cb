"""The arithmetic behind ``bench.ledger``: what is counted, what is timed, what is refused."""

import asyncio
import json

import pytest

from bench.peers.port import document, team_names
from bench.peers.timing import (
    Drain,
    UnmeasurableError,
    claim_latencies_s,
    drain,
    in_turn,
    paired_ratio,
    percentile,
)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Queue:
    """Jobs that take a second to claim and half a second each to finish."""

    def __init__(self, clock: Clock, jobs: int) -> None:
        self._clock = clock
        self.waiting = jobs
        self.done = 0

    async def claim(self, batch: int) -> list[int]:
        self._clock.now_s += 1.0
        taken = min(batch, self.waiting)
        self.waiting -= taken
        return [0] * taken

    async def finish(self, jobs: list[int]) -> None:
        self._clock.now_s += 0.5 * len(jobs)
        self.done += len(jobs)


async def test_a_drain_counts_whole_batches_and_times_claims_and_finishes():
    clock = Clock()
    queue = Queue(clock, 100)
    found = await drain([queue], 4, 10, clock=clock)
    assert found == Drain(jobs=12, seconds=3 * (1.0 + 4 * 0.5))
    assert found.per_s == pytest.approx(12 / 9)
    assert queue.done == 12


async def test_every_claimer_finishes_what_it_claimed():
    clock = Clock()
    queues = [Queue(clock, 50), Queue(clock, 50)]
    found = await drain(queues, 5, 30, clock=clock)
    assert found.jobs == sum(queue.done for queue in queues) >= 30
    assert all(queue.waiting + queue.done == 50 for queue in queues)


async def test_time_after_the_last_finish_is_not_counted():
    clock = Clock()

    class Late(Queue):
        async def claim(self, batch: int) -> list[int]:
            await asyncio.sleep(0)  # the other one does it all meanwhile
            self._clock.now_s += 10.0
            return []

    found = await drain([Late(clock, 0), Queue(clock, 2)], 1, 2, clock=clock)
    assert found == Drain(jobs=2, seconds=3.0)
    assert clock() == 113.0


async def test_an_empty_queue_is_no_rate():
    clock = Clock()
    with pytest.raises(UnmeasurableError, match="nothing to claim after 3 of 10"):
        await drain([Queue(clock, 3)], 1, 10, clock=clock, stall_s=5.0)
    with pytest.raises(UnmeasurableError):
        _ = Drain(jobs=0, seconds=1.0).per_s


async def test_a_latency_ends_with_a_job():
    clock = Clock()

    class Sparse(Queue):
        looks = 0

        async def claim(self, batch: int) -> list[int]:
            self.looks += 1
            return await super().claim(batch) if self.looks % 3 == 0 else []

    queue = Sparse(clock, 4)
    assert len(await claim_latencies_s(queue, 4)) == 4
    assert (queue.looks, queue.done) == (12, 4)
    with pytest.raises(UnmeasurableError, match="nothing to claim after 3 of 4"):
        await claim_latencies_s(Queue(clock, 3), 4, stall_s=0.0)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (0.0, 1), (1.0, 100)])
def test_percentiles_are_of_the_values_themselves(share, expected):
    assert percentile(list(range(100, 0, -1)), share) == expected


def test_a_ratio_is_of_what_stood_side_by_side():
    # The machine slows down tenfold after the first pair: medians apart from each other would say 1.0.
    assert paired_ratio([200.0, 20.0, 20.0], [100.0, 10.0, 10.0]) == 2.0
    assert paired_ratio([30.0, 1.0, 2.0], [10.0, 1.0, 1.0]) == 2.0
    for ours, theirs in (([], []), ([1.0], [1.0, 2.0]), ([1.0], [0.0])):
        with pytest.raises(UnmeasurableError):
            paired_ratio(ours, theirs)


def test_each_comes_first_in_turn():
    names = ["ours", "theirs", "others"]
    rounds = [in_turn(names, number) for number in range(3)]
    assert [found[0] for found in rounds] == names
    assert all(sorted(found) == sorted(names) for found in rounds)


def test_every_queue_gets_about_200_bytes():
    names = team_names(1000)
    assert len(set(names)) == 1000
    assert 180 <= len(json.dumps(document(names[-1], 99_999))) <= 250
