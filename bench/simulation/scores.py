"""What a replay is judged by."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from bench.simulation.jobs import Job, Window
from bench.simulation.simulator import Simulation

BOUND_S = 10.0
"""Run times count as at least this in a slowdown, and waits below it are no waits (Feitelson 2001)."""

SPANS = (("to 1 min", 60.0), ("to 10 min", 600.0), ("to 1 h", 3600.0), ("over 1 h", math.inf))


@dataclass(frozen=True, slots=True)
class Eta:
    """How good the expected starts were: jobs that waited, the median relative error, the part covered."""

    jobs: int
    median_error: float
    coverage: float


def bounded_slowdown(job: Job) -> float:
    """Time from submission to end over run time, both as if no run were shorter than :data:`BOUND_S`."""
    runs_s = max(BOUND_S, job.submitted.takes_s)
    return max(1.0, (job.ended_s - job.submitted.at_s) / runs_s)


def slowdowns(simulation: Simulation) -> dict[str, float]:
    """The mean bounded slowdown of each class."""
    by_class: dict[str, list[float]] = {}
    for job in simulation.jobs:
        by_class.setdefault(job.lane.priority_class.name.lower(), []).append(bounded_slowdown(job))
    return {name: statistics.fmean(found) for name, found in sorted(by_class.items())}


def waited(jobs: Iterable[Job]) -> list[Job]:
    """Those that waited at all, or of which it was said that they would."""
    return [
        job
        for job in jobs
        if job.said is not None and (job.waited_s > BOUND_S or job.said.start_in_s > BOUND_S)
    ]


def eta(jobs: Iterable[Job]) -> Eta:
    """The errors of what was said at submission, over jobs that waited."""
    errors, covered = [], 0
    for job in waited(jobs):
        said = job.said
        assert said is not None
        errors.append(abs(said.start_in_s - job.waited_s) / max(1.0, job.waited_s))
        covered += said.earliest_s <= job.waited_s <= said.latest_s
    if not errors:
        return Eta(0, math.nan, math.nan)
    return Eta(len(errors), statistics.median(errors), covered / len(errors))


def eta_parts(jobs: Iterable[Job]) -> dict[str, Eta]:
    """The same by kind and class, and by how long a job waited."""
    parts: dict[str, list[Job]] = {}
    for job in waited(jobs):
        span = next(name for name, most_s in SPANS if job.waited_s <= most_s)
        for name in (f"{job.kind} {job.lane.priority_class.name.lower()}", f"waited {span}"):
            parts.setdefault(name, []).append(job)
    return {name: eta(found) for name, found in sorted(parts.items())}


def jain(window: Window) -> float:
    """Jain's index of what the lanes of a window got for their weight: 1 is equal shares."""
    squares = sum(got * got for got in window.got)
    return sum(window.got) ** 2 / (len(window.got) * squares) if squares else 1.0


def fairness(windows: Iterable[Window]) -> float:
    """The mean of :func:`jain`; NaN without a window in which two lanes had work waiting all through."""
    found = [jain(window) for window in windows]
    return statistics.fmean(found) if found else math.nan
