"""When a waiting job will begin: what the policy will do, computed forward instead of guessed.

One :class:`Outlook` is made per kind of worker from what stands in the ledger at one moment, and then
answers for any number of waiting jobs, each in far less than a millisecond. It rests on two curves:

- *supply*: the work that the pool can have begun by a time. Running jobs free their GPUs when they are
  expected to (each as three equally likely times, given how long it has run), and what is freed begins the
  next job.
- *need*: the work that the policy begins before the job. Higher classes first, as much as waits and as much
  as is expected to arrive meanwhile; of its own class, with start-time fair queueing, of each other team as
  much as brings that team to the job's virtual start time; and what its own team has before it.

The job begins where supply reaches need. Work is in GPU-seconds throughout.

What such a computation misses (bursts, preemption, whole nodes) is measured and put right by
:class:`services.metadata.scheduling.calibration.Calibration`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from services.metadata.model.jobs import PriorityClass
from services.metadata.scheduling.estimates import Lognormal
from services.metadata.scheduling.lanes import AGE_S

QUANTILES = (1 / 6, 0.5, 5 / 6)
FOREVER_S = 30 * 86400.0
RELAX_S = 900.0
"""After this time a pool is taken to have what it usually has under load, not what it has just now."""


@dataclass(frozen=True, slots=True)
class Running:
    """A job under way: its GPUs, what its kind and size take, and for how long it has run."""

    gpus: float
    takes: Lognormal
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class LaneLoad:
    """What one team has waiting in one class, and what arrives there.

    ``work`` is in GPU-seconds; ``start`` the lane's virtual start time ahead of its class's
    (:meth:`LaneBook.starts`); ``arriving`` GPU-seconds of new work per second.
    """

    priority_class: PriorityClass
    team: str
    jobs: int = 0
    gpus: float = 0.0
    work: float = 0.0
    start: float = 0.0
    weight: float = 1.0
    arriving: float = 0.0


@dataclass(frozen=True, slots=True)
class PoolLoad:
    """One kind of worker at one moment.

    ``gpus`` is what the pool is granted now, ``free`` what of it stands ready and idle, ``lag_s`` how long
    what it is granted and has not got yet takes to come; ``usual_gpus`` what it has on average while work
    waits (0: unknown); ``share`` the GPUs of its smallest job.

    Where ``coming`` is given, ``gpus`` is what the pool may come to have, and what it has not got comes from
    the ``idle`` GPUs of the fleet after ``lag_s``, then from these jobs of others as they end; for work that
    others must make way for, all of it after ``asked_s``.
    """

    gpus: float
    free: float
    share: float
    running: Sequence[Running]
    lanes: Sequence[LaneLoad]
    usual_gpus: float = 0.0
    lag_s: float = 0.0
    age_s: float = AGE_S
    idle: float = 0.0
    coming: Sequence[Running] = ()
    asked_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """The job that is asked about: ``ahead`` is the work (GPU-seconds) that its own lane has before it.

    ``weight`` is its team's, for a lane that had nothing waiting when the outlook was made.
    """

    priority_class: PriorityClass
    team: str
    gpus: float
    ahead: float
    weight: float = 1.0


@dataclass(slots=True)
class _ClassLoad:
    """The lanes of a class, and what is above it."""

    lanes: list[LaneLoad]
    above: float = 0.0
    above_arriving: float = 0.0
    starts: dict[str, LaneLoad] = field(default_factory=dict)


class Outlook:
    """Answers for the waiting jobs of one kind, as things stood when it was made."""

    def __init__(self, load: PoolLoad) -> None:
        self._load = load
        jobs_gpus = sum(lane.gpus for lane in load.lanes)
        work = sum(lane.work for lane in load.lanes)
        if jobs_gpus > 0:
            self.typical_s = work / jobs_gpus
        else:
            taking = sum(run.takes.mean_s * run.gpus for run in load.running)
            self.typical_s = taking / max(1e-9, sum(run.gpus for run in load.running)) or 60.0
        self._calm = self._urgent = _supply(load, self.typical_s)
        if load.coming:
            self._urgent = _supply(load, self.typical_s, urgent=True)
        self._classes = {priority_class: self._of_class(priority_class) for priority_class in PriorityClass}

    def start_in_s(self, job: Waiting) -> float:
        """Seconds until the job is expected to begin, before any calibration."""
        urgent = job.priority_class < PriorityClass.BATCH
        found = self._classes[job.priority_class]
        own = found.starts.get(job.team)
        weight = own.weight if own else job.weight
        tag = (own.start if own else 0.0) + job.ahead / weight
        before = job.ahead + found.above
        rooms: list[tuple[float, float]] = []
        for lane in found.lanes:
            if lane.team == job.team:
                continue
            lead = tag - lane.start
            if lead < 0.0:
                continue
            # The job that begins just before the tag is begun whole.
            most = lane.weight * lead
            begun = min(lane.work, most + (lane.work / lane.jobs if lane.jobs else 0.0))
            before += begun
            if lane.arriving > 0.0 and most > begun:
                rooms.append((lane.arriving, most - begun))
        # Its own GPUs must be free too; the half is because the k-th end stands at k - 1/2 of the expected.
        need = before + (job.gpus - 0.5 * self._load.share) * self.typical_s
        floor = self._aged_rate(job.priority_class)

        def at(time_s: float) -> float:
            arrived = sum([min(rate * time_s, room) for rate, room in rooms])
            return self.supply_at(need + arrived + found.above_arriving * time_s, urgent=urgent)

        start_s = first_s = self.supply_at(need, urgent=urgent)
        if start_s <= 0.0 or not (rooms or found.above_arriving):
            return start_s
        start_s = _fixed_point(at, start_s)
        # However much arrives above it, a class that has aged is served: a bound, not an expectation.
        return min(start_s, first_s + (before - found.above) / floor) if floor > 0.0 else start_s

    def supply_at(self, work: float, *, urgent: bool = False) -> float:
        """Seconds until the pool can have begun more than ``work`` GPU-seconds of what waits.

        ``urgent``: others make way for it.
        """
        times, begun, slopes = self._urgent if urgent else self._calm
        index = bisect_left(begun, work) - 1
        if index < 0:
            return times[0]
        slope = slopes[index]
        reached = times[index] + (work - begun[index]) / slope if slope > 1e-9 else math.inf
        # Between two knots supply may also jump, at the second.
        if index + 1 < len(times):
            return min(reached, times[index + 1])
        return min(reached, FOREVER_S)

    def _of_class(self, priority_class: PriorityClass) -> _ClassLoad:
        load = self._load
        lanes = [lane for lane in load.lanes if lane.priority_class == priority_class]
        higher = [lane for lane in load.lanes if lane.priority_class < priority_class]
        return _ClassLoad(
            lanes,
            sum(lane.work for lane in higher),
            min(0.95 * load.gpus, sum(lane.arriving for lane in higher)),
            {lane.team: lane for lane in lanes},
        )

    def _aged_rate(self, priority_class: PriorityClass) -> float:
        """The GPU-seconds a second that a class of this rank is served with at the least."""
        rank = int(priority_class) - int(PriorityClass.INTERACTIVE)
        if rank == 0 or self._load.age_s <= 0:
            return 0.0
        return self.typical_s * self._load.share / (rank * self._load.age_s)


class Arrivals:
    """How much new work arrives in each lane, as an exponentially fading rate.

    Args:
        memory_s: how long the past counts.
    """

    def __init__(self, memory_s: float = 7200.0) -> None:
        self._memory_s = memory_s
        self._sums: dict[tuple[str, PriorityClass, str], tuple[float, float]] = {}
        self._began_s: float | None = None

    def add(self, lane: tuple[str, PriorityClass, str], work: float, now_s: float) -> None:
        """So many GPU-seconds of work arrived."""
        if self._began_s is None:
            self._began_s = now_s
        total, at_s = self._sums.get(lane, (0.0, now_s))
        self._sums[lane] = total * math.exp(-(now_s - at_s) / self._memory_s) + work, now_s

    def rates(self, kind: str, now_s: float) -> dict[tuple[PriorityClass, str], float]:
        """GPU-seconds of new work a second, by class and team, of one kind."""
        if self._began_s is None:
            return {}
        seen = self._memory_s * (1.0 - math.exp(-max(60.0, now_s - self._began_s) / self._memory_s))
        return {
            (priority_class, team): total * math.exp(-(now_s - at_s) / self._memory_s) / seen
            for (of_kind, priority_class, team), (total, at_s) in self._sums.items()
            if of_kind == kind and now_s - at_s < 5.0 * self._memory_s
        }


def _missing(load: PoolLoad, gpus: float, *, urgent: bool) -> list[tuple[float, float]]:
    """When a pool gets what it lacks: times and GPUs."""
    if not load.coming:
        return [(load.lag_s, gpus)]
    at_once = min(gpus, load.idle)
    found = [(load.lag_s, at_once)]
    gpus -= at_once
    if urgent:
        return [*found, (load.asked_s, gpus)]
    ends = sorted((run.takes.remaining_s(run.elapsed_s, (0.5,))[0], run.gpus) for run in load.coming)
    for left_s, part in ends:
        if gpus <= 0.0:
            break
        found.append((left_s + load.lag_s, min(part, gpus)))
        gpus -= part
    return found


def _supply(
    load: PoolLoad, typical_s: float, *, urgent: bool = False
) -> tuple[list[float], list[float], list[float]]:
    """The work that can have begun by each of some times: times, work, and the slope from each on.

    A place that is free from ``s`` on begins a typical job at ``s`` and, smoothed, goes on at one second of
    work a second from ``s + typical_s / 2`` on: what jobs one after the other amount to on average.
    """
    freed: list[tuple[float, float]] = []
    held = sum(run.gpus for run in load.running)
    if held < load.gpus:
        freed.append((0.0, min(load.free, load.gpus - held)))
        freed += _missing(load, max(0.0, load.gpus - held - load.free), urgent=urgent)
    for run in load.running:
        part = run.gpus / len(QUANTILES)
        freed.extend((left_s, part) for left_s in run.takes.remaining_s(run.elapsed_s, QUANTILES))
    freed.sort()
    # Where the pool holds more than it is granted, what ends first is not filled again.
    excess = held - load.gpus
    steps: list[tuple[float, float, float]] = []
    for time_s, part in freed:
        kept = part - min(part, max(0.0, excess))
        excess -= part
        if kept > 0.0:
            steps.append((time_s, kept * typical_s, 0.0))
            steps.append((time_s + typical_s / 2.0, 0.0, kept))
    if load.usual_gpus > 0.0:
        steps.append((RELAX_S, 0.0, load.usual_gpus - load.gpus))
    steps.sort()
    times, begun, slopes = [0.0], [0.0], [0.0]
    rate = 0.0
    for time_s, jump, more in steps:
        reached = begun[-1] + slopes[-1] * (time_s - times[-1])
        if jump > 0.0:
            # A jump is two knots at one time.
            times.append(time_s)
            begun.append(reached)
            slopes.append(0.0)
        rate += more
        times.append(time_s)
        begun.append(reached + jump)
        slopes.append(max(0.0, rate))
    slopes[-1] = max(slopes[-1], 1e-6)
    return times, begun, slopes


def _fixed_point(at: Callable[[float], float], start_s: float) -> float:
    """The time that is its own image, from below: Steffensen's iteration."""
    time_s = start_s
    for _ in range(3):
        first_s = at(time_s)
        second_s = at(first_s)
        step_s = first_s - time_s
        if abs(step_s) < 0.01 + 0.001 * first_s:
            return second_s
        # Where work arrives as fast as it is done there is no end: twenty times is as good as never.
        ratio = min(0.95, max(0.0, (second_s - first_s) / step_s))
        time_s = min(FOREVER_S, second_s + (second_s - first_s) * ratio / (1.0 - ratio))
    return time_s
