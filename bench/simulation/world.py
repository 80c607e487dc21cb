"""What stands in the simulated ledger and on its cluster, the clock, and what is to happen when."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from itertools import count

from bench.simulation.cluster import PLACES, Cluster
from bench.simulation.jobs import TRAIN, Job, Lane
from bench.simulation.trace import Trace
from services.metadata.scheduling.lanes import LaneBook, LaneKey

KINDS = (*PLACES, TRAIN)
SWITCH_S, YIELD_S, RESUME_S, BACK_OFF_S = 20.0, 15.0, 30.0, 5.0
"""A GPU that changes pools loads a model; a training goes on to its checkpoint, and loads it again."""


class World:
    """The state that the parts of a simulation share.

    Args:
        trace: what will be submitted, and the cluster.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.now_s = 0.0
        self.cluster = Cluster(trace.nodes, trace.gpus_per_node)
        self.book = LaneBook(lambda team: trace.weights[team])
        self.lanes: dict[str, dict[LaneKey, Lane]] = {kind: {} for kind in KINDS}
        # Not sets: their order would differ from run to run.
        self.running: dict[str, dict[Job, None]] = {kind: {} for kind in KINDS}
        self.waiting_gpus = dict.fromkeys(KINDS, 0.0)
        self.began_s = dict.fromkeys(KINDS, -math.inf)
        self.idle_since_s = dict.fromkeys(KINDS, 0.0)
        self.training_gave_back_s = -math.inf
        self.yielding: dict[Job, None] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def at(self, time_s: float, act: Callable[[], None]) -> None:
        """Lets something happen at a time."""
        heapq.heappush(self._events, (time_s, next(self._order), act))

    def next_s(self) -> float:
        """When the next thing happens; infinite where nothing does."""
        return self._events[0][0] if self._events else math.inf

    def step(self) -> None:
        """Lets the next thing happen."""
        self.now_s, _, act = heapq.heappop(self._events)
        act()

    def lane(self, key: LaneKey) -> Lane:
        """The lane of this key."""
        found = self.lanes[key.kind].get(key)
        if found is None:
            found = self.lanes[key.kind][key] = Lane(key)
        return found

    def queue(self, job: Job, *, front: bool = False) -> None:
        """A job waits from now on."""
        self.lane(job.lane).add(job, self.now_s, front=front)
        self.waiting_gpus[job.kind] += job.gpus
        self.book.open(job.lane, self.now_s)

    def unqueued(self, lane: Lane, job: Job) -> None:
        """A job that was taken out of its lane waits no more."""
        lane.left(job)
        self.waiting_gpus[job.kind] -= job.gpus

    def waits(self, kind: str) -> bool:
        """Whether anything of a kind waits."""
        return self.waiting_gpus[kind] > 1e-6

    def held_gpus(self) -> int:
        """The GPUs that trainings hold."""
        return int(sum(job.gpus for job in self.running[TRAIN]))
