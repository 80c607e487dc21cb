"""Jobs as the ledger keeps them; and the one table of legal transitions."""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from services.common.jobs.model import Fence
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
        (JobState.QUEUED, JobState.FAILED),  # what it depends on failed; of a batch: every item did
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
"""Every legal change of a job's state; a trigger enforces it in Postgres too, and a test tries every pair."""

BATCH_TRANSITIONS = TRANSITIONS | {(JobState.SUCCEEDED, JobState.QUEUED)}
"""Those of a batch: one that partly succeeded goes on when its failed items are retried."""


class PriorityClass(enum.IntEnum):
    """In which order classes are served, lower first."""

    INTERACTIVE = 1
    CONVERSION = 2
    BATCH = 3
    TRAINING = 4


class AttemptOutcome(enum.StrEnum):
    """How an attempt ended."""

    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    RELEASED = "RELEASED"
    """Given back unharmed: a pause, a preemption, a worker's shutdown."""
    EXPIRED = "EXPIRED"
    """Its worker was not heard of in time."""


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be submitted. ``task`` is JSON of a task; ``spec`` of the public request.

    ``gpus`` is the share of GPUs it holds while it runs, ``size`` its amount of work in its kind's unit
    (seconds of audio, characters), ``depends_on`` the ids of jobs of the same team that must succeed first;
    ``expected`` is what is foretold of its start, to learn from once it has begun.
    """

    team: str
    id: str
    kind: str
    priority_class: PriorityClass
    task: str
    spec: Mapping[str, Any]
    priority: int = 0
    display_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    parent_id: str = ""
    item_index: int = 0
    item_id: str = ""
    gpus: float = 0.0
    gpu_type: str = ""
    size: float = 0.0
    max_attempts: int = 4
    traceparent: str = ""
    state: JobState = JobState.QUEUED
    error: Mapping[str, Any] | None = None
    depends_on: tuple[str, ...] = ()
    expected: Mapping[str, Any] | None = None
    items_total: int = 0
    items_failed: int = 0


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
    not_before: dt.datetime | None = None
    paused: bool = False
    gpus: float = 0.0
    gpu_type: str = ""
    size: float = 0.0
    batch_scale: float = 1.0
    worker: str = ""
    node: str = ""
    avoid_nodes: tuple[str, ...] = ()
    blockers: int = 0
    has_dependents: bool = False
    yield_asked: bool = False
    queue_key: int = 0
    lease_token: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    position: int = 0
    depends_on: tuple[str, ...] = ()
    expected: Expected | None = None

    @property
    def name(self) -> str:
        """``teams/{team}/jobs/{id}``."""
        return f"teams/{self.team}/jobs/{self.id}"

    @property
    def fence(self) -> Fence:
        """The right to write for its present attempt, which must be running."""
        assert self.lease_token
        return Fence(self.id, self.attempt, self.lease_token)


@dataclass(frozen=True, slots=True)
class Expected:
    """When a job is expected to begin and to end; ``earliest`` and ``latest`` hold nine starts of ten."""

    start: dt.datetime
    earliest: dt.datetime
    latest: dt.datetime
    end: dt.datetime


@dataclass(frozen=True, slots=True)
class LeasedJob:
    """A job that was just claimed: what its worker is told."""

    team: str
    id: str
    kind: str
    priority_class: PriorityClass
    task: str
    """JSON, as it goes to the worker."""
    parent_id: str
    item_id: str
    attempt: int
    lease_token: str
    queue_key: int
    gpus: float
    size: float
    batch_scale: float
    avoid_nodes: tuple[str, ...]
    traceparent: str

    @property
    def name(self) -> str:
        """``teams/{team}/jobs/{id}``."""
        return f"teams/{self.team}/jobs/{self.id}"

    @property
    def fence(self) -> Fence:
        """The right to work on it, once."""
        return Fence(self.id, self.attempt, self.lease_token)


@dataclass(frozen=True, slots=True)
class End:
    """How an attempt is to end, and what the job does next.

    A state of QUEUED tries again after ``delay_s``; ``more_attempts`` gives back the try that a release or
    an undelivered lease would cost. ``avoid_node`` is passed over by the next attempt, where another will do.
    """

    fence: Fence
    state: JobState
    outcome: AttemptOutcome
    message: str
    error: Mapping[str, Any] | None = None
    result: Mapping[str, Any] | None = None
    failure_class: str = ""
    waiting_reason: str = ""
    delay_s: float = 0.0
    more_attempts: int = 0
    batch_scale: float | None = None
    avoid_node: str = ""


@dataclass(frozen=True, slots=True)
class DoneJob:
    """A job that just succeeded: what those who wait for its end need to know of it."""

    team: str
    id: str
    kind: str
    parent_id: str
    has_dependents: bool
    state: JobState = JobState.SUCCEEDED


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
    """One try at a job; one that runs has no end and no outcome."""

    attempt: int
    worker: str
    started_at: dt.datetime
    ended_at: dt.datetime | None
    error: Mapping[str, Any] | None
    outcome: str = ""
    failure_class: str = ""
    node: str = ""
    batch_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """One committed checkpoint of a job."""

    blob: Blob
    epoch: int
    step: int
    attempt: int
    created_at: dt.datetime
