"""Workers, nodes, queues and quotas, as plain data."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.metadata.model.jobs import PriorityClass


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker process that was heard of lately."""

    worker: str
    queue: str
    node: str
    version: str
    free: Mapping[str, int]
    nodes: tuple[Mapping[str, Any], ...]
    default_bundle: str
    running: int
    last_seen: dt.datetime


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """How many jobs of a kind and class wait and run, and for how long the oldest has waited."""

    kind: str
    priority_class: PriorityClass
    queued: int
    running: int
    oldest_wait_s: float


@dataclass(frozen=True, slots=True)
class LaneDepth:
    """How much one team has waiting of a kind in a class: jobs, and their sizes and GPUs in all."""

    kind: str
    priority_class: PriorityClass
    team: str
    queued: int
    size: float
    gpus: float
    oldest_wait_s: float


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A job that a worker has, as the scheduler sees it."""

    id: str
    kind: str
    priority_class: PriorityClass
    priority: int
    team: str
    gpus: float
    size: float
    node: str
    elapsed_s: float
    yield_asked: bool


@dataclass(frozen=True, slots=True)
class Quota:
    """What a team may use; 0 is no bound. ``weight`` is its share among those who wait."""

    team: str
    max_gpus: float = 0.0
    max_queued_jobs: int = 0
    max_gpu_seconds_per_day: int = 0
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class QuotaUse:
    """A team's quota beside what it uses: GPUs now, and GPU-seconds since midnight UTC."""

    quota: Quota
    gpus: float
    gpu_seconds: float

    @property
    def full(self) -> bool:
        """Whether the team may begin nothing more just now."""
        quota = self.quota
        return (0 < quota.max_gpus <= self.gpus + 1e-6) or (
            0 < quota.max_gpu_seconds_per_day <= self.gpu_seconds
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """What a team used in a span of time, and the bytes that it has stored now."""

    gpu_seconds: float
    audio_s: float
    jobs: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class AttemptSample:
    """One ended attempt, to learn from: how long it took, and what its submit foretold of its start."""

    kind: str
    priority_class: PriorityClass
    size: float
    duration_s: float
    succeeded: bool
    waited_s: float
    attempt: int = 1
    expected: Mapping[str, Any] | None = None
