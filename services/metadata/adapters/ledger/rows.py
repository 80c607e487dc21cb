"""Between rows and the ledger's model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from psycopg.types.json import Jsonb

from services.common.jobs.model import Fence, Progress
from services.common.jobs.tasks import Blob
from services.metadata.adapters.statements import Row
from services.metadata.adapters.storable import storable
from services.metadata.model.fleet import Quota
from services.metadata.model.jobs import (
    FINAL_STATES,
    CheckpointRow,
    End,
    Job,
    JobState,
    LeasedJob,
    NewJob,
    PriorityClass,
)


def jsonb(value: Mapping[str, Any] | None) -> Jsonb | None:
    """A value as Postgres can store it."""
    return None if value is None else Jsonb(storable(value))


def array(values: Iterable[str | None]) -> str:
    """An array as Postgres reads one; for a driver to write a long list costs more than to claim it."""
    return "{" + ",".join(["NULL" if value is None else _quoted(value) for value in values]) + "}"


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def job_of(row: Row) -> Job:
    """A job from its row."""
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
        not_before=row["not_before"],
        paused=row["paused"],
        gpus=row["gpus"],
        gpu_type=row["gpu_type"],
        size=row["size"],
        batch_scale=row["batch_scale"],
        worker=row["worker"],
        node=row["node"],
        avoid_nodes=tuple(row["avoid_nodes"]),
        blockers=row["blockers"],
        has_dependents=row["has_dependents"],
        yield_asked=row["yield_asked"],
        queue_key=row["queue_key"],
        lease_token=str(row["lease_token"] or ""),
        counts=_counts(row) if row["kind"] == "batch" else {},
    )


def _counts(row: Row) -> dict[str, int]:
    """A batch's counts but for those that run, which only a look at the leases tells."""
    found = {name: max(0, row[f"items_{name}"]) for name in ("total", "succeeded", "failed", "cancelled")}
    ended = found["succeeded"] + found["failed"] + found["cancelled"]
    return {**found, "queued": max(0, found["total"] - ended), "running": 0}


def leased_of(values: Sequence[Any]) -> LeasedJob:
    """A job that was just claimed, from the values of its row in the order of the model's fields."""
    return LeasedJob(
        team=values[0],
        id=values[1],
        kind=values[2],
        priority_class=PriorityClass(values[3]),
        task=values[4],
        parent_id=values[5],
        item_id=values[6],
        attempt=values[7],
        lease_token=values[8],
        queue_key=values[9],
        gpus=values[10],
        size=values[11],
        batch_scale=values[12],
        avoid_nodes=tuple(values[13]),
        traceparent=values[14],
    )


def checkpoint_of(row: Row) -> CheckpointRow:
    """A checkpoint from its row."""
    blob = Blob(key=row["key"], sha256=row["sha256"], size_bytes=row["size_bytes"])
    return CheckpointRow(blob, row["epoch"], row["step"], row["attempt"], row["created_at"])


def quota_of(row: Row | None, team: str) -> Quota:
    """A team's quota; one without a row has no bounds."""
    if row is None:
        return Quota(team)
    return Quota(team, row["max_gpus"], row["max_queued_jobs"], row["max_gpu_seconds_per_day"], row["weight"])


def new_row(job: NewJob) -> Row:
    """A job as the statement that inserts it reads it."""
    return {
        "id": job.id,
        "kind": job.kind,
        "state": job.state.value,
        "priority_class": int(job.priority_class),
        "priority": job.priority,
        "task": json.loads(job.task),
        "spec": dict(job.spec),
        "display_name": job.display_name,
        "labels": dict(job.labels),
        "parent_id": job.parent_id or None,
        "item_index": job.item_index,
        "item_id": job.item_id,
        "gpus": job.gpus,
        "gpu_type": job.gpu_type,
        "size": job.size,
        "max_attempts": job.max_attempts,
        "traceparent": job.traceparent,
        "error": None if job.error is None else dict(job.error),
        "blockers": 0,
        "items_total": job.items_total,
        "items_failed": job.items_failed,
        "expected": None if job.expected is None else dict(job.expected),
    }


def end_row(end: End) -> Row:
    """An attempt's end as the statement that ends it reads it."""
    return {
        "job_id": end.fence.job_id,
        "attempt": end.fence.attempt,
        "lease_token": end.fence.lease_token,
        "state": end.state.value,
        "outcome": end.outcome.value,
        "message": storable(end.message),
        "error": None if end.error is None else storable(end.error),
        "result": None if end.result is None else storable(end.result),
        "failure_class": end.failure_class,
        "waiting_reason": end.waiting_reason,
        "delay_s": end.delay_s,
        "more_attempts": end.more_attempts,
        "batch_scale": end.batch_scale,
        "avoid_node": end.avoid_node,
        "final": end.state in FINAL_STATES,
    }


def beat_row(fence: Fence, progress: Progress | None) -> Row:
    """A heartbeat as its statement reads it."""
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
