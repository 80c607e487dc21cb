"""What GPUs are divided by, in Postgres: named SQL run by raw psycopg."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from psycopg.types.json import Jsonb

from services.common.jobs.model import GpuFacts, PoolState, TrainingGpus
from services.metadata.adapters.statements import Statements
from services.metadata.model.jobs import PriorityClass
from services.metadata.ports.grants import KindLoad, WantingTraining

_MOST = 200
_MOST_COUNTED = 2000


class GrantQueries(Statements):
    """The grants' part of a transaction."""

    async def put_worker_gpus(self, worker: str, facts: GpuFacts) -> None:
        """Keeps what a worker said; forgotten with it."""
        await self._run("put_worker_gpus", worker=worker, facts=Jsonb(asdict(facts)))

    async def worker_gpus(self) -> list[tuple[GpuFacts, float]]:
        """What each live worker said, newest first, and how many seconds ago."""
        return [(_facts(row["facts"]), row["age_s"]) for row in await self._rows("worker_gpus")]

    async def lock_division(self) -> tuple[float, Mapping[str, Any]] | None:
        """The time (s) and the memory of whoever decided last, locked; None where another process has it."""
        row = await self._row("lock_division")
        return (row["now_s"], row["memory"]) if row else None

    async def keep_division(self, memory: Mapping[str, Any]) -> None:
        """Keeps the memory of a decision."""
        await self._run("keep_division", memory=Jsonb(dict(memory)))

    async def job_loads(self, kinds: Sequence[str], full: Sequence[str]) -> list[KindLoad]:
        """What waits of these kinds, but for the teams that are at their quota."""
        found = await self._rows("job_loads", kinds=list(kinds), full=list(full), most=_MOST_COUNTED)
        return [
            KindLoad(row["kind"], PriorityClass(row["priority_class"]), row["queued"], row["waited_s"])
            for row in found
        ]

    async def waiting_trainings(self, known: Sequence[str], full: Sequence[str]) -> list[WantingTraining]:
        """Trainings to be claimed (not of teams at their quota), and running ones not in ``known``."""
        found = await self._rows("waiting_trainings", known=list(known), full=list(full), most=_MOST)
        return [WantingTraining(row["id"], round(row["gpus"]), row["waited_s"]) for row in found]


def _facts(found: Mapping[str, Any]) -> GpuFacts:
    return GpuFacts(
        tuple(TrainingGpus(**one) for one in found["trainings"]),
        tuple(PoolState(**one) for one in found["pools"]),
    )
