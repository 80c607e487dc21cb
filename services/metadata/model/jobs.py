"""Jobs as the ledger keeps them; and the one table of legal transitions."""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from services.common.jobs.tasks import Blob


class JobState(enum.StrEnum):
    """Where a job stands; see ``voxfleet.v1.JobState``."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    CANCELLING = "CANCELLING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


FINAL_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})

TRANSITIONS: frozenset[tuple[JobState, JobState]] = frozenset(
    {
        (JobState.QUEUED, JobState.RUNNING),  # claimed; of a batch: its first item began
        (JobState.QUEUED, JobState.CANCELLED),
        (JobState.QUEUED, JobState.SUCCEEDED),  # of a batch: its items ended between two looks
        (JobState.QUEUED, JobState.FAILED),
        (JobState.RUNNING, JobState.QUEUED),  # attempt lost, given back, or to be tried again
        (JobState.RUNNING, JobState.CANCELLING),
        (JobState.RUNNING, JobState.SUCCEEDED),
        (JobState.RUNNING, JobState.FAILED),
        (JobState.CANCELLING, JobState.CANCELLED),
        (JobState.CANCELLING, JobState.SUCCEEDED),  # it was done before it heard
        (JobState.CANCELLING, JobState.FAILED),
        (JobState.FAILED, JobState.QUEUED),  # RetryJob
        (JobState.CANCELLED, JobState.QUEUED),  # RetryJob
    }
)
"""Every legal change of a job's state. The first migration puts the same table into Postgres, where a
trigger refuses any other; a test holds the two against each other."""


class PriorityClass(enum.IntEnum):
    """In which order classes are served, lower first."""

    INTERACTIVE = 1
    CONVERSION = 2
    BATCH = 3
    TRAINING = 4


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be submitted. ``task`` is JSON of a task; ``spec`` of the public request."""

    team: str
    id: str
    kind: str
    priority_class: PriorityClass
    task: str
    spec: Mapping[str, Any]
    display_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    parent_id: str = ""
    item_index: int = 0
    item_id: str = ""
    gpus: float = 0.0
    max_attempts: int = 4
    traceparent: str = ""
    state: JobState = JobState.QUEUED
    error: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stands."""

    team: str
    id: str
    kind: str
    state: JobState
    waiting_reason: str
    priority_class: PriorityClass
    priority: int
    task: Mapping[str, Any]
    spec: Mapping[str, Any]
    display_name: str
    labels: Mapping[str, str]
    parent_id: str
    item_index: int
    item_id: str
    attempt: int
    max_attempts: int
    phase: str
    progress: Mapping[str, Any]
    result: Mapping[str, Any]
    error: Mapping[str, Any] | None
    event_seq: int
    traceparent: str
    created_at: dt.datetime
    started_at: dt.datetime | None
    ended_at: dt.datetime | None
    updated_at: dt.datetime
    paused: bool = False
    counts: Mapping[str, int] = field(default_factory=dict)
    position: int = 0

    @property
    def name(self) -> str:
        """``teams/{team}/jobs/{id}``."""
        return f"teams/{self.team}/jobs/{self.id}"


@dataclass(frozen=True, slots=True)
class JobEvent:
    """A change of a job's state or phase."""

    seq: int
    state: JobState
    phase: str
    attempt: int
    message: str
    at: dt.datetime


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One try at a job."""

    attempt: int
    worker: str
    started_at: dt.datetime
    ended_at: dt.datetime | None
    error: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """One committed checkpoint of a job."""

    blob: Blob
    epoch: int
    step: int
    attempt: int
    created_at: dt.datetime
