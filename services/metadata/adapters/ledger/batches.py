"""Batches: what became of their items, and their ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg.types.json import Jsonb

from services.metadata.adapters.ledger.rows import job_of, jsonb
from services.metadata.adapters.statements import Statements
from services.metadata.adapters.storable import storable
from services.metadata.model.jobs import Job, JobState, PriorityClass
from services.metadata.scheduling.lanes import LaneKey

# Any fixed number: whoever holds it adds up.
_ADDING_UP = 0x6261746368


class BatchQueries(Statements):
    """The ledger's statements on batches."""

    async def cancel_items(self, batch: str, limit: int) -> int:
        """Cancels up to so many items that are not done; returns how many there were."""
        row = await self._row("cancel_items", job_id=batch, limit=limit)
        return int(row["cancelled"]) if row else 0

    async def retry_items(self, batch: str, more_attempts: int) -> list[LaneKey]:
        """Queues every failed or cancelled item again; returns the lanes that they are in."""
        rows = await self._rows("retry_items", job_id=batch, more_attempts=more_attempts)
        return [LaneKey(r["kind"], PriorityClass(r["priority_class"]), r["team"]) for r in rows]

    async def pause_items(self, batch: str, *, paused: bool) -> None:
        """Holds back, or lets go on, what is not done of a batch."""
        await self._run("pause_items", job_id=batch, paused=paused)

    async def set_items_priority(self, batch: str, priority: int) -> None:
        """Changes the priority of a batch's waiting items."""
        await self._run("set_items_priority", job_id=batch, priority=priority)

    async def lanes_of_batch(self, batch: str) -> list[LaneKey]:
        """The lanes in which a batch's items wait."""
        rows = await self._rows("lanes_of_batch", job_id=batch)
        return [LaneKey(r["kind"], PriorityClass(r["priority_class"]), r["team"]) for r in rows]

    async def add_ticks(self, limit: int) -> list[str]:
        """Adds up to so many ends of items to their batches; returns those batches, locked."""
        lock = await self._row("try_lock", lock=_ADDING_UP)
        if lock is None or not lock["held"]:
            return []
        counted = [row["id"] for row in await self._rows("take_ticks", limit=limit)]
        unended = [row["id"] for row in await self._rows("unended_batches")]
        return list(dict.fromkeys(counted + unended))

    async def starting_batches(self) -> list[str]:
        """Batches that wait though an item of theirs runs."""
        return [row["id"] for row in await self._rows("starting_batches")]

    async def lock_open_batch(self, batch: str) -> Job | None:
        """A batch that has not ended, locked; None where it has or another looks after it."""
        row = await self._row("lock_open_batch", job_id=batch)
        return job_of(row) if row else None

    async def next_item(self, batch: Job) -> Job | None:
        """The item that waits and is next."""
        row = await self._row(
            "next_item",
            job_id=batch.id,
            team=batch.team,
            kind=str(batch.task["item_kind"]),
            priority_class=int(batch.priority_class),
        )
        return job_of(row) if row else None

    async def set_batch_progress(self, batch: str, progress: Mapping[str, Any]) -> None:
        """Keeps a batch's rolled-up progress."""
        await self._run("batch_progress", job_id=batch, progress=Jsonb(dict(progress)))

    async def items_running(self, batches: list[str]) -> dict[str, int]:
        """How many items of each batch run now."""
        rows = await self._rows("running_by_batch", batches=batches)
        return {row["parent_id"]: int(row["running"]) for row in rows}

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
        row = await self._row(
            "end_batch", job_id=batch.id, state=state.value, result=jsonb(result), error=jsonb(error)
        )
        if row is None:
            return None
        await self._run(
            "insert_event",
            job_id=row["id"],
            seq=row["event_seq"],
            team=row["team"],
            state=row["state"],
            phase=row["phase"],
            attempt=row["attempt"],
            message=storable(message),
        )
        return job_of(row)
