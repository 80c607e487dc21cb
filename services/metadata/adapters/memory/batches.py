"""Batches in memory: what became of their items, and their ends."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from services.metadata.adapters.memory.database import statement
from services.metadata.adapters.memory.jobs import JobWrites
from services.metadata.adapters.memory.rows import JobRow, Tick, as_json, job_of
from services.metadata.model.jobs import FINAL_STATES, Job, JobState
from services.metadata.scheduling.lanes import LaneKey

_MOST_UNENDED = 1000
_OPEN = frozenset({JobState.QUEUED, JobState.RUNNING})
_UNDONE = frozenset({JobState.FAILED, JobState.CANCELLED})


class MemoryBatches(JobWrites):
    """The ledger's statements on batches."""

    @statement
    async def cancel_items(self, batch: str, limit: int) -> int:
        """Cancels up to so many items that are not done; returns how many there were."""
        done: list[JobState] = []
        for item in self._items(batch):
            if len(done) == limit:
                break
            if item.state not in _OPEN:
                continue
            row = await self._locked(item.id)
            if row.state not in _OPEN:
                continue
            waits = row.state is JobState.QUEUED
            row = self._put(
                row,
                state=JobState.CANCELLED if waits else JobState.CANCELLING,
                ended_at=self._s.now if waits else row.ended_at,
                updated_at=self._s.now,
                event_seq=row.event_seq + 1,
            )
            await self._event(row, "batch cancelled")
            done.append(row.state)
        await self._tick(batch, [state for state in done if state is JobState.CANCELLED])
        return len(done)

    @statement
    async def retry_items(self, batch: str, more_attempts: int) -> list[LaneKey]:
        """Queues every failed or cancelled item again; returns the lanes that they are in."""
        keys = [row.id for row in self._items(batch) if _can_do_better(row)]
        back: list[JobState] = []
        lanes: dict[LaneKey, None] = {}
        for _, row in await self._s.lock_all(self._db.jobs, keys, _can_do_better):
            back.append(row.state)
            after = self._put(
                row,
                state=JobState.QUEUED,
                ended_at=None,
                error=None,
                waiting_reason="",
                updated_at=self._s.now,
                not_before=self._s.now,
                paused=False,
                batch_scale=1.0,
                avoid_nodes=(),
                max_attempts=row.attempt + more_attempts,
                event_seq=row.event_seq + 1,
            )
            await self._event(after, "retried with its batch")
            lanes[LaneKey(row.kind, row.priority_class, row.team)] = None
        if back:
            await self._uncount(batch, back)
        return list(lanes)

    @statement
    async def pause_items(self, batch: str, *, paused: bool) -> None:
        """Holds back, or lets go on, what is not done of a batch."""
        keys = [row.id for row in self._items(batch) if row.state in _OPEN]
        for _, row in await self._s.lock_all(self._db.jobs, keys, lambda row: row.state in _OPEN):
            self._put(row, paused=paused, updated_at=self._s.now, waiting_reason="PAUSED" if paused else "")

    @statement
    async def set_items_priority(self, batch: str, priority: int) -> None:
        """Changes the priority of a batch's items, also of those that may come back to the queue."""
        keys = [row.id for row in self._items(batch)]
        for _, row in await self._s.lock_all(self._db.jobs, keys, _may_wait):
            self._put(row, priority=priority)

    @statement
    async def lanes_of_batch(self, batch: str) -> list[LaneKey]:
        """The lanes in which a batch's items wait."""
        rows = [row for row in self._items(batch) if row.state is JobState.QUEUED]
        return list(dict.fromkeys(LaneKey(row.kind, row.priority_class, row.team) for row in rows))

    @statement
    async def next_item(self, batch: Job) -> Job | None:
        """The item that waits and is next."""
        kind = str(batch.task["item_kind"])
        rows = [
            row
            for row in self._items(batch.id)
            if row.claimable and (row.kind, row.priority_class) == (kind, batch.priority_class)
        ]
        return min(rows, key=lambda row: row.queue_key, default=None)

    @statement
    async def add_ticks(self, limit: int) -> list[str]:
        """Adds up to so many ends of items to their batches; returns those batches, locked."""
        if not self._s.try_lock(self._db.advice, "adding up"):
            return []
        added: dict[str, list[Tick]] = {}
        for number, tick in itertools.islice(self._s.scan(self._db.ticks), limit):
            if self._s.try_lock(self._db.ticks, number):
                self._s.put(self._db.ticks, number, None)
                added.setdefault(tick.batch_id, []).append(tick)
        for batch, ticks in added.items():
            row = await self._locked(batch)
            self._put(
                row,
                items_succeeded=row.items_succeeded + sum(tick.succeeded for tick in ticks),
                items_failed=row.items_failed + sum(tick.failed for tick in ticks),
                items_cancelled=row.items_cancelled + sum(tick.cancelled for tick in ticks),
            )
        unended = sorted(row.id for row in self._open_batches() if row.items_ended >= row.items_total)
        return list(dict.fromkeys([*added, *unended[:_MOST_UNENDED]]))

    @statement
    async def starting_batches(self) -> list[str]:
        """Batches that wait though an item of theirs runs."""
        running = {row.parent_id for row in self._leased() if row.parent_id}
        return sorted(
            batch
            for batch in running
            if (row := self._job(batch)) is not None and row.state is JobState.QUEUED
        )

    @statement
    async def lock_open_batch(self, batch: str) -> Job | None:
        """A batch that has not ended, locked; None where it has or another looks after it."""
        row = self._job(batch)
        if row is None or row.state in FINAL_STATES or not self._s.try_lock(self._db.jobs, batch):
            return None
        return job_of(row)

    @statement
    async def set_batch_progress(self, batch: str, progress: Mapping[str, Any]) -> None:
        """Keeps a batch's rolled-up progress."""
        row = await self._locked(batch)
        self._put(row, progress=as_json(progress), updated_at=self._s.now)

    @statement
    async def items_running(self, batches: list[str]) -> dict[str, int]:
        """How many items of each batch run now."""
        found: dict[str, int] = {}
        for row in self._leased():
            if row.parent_id in batches:
                found[row.parent_id] = found.get(row.parent_id, 0) + 1
        return found

    @statement
    async def end_batch(
        self,
        batch: Job,
        state: JobState,
        message: str,
        *,
        result: Mapping[str, Any],
        error: Mapping[str, Any] | None,
    ) -> Job | None:
        """Ends a batch that is locked and writes the event; None where not all of its ends are counted."""
        row = await self._locked(batch.id)
        if any(tick.batch_id == batch.id for _, tick in self._s.scan(self._db.ticks)):
            return None
        row = self._put(
            row,
            state=state,
            updated_at=self._s.now,
            ended_at=self._s.now,
            result=as_json(result),
            error=None if error is None else as_json(error),
            event_seq=row.event_seq + 1,
            waiting_reason="",
        )
        await self._event(row, message)
        return job_of(row)

    def _open_batches(self) -> Iterable[JobRow]:
        found = self._s.look(self._db.jobs, self._db.open_batches, True)
        return [row for _, row in found if row.kind == "batch" and row.state not in FINAL_STATES]

    def _leased(self) -> list[JobRow]:
        """What workers have now, of the team that this transaction sees."""
        found = self._s.look(self._db.jobs, self._db.leased, True)
        return [row for _, row in found if row.lease_token and self._s.team in ("", row.team)]


def _may_wait(row: JobRow) -> bool:
    """Whether it waits, or may again."""
    return row.state is not JobState.SUCCEEDED


def _can_do_better(row: JobRow) -> bool:
    """Whether it ended badly and was not bad from the start."""
    return row.state in _UNDONE and row.task.get("kind") != "batch"
