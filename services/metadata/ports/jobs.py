"""What the use cases need of the ledger: jobs as their owners and as workers see them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from services.common.jobs.model import Checkpoint, Fence, Progress
from services.metadata.model.fleet import (
    AttemptSample,
    LaneDepth,
    QueueDepth,
    Quota,
    QuotaUse,
    RunningJob,
    Usage,
    WorkerRow,
)
from services.metadata.model.jobs import (
    AttemptRecord,
    CheckpointRow,
    DoneJob,
    End,
    Job,
    JobEvent,
    JobState,
    LeasedJob,
    NewJob,
)
from services.metadata.model.page import Page
from services.metadata.scheduling.lanes import LaneKey, Turn


class JobRows(Protocol):
    """Jobs, as their owners see them."""

    async def add_jobs(self, team: str, jobs: Sequence[NewJob]) -> None: ...
    async def get_job(self, team: str, job: str, *, lock: bool = False) -> Job | None: ...
    async def list_jobs(self, team: str, page: Page, *, batch: str = "") -> list[Job]: ...
    async def events_after(self, cursors: Mapping[str, int]) -> dict[str, list[JobEvent]]:
        """Of each job the events after its cursor, in order; at most 500 each."""

    async def job_marks(self, jobs: Sequence[str]) -> dict[str, tuple[int, dt.datetime]]:
        """Of each of these jobs what moves when anything of it does."""

    async def jobs_now(self, jobs: Sequence[str]) -> list[Job]:
        """These jobs, of whichever team, as they stand."""

    async def attempts(self, job: str) -> list[AttemptRecord]: ...
    async def checkpoints(self, job: str) -> list[CheckpointRow]: ...
    async def change_state(
        self, job: Job, state: JobState, message: str, *, error: Mapping[str, Any] | None = None
    ) -> Job: ...
    async def requeue(self, job: Job, message: str, *, more_attempts: int) -> Job: ...
    async def update_job(self, job: str, changes: Mapping[str, Any]) -> None: ...
    async def dependencies(self, job: str) -> list[Job]:
        """The unfinished jobs that it waits for."""

    async def take_settled(
        self, jobs: Sequence[str] | None, limit: int
    ) -> list[tuple[str, str, str, JobState]]:
        """Takes dependencies on jobs that have ended, of these jobs or of all.

        Returns (team, waiting job, the job that ended, how); each is returned once, to one transaction that
        commits.
        """

    async def unblock(self, job: str, task: Mapping[str, Any] | None = None) -> Job:
        """One thing fewer that it waits for; its task may have been completed by that."""

    async def lock_submits(self, team: str) -> None:
        """Lets one submit of a team go on at a time, until the transaction ends."""

    async def count_queued(self, team: str, limit: int) -> int: ...


class BatchRows(Protocol):
    """Batches: what became of their items, and their ends."""

    async def cancel_items(self, batch: str, limit: int) -> int:
        """Cancels up to so many items that are not done; returns how many there were."""

    async def retry_items(self, batch: str, more_attempts: int) -> list[LaneKey]:
        """Queues every failed or cancelled item again; returns the lanes that they are in."""

    async def pause_items(self, batch: str, *, paused: bool) -> None: ...
    async def set_items_priority(self, batch: str, priority: int) -> None: ...
    async def next_item(self, batch: Job) -> Job | None:
        """The waiting item of a batch that is next, held back or not yet due ones aside."""

    async def lanes_of_batch(self, batch: str) -> list[LaneKey]: ...
    async def add_ticks(self, limit: int) -> list[str]:
        """Adds up to so many ends of items to their batches; returns those batches, locked."""

    async def starting_batches(self) -> list[str]:
        """Batches that wait though an item of theirs runs."""

    async def lock_open_batch(self, batch: str) -> Job | None: ...
    async def set_batch_progress(self, batch: str, progress: Mapping[str, Any]) -> None: ...
    async def items_running(self, batches: list[str]) -> dict[str, int]: ...
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


class LeaseRows(Protocol):
    """Jobs, as workers see them. Each method may stand alone."""

    async def lanes(self) -> list[LaneKey]:
        """The lanes that have something queued, some of it perhaps not yet claimable."""

    async def quota_uses(self) -> list[QuotaUse]:
        """Every team that has a quota or a weight of its own, with what it uses."""

    async def claim(
        self, turns: Sequence[Turn], lease_s: float, *, gpu_types: Sequence[str], max_gpus: float
    ) -> list[LeasedJob]:
        """Leases what the turns name, each lane once, within each team's quota of GPUs."""

    async def heartbeat(
        self, beats: Sequence[tuple[Fence, Progress | None]], lease_s: float
    ) -> list[tuple[Fence, JobState, bool]]:
        """Extends the leases that still hold; returns those: (fence, state, asked to give back)."""

    async def lock_leases(self, fences: Sequence[Fence]) -> list[Job]:
        """The jobs under those fences that still hold, locked until the transaction ends."""

    async def finish(self, ends: Sequence[End]) -> list[Job]:
        """Ends the attempts whose fences still hold; returns their jobs. The others change nothing."""

    async def succeed(self, results: Mapping[Fence, Mapping[str, Any] | None]) -> dict[Fence, DoneJob]:
        """Ends attempts well that made no rows; returns the jobs whose fence still held, by fence.

        A result of None leaves the job's as it is.
        """

    async def expired(self, limit: int) -> list[Job]:
        """Jobs whose lease has expired, locked."""

    async def add_checkpoint(
        self, job: Job, fence: Fence, checkpoint: Checkpoint, *, keep: int
    ) -> list[str]: ...
    async def checkpoints_of(self, jobs: Sequence[str]) -> dict[str, list[CheckpointRow]]: ...


class FleetRows(Protocol):
    """Queues, workers, quotas, and what the scheduler learns."""

    async def lane_depths(self) -> list[LaneDepth]: ...
    async def running_jobs(self) -> list[RunningJob]: ...
    async def queue_depths(self) -> list[QueueDepth]: ...
    async def queue_place(self, job: Job) -> int: ...
    async def put_worker(self, row: WorkerRow) -> None: ...
    async def drop_worker(self, worker: str) -> None: ...
    async def live_workers(self) -> list[WorkerRow]: ...
    async def get_quota(self, team: str) -> Quota: ...
    async def put_quota(self, quota: Quota) -> None: ...
    async def usage(self, team: str, start: dt.datetime, end: dt.datetime) -> Usage: ...
    async def add_up_usage(self, limit: int) -> list[AttemptSample]:
        """Adds what attempts used since the last look to their teams' days; returns those attempts.

        Empty where another process is at it.
        """

    async def drained_nodes(self) -> frozenset[str]: ...
    async def drain_node(self, node: str, *, drained: bool) -> None: ...
    async def grants(self) -> dict[str, float]: ...
    async def put_grants(self, grants: Mapping[str, float]) -> None: ...
    async def ask_to_yield(self, jobs: Sequence[str]) -> None: ...
    async def load_estimates(self, name: str) -> Mapping[str, Any] | None: ...
    async def save_estimates(self, name: str, state: Mapping[str, Any]) -> None: ...
