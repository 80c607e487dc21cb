"""Says where a waiting job stands: its position, when it is expected to begin and end, and why it waits."""

from __future__ import annotations

import datetime as dt
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from services.common.jobs.model import PoolState
from services.metadata.app.dispatch import Dispatcher
from services.metadata.app.fleet import seen_nodes
from services.metadata.app.grants import POOL_OF_KIND, merged
from services.metadata.app.learning import LEAST_GPUS, Experience, expected_json
from services.metadata.app.resolving import CONVERSION_GPUS, SPEECH_GPUS
from services.metadata.model.fleet import LaneDepth, QuotaUse, RunningJob
from services.metadata.model.jobs import FINAL_STATES, Expected, Job, JobState, NewJob, PriorityClass
from services.metadata.ports.store import Store
from services.metadata.scheduling import calibration
from services.metadata.scheduling.explain import Case, Explanation, SeenNode, explain
from services.metadata.scheduling.forecast import (
    FOREVER_S,
    LaneLoad,
    Outlook,
    PoolLoad,
    Running,
    Waiting,
)
from services.metadata.scheduling.lanes import LaneKey

SHARES = {
    "rvc.train": 1.0,
    "rvc.convert": CONVERSION_GPUS,
    "f5.item": SPEECH_GPUS,
    "f5.convert": SPEECH_GPUS,
}
"""By kind what its smallest job holds of a GPU; of other kinds nothing is foretold."""

_USUAL_MEMORY_S = 600.0
_REPLICA_S, _YIELD_S = 22.5, 15.0
"""What a replica takes to be granted and to load its model, and a training to save and leave: first guesses,
put right by the calibration."""
_LOOK_SHARE = 20.0


@dataclass(slots=True)
class _Lane:
    """What waits in a lane: what the last look found, and what came since through this process."""

    jobs: int = 0
    gpus: float = 0.0
    work: float = 0.0


@dataclass(slots=True)
class _View:
    """One look at the fleet and the queues."""

    lanes: dict[LaneKey, _Lane] = field(default_factory=dict)
    running: Sequence[RunningJob] = ()
    free: dict[str, int] = field(default_factory=dict)
    takers: dict[str, int] = field(default_factory=dict)
    nodes: tuple[SeenNode, ...] = ()
    pools: dict[str, PoolState] = field(default_factory=dict)
    outlooks: dict[str, Outlook] = field(default_factory=dict)


class Planner:
    """Places waiting jobs against what it last saw of the fleet.

    Args:
        store: the database.
        experience: how long jobs take, how far forecasts were off, what arrives.
        dispatcher: whose turn it is.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        store: Store,
        experience: Experience,
        dispatcher: Dispatcher,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._experience = experience
        self._dispatcher = dispatcher
        self._clock = clock
        self._view = _View()
        self._usual: dict[str, float] = {}
        self._looked_s = self._rest_until_s = -math.inf

    async def refresh(self) -> None:
        """One look at the queues and the fleet; none where the last took so long that it would be a load."""
        began_s = self._clock()
        if began_s < self._rest_until_s:
            return
        async with self._store.service() as tx:
            depths = await tx.lane_depths()
            running = await tx.running_jobs()
            workers = await tx.live_workers()
            drained = await tx.drained_nodes()
            said = [facts for facts, _ in await tx.worker_gpus()]
        view = _View(running=running)
        view.lanes = {LaneKey(d.kind, d.priority_class, d.team): self._lane(d) for d in depths}
        for worker in workers:
            for kind, count in worker.free.items():
                view.takers[kind] = view.takers.get(kind, 0) + 1
                view.free[kind] = view.free.get(kind, 0) + max(0, count)
        view.nodes = tuple(
            SeenNode(node["name"], float(node.get("gpus", 0)), str(node.get("gpu_type", "")), node["state"])
            for node in seen_nodes(workers, drained)
        )
        view.pools = {pool.name: pool for pool in merged(said)}
        self._view = view
        self._note_usual(began_s)
        for kind in SHARES:
            view.outlooks[kind] = Outlook(self._load(kind))
        ended_s = self._clock()
        self._rest_until_s = ended_s + _LOOK_SHARE * (ended_s - began_s)

    def foretell(self, job: NewJob) -> Mapping[str, Any] | None:
        """What is foretold of a job's start as it is submitted, to be learned from; None: nothing.

        Nothing is foretold of what stands before others of its lane, waits for other jobs, or has no pool.
        """
        lane = LaneKey(job.kind, job.priority_class, job.team)
        work = self._experience.work(job.kind, job.gpus, job.size)
        known = self._view.lanes.setdefault(lane, _Lane())
        ahead = known.work
        self._experience.arrived(job.kind, job.priority_class, job.team, work)
        known.jobs += 1
        known.gpus += max(job.gpus, LEAST_GPUS)
        known.work += work
        if job.kind not in self._view.outlooks or job.depends_on or job.priority:
            return None
        found = self._expect(lane, job.gpus, job.size, ahead)
        return None if found is None else expected_json(found)

    def batch_arrived(self, items: Sequence[NewJob]) -> None:
        """Takes note of a batch's items, which are alike but for their sizes."""
        first = items[0]
        mean_size = sum(item.size for item in items) / len(items)
        work = len(items) * self._experience.work(first.kind, first.gpus, mean_size)
        self._experience.arrived(first.kind, first.priority_class, first.team, work)

    async def placed(self, job: Job) -> Job:
        """The job with its position among the jobs of every team, its expected times and why it waits."""
        if job.state in FINAL_STATES:
            return job
        now = dt.datetime.now(dt.UTC)
        if job.kind == "batch":
            return await self._placed_batch(job, now)
        if job.state is not JobState.QUEUED:
            return self._underway(job, now)
        if job.paused or job.blockers:
            return job
        own, others, higher = await self._before(job)
        job = replace(job, position=own + others + higher)
        job = replace(job, waiting_reason=self._explained(job, (own, others, higher), now).code)
        lane = LaneKey(job.kind, job.priority_class, job.team)
        known = self._view.lanes.get(lane, _Lane())
        each = known.work / known.jobs if known.jobs else 0.0
        found = self._expect(lane, job.gpus, job.size, own * each)
        return job if found is None else replace(job, expected=_times(found, now))

    async def explain(self, job: Job) -> Explanation:
        """Why it waits; of a batch, why the first of its items that waits does."""
        if job.state is not JobState.QUEUED and not (job.kind == "batch" and job.state is JobState.RUNNING):
            return Explanation("", _not_waiting(job))
        if job.kind == "batch" and not (job.paused or job.blockers):
            async with self._store.service() as tx:
                item = await tx.next_item(job)
            if item is None:
                return Explanation("", "none of its items waits")
            found = await self.explain(item)
            return Explanation(found.code, f"its next item: {found.sentence}")
        before = (0, 0, 0) if job.paused or job.blockers else await self._before(job)
        return self._explained(job, before, dt.datetime.now(dt.UTC))

    def _explained(self, job: Job, before: tuple[int, int, int], now: dt.datetime) -> Explanation:
        view = self._view
        back_off_s = (job.not_before - now).total_seconds() if job.not_before else 0.0
        error = job.error or {}
        return explain(
            Case(
                kind=job.kind,
                gpus=job.gpus,
                gpu_type=job.gpu_type,
                paused=job.paused,
                waits_for=job.depends_on or ("another job",) * bool(job.blockers),
                back_off_s=back_off_s if job.waiting_reason == "BACK_OFF" else 0.0,
                last_error=str(error.get("reason", "")),
                preempted=job.waiting_reason == "PREEMPTED",
                takers=view.takers.get(job.kind, 0),
                nodes=view.nodes,
                quota=_quota_words(self._dispatcher.uses.get(job.team), job.gpus),
                free=view.free.get(job.kind, 0),
                ahead_own=before[0],
                ahead_others=before[1],
                ahead_higher=before[2],
            )
        )

    async def _before(self, job: Job) -> tuple[int, int, int]:
        """Jobs before it: of its own lane, of other teams in its class, of higher classes."""
        async with self._store.service() as tx:
            own = await tx.queue_place(job)
        starts = self._dispatcher.book.starts(job.kind, job.priority_class)
        each = self._experience.work(job.kind, job.gpus, job.size)
        turn = starts.get(job.team, 0.0) + own * each / self._dispatcher.weight(job.team)
        others = higher = 0
        for lane, known in self._view.lanes.items():
            if lane.kind != job.kind or not known.jobs:
                continue
            if lane.priority_class < job.priority_class:
                higher += known.jobs
            elif lane.priority_class == job.priority_class and lane.team != job.team:
                lead = (turn - starts.get(lane.team, 0.0)) * self._dispatcher.weight(lane.team)
                if lead >= 0.0:
                    # Turn by turn: as many as bring that team to where this one will be.
                    others += min(known.jobs, int(lead * known.jobs / known.work) + 1)
        return own, others, higher

    async def _placed_batch(self, job: Job, now: dt.datetime) -> Job:
        """A batch begins with its next item and ends with its last."""
        if job.paused or job.blockers:
            return job
        async with self._store.service() as tx:
            item = await tx.next_item(job)
        if item is None:
            return job
        placed = await self.placed(item)
        left = job.counts.get("queued", 0)
        known = self._view.lanes.get(LaneKey(item.kind, item.priority_class, item.team), _Lane())
        each = (
            known.work / known.jobs if known.jobs else self._experience.work(item.kind, item.gpus, item.size)
        )
        reason = placed.waiting_reason if job.state is JobState.QUEUED else ""
        job = replace(job, position=placed.position, waiting_reason=reason)
        outlook = self._view.outlooks.get(item.kind)
        if placed.expected is None or outlook is None:
            return job
        lane = LaneKey(item.kind, item.priority_class, item.team)
        last = self._expect(lane, item.gpus, item.size, placed.position * each + left * each)
        if last is None:
            return job
        end = max(placed.expected.end, now + dt.timedelta(seconds=last.end_in_s))
        return replace(job, expected=replace(placed.expected, end=end))

    def _underway(self, job: Job, now: dt.datetime) -> Job:
        """A running job with its expected end."""
        if job.started_at is None or job.kind not in SHARES:
            return job
        elapsed_s = max(0.0, (now - job.started_at).total_seconds())
        left_s = self._experience.times.remaining(job.kind, job.size, elapsed_s).median_s
        began = job.started_at
        return replace(job, expected=Expected(began, began, began, now + dt.timedelta(seconds=left_s)))

    def _expect(self, lane: LaneKey, gpus: float, size: float, ahead: float) -> calibration.Expected | None:
        """When a job begins that has so many GPU-seconds of its own lane before it; None: no telling."""
        outlook = self._view.outlooks.get(lane.kind)
        if outlook is None:
            return None
        held = max(gpus, LEAST_GPUS)
        weight = self._dispatcher.weight(lane.team)
        raw_s = 0.0
        if not self._fits(lane.kind, ahead):
            raw_s = outlook.start_in_s(Waiting(lane.priority_class, lane.team, held, ahead, weight))
        if raw_s >= 0.9 * FOREVER_S:
            return None
        takes_s = self._experience.times.mean_s(lane.kind, size)
        return self._experience.calibration.expect(lane.kind, lane.priority_class, held, raw_s, takes_s)

    def _fits(self, kind: str, ahead: float) -> bool:
        """Whether nothing is in the way of a job that could begin at once."""
        waiting = any(known.jobs for lane, known in self._view.lanes.items() if lane.kind == kind)
        return ahead <= 0.0 and self._view.free.get(kind, 0) > 0 and not waiting

    def _lane(self, depth: LaneDepth) -> _Lane:
        gpus = max(depth.gpus, LEAST_GPUS * depth.queued)
        mean_s = self._experience.times.mean_s(depth.kind, depth.size / depth.queued)
        return _Lane(depth.queued, gpus, gpus * mean_s)

    def _note_usual(self, now_s: float) -> None:
        """What each pool has on average while work waits for it."""
        passed_s = min(60.0, now_s - self._looked_s)
        self._looked_s = now_s
        keep = math.exp(-passed_s / _USUAL_MEMORY_S)
        waiting = {lane.kind for lane, known in self._view.lanes.items() if known.jobs}
        for kind in waiting & SHARES.keys():
            held = self._held(kind) + self._view.free.get(kind, 0) * SHARES[kind]
            self._usual[kind] = keep * self._usual.get(kind, held) + (1.0 - keep) * held

    def _held(self, kind: str) -> float:
        return sum(max(run.gpus, LEAST_GPUS) for run in self._view.running if run.kind == kind)

    def _load(self, kind: str) -> PoolLoad:
        """A pool as the forecast is told of it: it has what its workers hold, and what they say is free."""
        view, book = self._view, self._dispatcher.book
        rates = self._experience.arrivals.rates(kind, self._clock())
        starts = {priority_class: book.starts(kind, priority_class) for priority_class in PriorityClass}
        keys = {lane for lane in view.lanes if lane.kind == kind}
        keys |= {LaneKey(kind, priority_class, team) for priority_class, team in rates}
        lanes = []
        for key in keys:
            known = view.lanes.get(key, _Lane())
            lanes.append(
                LaneLoad(
                    key.priority_class,
                    key.team,
                    known.jobs,
                    known.gpus,
                    known.work,
                    starts[key.priority_class].get(key.team, 0.0),
                    self._dispatcher.weight(key.team),
                    rates.get((key.priority_class, key.team), 0.0),
                )
            )
        running = self._running(kind)
        share = SHARES[kind]
        free = view.free.get(kind, 0) * share
        usual = self._usual.get(kind, 0.0)
        load = PoolLoad(self._held(kind) + free, free, share, running, lanes, usual)
        pool = view.pools.get(POOL_OF_KIND.get(kind, ""))
        return load if pool is None else self._growing(load, pool)

    def _growing(self, load: PoolLoad, pool: PoolState) -> PoolLoad:
        """A pool of replicas may come to have more: idle GPUs, and those of trainings as they end."""
        fleet = sum(node.gpus for node in self._view.nodes if node.state == "alive")
        held = sum(other.held_gpus for other in self._view.pools.values())
        trainings = self._running("rvc.train")
        room = fleet - (held - pool.held_gpus)
        replicas = min(pool.most, int(room / pool.gpus_each + 1e-6)) if pool.gpus_each else pool.most
        # What one GPU of a replica's is in shares of jobs, in which all of this is reckoned.
        scale = pool.places_each * load.share / pool.gpus_each if pool.gpus_each else 0.0
        idle = max(0.0, fleet - held - sum(run.gpus for run in trainings))
        return replace(
            load,
            gpus=max(load.gpus, replicas * pool.places_each * load.share),
            usual_gpus=0.0,
            lag_s=_REPLICA_S,
            idle=idle * scale,
            coming=[replace(run, gpus=run.gpus * scale) for run in trainings],
            asked_s=_REPLICA_S + _YIELD_S,
        )

    def _running(self, kind: str) -> list[Running]:
        times = self._experience.times
        return [
            Running(max(run.gpus, LEAST_GPUS), times.lognormal(kind, run.size), max(0.0, run.elapsed_s))
            for run in self._view.running
            if run.kind == kind
        ]


def _times(found: calibration.Expected, now: dt.datetime) -> Expected:
    start, earliest, latest, end = (
        now + dt.timedelta(seconds=min(seconds, FOREVER_S))
        for seconds in (found.start_in_s, found.earliest_s, found.latest_s, found.end_in_s)
    )
    return Expected(start, earliest, latest, end)


def _quota_words(use: QuotaUse | None, gpus: float) -> str:
    """Why a team may begin nothing more just now; empty: it may."""
    if use is None:
        return ""
    quota = use.quota
    if quota.max_gpus and use.gpus + gpus > quota.max_gpus + 1e-6:
        return f"it holds {use.gpus:g} of {quota.max_gpus:g} GPUs, and this needs {gpus:.2g}"
    if quota.max_gpu_seconds_per_day and use.gpu_seconds >= quota.max_gpu_seconds_per_day:
        return f"it used its {quota.max_gpu_seconds_per_day} GPU-seconds of today (UTC)"
    return ""


def _not_waiting(job: Job) -> str:
    if job.state in FINAL_STATES:
        return f"it does not wait: it has ended ({job.state.value})"
    return f"it does not wait: it is {job.state.value}{f' ({job.phase})' if job.phase else ''}"
