"""Workers of the simulation: they work, fail, hang, vanish, come back late, and read the clock wrongly."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from services.common.errors import FailureClass, Kind, Reason, VoxfleetError
from services.common.jobs.model import AudioOutput, Checkpoint, Fence, Progress, Released, StopKind, Succeeded
from services.common.jobs.tasks import Blob
from services.metadata.app.channel import WorkSession
from services.metadata.app.work import Claimed, Work
from services.metadata.model.fleet import WorkerRow
from tests.simulation.world import CHANCE, INFERENCE, LEASE_S, LostError, Process, World

_FAILURES = (
    *[FailureClass.TRANSIENT] * 4,
    *[FailureClass.NODE] * 2,
    *[FailureClass.RESOURCE] * 2,
    FailureClass.INPUT,
    FailureClass.PERMANENT,
)


class Attempt:
    """What a worker has under way."""

    def __init__(self, claimed: Claimed) -> None:
        self.claimed = claimed
        self.fence = claimed.fence
        self.stop: StopKind | None = None
        self.stopped = asyncio.Event()
        self.progress = Progress("load")
        self.heard_of = True
        self.deaf = False

    def tell(self, stop: StopKind) -> None:
        """It is to stop; a deaf one goes on."""
        if not self.deaf:
            self.stop = stop
            self.stopped.set()


class Worker:
    """One worker process: a channel to some metadata process, and the attempts that it has under way."""

    def __init__(self, world: World, name: str, node: str, queue: str, places: int) -> None:
        self.world = world
        self.name = name
        self.node = node
        self.queue = queue
        self.places = places
        self.lives = 0
        self._chance = world.chance(f"{name}/character")
        # Seconds of its clock for each that passes.
        self._rate = self._chance.choice((0.6, 1.0, 1.0, 1.3)) if world.plan.mode == "troubled" else 1.0
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._running: dict[Fence, Attempt] = {}

    def start(self) -> None:
        """Comes up with nothing under way."""
        self.lives += 1
        self._running = {}
        self._spawn("channel", self._work())

    def crash(self) -> None:
        """Is gone at once, and with it what it had under way."""
        for task in list(self._tasks):
            task.cancel()
        self._tasks.clear()

    def _spawn(self, part: str, work: Any) -> asyncio.Task[Any]:
        task = self.world.spawn(f"{self.name}/{self.lives}/{part}", work)
        self._tasks[task] = None
        task.add_done_callback(lambda task: self._tasks.pop(task, None))
        return task

    # -- its channel

    def _row(self) -> WorkerRow:
        free = max(0, self.places - len(self._running))
        kinds = INFERENCE if self.queue == "inference" else ("rvc.train",)
        node = {"name": self.node, "gpus": 8.0, "state": "alive"}
        name = f"{self.name}-{self.lives}"
        return WorkerRow(
            name, self.queue, self.node, "sim", dict.fromkeys(kinds, free), (node,), "", 0, self.world.now()
        )

    async def _work(self) -> None:
        while True:
            process = await self.world.any_process()
            session = WorkSession(process.work, process.dispatcher, self._row())
            inbox: asyncio.Queue[Sequence[Claimed]] = asyncio.Queue()
            serving = process.spawn(f"serving {self.name}", self._serve(session, inbox))
            try:
                await self._talk(process, session, inbox, serving)
            except LostError:
                pass
            finally:
                # What was handed out and has not arrived never will: its lease expires.
                serving.cancel()
            await self.world.pause(0.5)

    async def _serve(self, session: WorkSession, inbox: asyncio.Queue[Sequence[Claimed]]) -> None:
        """The metadata's end of the channel."""
        with contextlib.suppress(VoxfleetError):
            async for found in session.leases():
                await self.world.pause(self.world.plan.slowness_s)
                inbox.put_nowait(found)

    async def _talk(
        self,
        process: Process,
        session: WorkSession,
        inbox: asyncio.Queue[Sequence[Claimed]],
        serving: asyncio.Task[Any],
    ) -> None:
        seen = 0
        while not serving.done():
            await self._ask(process, lambda: session.offer(self._row(), seen))  # noqa: B023 - awaited here
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEASE_S / 3 / self._rate):
                    for claimed in await inbox.get():
                        seen += 1
                        attempt = self._running[claimed.fence] = Attempt(claimed)
                        self._spawn(f"{claimed.job.id}#{claimed.fence.attempt}", self._attempt(attempt))
            beats = [
                (fence, attempt.progress) for fence, attempt in self._running.items() if attempt.heard_of
            ]
            if beats:
                told = await self._ask(process, lambda: session.heartbeat(beats))  # noqa: B023
                for fence, stop in told or ():
                    if fence in self._running:
                        self._running[fence].tell(stop)

    async def _ask(self, process: Process, do: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await process.call(do)
        except VoxfleetError as error:
            if error.kind is not Kind.UNAVAILABLE:
                raise
            raise LostError from error

    # -- what it has under way

    async def _attempt(self, attempt: Attempt) -> None:
        chance, troubled = CHANCE.get(), self.world.plan.mode == "troubled" and not self.world.calm
        kind = attempt.claimed.job.kind
        duration_s = chance.uniform(0.3, 1.2) if kind != "rvc.train" else chance.uniform(1.0, 6.0)
        fate = chance.random() if troubled else 1.0
        attempt.deaf = troubled and chance.random() < 0.1
        try:
            if fate < 0.06:
                # It hangs for good; its place is lost until someone restarts it.
                attempt.heard_of = False
                await asyncio.sleep(3 * LEASE_S)
                return
            if fate < 0.14:
                # It is not heard of for longer than its lease, and then comes back as if nothing had been.
                attempt.heard_of = False
                await asyncio.sleep(LEASE_S + chance.uniform(-1.0, 8.0))
                await self._end(attempt, "succeed")
                return
            for phase in ("load", "work"):
                attempt.progress = Progress(phase)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(duration_s / 2):
                        await attempt.stopped.wait()
                        break
                if kind == "rvc.train" and troubled:
                    await self._save(attempt)
            await self._end(attempt, self._outcome(attempt, chance, troubled=troubled))
        finally:
            self._running.pop(attempt.fence, None)

    def _outcome(self, attempt: Attempt, chance: random.Random, *, troubled: bool) -> str:
        if attempt.stop is not None:
            ends = {StopKind.CANCEL: "cancelled", StopKind.LOST: "", StopKind.YIELD: "release"}
            return ends.get(attempt.stop, "release")
        if not troubled or chance.random() < 0.7:
            return "succeed"
        return chance.choice(("fail", "fail", "fail", "release"))

    async def _save(self, attempt: Attempt) -> None:
        """Makes a checkpoint; losing it costs nothing."""
        number = CHANCE.get().randrange(1000)
        saved = Checkpoint(_blob(f"{attempt.fence.job_id} {number}"), 1, number)
        with contextlib.suppress(LostError, VoxfleetError):
            process = await self.world.any_process()
            await process.call(lambda: process.work.record_checkpoint(attempt.fence, saved))

    async def _end(self, attempt: Attempt, how: str) -> None:
        """Ends it, asking again until it is told; a lease that is lost is lost."""
        if not how:
            return
        chance, fence = CHANCE.get(), attempt.fence
        failure = chance.choice(_FAILURES)
        allowed = {"fail": "FAILED", "succeed": "SUCCEEDED", "release": "RELEASED", "cancelled": "CANCELLED"}
        try:
            await self.world.insist(lambda process: self._write(process.work, attempt, how, failure))
        except VoxfleetError as error:
            if error.reason is not Reason.LEASE_LOST:
                raise
            self.world.watchdog.counted["refused"] += 1
        else:
            # A job that is being cancelled ends so, however its attempt did, unless that was well.
            also = () if how == "succeed" else ("CANCELLED",)
            self.world.watchdog.accepted(fence, (allowed[how], *also))

    async def _write(self, work: Work, attempt: Attempt, how: str, failure: FailureClass) -> Any:
        fence = attempt.fence
        if how == "fail":
            return await work.fail(fence, {"reason": "X", "message": "by chance"}, failure)
        if how == "release":
            return await work.release(fence, Released(attempt.stop.value if attempt.stop else "shutdown"))
        if how == "cancelled":
            return await work.cancelled(fence)
        return await work.succeed(fence, Succeeded(audios=_outputs(attempt), weights=f"{fence.attempt}"))


def _outputs(attempt: Attempt) -> tuple[AudioOutput, ...]:
    """Conversions make an audio; its bytes are of this attempt alone."""
    if attempt.claimed.job.kind != "rvc.convert":
        return ()
    made = AudioOutput(
        blob=_blob(f"{attempt.fence}"),
        duration_s=1.0,
        rate_hz=24_000,
        channels=1,
        codec="flac",
        display_name="x",
        engine="rvc",
        weights="w",
        weights_trained=False,
        weights_licence="",
        seed=1,
        voice="",
    )
    return (made,)


def _blob(name: str) -> Blob:
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    return Blob(key=f"k/{sha256}", sha256=sha256, size_bytes=1)
