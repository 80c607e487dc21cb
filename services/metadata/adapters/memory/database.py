"""The tables of one database in memory, what watches its commits, and statements run one by one."""

from __future__ import annotations

import datetime as dt
import enum
import functools
import itertools
import random
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from services.common.jobs.model import GpuFacts
from services.metadata.adapters.memory.rows import (
    AttemptRow,
    Dependency,
    JobRow,
    MadeAudio,
    Request,
    StoredArtifact,
    StoredAudio,
    Tick,
)
from services.metadata.adapters.memory.tables import Change, Session, Table
from services.metadata.model.catalog import Voice
from services.metadata.model.fleet import Quota, WorkerRow
from services.metadata.model.jobs import FINAL_STATES, CheckpointRow, JobEvent
from services.metadata.model.lexicons import Lexicon
from services.metadata.scheduling.lanes import LaneKey

__all__ = ["Change", "MemoryDatabase", "MemoryWakeups", "Statements", "Step", "statement"]


class Step(enum.Enum):
    """Where a session is when it lets others go first."""

    STATEMENT = "statement"
    """Before a statement."""
    COMMIT = "commit"
    """Before a commit: what is raised here rolls back."""
    COMMITTED = "committed"
    """After a commit: what is raised here is a reply that got lost."""


class MemoryWakeups:
    """What was committed, told to whoever subscribed."""

    def __init__(self) -> None:
        self._subscribers: list[Callable[[LaneKey | None], None]] = []

    def subscribe(self, heard: Callable[[LaneKey | None], None]) -> None:
        """Calls with each lane that may have got something."""
        self._subscribers.append(heard)

    def tell(self, lanes: Iterable[LaneKey]) -> None:
        """Says that there may be something in these lanes."""
        for lane in lanes:
            for heard in self._subscribers:
                heard(lane)


class MemoryDatabase:
    """Every table of the ledger, shared by the stores of as many processes as there are.

    Args:
        chance: of lease tokens.
        step: awaited by each session at its steps: a simulation lets others go first here, or fails.
    """

    def __init__(
        self,
        *,
        chance: random.Random | None = None,
        step: Callable[[Step], Awaitable[None]] | None = None,
    ) -> None:
        self._chance = chance or random.SystemRandom()
        self._step = step
        self._numbers = itertools.count(1)
        self._observers: list[Callable[[Sequence[Change]], None]] = []
        self.wakeups = MemoryWakeups()

        self.jobs: Table[str, JobRow] = Table("jobs")
        self.lanes = self.jobs.index(_lane)
        self.leased = self.jobs.index(lambda row: True if row.lease_token else None)
        self.items = self.jobs.index(lambda row: row.parent_id or None)
        self.open_batches = self.jobs.index(
            lambda row: True if row.kind == "batch" and row.state not in FINAL_STATES else None
        )
        self.events: Table[tuple[str, int], JobEvent] = Table("job_events")
        self.attempts: Table[tuple[str, int], AttemptRow] = Table("job_attempts")
        self.checkpoints: Table[tuple[str, int, int], CheckpointRow] = Table("job_checkpoints")
        self.dependencies: Table[tuple[str, str], Dependency] = Table("job_dependencies")
        self.dependents = self.dependencies.index(lambda row: None if row.settled else row.depends_on)
        self.ticks: Table[int, Tick] = Table("batch_ticks")
        self.quotas: Table[str, Quota] = Table("team_quotas")
        self.workers: Table[str, WorkerRow] = Table("workers")
        self.worker_gpus: Table[str, tuple[GpuFacts, dt.datetime]] = Table("worker_gpus")
        self.drained: Table[str, dt.datetime] = Table("drained_nodes")
        self.grants: Table[str, float] = Table("gpu_grants")
        self.estimates: Table[str, Mapping[str, Any]] = Table("job_estimates")
        self.watermarks: Table[str, dt.datetime] = Table("watermarks")
        self.made: Table[int, MadeAudio] = Table("usage_records")
        self.requests: Table[tuple[str, str], Request] = Table("requests")
        self.artifacts: Table[tuple[str, str], StoredArtifact] = Table("artifacts")
        self.audios: Table[tuple[str, str], StoredAudio] = Table("audios")
        self.voices: Table[tuple[str, str], Voice] = Table("voices")
        self.lexicons: Table[tuple[str, str], Lexicon] = Table("lexicons")
        self.advice: Table[str, None] = Table("advisory locks")

    def observe(self, observer: Callable[[Sequence[Change]], None]) -> None:
        """Calls with what each commit changed, before anyone else can see it changed again."""
        self._observers.append(observer)

    def number(self) -> int:
        """The next of a sequence; it is not taken back by a roll-back."""
        return next(self._numbers)

    def token(self) -> str:
        """A fresh lease token."""
        return str(uuid.UUID(int=self._chance.getrandbits(128), version=4))

    async def step(self, step: Step) -> None:
        """Lets others go first, where there is someone who says so."""
        if self._step is not None:
            await self._step(step)

    async def commit(self, session: Session, lanes: Iterable[LaneKey] = ()) -> None:
        """Commits a session and tells of it."""
        try:
            await self.step(Step.COMMIT)
        except BaseException:
            session.roll_back()
            raise
        changes = session.commit()
        if changes:
            for observer in self._observers:
                observer(changes)
        self.wakeups.tell(lanes)
        await self.step(Step.COMMITTED)


def _lane(row: JobRow) -> LaneKey | None:
    return LaneKey(row.kind, row.priority_class, row.team) if row.claimable else None


class Statements:
    """Statements of one transaction, or, without a session, each in a transaction of its own.

    Args:
        database: whose rows they are.
        now: the time.
        session: the transaction's.
    """

    def __init__(
        self, database: MemoryDatabase, now: Callable[[], dt.datetime], session: Session | None
    ) -> None:
        self._db = database
        self._now = now
        self._session = session

    @property
    def _s(self) -> Session:
        assert self._session is not None
        return self._session

    async def _run_alone(self, run: Callable[[Any], Awaitable[_T]]) -> _T:
        """Runs one statement in a session of its own."""
        await self._db.step(Step.STATEMENT)
        session = Session(self._now(), "")
        try:
            found = await run(type(self)(self._db, self._now, session))
        except BaseException:
            session.roll_back()
            raise
        await self._db.commit(session)
        return found


_S = TypeVar("_S", bound=Statements)
_T = TypeVar("_T")
_P = ParamSpec("_P")


def statement(
    method: Callable[Concatenate[_S, _P], Awaitable[_T]],
) -> Callable[Concatenate[_S, _P], Coroutine[Any, Any, _T]]:
    """A method that is one statement: others may go first, and outside a transaction it commits."""

    @functools.wraps(method)
    async def run(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        if self._session is None:
            return await self._run_alone(lambda alone: method(alone, *args, **kwargs))
        await self._db.step(Step.STATEMENT)
        return await method(self, *args, **kwargs)

    return run
