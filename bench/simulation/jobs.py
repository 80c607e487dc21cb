"""What goes through the simulation: jobs, and the lanes that they wait in."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from bench.simulation.cluster import Gpu
from bench.simulation.trace import Submitted
from services.metadata.model.jobs import PriorityClass
from services.metadata.scheduling.calibration import Expected
from services.metadata.scheduling.estimates import Lognormal
from services.metadata.scheduling.lanes import LaneKey

TRAIN = "rvc.train"


@dataclass(slots=True, eq=False)
class Job:
    """One job of the trace, as it goes through the simulation.

    ``takes`` is what the scheduler believes of its run time, ``left_s`` what is left of it in truth; ``cost``
    the GPU-seconds and ``most_s`` the seconds (nine in ten) that it is believed to hold its GPUs from now on.
    ``alike`` counts the jobs that were foretold from the same look at the same lane.
    """

    number: int
    submitted: Submitted
    lane: LaneKey
    gpus: float
    takes: Lognormal
    left_s: float
    cost: float = 0.0
    most_s: float = 0.0
    ran_s: float = 0.0
    waits_from_s: float = 0.0
    began_s: float = 0.0
    first_s: float = -1.0
    ended_s: float = -1.0
    lease: int = 0
    failed: bool = False
    resumes: bool = False
    said: Expected | None = None
    alike: list[int] = field(default_factory=lambda: [1])
    on: list[Gpu] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """The kind of worker that it needs."""
        return self.lane.kind

    @property
    def waited_s(self) -> float:
        """From its submission until it first began."""
        return self.first_s - self.submitted.at_s


@dataclass(slots=True)
class Lane:
    """What one team has waiting of one kind in one class, and what it has been served."""

    key: LaneKey
    jobs: deque[Job] = field(default_factory=deque)
    work: float = 0.0
    gpus: float = 0.0
    running: int = 0
    running_gpus: float = 0.0
    served: float = 0.0
    touched_s: float = 0.0
    since_s: float = math.inf

    def add(self, job: Job, now_s: float, *, front: bool) -> None:
        """Puts a job at one of the ends."""
        if not self.jobs:
            self.since_s = now_s
        if front:
            self.jobs.appendleft(job)
        else:
            self.jobs.append(job)
        job.waits_from_s = now_s
        self.work += job.cost
        self.gpus += job.gpus

    def left(self, job: Job) -> None:
        """A job that was taken out of ``jobs`` is counted out."""
        self.work -= job.cost
        self.gpus -= job.gpus
        if not self.jobs:
            self.work = self.gpus = 0.0
            self.since_s = math.inf

    def serve(self, jobs: int, gpus: float, now_s: float) -> None:
        """So many jobs and GPUs more, or fewer, are at work for it from now on."""
        self.served += self.running_gpus * (now_s - self.touched_s)
        self.touched_s = now_s
        self.running += jobs
        self.running_gpus += gpus

    def take_served(self, now_s: float) -> float:
        """The GPU-seconds served since this was last asked."""
        self.serve(0, 0.0, now_s)
        served, self.served = self.served, 0.0
        return served


@dataclass(slots=True)
class Window:
    """What the lanes of a kind and class that had work waiting all through a span of time got per weight."""

    kind: str
    priority_class: PriorityClass
    got: list[float]
