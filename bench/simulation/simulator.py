"""The event loop: the ledger's own lane book, division of GPUs, service times and forecast against a trace.

What is simulated and what it costs: a GPU that changes pools stands still for ``SWITCH_S`` (a model is
loaded); a training that is asked to yield goes on for ``YIELD_S`` to its checkpoint and spends ``RESUME_S``
when it goes on; a failed attempt is tried again after ``BACK_OFF_S``, a training from its checkpoint,
inference from the start.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from bench.simulation.cluster import Gpu
from bench.simulation.foretelling import Foretelling
from bench.simulation.granting import Granting
from bench.simulation.jobs import TRAIN, Job, Window
from bench.simulation.trace import Submitted, Trace, gpu_share, run_s
from bench.simulation.trainings import Trainings
from bench.simulation.world import BACK_OFF_S, RESUME_S, World
from services.metadata.model.jobs import PriorityClass
from services.metadata.scheduling.calibration import Calibration
from services.metadata.scheduling.estimates import Lognormal, ServiceTimes
from services.metadata.scheduling.lanes import LaneKey

WINDOW_S = 4 * 3600.0
"""Fairness is measured in spans of this length."""


class Simulation:
    """Replays one trace.

    Args:
        trace: what was submitted.
        oracle: the scheduler is told how long each job really takes; nothing is foretold.
        calibration: what turns forecasts into what is said.
        progress: told of the share that is done.
    """

    def __init__(
        self,
        trace: Trace,
        *,
        oracle: bool = False,
        calibration: Calibration | None = None,
        progress: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.trace, self.oracle = trace, oracle
        self.world = World(trace)
        self.times = ServiceTimes()
        self.granting = Granting(self.world, self._dispatch, self._yield)
        self.trainings = Trainings(self.world, self.granting, self._begin_training)
        self.foretelling = Foretelling(self.world, self.granting, calibration)
        self.jobs: list[Job] = []
        self.windows: list[Window] = []
        self.busy_gpu_s = 0.0
        self.yields = 0
        self._progress = progress
        self._backing_off = 0

    def run(self) -> None:
        """Replays the whole trace, until the last job has ended."""
        world, submits = self.world, self.trace.jobs
        world.at(WINDOW_S, self._close_window)
        for number, submitted in enumerate(submits):
            while world.next_s() < submitted.at_s:
                world.step()
            world.now_s = submitted.at_s
            self._submit(submitted, number)
            if number % 10_000 == 0:
                self._progress(number / len(submits))
        while any(world.running.values()) or any(map(world.waits, world.running)) or self._backing_off:
            world.step()

    # -- what comes in

    def _submit(self, submitted: Submitted, number: int) -> None:
        lane = LaneKey(submitted.kind, PriorityClass(submitted.priority_class), submitted.team)
        if self.oracle:
            takes = Lognormal(math.log(run_s(submitted)), 0.02)
        else:
            takes = self.times.lognormal(submitted.kind, submitted.size)
        share = gpu_share(submitted.kind, submitted.gpus)
        job = Job(number, submitted, lane, share, takes, submitted.takes_s)
        self.jobs.append(job)
        self._reckon(job)
        if not self.oracle:
            self.foretelling.submitted(job, self.trainings.room() if job.kind == TRAIN else None)
        self._queue(job)
        self._dispatch(job.kind)
        self.granting.ask()

    def _reckon(self, job: Job) -> None:
        """What a job is going to cost, and how long it may hold its GPUs at the most (nine in ten)."""
        job.cost = job.takes.remaining_mean_s(job.ran_s) * job.gpus
        job.most_s = job.takes.remaining_s(job.ran_s, (0.9,))[0]

    def _queue(self, job: Job, *, front: bool = False) -> None:
        self.world.queue(job, front=front)
        if job.kind == TRAIN:
            self.trainings.stir()

    # -- who begins

    def _dispatch(self, kind: str) -> None:
        world = self.world
        if not world.waits(kind):
            return
        if kind == TRAIN:
            self.trainings.dispatch()
            return
        while True:
            free = world.cluster.free_places(kind, world.now_s)
            picks = world.book.pick(kind, free, world.now_s) if free else []
            if not picks:
                return
            for pick in picks:
                lane = world.lane(pick.lane)
                claimed = [lane.jobs.popleft() for _ in range(min(pick.count, len(lane.jobs)))]
                for job in claimed:
                    world.unqueued(lane, job)
                    self._begin(job, [world.cluster.fill(kind, world.now_s)])
                world.book.claimed(pick, [job.cost for job in claimed], 0)

    def _begin_training(self, job: Job, node: int) -> None:
        self._begin(job, self.world.cluster.seize(node, int(job.gpus)))

    def _begin(self, job: Job, on: list[Gpu]) -> None:
        world = self.world
        job.on, job.began_s = on, world.now_s
        world.began_s[job.kind] = world.now_s
        world.running[job.kind][job] = None
        world.lane(job.lane).serve(1, job.gpus, world.now_s)
        if job.first_s < 0.0:
            job.first_s = world.now_s
            self.foretelling.began(job)
        runs_s = job.left_s
        if job.submitted.fails and not job.failed:
            runs_s -= (1.0 - abs(job.submitted.fails)) * job.submitted.takes_s
        lease, overhead_s = job.lease, RESUME_S if job.resumes else 0.0
        world.at(world.now_s + max(1.0, runs_s) + overhead_s, lambda: self._end(job, lease))

    # -- what ends

    def _stop(self, job: Job) -> None:
        """Takes a job off its GPUs; a training keeps what it has done."""
        world = self.world
        spent_s = world.now_s - job.began_s
        del world.running[job.kind][job]
        world.yielding.pop(job, None)
        world.lane(job.lane).serve(-1, -job.gpus, world.now_s)
        world.book.charge(job.lane, spent_s * job.gpus - job.cost)
        self.busy_gpu_s += spent_s * job.gpus
        for gpu in job.on:
            if gpu.pool:
                gpu.used -= 1
            gpu.trains = False
        job.on = []
        job.lease += 1
        if job.kind == TRAIN:
            world.training_gave_back_s = world.now_s
            job.left_s -= max(0.0, spent_s - (RESUME_S if job.resumes else 0.0))
            job.ran_s += spent_s
            job.resumes = True
            self._reckon(job)
        else:
            job.ran_s = spent_s

    def _end(self, job: Job, lease: int) -> None:
        world = self.world
        if lease != job.lease:
            return
        self._stop(job)
        fails = job.submitted.fails
        if fails > 0.0 and not job.failed:
            job.failed = True
            self._backing_off += 1
            world.at(world.now_s + BACK_OFF_S, lambda: self._retry(job))
        else:
            job.ended_s = world.now_s
            if fails >= 0.0:
                self.times.observe(job.kind, job.submitted.size, job.ran_s)
        self._freed(job.kind)

    def _retry(self, job: Job) -> None:
        self._backing_off -= 1
        if job.kind != TRAIN:
            job.ran_s = 0.0
        self._queue(job, front=True)
        self._dispatch(job.kind)
        self.granting.ask()

    def _yield(self, job: Job, lease: int) -> None:
        if lease != job.lease:
            return
        self.yields += 1
        self._stop(job)
        self._queue(job, front=True)
        self._freed(TRAIN)

    def _freed(self, kind: str) -> None:
        world = self.world
        if not world.running[kind] and not world.waits(kind):
            world.idle_since_s[kind] = world.now_s
        self.foretelling.note_usual()
        if kind == TRAIN or world.cluster.let_go(kind):
            self.granting.decide()
            return
        self._dispatch(kind)
        self.granting.ask()

    # -- fairness

    def _close_window(self) -> None:
        """Of each kind and class: what those lanes got that had work waiting all the time."""
        world = self.world
        got: dict[tuple[str, PriorityClass], list[float]] = {}
        for lanes in world.lanes.values():
            for key, lane in lanes.items():
                served = lane.take_served(world.now_s)
                if lane.since_s <= world.now_s - WINDOW_S:
                    each = got.setdefault((key.kind, key.priority_class), [])
                    each.append(served / self.trace.weights[key.team])
        self.windows += [Window(*of, found) for of, found in got.items() if len(found) > 1]
        world.at(world.now_s + WINDOW_S, self._close_window)
