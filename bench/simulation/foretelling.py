"""What is said of a job as it is submitted: the product's own outlook and calibration.

It knows what :class:`services.metadata.app.planner.Planner` can read from the ledger, and nothing of the
future or of true run times.
"""

from __future__ import annotations

import math

from bench.simulation.cluster import PLACES
from bench.simulation.granting import GRANT_S, MOST, Granting
from bench.simulation.jobs import TRAIN, Job
from bench.simulation.placing import Room
from bench.simulation.world import SWITCH_S, YIELD_S, World
from services.metadata.model.jobs import PriorityClass
from services.metadata.scheduling.calibration import Calibration, Expected
from services.metadata.scheduling.forecast import Arrivals, LaneLoad, Outlook, PoolLoad, Running, Waiting

OUTLOOK_S = 5.0
"""An outlook is made anew at most so often."""

USUAL_MEMORY_S = 3 * 3600.0


class Foretelling:
    """Says when jobs will begin, and learns from when they do.

    Args:
        world: the queues and the cluster.
        granting: which GPU is whose.
        calibration: what turns forecasts into what is said.
    """

    def __init__(self, world: World, granting: Granting, calibration: Calibration | None = None) -> None:
        self._world, self._granting = world, granting
        self.calibration = calibration or Calibration()
        self.arrivals = Arrivals()
        self._outlooks: dict[str, tuple[float, Outlook, dict[object, list[int]]]] = {}
        self._usual: dict[str, tuple[float, float]] = {}

    def submitted(self, job: Job, room: Room | None) -> None:
        """Says when it will begin. ``room`` is what trainings have now, for a training."""
        job.said = self._expect(job, room)
        self.arrivals.add((job.kind, job.lane.priority_class, job.lane.team), job.cost, self._world.now_s)

    def began(self, job: Job) -> None:
        """Learns from a job that begins for the first time."""
        if job.said is not None and (job.waited_s > 0.0 or job.said.raw_s > 0.0):
            self.calibration.observe(job.said, job.waited_s, 1.0 / math.sqrt(job.alike[0]))

    def note_usual(self) -> None:
        """Learns what each pool has while work waits for it, as a fading mean."""
        world = self._world
        for kind in world.running:
            if world.waits(kind):
                has = float(self._granting.trainer_gpus if kind == TRAIN else world.cluster.held(kind))
                before, at_s = self._usual.get(kind, (has, world.now_s))
                part = -math.expm1(-min(60.0, world.now_s - at_s) / USUAL_MEMORY_S)
                self._usual[kind] = before + (has - before) * part, world.now_s

    def _expect(self, job: Job, room: Room | None) -> Expected:
        world, kind = self._world, job.kind
        raw_s = 0.0
        if not self._fits(job, room):
            known = self._outlooks.get(kind)
            if known is None or world.now_s - known[0] > OUTLOOK_S:
                known = self._outlooks[kind] = world.now_s, Outlook(self.load(kind)), {}
            _, outlook, asked = known
            job.alike = asked.setdefault(job.lane, [0])
            job.alike[0] += 1
            ahead = world.lane(job.lane).work
            weight = world.trace.weights[job.lane.team]
            asked_of = Waiting(job.lane.priority_class, job.lane.team, job.gpus, ahead, weight)
            raw_s = outlook.start_in_s(asked_of)
        return self.calibration.expect(kind, job.lane.priority_class, job.gpus, raw_s, job.takes.mean_s)

    def _fits(self, job: Job, room: Room | None) -> bool:
        """Whether nothing that waits is in the way of a job that could begin at once."""
        if room is not None:
            empty = not self._world.lane(job.lane).jobs
            return empty and room.node_for(int(job.gpus), job.most_s) is not None
        world = self._world
        return not world.waits(job.kind) and world.cluster.free_places(job.kind, world.now_s) > 0

    def load(self, kind: str) -> PoolLoad:
        """A pool as the forecast is told of it."""
        world, book = self._world, self._world.book
        rates = self.arrivals.rates(kind, world.now_s)
        starts = {priority_class: book.starts(kind, priority_class) for priority_class in PriorityClass}
        lanes = []
        for key, lane in world.lanes[kind].items():
            rate = rates.get((key.priority_class, key.team), 0.0)
            if lane.jobs or rate > 0.0:
                lanes.append(
                    LaneLoad(
                        key.priority_class,
                        key.team,
                        len(lane.jobs),
                        lane.gpus,
                        lane.work,
                        starts[key.priority_class].get(key.team, 0.0),
                        world.trace.weights[key.team],
                        rate,
                    )
                )
        running = self._running(kind)
        if kind == TRAIN:
            free = float(max(0, self._granting.budget()))
            usual = self._usual.get(kind, (0.0, 0.0))[0]
            return PoolLoad(float(self._granting.trainer_gpus), free, 1.0, running, lanes, usual, SWITCH_S)
        share = 1.0 / PLACES[kind]
        free = world.cluster.free_places(kind, world.now_s, draining=True) * share
        others = sum(len(gpus) for pool, gpus in world.cluster.pools.items() if pool != kind)
        return PoolLoad(
            float(min(MOST[kind], world.cluster.total - others)),
            free,
            share,
            running,
            lanes,
            lag_s=SWITCH_S + GRANT_S / 2.0,
            idle=float(sum(world.cluster.idle().values())),
            coming=self._running(TRAIN),
            asked_s=SWITCH_S + GRANT_S / 2.0 + YIELD_S,
        )

    def _running(self, kind: str) -> list[Running]:
        now_s = self._world.now_s
        return [
            Running(job.gpus, job.takes, job.ran_s + now_s - job.began_s) for job in self._world.running[kind]
        ]
