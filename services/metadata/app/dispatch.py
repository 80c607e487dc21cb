"""Hands out work: which lane is next, told by the lane book; what is claimed, told by the database.

The book is a hint of this process. It is filled by wake-ups, put right by a look at the database every
second, and a wrong guess costs an empty claim. Several processes may each have one: a job is claimed once,
whoever asks, and what each of them hands out is fair.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from services.common.errors import VoxfleetError
from services.common.together import Together
from services.metadata.model.fleet import QuotaUse
from services.metadata.model.jobs import LeasedJob
from services.metadata.ports.store import Store, Wakeups
from services.metadata.scheduling.lanes import AGE_S, LANES_A_CLAIM, LaneBook, LaneKey, Pick, Turn

log = logging.getLogger(__name__)

_ROUNDS = 4
_LANES_TOGETHER = 64


@dataclass(frozen=True, slots=True)
class Offer:
    """What a worker could take: free places by kind, and what its nodes have.

    Args:
        worker: its name.
        node: where it runs.
        free: places by kind of job.
        gpu_types: of the nodes it can place work on.
        max_gpus: of one job at most.
    """

    worker: str
    node: str
    free: Mapping[str, int]
    gpu_types: tuple[str, ...] = ()
    max_gpus: float = 1e9


class Dispatcher:
    """Claims for workers, in the order of the lane book.

    Args:
        store: the database.
        wakeups: what was committed elsewhere.
        lease_s: how long a lease holds without a heartbeat.
        refresh_s: between two looks at the lanes and quotas.
        age_s: after which a class that is not served counts as one higher.
        cost_of: the predicted GPU-seconds of a claimed job, which its team is charged in the fair share.
        unwanted: told of what was leased for a worker that has gone meanwhile.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        store: Store,
        wakeups: Wakeups,
        *,
        lease_s: float,
        refresh_s: float = 1.0,
        age_s: float = AGE_S,
        cost_of: Callable[[LeasedJob], float] = lambda job: max(job.gpus, 0.05) * max(job.size, 1.0),
        unwanted: Callable[[Sequence[LeasedJob]], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self.lease_s = lease_s
        self._refresh_s = refresh_s
        self._cost_of = cost_of
        self._unwanted = unwanted
        self._clock = clock
        self.uses: Mapping[str, QuotaUse] = {}
        self.book = LaneBook(self.weight, age_s=age_s)
        self._bounded: dict[str, list[LaneKey]] = {}
        self._waiting: dict[str, dict[asyncio.Event, None]] = {}
        self._stale = asyncio.Event()
        self._claims: dict[tuple[tuple[str, ...], float], Together[list[Turn], list[LeasedJob]]] = {}
        wakeups.subscribe(self._heard)

    async def run(self) -> None:
        """Keeps the book right until cancelled."""
        while True:
            try:
                await self.refresh()
            except VoxfleetError as error:
                log.warning("lanes: %s", error.message)
            except Exception:
                log.exception("lanes could not be read")
            try:
                # Not wait_for, which on Python 3.11 can swallow a cancellation.
                async with asyncio.timeout(self._refresh_s):
                    await self._stale.wait()
            except TimeoutError:
                pass
            self._stale.clear()

    async def refresh(self) -> None:
        """One look at the lanes and quotas; wakes who waits for a lane that has something."""
        async with self._store.leases() as rows:
            lanes = await rows.lanes()
            uses = await rows.quota_uses()
        self.uses = {use.quota.team: use for use in uses}
        bounded: dict[str, list[LaneKey]] = {use.quota.team: [] for use in uses if use.quota.max_gpus}
        for lane in lanes:
            if lane.team in bounded:
                bounded[lane.team].append(lane)
        self._bounded = bounded
        self.book.close_teams(use.quota.team for use in uses if use.full)
        self.book.refresh(lanes, self._clock())
        for kind in {lane.kind for lane in self.book.waiting()}:
            self._wake(kind)

    def weight(self, team: str) -> float:
        """A team's weight in the fair share."""
        return self.uses[team].quota.weight if team in self.uses else 1.0

    async def claim(self, offer: Offer) -> list[LeasedJob]:
        """Leases up to ``free[kind]`` jobs of each kind; empty where the book knows of none.

        What several workers ask for at the same time goes in one statement, where it is of different lanes.

        Errors: DATABASE_UNAVAILABLE.
        """
        free = {kind: count for kind, count in offer.free.items() if count > 0}
        found: list[LeasedJob] = []
        for number in range(_ROUNDS):
            # Where lanes had less than their turn, as many others as there are places left are asked.
            parts = LANES_A_CLAIM if number == 0 else 1 << 20
            picks = [
                pick
                for kind, count in free.items()
                for pick in self.book.pick(kind, count, self._clock(), parts=parts)
            ]
            if not picks:
                break
            turns = [Turn(offer.worker, offer.node, pick) for pick in picks]
            try:
                claimed = await self._together(offer)(turns, [pick.lane for pick in picks])
            except BaseException:
                for pick in picks:
                    # Nothing was seen of these lanes: they are owed their turn still.
                    self.book.claimed(pick, [], pick.after)
                    self.book.open(pick.lane, self._clock())
                raise
            self._note(picks, claimed)
            found += claimed
            for job in claimed:
                free[job.kind] -= 1
        return found

    def _together(self, offer: Offer) -> Together[list[Turn], list[LeasedJob]]:
        """Where those claim who could take the same as this one."""
        able = offer.gpu_types, offer.max_gpus
        if able not in self._claims:

            async def claim(asked: Sequence[list[Turn]]) -> list[list[LeasedJob]]:
                turns = [turn for each in asked for turn in each]
                async with self._store.leases() as rows:
                    found = _by_lane(
                        await rows.claim(turns, self.lease_s, gpu_types=able[0], max_gpus=able[1])
                    )
                return [[job for turn in each for job in found.get(turn.pick.lane, ())] for each in asked]

            self._claims[able] = Together(claim, most=_LANES_TOGETHER, unwanted=self._unwanted)
        return self._claims[able]

    def _note(self, picks: Sequence[Pick], claimed: Sequence[LeasedJob]) -> None:
        """Tells the book what each pick brought."""
        by_lane = _by_lane(claimed)
        for pick in picks:
            jobs = by_lane.get(pick.lane, [])
            last = max((job.queue_key for job in jobs), default=pick.after)
            self.book.claimed(pick, [self._cost_of(job) for job in jobs], last)

    @contextmanager
    def waiting(self, kinds: Sequence[str], event: asyncio.Event) -> Iterator[None]:
        """Sets the event whenever there may be something of these kinds."""
        for kind in kinds:
            self._waiting.setdefault(kind, {})[event] = None
        try:
            yield
        finally:
            for kind in kinds:
                self._waiting[kind].pop(event, None)

    def freed(self, teams: Iterable[str]) -> None:
        """Jobs of these teams have ended: one that was at its quota of GPUs may begin another."""
        for team in set(teams) & self._bounded.keys():
            for lane in self._bounded[team]:
                self.book.open(lane, self._clock(), rewind=False)
                self._wake(lane.kind)

    def _heard(self, lane: LaneKey | None) -> None:
        if lane is None:
            self._stale.set()
            return
        self.book.open(lane, self._clock())
        self._wake(lane.kind)

    def _wake(self, kind: str) -> None:
        for event in self._waiting.get(kind, ()):
            event.set()


def _by_lane(jobs: Iterable[LeasedJob]) -> dict[LaneKey, list[LeasedJob]]:
    found: dict[LaneKey, list[LeasedJob]] = {}
    for job in jobs:
        found.setdefault(LaneKey(job.kind, job.priority_class, job.team), []).append(job)
    return found
