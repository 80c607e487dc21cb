"""Rows of the ledger in memory, and what a row of jobs may become."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from services.common.errors import Kind, Reason, VoxfleetError
from services.common.jobs.model import Progress
from services.common.jobs.tasks import Blob
from services.metadata.adapters.storable import storable
from services.metadata.model.catalog import Audio
from services.metadata.model.fleet import Quota
from services.metadata.model.jobs import (
    BATCH_TRANSITIONS,
    TRANSITIONS,
    AttemptRecord,
    Job,
    JobState,
    LeasedJob,
    NewJob,
)

_STEP = 1 << 48
_LEASED = frozenset({JobState.RUNNING, JobState.CANCELLING})


@dataclass(frozen=True, slots=True)
class JobRow(Job):
    """A job with what only the ledger needs of it."""

    seq: int = 0
    foretold: Mapping[str, Any] | None = None
    lease_expires_at: dt.datetime | None = None
    items_total: int = 0
    items_succeeded: int = 0
    items_failed: int = 0
    items_cancelled: int = 0

    @property
    def claimable(self) -> bool:
        """Whether it waits for nothing but its time and a worker."""
        return self.state is JobState.QUEUED and not self.paused and self.blockers == 0

    @property
    def items_ended(self) -> int:
        """How many of a batch's items have been counted."""
        return self.items_succeeded + self.items_failed + self.items_cancelled


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One attempt that has ended."""

    record: AttemptRecord
    job_id: str
    team: str
    kind: str
    gpus: float
    size: float
    waited_s: float
    expected: Mapping[str, Any] | None
    ended_at: dt.datetime


@dataclass(frozen=True, slots=True)
class Dependency:
    """A job waits for another; ``settled`` once the other's end has been dealt with."""

    team: str
    job_id: str
    depends_on: str
    settled: bool = False


@dataclass(frozen=True, slots=True)
class Tick:
    """How some items of a batch ended; not yet added to the batch."""

    batch_id: str
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """What a request id was first used for."""

    method: str
    fingerprint: str
    resource: str


@dataclass(frozen=True, slots=True)
class StoredAudio:
    """An audio and the job that made it."""

    audio: Audio
    job_id: str


@dataclass(frozen=True, slots=True)
class StoredArtifact:
    """Bytes of a team."""

    team: str
    blob: Blob


@dataclass(frozen=True, slots=True)
class MadeAudio:
    """Audio that was made, as it is charged."""

    team: str
    audio_s: float
    at: dt.datetime


def refused(message: str) -> VoxfleetError:
    """The error of a row that the schema does not allow: a defect of whoever wrote it."""
    return VoxfleetError(Reason.INTERNAL, message, kind=Kind.INTERNAL)


def changed(row: JobRow, **changes: Any) -> JobRow:
    """A row with some columns changed. Errors: INTERNAL where the schema does not allow it."""
    after = replace(row, **changes)
    if after.priority != row.priority:
        after = replace(after, queue_key=queue_key(after.priority, after.seq))
    if after.state is not row.state:
        legal = BATCH_TRANSITIONS if row.kind == "batch" else TRANSITIONS
        if (row.state, after.state) not in legal:
            raise refused(f"illegal job transition {row.state} -> {after.state}")
    check(after)
    return after


def check(row: JobRow) -> None:
    """What the schema asks of every job. Errors: INTERNAL."""
    if row.kind != "batch" and bool(row.lease_token) != (row.state in _LEASED):
        raise refused("a lease is held exactly while an attempt runs")
    if not -100 <= row.priority <= 100 or row.blockers < 0 or not 0 < row.batch_scale <= 1 or row.size < 0:
        raise refused("a column is out of its range")


def queue_key(priority: int, seq: int) -> int:
    """The order within a lane: priority first, then order of submission."""
    return (100 - priority) * _STEP + seq


def new_row(job: NewJob, seq: int, now: dt.datetime, blockers: int) -> JobRow:
    """A job as it is submitted."""
    row = JobRow(
        team=job.team,
        id=job.id,
        kind=job.kind,
        state=job.state,
        waiting_reason="",
        priority_class=job.priority_class,
        priority=job.priority,
        task=json.loads(job.task),
        spec=as_json(job.spec),
        display_name=job.display_name,
        labels=dict(job.labels),
        parent_id=job.parent_id,
        item_index=job.item_index,
        item_id=job.item_id,
        attempt=0,
        max_attempts=job.max_attempts,
        phase="",
        progress={},
        result={},
        error=None if job.error is None else as_json(job.error),
        event_seq=1,
        traceparent=job.traceparent,
        created_at=now,
        started_at=None,
        ended_at=now if job.state is JobState.FAILED else None,
        updated_at=now,
        not_before=now,
        gpus=job.gpus,
        gpu_type=job.gpu_type,
        size=job.size,
        blockers=blockers,
        queue_key=queue_key(job.priority, seq),
        seq=seq,
        items_total=job.items_total,
        items_failed=job.items_failed,
        foretold=None if job.expected is None else as_json(job.expected),
    )
    check(row)
    return row


def job_of(row: JobRow) -> Job:
    """The job that a row is; a batch with its counts."""
    if row.kind != "batch":
        return row
    return replace(
        row,
        counts={
            "total": row.items_total,
            "succeeded": max(0, row.items_succeeded),
            "failed": max(0, row.items_failed),
            "cancelled": max(0, row.items_cancelled),
            "queued": max(0, row.items_total - row.items_ended),
            "running": 0,
        },
    )


_LEASED_FIELDS = tuple(field.name for field in fields(LeasedJob) if field.name != "task")


def leased_of(row: JobRow) -> LeasedJob:
    """A job that was just claimed."""
    return LeasedJob(task=json.dumps(row.task), **{name: getattr(row, name) for name in _LEASED_FIELDS})


def as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """Data as a JSON column gives it back, shared with nobody."""
    found: dict[str, Any] = json.loads(json.dumps(storable(value)))
    return found


def progress_of(progress: Progress) -> dict[str, Any]:
    """A snapshot of progress as it is stored."""
    return as_json({field.name: getattr(progress, field.name) for field in fields(progress)})


def quota_or_none(team: str, quota: Quota | None) -> Quota:
    """A team's quota; one without a row has no bounds."""
    return quota if quota is not None else Quota(team)
