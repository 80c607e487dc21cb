"""A trainer whose stages a test plays itself, step by step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from services.common.artifacts.memory_store import MemoryArtifactStore
from services.common.artifacts.model import work_key
from services.common.errors import VoxfleetError
from services.common.jobs.model import (
    Checkpoint,
    Fence,
    FleetOrders,
    Lease,
    NodeFacts,
    Outcome,
    Progress,
    StopKind,
)
from services.common.jobs.tasks import Blob, SourceAudio, TrainingParameters, TrainTask
from services.common.jobs.worker import Attempt
from services.trainer import records
from services.trainer.adapters.work_files import StoredWorkFiles
from services.trainer.app.following import Limits
from services.trainer.app.trainer import Trainer
from services.trainer.model import Phase, Stage
from services.trainer.stage import Prepared, Published, Snapshot, StageSpec, Trained

TEAM, JOB = "blue", "job-1"
HASH = "a" * 64


def blob(name: str, attempt: int = 1) -> Blob:
    return Blob(key=work_key(TEAM, JOB, attempt, name), sha256=HASH, size_bytes=1)


def checkpoint(step: int, epoch: int = 0, attempt: int = 1) -> Checkpoint:
    return Checkpoint(blob(records.checkpoint_name(step), attempt), epoch, step, attempt)


class PlayedStage:
    """A stage that does what the test says: each poll waits for the next thing said."""

    def __init__(self, spec: StageSpec, nodes: frozenset[str]) -> None:
        self.spec = spec
        self.nodes = nodes
        self.runs_on = min(nodes)
        self.placed = asyncio.Event()
        self.said: asyncio.Queue[Snapshot | VoxfleetError] = asyncio.Queue()
        self.asked_to_stop = asyncio.Event()
        self.save = False
        self.ended = False
        self.acknowledged = 0
        self._open: list[tuple[int, Checkpoint]] = []
        self._saved = 0

    def say(self, snapshot: Snapshot | VoxfleetError) -> None:
        self.said.put_nowait(snapshot)

    def saved(self, saved: Checkpoint) -> None:
        """A checkpoint is in the store; it is told until it is acknowledged."""
        self._saved += 1
        self._open.append((self._saved, saved))

    def train(self, step: int, total: int = 100) -> None:
        figures = {"loss_mel": 100.0 - step, "loss_g": 1.0, "loss_d": 1.0, "steps_per_s": 2.0}
        self.say(Snapshot(Phase.TRAIN, step, total, figures))

    @property
    def node(self) -> str:
        return self.runs_on if self.placed.is_set() else ""

    async def ready(self) -> None:
        await self.placed.wait()

    async def poll(self, acknowledged: int) -> Snapshot:
        self.acknowledged = max(self.acknowledged, acknowledged)
        said = await self.said.get()
        if isinstance(said, VoxfleetError):
            raise said
        self._open = [item for item in self._open if item[0] > acknowledged]
        return Snapshot(
            said.phase,
            said.step,
            said.total_steps,
            said.metrics,
            said.note,
            tuple(self._open),
            said.fallbacks,
            said.result,
            said.error,
        )

    async def ask_stop(self, *, save: bool) -> None:
        self.save = save
        self.asked_to_stop.set()

    async def end(self) -> None:
        self.ended = True


class PlayedBackend:
    """Hands every stage that begins to the test."""

    def __init__(self) -> None:
        self.begun: asyncio.Queue[PlayedStage] = asyncio.Queue()
        self.stages: list[PlayedStage] = []
        self.facts: tuple[NodeFacts, ...] = (NodeFacts("nodes/a", "alive", 2.0, 2.0, 8.0, True),)

    async def start(self, spec: StageSpec, nodes: frozenset[str]) -> PlayedStage:
        stage = PlayedStage(spec, nodes)
        self.stages.append(stage)
        self.begun.put_nowait(stage)
        return stage

    async def nodes(self) -> tuple[NodeFacts, ...]:
        return self.facts


@dataclass
class Ledger:
    """What the ledger is told of checkpoints; keeps the two of the highest step."""

    recorded: list[Checkpoint] = field(default_factory=list)
    rows: list[Checkpoint] = field(default_factory=list)
    error: VoxfleetError | None = None

    async def record_checkpoint(self, fence: Fence, saved: Checkpoint) -> list[str]:
        if self.error is not None:
            raise self.error
        self.recorded.append(saved)
        ordered = sorted([*self.rows, saved], key=lambda c: c.step, reverse=True)
        self.rows = ordered[:2]
        return [c.blob.key for c in ordered[2:]]

    async def connect(self) -> object:
        raise AssertionError("the worker is not part of this test")

    async def succeed(self, fence: Fence, outcome: Outcome) -> None:
        raise AssertionError

    async def fail(self, fence: Fence, error: VoxfleetError) -> None:
        raise AssertionError

    async def cancelled(self, fence: Fence) -> None:
        raise AssertionError


class NoBundles:
    async def contentvec(self) -> None:
        return None


class WatchedAttempt(Attempt):
    """An attempt whose progress a test can wait for."""

    def report(self, progress: Progress) -> None:
        super().report(progress)
        self.reports.append(progress)
        self.reported.set()


@dataclass
class Play:
    """One attempt under way."""

    backend: PlayedBackend
    ledger: Ledger
    store: MemoryArtifactStore
    trainer: Trainer
    attempt: WatchedAttempt
    running: asyncio.Task[Outcome]

    async def next_stage(self, stage: Stage, *, placed: bool = True) -> PlayedStage:
        async with asyncio.timeout(5):
            begun = asyncio.ensure_future(self.backend.begun.get())
            await asyncio.wait({begun, self.running}, return_when=asyncio.FIRST_COMPLETED)
            if not begun.done():
                raise AssertionError(f"it ended instead: {self.running}")
            found = begun.result()
        assert found.spec.stage is stage
        if placed:
            found.placed.set()
        return found

    async def prepare(self, slices: int = 16) -> None:
        stage = await self.next_stage(Stage.PREPARE)
        found = Prepared(blob("slices-x.safetensors"), slices, 55.0)
        stage.say(Snapshot(Phase.F0, result=found))

    def finish_training(self, stage: PlayedStage, last: Checkpoint, *, stopped: bool = False) -> None:
        stage.saved(last)
        curve = tuple((step, {"loss_mel": 100.0 - step}) for step in range(1, last.step + 1))
        made = Trained(blob("features-x.safetensors"), last, stopped, curve, "cpu")
        stage.say(Snapshot(Phase.TRAIN, last.step, 100, result=made))

    async def publish(self) -> PlayedStage:
        stage = await self.next_stage(Stage.PUBLISH)
        package = Blob(key="teams/blue/sha256/aa/" + HASH, sha256=HASH, size_bytes=9)
        stage.say(Snapshot(Phase.PUBLISH, result=Published(package, 40_000)))
        return stage

    def stop(self, kind: StopKind) -> None:
        self.attempt.tell_stop(kind)

    async def seen(self, condition: Callable[[Progress], bool]) -> Progress:
        """The first report of which that is true."""
        async with asyncio.timeout(5):
            while True:
                self.attempt.reported.clear()
                for progress in self.attempt.reports:
                    if condition(progress):
                        return progress
                await self.attempt.reported.wait()

    async def outcome(self) -> Outcome:
        async with asyncio.timeout(5):
            return await self.running


@pytest.fixture
async def play():
    """Begins an attempt: ``play(checkpoints=(), parameters=…, store=…)``."""
    made: list[Play] = []

    def begin(
        checkpoints: tuple[Checkpoint, ...] = (),
        *,
        store: MemoryArtifactStore | None = None,
        limits: Limits | None = None,
        number: int = 1,
        nodes: tuple[NodeFacts, ...] = (),
        orders: FleetOrders | None = None,
        batch_scale: float = 1.0,
        avoid_nodes: tuple[str, ...] = (),
        **parameters: object,
    ) -> Play:
        backend, ledger = PlayedBackend(), Ledger(rows=list(checkpoints))
        backend.facts = nodes or backend.facts
        store = store or MemoryArtifactStore()
        trainer = Trainer(
            backend,
            StoredWorkFiles(store),
            NoBundles(),
            limits=limits or Limits(poll_s=0.001),
        )
        if orders is not None:
            trainer.obey(orders)
        task = TrainTask(
            team=TEAM,
            voice=f"teams/{TEAM}/voices/v",
            audios=(SourceAudio(name="teams/blue/audios/a", blob=blob("clip"), duration_s=60.0),),
            parameters=TrainingParameters.model_validate(parameters),
        )
        fence = Fence(JOB, number, "token")
        lease = Lease(
            fence, f"teams/{TEAM}/jobs/{JOB}", task, 30.0, "", checkpoints, batch_scale, avoid_nodes
        )
        attempt = WatchedAttempt(lease, ledger)
        attempt.reports, attempt.reported = [], asyncio.Event()
        running = asyncio.ensure_future(trainer.handle(attempt))
        made.append(Play(backend, ledger, store, trainer, attempt, running))
        return made[-1]

    yield begin
    for one in made:
        one.running.cancel()
        await asyncio.gather(one.running, return_exceptions=True)
