"""What GPUs are divided by, in memory."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from services.common.jobs.model import GpuFacts
from services.metadata.adapters.memory.database import statement
from services.metadata.adapters.memory.fleet import LIVE_S, MemoryFleet
from services.metadata.adapters.memory.rows import JobRow, as_json
from services.metadata.model.jobs import JobState, PriorityClass
from services.metadata.ports.grants import KindLoad, WantingTraining
from services.metadata.scheduling.lanes import LaneKey

_DIVISION = "division of GPUs"
_TRAINING = "rvc.train"


class MemoryGrants(MemoryFleet):
    """The grants' part of a transaction."""

    @statement
    async def put_worker_gpus(self, worker: str, facts: GpuFacts) -> None:
        """Keeps what a worker said; nothing where the worker is gone already."""
        await self._s.lock(self._db.worker_gpus, worker)
        if self._s.get(self._db.workers, worker) is not None:
            self._s.put(self._db.worker_gpus, worker, (facts, self._s.now))

    @statement
    async def worker_gpus(self) -> list[tuple[GpuFacts, float]]:
        """What each live worker said, newest first, and how many seconds ago."""
        since = self._s.now - dt.timedelta(seconds=LIVE_S)
        found = []
        for worker, (facts, at) in self._s.scan(self._db.worker_gpus):
            row = self._s.get(self._db.workers, worker)
            if row is not None and row.last_seen > since:
                found.append((facts, max(0.0, (self._s.now - at).total_seconds())))
        return sorted(found, key=lambda said: said[1])

    @statement
    async def lock_division(self) -> tuple[float, Mapping[str, Any]] | None:
        """The time (s) and the memory of whoever decided last, locked; None where another process has it."""
        if not self._s.try_lock(self._db.estimates, _DIVISION):
            return None
        return self._s.now.timestamp(), self._s.get(self._db.estimates, _DIVISION) or {}

    @statement
    async def keep_division(self, memory: Mapping[str, Any]) -> None:
        """Keeps the memory of a decision."""
        await self._s.lock(self._db.estimates, _DIVISION)
        self._s.put(self._db.estimates, _DIVISION, as_json(memory))

    @statement
    async def job_loads(self, kinds: Sequence[str], full: Sequence[str]) -> list[KindLoad]:
        """What waits of these kinds, but for the teams that are at their quota."""
        loads: dict[tuple[str, PriorityClass], list[JobRow]] = {}
        for row in self._due(full):
            if row.kind in kinds:
                loads.setdefault((row.kind, row.priority_class), []).append(row)
        return [KindLoad(*key, len(rows), self._oldest_s(rows)) for key, rows in sorted(loads.items())]

    @statement
    async def waiting_trainings(self, known: Sequence[str], full: Sequence[str]) -> list[WantingTraining]:
        """Trainings to be claimed (not of teams at their quota), and running ones not in ``known``."""
        due = [row for row in self._due(full) if row.kind == _TRAINING]
        due.sort(key=lambda row: (LaneKey(row.kind, row.priority_class, row.team), row.queue_key))
        running = [
            row
            for row in self._leased_rows()
            if (row.kind, row.state) == (_TRAINING, JobState.RUNNING) and row.id not in known
        ]
        return [WantingTraining(row.id, round(row.gpus), self._oldest_s([row])) for row in (*due, *running)]

    def _due(self, full: Sequence[str]) -> list[JobRow]:
        """What could be claimed now."""
        now = self._s.now
        return [
            row
            for row in self._waiting()
            if row.team not in full and row.not_before is not None and row.not_before <= now
        ]
