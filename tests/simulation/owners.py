"""Those who own jobs: they submit, ask again, change their minds, and watch."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from services.common.errors import Kind, Reason, VoxfleetError
from services.metadata.model.jobs import FINAL_STATES, JobEvent, JobState, NewJob, PriorityClass
from services.metadata.scheduling.lanes import LaneKey
from tests.simulation.world import CHANCE, GPUS, LostError, Process, World

CLASS_OF = {
    "rvc.train": PriorityClass.TRAINING,
    "rvc.convert": PriorityClass.CONVERSION,
    "f5.item": PriorityClass.BATCH,
    "bundle.pull": PriorityClass.CONVERSION,
}
_MOST_WATCHED = 3


class Desk:
    """Submits as the product does: request id, quota, rows and wake-up in one transaction."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._numbers = itertools.count(1)

    def new_id(self, team: str) -> str:
        """An id that was never used."""
        return f"{team}-{next(self._numbers):05d}"

    async def submit(
        self, process: Process, team: str, request: str, jobs: Sequence[NewJob], depends_on: tuple[str, ...]
    ) -> str:
        """Makes a job, or a batch and its items; a repeat finds the first. Errors: QUEUE_FULL."""
        head, waiting = jobs[0], [job for job in jobs if job.kind != "batch" and job.state is JobState.QUEUED]
        async with process.store.tenant(team) as tx:
            first = await tx.remember_request(team, request, "Submit", "f", head.id)
            if first != head.id:
                return first
            most = (await tx.get_quota(team)).max_queued_jobs
            if most:
                await tx.lock_submits(team)
                if await tx.count_queued(team, most + 1) + len(waiting) > most:
                    raise VoxfleetError(Reason.QUEUE_FULL, "too many", kind=Kind.EXHAUSTED)
            for job in jobs:
                self.world.watchdog.needs[job.id] = depends_on
            await tx.add_jobs(team, jobs)
            tx.wake_lanes({LaneKey(job.kind, job.priority_class, team) for job in waiting})
        return head.id

    def single(self, team: str, kind: str, request: str, depends_on: tuple[str, ...], **given: Any) -> NewJob:
        """A job of its own."""
        task = {"kind": kind, "voice": f"teams/{team}/voices/v"}
        fields = {
            "priority_class": CLASS_OF.get(kind, PriorityClass.BATCH),
            "task": json.dumps(task),
            "spec": {},
            "gpus": GPUS.get(kind, 0.0),
            "labels": {"request": request},
            "size": 5.0,
            **given,
        }
        return NewJob(team=team, id=self.new_id(team), kind=kind, depends_on=depends_on, **fields)

    def batch(
        self, team: str, request: str, size: int, bad: int, depends_on: tuple[str, ...]
    ) -> list[NewJob]:
        """A batch, some of whose items have failed from the start."""
        task = json.dumps({"kind": "batch", "team": team, "item_kind": "f5.item"})
        head = self.single(
            team, "batch", request, depends_on, task=task, gpus=0.0, items_total=size, items_failed=bad
        )
        items = []
        for index in range(size):
            given: dict[str, Any] = {"parent_id": head.id, "item_index": index, "labels": {}}
            if index < bad:
                given |= {"state": JobState.FAILED, "error": {"reason": "TEXT_EMPTY"}, "task": task}
            items.append(self.single(team, "f5.item", "", (), **given))
        return [head, *items]


class Owner:
    """One team and what it wants."""

    def __init__(self, world: World, desk: Desk, team: str) -> None:
        self.world = world
        self.desk = desk
        self.team = team
        self.known: list[str] = []
        self.watchers: list[Watcher] = []

    async def act(self) -> None:
        """Acts until the busy time is over."""
        chance = CHANCE.get()
        for number in itertools.count(1):
            await self.world.pause(chance.choice((0.1, 1.0, 3.0)))
            if self.world.loop.time() > self.world.plan.busy_s:
                return
            if not self.known or chance.random() < 0.5:
                await self._submit(f"{self.team}/r{number}")
            else:
                await self._change(chance.choice(self.known))

    async def _submit(self, request: str) -> None:
        chance = CHANCE.get()
        some = [job for job in self.known if chance.random() < 0.3][:3] if chance.random() < 0.3 else []
        depends_on = tuple(some)
        batch = chance.random() < 0.25
        kind = chance.choice(("rvc.train", "rvc.convert", "rvc.convert", "f5.item", "bundle.pull"))
        size, priority = chance.randint(1, 9), chance.choice((0, 0, 5, -5))
        bad = chance.choice((0, 0, 1))
        tries = chance.randint(1, 4)

        def ask(process: Process) -> Awaitable[str]:
            # Each time a request is sent it would be another job, were it not for its request id.
            if batch:
                jobs = self.desk.batch(self.team, request, size, min(bad, size), depends_on)
            else:
                given = {"priority": priority, "max_attempts": tries}
                jobs = [self.desk.single(self.team, kind, request, depends_on, **given)]
            return self.desk.submit(process, self.team, request, jobs, depends_on)

        # Some are impatient and ask twice at once.
        asked = [self._ask(request, ask) for _ in range(2 if chance.random() < 0.2 else 1)]
        found = await asyncio.gather(*asked)
        if job := next((each for each in found if each), ""):
            self.known.append(job)
            if len(self.watchers) < _MOST_WATCHED and self.world.plan.mode == "troubled":
                self.watchers.append(Watcher(self.world, self.team, job))
                self.world.spawn(f"watcher of {job}", self.watchers[-1].follow())

    async def _ask(self, request: str, ask: Callable[[Process], Awaitable[str]]) -> str:
        try:
            job = await self.world.insist(ask)
        except VoxfleetError as error:
            if error.reason not in (Reason.QUEUE_FULL, Reason.DEPENDENCY_FAILED):
                raise
            if error.reason is Reason.DEPENDENCY_FAILED:
                self.world.watchdog.counted["dependencies refused"] += 1
            return ""
        self.world.watchdog.acknowledged(request, job)
        return job

    async def _change(self, job: str) -> None:
        verb = CHANCE.get().choice(("cancel", "retry", "retry", "pause", "resume", "resume", "priority"))
        await self.change(job, verb)

    async def change(self, job: str, verb: str) -> None:
        """Changes a job as its owner may; what its state does not allow is no harm."""
        priority = CHANCE.get().choice((-5, 0, 5))

        async def ask(process: Process) -> None:
            jobs = process.jobs
            if verb == "priority":
                await jobs.update(self.team, job, {"priority": priority})
            else:
                await getattr(jobs, verb)(self.team, job)

        try:
            await self.world.insist(ask)
        except VoxfleetError as error:
            if error.reason is not Reason.JOB_STATE_CONFLICT:
                raise


class Watcher:
    """Watches one job; whenever its stream breaks it goes on at its cursor, wherever that may be."""

    def __init__(self, world: World, team: str, job: str) -> None:
        self.world = world
        self.team = team
        self.job = job
        self.told: list[JobEvent] = []

    async def follow(self) -> None:
        """Watches until the job has ended."""
        while not self.told or self.told[-1].state not in FINAL_STATES:
            process = await self.world.any_process()
            inbox: asyncio.Queue[JobEvent | None] = asyncio.Queue()
            pump = process.spawn(f"watch {self.job}", self._pump(process, inbox))
            pump.add_done_callback(lambda _, inbox=inbox: inbox.put_nowait(None))
            while (event := await inbox.get()) is not None:
                await self.world.pause(self.world.plan.slowness_s)
                self.told.append(event)
                if not self.world.calm and CHANCE.get().random() < 0.1:
                    break
            pump.cancel()
            await self.world.pause(0.3)

    async def _pump(self, process: Process, inbox: asyncio.Queue[JobEvent | None]) -> None:
        """The metadata's end of the stream."""
        cursor = self.told[-1].seq if self.told else 0
        try:
            await self.world.network()
            async for seen in process.jobs.watch(self.team, self.job, cursor):
                if seen is not None and seen.event is not None:
                    inbox.put_nowait(seen.event)
        except (LostError, VoxfleetError):
            pass
