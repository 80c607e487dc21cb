"""The world of a simulation: its clock, its database, its network, and the metadata processes in it."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from services.common.errors import Kind, Reason, VoxfleetError, unavailable
from services.metadata.adapters.memory import MemoryDatabase, MemoryStore, Step
from services.metadata.app.dispatch import Dispatcher
from services.metadata.app.feed import JobFeed
from services.metadata.app.housekeeping import Aftermath, Housekeeping
from services.metadata.app.jobs import Jobs
from services.metadata.app.learning import Experience
from services.metadata.app.planner import Planner
from services.metadata.app.work import Work
from services.metadata.model.fleet import Quota
from services.metadata.scheduling.lanes import LaneKey
from tests.simulation.checks import Watchdog
from tests.simulation.virtual import VirtualLoop

T = TypeVar("T")

LEASE_S = 6.0
SWEEP_S = 2.0
REFRESH_S = 2.0
AGE_S = 6.0
INFERENCE = ("rvc.convert", "f5.item", "bundle.pull")
GPUS = {"rvc.train": 1.0, "rvc.convert": 1 / 3, "f5.item": 1 / 5, "bundle.pull": 0.0}

CHANCE: ContextVar[random.Random] = ContextVar("chance")
"""Each actor has its own, so that what one does changes nothing of what happens to another by chance."""


class LostError(Exception):
    """A request or its reply did not arrive: the caller cannot know whether it was done."""


@dataclass(frozen=True)
class Plan:
    """What a seed stands for: how much of everything there is, and how often things go wrong."""

    mode: str
    processes: int
    trainers: int
    inferrers: int
    teams: tuple[str, ...]
    quotas: tuple[Quota, ...]
    busy_s: float
    loss: float
    faults: float
    slowness_s: float
    crash_every_s: float
    age_s: float = AGE_S

    @classmethod
    def of(cls, seed: int) -> Plan:
        """The plan of a seed; every sixth is about waiting, without any trouble."""
        chance = random.Random(f"{seed}/plan")
        mode = {0: "starving", 3: "flooded"}.get(seed % 6, "troubled")
        calm = mode != "troubled"
        teams = ("alpha", "beta", "gamma")[: 2 if calm else chance.randint(1, 3)]
        quotas = [
            Quota(
                team,
                max_gpus=chance.choice((0.0, 1.0, 1.4, 2.0)),
                max_queued_jobs=chance.choice((0, 4, 12)),
                max_gpu_seconds_per_day=chance.choice((0, 0, 10)),
                weight=chance.choice((1.0, 3.0)),
            )
            for team in teams
            if not calm and chance.random() < 0.5
        ]
        return cls(
            mode=mode,
            processes=1 if calm else chance.randint(1, 3),
            trainers=0 if calm else chance.randint(1, 2),
            inferrers=1 if calm else chance.randint(1, 3),
            teams=teams,
            quotas=tuple(quotas),
            busy_s=0.0 if calm else chance.uniform(8.0, 24.0),
            loss=0.0 if calm else chance.choice((0.0, 0.02, 0.1)),
            faults=0.0 if calm else chance.choice((0.0, 0.003, 0.02)),
            slowness_s=chance.choice((0.002, 0.02, 0.2)) if not calm else 0.002,
            crash_every_s=0.0 if calm else chance.choice((0.0, 3.0, 8.0)),
        )


class World:
    """Everything there is.

    Args:
        seed: of everything that happens by chance.
        plan: of what there is.
        store_type: how processes see the database; a test gives a broken one.
    """

    def __init__(self, seed: int, *, plan: Plan, store_type: type[MemoryStore]) -> None:
        self.seed = seed
        self.plan = plan
        self.loop = VirtualLoop()
        self.store_type = store_type
        self.began = dt.datetime(2030, 5, 6, 23 if seed % 7 == 0 else 12, 59, 40, tzinfo=dt.UTC)
        self.calm = False
        self.database = MemoryDatabase(chance=self.chance("tokens"), step=self.step)
        midnight = dt.datetime(2030, 5, 7, tzinfo=dt.UTC)
        self.watchdog = Watchdog(
            self.database,
            self.plan.quotas,
            self.loop.time,
            lease_s=LEASE_S,
            midnight_s=(midnight - self.began).total_seconds(),
        )
        self.database.observe(self.watchdog.see)
        self.processes: list[Process] = []
        self.database.wakeups.subscribe(self._notify)
        self._tasks: dict[asyncio.Task[Any], None] = {}

    def chance(self, name: str) -> random.Random:
        """What happens by chance to one actor."""
        return random.Random(f"{self.seed}/{name}")

    def now(self) -> dt.datetime:
        """The time of day."""
        return self.began + dt.timedelta(seconds=self.loop.time())

    def spawn(self, name: str, actor: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Lets an actor act, with its own chance; what it fails with ends the world."""
        before = CHANCE.set(self.chance(name))
        task = self.loop.create_task(actor, name=name)
        CHANCE.reset(before)
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.watchdog.failed(error)

    async def pause(self, mean_s: float) -> None:
        """Some time passes."""
        await asyncio.sleep(CHANCE.get().uniform(0.2, 1.8) * mean_s)

    async def network(self) -> None:
        """One way through the network. Errors: LostError."""
        await self.pause(self.plan.slowness_s)
        if not self.calm and CHANCE.get().random() < self.plan.loss:
            raise LostError

    async def step(self, step: Step) -> None:
        """What the database does before each statement and around each commit: takes time, or fails."""
        chance = CHANCE.get()
        if chance.random() < 0.2:
            await self.pause(self.plan.slowness_s / 3)
        if not self.calm and chance.random() < self.plan.faults:
            raise unavailable(Reason.DATABASE_UNAVAILABLE, f"a fault of the simulation, {step.value}")

    def _notify(self, lane: LaneKey | None) -> None:
        """A wake-up reaches each process or does not; nothing may depend on it."""
        for process in self.processes:
            chance = process.chance
            if process.alive and (self.calm or chance.random() > self.plan.loss):
                self.loop.call_later(chance.uniform(0.2, 1.8) * self.plan.slowness_s, process.hear, lane)

    async def any_process(self) -> Process:
        """One that is up, as soon as there is one."""
        while True:
            alive = [process for process in self.processes if process.alive]
            if alive:
                return CHANCE.get().choice(alive)
            await self.pause(0.3)

    async def insist(self, do: Callable[[Process], Awaitable[T]]) -> T:
        """Asks again, whoever is up, until there is an answer."""
        while True:
            process = await self.any_process()
            try:
                return await process.call(lambda process=process: do(process))  # type: ignore[misc]
            except LostError:
                pass
            except VoxfleetError as error:
                if error.kind is not Kind.UNAVAILABLE:
                    raise
            await self.pause(0.3)

    def close(self) -> None:
        """Ends everybody."""
        for process in self.processes:
            process.crash()
        for task in list(self._tasks):
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0.001))
        self.loop.close()


class Process:
    """One metadata process: the real use cases over the shared database. What it knows dies with it."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.alive = False
        self.lives = 0
        self.chance = world.chance(f"{name}/wakeups")
        self._tasks: dict[asyncio.Task[Any], None] = {}

    def start(self) -> None:
        """Comes up, knowing nothing."""
        world, clock = self.world, self.world.loop.time
        self.lives += 1
        self.alive = True
        self.store = world.store_type(world.database, now=world.now)
        self.feed = JobFeed(self.store, look_s=1.0)
        experience = Experience(self.store, clock=clock)
        self.dispatcher = Dispatcher(
            self.store,
            self,
            lease_s=LEASE_S,
            refresh_s=REFRESH_S,
            age_s=world.plan.age_s,
            cost_of=experience.cost_of,
            clock=clock,
        )
        aftermath = Aftermath(self.feed, self.dispatcher)
        planner = Planner(self.store, experience, self.dispatcher, clock=clock)
        self.jobs = Jobs(self.store, self.feed, planner, aftermath)
        self.work = Work(
            self.store,
            aftermath,
            lease_s=LEASE_S,
            keep_checkpoints=2,
            output_ttl_s=3600.0,
            chance=world.chance(f"{self.name}/{self.lives}/jitter"),
        )
        self.housekeeping = Housekeeping(
            self.store,
            self.work,
            aftermath,
            every_s=SWEEP_S,
            others=[(9.0, planner.refresh), (7.0, experience.learn)],
        )
        for part, loop in (
            ("dispatch", self.dispatcher.run()),
            ("feed", self.feed.run()),
            ("sweeps", self.housekeeping.run()),
        ):
            self.spawn(part, loop)
        world.watchdog.up(self.name)

    def crash(self) -> None:
        """Is gone at once: what it had not committed never was."""
        self.alive = False
        self.world.watchdog.down(self.name)
        for task in list(self._tasks):
            task.cancel()
        self._tasks.clear()

    def spawn(self, part: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Does something that dies with this process."""
        task = self.world.spawn(f"{self.name}/{self.lives}/{part}", work)
        self._tasks[task] = None
        task.add_done_callback(lambda task: self._tasks.pop(task, None))
        return task

    def subscribe(self, heard: Callable[[LaneKey | None], None]) -> None:
        """The dispatcher's: it hears of wake-ups."""
        self._heard = heard

    def hear(self, lane: LaneKey | None) -> None:
        """A wake-up has arrived."""
        if self.alive:
            self._heard(lane)

    async def call(self, do: Callable[[], Awaitable[T]]) -> T:
        """A request through the network, and its reply. Errors: LostError, and what the request says."""
        await self.world.network()
        if not self.alive:
            raise LostError

        async def serve() -> T:
            return await do()

        # The caller's chance goes along; the process's end is the request's.
        task = self.world.loop.create_task(serve())
        self._tasks[task] = None
        task.add_done_callback(self._served)
        await asyncio.wait([task])
        if task.cancelled():
            raise LostError
        await self.world.network()
        return task.result()

    def _served(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled():
            # Its caller may have gone, or its reply may get lost: an error that nobody hears is no matter.
            task.exception()
