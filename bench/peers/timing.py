"""The arithmetic of :mod:`bench.ledger`: rates, percentiles, ratios."""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from bench.failures import UnmeasurableError
from bench.peers.port import Claimer

STALL_S = 20.0
_AGAIN_S = 0.001

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Drain:
    """So many jobs claimed and finished in so many seconds."""

    jobs: int
    seconds: float

    @property
    def per_s(self) -> float:
        """Jobs a second. Errors: UnmeasurableError where nothing was done."""
        if not self.jobs or self.seconds <= 0:
            raise UnmeasurableError(f"{self.jobs} jobs in {self.seconds} s is no rate")
        return self.jobs / self.seconds


async def drain(
    claimers: Sequence[Claimer],
    batch: int,
    at_least: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    stall_s: float = STALL_S,
) -> Drain:
    """Claims and finishes with every claimer at once, until ``at_least`` jobs were claimed.

    The time runs from before the first claim to the end of the last finish. Errors: UnmeasurableError where
    nothing can be claimed for ``stall_s`` seconds.
    """
    claimed = 0
    began = last = clock()

    async def work(claimer: Claimer) -> None:
        nonlocal claimed, last
        while claimed < at_least:
            jobs = await claimer.claim(batch)
            if not jobs:
                if clock() - last > stall_s:
                    raise UnmeasurableError(f"nothing to claim after {claimed} of {at_least} jobs")
                await asyncio.sleep(_AGAIN_S)
                continue
            claimed += len(jobs)
            await claimer.finish(jobs)
            last = max(last, clock())

    tasks = [asyncio.create_task(work(claimer)) for claimer in claimers]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return Drain(claimed, last - began)


async def claim_latencies_s(claimer: Claimer, count: int, *, stall_s: float = STALL_S) -> list[float]:
    """How long it took to have a job, ``count`` times; looks that found nothing are part of it.

    Each job is finished, outside the time. Errors: UnmeasurableError where nothing is found for ``stall_s``
    seconds.
    """
    found: list[float] = []
    while len(found) < count:
        began = time.perf_counter()
        while not (jobs := await claimer.claim(1)):
            if time.perf_counter() - began > stall_s:
                raise UnmeasurableError(f"nothing to claim after {len(found)} of {count} jobs")
            await asyncio.sleep(0)
        found.append(time.perf_counter() - began)
        await claimer.finish(jobs)
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile: the least value that ``share`` of all are not above."""
    if not values:
        raise UnmeasurableError("no values")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the ratios of what was measured side by side: a machine that slows down slows both.

    Errors: UnmeasurableError where there is nothing to pair or to divide by.
    """
    if not ours or len(ours) != len(theirs) or min(theirs) <= 0:
        raise UnmeasurableError("nothing to compare")
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def in_turn(items: Sequence[T], number: int) -> list[T]:
    """The items, beginning with another one in each round: no queue always comes first after a pause."""
    start = number % len(items)
    return [*items[start:], *items[:start]]
