"""Which trainings begin, and where: lanes in the product's order, nodes by backfilling."""

from __future__ import annotations

from collections.abc import Callable

from bench.simulation import placing
from bench.simulation.granting import Granting
from bench.simulation.jobs import TRAIN, Job, Lane
from bench.simulation.placing import Room
from bench.simulation.world import World
from services.metadata.scheduling.lanes import LaneKey


class Trainings:
    """Lets trainings begin.

    Args:
        world: the cluster and the queues.
        granting: which GPUs are theirs.
        begin: puts a training on GPUs of a node.
    """

    def __init__(self, world: World, granting: Granting, begin: Callable[[Job, int], None]) -> None:
        self._world, self._granting = world, granting
        self._begin = begin
        self._reserved: tuple[Job, int] | None = None
        self._settled: tuple[int, ...] = ()

    def stir(self) -> None:
        """Something new waits: it is worth another look."""
        self._settled = ()

    def room(self) -> Room:
        """What there is for another training now."""
        idle = self._world.cluster.idle()
        return Room(idle, self._granting.budget(), self._reservation(idle))

    def dispatch(self) -> None:
        """Lets begin what can, in the order of the lane book."""
        world = self._world
        idle = world.cluster.idle()
        budget = self._granting.budget()
        state = budget, *idle.values()
        if budget <= 0 or state == self._settled:
            return
        reservation = self._reservation(idle)
        if self._reserved is not None:
            job, node = self._reserved
            if idle[str(node)] >= job.gpus <= budget:
                lane = world.lane(job.lane)
                lane.jobs.remove(job)
                world.book.charge(job.lane, job.cost)
                budget -= self._start(lane, job, node, idle)
                self._reserve(None)
                reservation = None
        room = Room(idle, budget, reservation)
        blocked: list[LaneKey] = []
        while room.any:
            picks = world.book.pick(TRAIN, 1, world.now_s)
            if not picks:
                break
            lane = world.lane(picks[0].lane)
            held = self._reserved[0] if self._reserved else None
            head = next((job for job in lane.jobs if job is not held), None)
            if head is not None and held is None and room.node_for(int(head.gpus), head.most_s) is None:
                room = Room(idle, budget, self._reserve_for(head, idle))
                held = head if self._reserved else None
                # What is reserved is out of the way of its lane: the next one goes on.
                head = next((job for job in lane.jobs if job is not held), None)
            node_name = room.node_for(int(head.gpus), head.most_s) if head is not None else None
            if head is None or node_name is None:
                blocked.append(picks[0].lane)
                world.book.claimed(picks[0], [], 0)
                continue
            lane.jobs.remove(head)
            world.book.claimed(picks[0], [head.cost], 0)
            budget -= self._start(lane, head, int(node_name), idle)
            room = Room(idle, budget, self._reservation(idle))
        for key in blocked:
            world.book.open(key, world.now_s)
        # Until a GPU comes or goes, or something new waits, another look would find no more.
        self._settled = budget, *idle.values()

    def _start(self, lane: Lane, job: Job, node: int, idle: dict[str, int]) -> int:
        self._world.unqueued(lane, job)
        idle[str(node)] -= int(job.gpus)
        self._begin(job, node)
        return int(job.gpus)

    def _reserve(self, reserved: tuple[Job, int] | None) -> None:
        self._reserved = reserved
        self._granting.kept_node = reserved[1] if reserved else None

    def _reserve_for(self, job: Job, idle: dict[str, int]) -> placing.Reservation | None:
        reservation = placing.reserve(idle, self._underway(), int(job.gpus))
        if reservation is not None:
            self._reserve((job, int(reservation.node)))
        return reservation

    def _reservation(self, idle: dict[str, int]) -> placing.Reservation | None:
        """What is reserved, seen from now: the node stays, the time is reckoned anew."""
        if self._reserved is None:
            return None
        job, node = self._reserved
        reservation = placing.reserve({str(node): idle[str(node)]}, self._underway(node), int(job.gpus))
        if reservation is None:
            # Inference took GPUs of that node meanwhile.
            self._reserve(None)
        return reservation

    def _underway(self, node: int | None = None) -> list[placing.Training]:
        now_s = self._world.now_s
        return [
            placing.Training(
                str(job.on[0].node),
                int(job.gpus),
                job.takes.remaining_s(job.ran_s + now_s - job.began_s, (0.5,))[0],
            )
            for job in self._world.running[TRAIN]
            if node is None or job.on[0].node == node
        ]
