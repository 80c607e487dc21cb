"""Jobs and leases: named SQL run by raw psycopg, in the same transaction as the catalogue."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from services.common.errors import Reason, invalid
from services.common.jobs.model import Checkpoint, Fence, Progress
from services.common.jobs.tasks import Blob
from services.metadata.adapters.storable import storable
from services.metadata.model.fleet import QueueDepth, WorkerRow
from services.metadata.model.jobs import (
    FINAL_STATES,
    AttemptRecord,
    CheckpointRow,
    Job,
    JobEvent,
    JobState,
    NewJob,
    PriorityClass,
)
from services.metadata.model.page import Page
from services.metadata.sql import statements

_SQL = statements("ledger.sql")
_INSERT_ROWS = 1000
_JOB_FILTERS = ("state", "kind", "priority_class")

Row = dict[str, Any]


class LedgerQueries:
    """The ledger's part of a transaction."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._driver = connection

    async def add_jobs(self, team: str, jobs: Sequence[NewJob]) -> None:
        """Makes jobs and their first events; a batch before its items."""
        for start in range(0, len(jobs), _INSERT_ROWS):
            rows = Jsonb([_new_row(job) for job in jobs[start : start + _INSERT_ROWS]])
            await self._run("insert_jobs", team=team, jobs=rows)
            await self._run("insert_first_events", team=team, jobs=rows)

    async def get_job(self, team: str, job: str, *, lock: bool = False) -> Job | None:
        """A job."""
        row = await self._row("lock_job" if lock else "get_job", job_id=job, team=team)
        return _job(row) if row else None

    async def list_jobs(self, team: str, page: Page, *, batch: str = "") -> list[Job]:
        """A team's jobs by age, or a batch's items in their order."""
        conditions, parameters = _job_conditions(page)
        parameters |= {"team": team, "batch": batch, "limit": page.size, "after": page.after}
        if batch:
            conditions.append("parent_id = %(batch)s")
            order = "item_index"
            if page.after:
                conditions.append("item_index > %(after)s::integer")
        else:
            conditions.append("parent_id IS NULL")
            order = "id" if page.ascending else "id DESC"
            if page.after:
                conditions.append("id > %(after)s" if page.ascending else "id < %(after)s")
        where = " AND ".join(["team = %(team)s", *conditions])
        query = f"SELECT * FROM jobs WHERE {where} ORDER BY {order} LIMIT %(limit)s"  # noqa: S608
        return [_job(row) for row in await self._fetch(query, parameters)]

    async def batch_counts(self, batches: Sequence[str]) -> dict[str, dict[str, int]]:
        """Counts of items by state, for each batch."""
        rows = await self._rows("batch_counts", batches=list(batches))
        return {row.pop("parent_id"): {key: int(value) for key, value in row.items()} for row in rows}

    async def queue_position(self, job: Job) -> int:
        """How many jobs are before it."""
        row = await self._row(
            "queue_position",
            kind=job.kind,
            priority_class=int(job.priority_class),
            priority=job.priority,
            created_at=job.created_at,
            item_index=job.item_index,
        )
        return int(row["position"]) if row else 0

    async def events_after(self, job: str, cursor: int) -> list[JobEvent]:
        """Events after a cursor, in order."""
        rows = await self._rows("events_after", job_id=job, cursor=cursor)
        return [
            JobEvent(r["seq"], JobState(r["state"]), r["phase"], r["attempt"], r["message"], r["at"])
            for r in rows
        ]

    async def attempts(self, job: str) -> list[AttemptRecord]:
        """Every try at a job."""
        rows = await self._rows("attempts", job_id=job)
        return [
            AttemptRecord(r["attempt"], r["worker"], r["started_at"], r["ended_at"], r["error"]) for r in rows
        ]

    async def checkpoints(self, job: str) -> list[CheckpointRow]:
        """A job's checkpoints, newest first."""
        return (await self.checkpoints_of([job])).get(job, [])

    async def checkpoints_of(self, jobs: Sequence[str]) -> dict[str, list[CheckpointRow]]:
        """The checkpoints of several jobs, newest first."""
        found: dict[str, list[CheckpointRow]] = {}
        for r in await self._rows("checkpoints", jobs=list(jobs)):
            blob = Blob(key=r["key"], sha256=r["sha256"], size_bytes=r["size_bytes"])
            row = CheckpointRow(blob, r["epoch"], r["step"], r["attempt"], r["created_at"])
            found.setdefault(r["job_id"], []).append(row)
        return found

    async def change_state(
        self, job: Job, state: JobState, message: str, *, error: Mapping[str, Any] | None = None
    ) -> Job:
        """Changes a job's state and writes the event."""
        row = await self._row(
            "change_state",
            job_id=job.id,
            state=state.value,
            final=state in FINAL_STATES,
            error=_json(error),
        )
        return await self._with_event(row, message)

    async def requeue(self, job: Job, message: str, *, more_attempts: int) -> Job:
        """Queues an ended job anew."""
        row = await self._row("requeue", job_id=job.id, more_attempts=more_attempts)
        return await self._with_event(row, message)

    async def cancel_items(self, batch: str) -> None:
        """Cancels what is not done of a batch."""
        await self._run("cancel_items", job_id=batch)

    async def update_job(self, job: str, changes: Mapping[str, Any]) -> None:
        """Changes columns of a job that are no state: priority, labels, display_name, paused."""
        allowed = {"priority", "labels", "display_name", "paused", "waiting_reason"}
        assert changes.keys() <= allowed
        sets = ", ".join(f"{key} = %({key})s" for key in changes)
        values = {key: Jsonb(value) if key == "labels" else value for key, value in changes.items()}
        query = f"UPDATE jobs SET {sets}, updated_at = now() WHERE id = %(job_id)s"  # noqa: S608
        await self._driver.execute(query, {**values, "job_id": job})

    async def queue_depths(self) -> list[QueueDepth]:
        """How many jobs wait and run, by kind and class."""
        return [
            QueueDepth(
                r["kind"], PriorityClass(r["priority_class"]), r["queued"], r["running"], r["oldest_wait_s"]
            )
            for r in await self._rows("queue_depths")
        ]

    async def live_workers(self) -> list[WorkerRow]:
        """Workers heard of within a minute."""
        return [
            WorkerRow(
                worker=r["worker"],
                queue=r["queue"],
                node=r["node"],
                version=r["version"],
                free=r["free"],
                nodes=tuple(r["nodes"]),
                default_bundle=r["default_bundle"],
                running=r["running"],
                last_seen=r["last_seen"],
            )
            for r in await self._rows("live_workers")
        ]

    async def claim(self, worker: str, free: Mapping[str, int], lease_s: float) -> list[tuple[Job, Fence]]:
        """Leases up to ``free[kind]`` jobs of each kind, in one statement."""
        rows = await self._rows(
            "claim", worker=worker, kinds=list(free), free=list(free.values()), lease_s=lease_s
        )
        return [(_job(r), Fence(r["id"], r["attempt"], str(r["lease_token"]))) for r in rows]

    async def heartbeat(
        self, beats: Sequence[tuple[Fence, Progress | None]], lease_s: float
    ) -> list[tuple[Fence, JobState, bool]]:
        """Extends leases; returns those that still hold: (fence, state, paused)."""
        rows = await self._rows("heartbeat", beats=Jsonb([_beat(*beat) for beat in beats]), lease_s=lease_s)
        return [
            (Fence(r["id"], r["attempt"], r["lease_token"]), JobState(r["state"]), r["paused"]) for r in rows
        ]

    async def lock_lease(self, fence: Fence) -> Job | None:
        """The job under a fence, locked; None where the fence is stale."""
        row = await self._row(
            "lock_lease", job_id=fence.job_id, attempt=fence.attempt, lease_token=fence.lease_token
        )
        return _job(row) if row else None

    async def end_attempt(
        self,
        job: Job,
        state: JobState,
        message: str,
        *,
        error: Mapping[str, Any] | None = None,
        result: Mapping[str, Any] | None = None,
        waiting_reason: str = "",
        delay_s: float = 0.0,
        more_attempts: int = 0,
    ) -> Job:
        """Takes the lease away and sets what comes after it."""
        await self._run("close_attempt", job_id=job.id, attempt=job.attempt, error=_json(error))
        kept = error if state in FINAL_STATES or waiting_reason == "BACK_OFF" else None
        row = await self._row(
            "end_attempt",
            job_id=job.id,
            state=state.value,
            waiting_reason=waiting_reason,
            delay_s=delay_s,
            more_attempts=more_attempts,
            result=_json(result),
            error=_json(kept),
        )
        return await self._with_event(row, message)

    async def expired(self) -> list[Job]:
        """Jobs whose lease has expired, locked."""
        return [_job(row) for row in await self._rows("expired")]

    async def add_checkpoint(self, job: Job, fence: Fence, checkpoint: Checkpoint, *, keep: int) -> list[str]:
        """Makes a checkpoint's row and drops old ones; returns the keys of those."""
        await self._run(
            "insert_checkpoint",
            job_id=job.id,
            step=checkpoint.step,
            attempt=fence.attempt,
            team=job.team,
            epoch=checkpoint.epoch,
            key=checkpoint.blob.key,
            sha256=checkpoint.blob.sha256,
            size_bytes=checkpoint.blob.size_bytes,
        )
        return [row["key"] for row in await self._rows("drop_old_checkpoints", job_id=job.id, keep=keep)]

    async def open_batches(self) -> list[Job]:
        """Batches that have not ended."""
        return [_job(row) for row in await self._rows("open_batches")]

    async def lock_open_batch(self, batch: str) -> Job | None:
        """A batch that has not ended, locked; None where it has or another looks after it."""
        row = await self._row("lock_open_batch", job_id=batch)
        return _job(row) if row else None

    async def set_batch_progress(self, batch: str, progress: Mapping[str, Any]) -> None:
        """Keeps a batch's rolled-up progress."""
        await self._run("batch_progress", job_id=batch, progress=Jsonb(dict(progress)))

    async def put_worker(self, row: WorkerRow) -> None:
        """Keeps what a worker said of itself."""
        await self._run(
            "upsert_worker",
            worker=row.worker,
            queue=row.queue,
            node=row.node,
            version=row.version,
            free=Jsonb(dict(row.free)),
            nodes=Jsonb([dict(node) for node in row.nodes]),
            default_bundle=row.default_bundle,
        )

    async def drop_worker(self, worker: str) -> None:
        """Forgets a worker."""
        await self._run("delete_worker", worker=worker)

    async def _with_event(self, row: Row | None, message: str) -> Job:
        assert row is not None
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
        return _job(row)

    async def _run(self, name: str, **parameters: Any) -> None:
        await self._driver.execute(_SQL[name], parameters)

    async def _rows(self, name: str, **parameters: Any) -> list[Row]:
        return await self._fetch(_SQL[name], parameters)

    async def _row(self, name: str, **parameters: Any) -> Row | None:
        rows = await self._fetch(_SQL[name], parameters)
        return rows[0] if rows else None

    async def _fetch(self, query: str, parameters: Mapping[str, Any]) -> list[Row]:
        async with self._driver.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(query, parameters)
            return await cursor.fetchall()


def _json(value: Mapping[str, Any] | None) -> Jsonb | None:
    return None if value is None else Jsonb(storable(value))


def _job_conditions(page: Page) -> tuple[list[str], dict[str, Any]]:
    conditions: list[str] = []
    parameters: dict[str, Any] = {}
    for number, (key, value) in enumerate(page.filters.items()):
        if key.startswith("labels."):
            conditions.append(f"labels->>%(key{number})s = %(value{number})s")
            parameters[f"key{number}"] = key.removeprefix("labels.")
        elif key in _JOB_FILTERS:
            conditions.append(f"{key}::text = %(value{number})s")
        else:
            raise invalid(
                Reason.INVALID_ARGUMENT,
                f"cannot filter by {key!r}: use {', '.join((*_JOB_FILTERS, 'labels.KEY'))}",
                field="filter",
            )
        parameters[f"value{number}"] = value
    if page.query:
        conditions.append("position(lower(%(query)s) in lower(display_name)) > 0")
        parameters["query"] = page.query
    return conditions, parameters


def _new_row(job: NewJob) -> Row:
    return {
        "id": job.id,
        "kind": job.kind,
        "state": job.state.value,
        "priority_class": int(job.priority_class),
        "task": json.loads(job.task),
        "spec": dict(job.spec),
        "display_name": job.display_name,
        "labels": dict(job.labels),
        "parent_id": job.parent_id or None,
        "item_index": job.item_index,
        "item_id": job.item_id,
        "gpus": job.gpus,
        "max_attempts": job.max_attempts,
        "traceparent": job.traceparent,
        "error": None if job.error is None else dict(job.error),
    }


def _beat(fence: Fence, progress: Progress | None) -> Row:
    beat: Row = {
        "job_id": fence.job_id,
        "attempt": fence.attempt,
        "lease_token": fence.lease_token,
        "progress": None
        if progress is None
        else {
            "phase": progress.phase,
            "step": progress.step,
            "total_steps": progress.total_steps,
            "percent": progress.percent,
            "metrics": dict(progress.metrics),
            "message": progress.message,
            "remaining_s": progress.remaining_s,
        },
    }
    return {key: storable(value) for key, value in beat.items()}


def _job(row: Row) -> Job:
    return Job(
        team=row["team"],
        id=row["id"],
        kind=row["kind"],
        state=JobState(row["state"]),
        waiting_reason=row["waiting_reason"],
        priority_class=PriorityClass(row["priority_class"]),
        priority=row["priority"],
        task=row["task"],
        spec=row["spec"],
        display_name=row["display_name"],
        labels=row["labels"],
        parent_id=row["parent_id"] or "",
        item_index=row["item_index"],
        item_id=row["item_id"],
        attempt=row["attempt"],
        max_attempts=row["max_attempts"],
        phase=row["phase"],
        progress=row["progress"],
        result=row["result"],
        error=row["error"],
        event_seq=row["event_seq"],
        traceparent=row["traceparent"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        updated_at=row["updated_at"],
        paused=row["paused"],
    )
