"""Which GPU is whose: the product's own division, told of the simulated cluster and carried out on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import islice

from bench.simulation.cluster import PLACES
from bench.simulation.jobs import TRAIN, Job
from bench.simulation.world import SWITCH_S, YIELD_S, World
from services.metadata.model.jobs import PriorityClass
from services.metadata.scheduling.grants import (
    Grants,
    HoldingTraining,
    Load,
    Node,
    Pool,
    Rules,
    WaitingTraining,
    divide,
)

GRANT_S = 5.0
"""Grants are worked out anew at most so often."""

MOST = {"rvc.convert": 12, "f5.item": 16}
LEAST = 1
"""The operator's settings: replicas, of a whole GPU each, of each pool."""

AGAIN_S = 30.0
"""Even where nothing changed that they go by, they are worked out so often: classes age."""

HEADS = 4
"""Of each lane, so many trainings stand for all that wait: they are its oldest."""


class Granting:
    """Keeps the grants.

    Args:
        world: the cluster and the queues.
        begin: lets jobs of a kind begin that can.
        give_back: takes a training under a lease off its GPUs.
    """

    def __init__(
        self, world: World, begin: Callable[[str], None], give_back: Callable[[Job, int], None]
    ) -> None:
        self._world = world
        self._begin, self._give_back = begin, give_back
        self._nodes = [Node(str(number), world.trace.gpus_per_node) for number in range(world.trace.nodes)]
        self._next_s = self._last_s = -1.0
        self._seen: tuple[object, ...] = ()
        self.trainer_gpus = world.cluster.total
        self.pools = dict.fromkeys(PLACES, 0)
        self.kept_node: int | None = None

    def ask(self) -> None:
        """Something changed: they are to be worked out soon."""
        world = self._world
        if self._next_s < world.now_s:
            self._next_s = world.now_s + GRANT_S
            world.at(self._next_s, self.decide)

    def budget(self) -> int:
        """GPUs more that trainings may take."""
        return self.trainer_gpus - self._world.held_gpus()

    def decide(self) -> None:
        """Works them out, carries them out, and lets begin what can."""
        world = self._world
        pools = [self._pool(pool) for pool in PLACES]
        held = [len(world.cluster.pools[pool]) for pool in PLACES]
        urgent = [_replicas(pool, PriorityClass.BATCH) for pool in pools]
        wanted = [_replicas(pool, PriorityClass.TRAINING) for pool in pools]
        seen = *held, *urgent, *wanted, world.held_gpus(), len(world.yielding), world.waits(TRAIN)
        if seen != self._seen or world.now_s >= self._last_s + AGAIN_S:
            self._seen, self._last_s = seen, world.now_s
            self._carry_out(self._divided(pools))
        for kind in (*PLACES, TRAIN):
            self._begin(kind)

    def _carry_out(self, grants: Grants) -> None:
        world = self._world
        self.trainer_gpus = grants.trainer_gpus
        for pool in PLACES:
            self.pools[pool] = granted = round(grants.pools[pool])
            lacking = granted - world.cluster.held(pool)
            if lacking < 0:
                world.cluster.drain(pool, -lacking)
            elif lacking > 0:
                lacking -= world.cluster.keep(pool, lacking)
                if world.cluster.take(pool, lacking, world.now_s + SWITCH_S, self.kept_node):
                    world.at(world.now_s + SWITCH_S, partial(self._begin, pool))
        if grants.yields:
            by_name = {str(job.number): job for job in world.running[TRAIN]}
            for name in grants.yields:
                job = by_name[name]
                world.yielding[job] = None
                world.at(world.now_s + YIELD_S, partial(self._give_back, job, job.lease))

    def _divided(self, pools: list[Pool]) -> Grants:
        world = self._world
        now_s = world.now_s
        holding = [
            HoldingTraining(
                str(job.number),
                int(job.gpus),
                str(job.on[0].node),
                now_s - job.began_s,
                0,
                job.lane.priority_class,
                job in world.yielding,
            )
            for job in world.running[TRAIN]
        ]
        waiting = [
            WaitingTraining(int(job.gpus), now_s - job.waits_from_s)
            for lane in world.lanes[TRAIN].values()
            for job in islice(lane.jobs, HEADS)
        ]
        since_s = now_s - world.training_gave_back_s
        return divide(self._nodes, holding, waiting, pools, Rules(), since_training_s=since_s)

    def _pool(self, name: str) -> Pool:
        world = self._world
        queued: dict[PriorityClass, int] = {}
        running: dict[PriorityClass, int] = {}
        oldest_s: dict[PriorityClass, float] = {}
        for key, lane in world.lanes[name].items():
            at = key.priority_class
            running[at] = running.get(at, 0) + lane.running
            if lane.jobs:
                queued[at] = queued.get(at, 0) + len(lane.jobs)
                oldest_s[at] = min(oldest_s.get(at, math.inf), lane.jobs[0].waits_from_s)
        loads = {
            at: Load(queued.get(at, 0), running[at], world.now_s - oldest_s.get(at, world.now_s))
            for at in running
        }
        idle = not any(load.queued or load.running for load in loads.values())
        return Pool(
            name,
            loads,
            gpus_each=1.0,
            places_each=PLACES[name],
            least=LEAST,
            most=MOST[name],
            held_gpus=float(len(world.cluster.pools[name])),
            idle_s=world.now_s - world.idle_since_s[name] if idle else 0.0,
            since_begin_s=world.now_s - world.began_s[name],
        )


def _replicas(pool: Pool, below: PriorityClass) -> int:
    """The replicas that a pool's work below a class keeps busy."""
    jobs = sum(load.queued + load.running for at, load in pool.loads.items() if at < below)
    return min(pool.most, -(-jobs // pool.places_each))
