"""What metadata's use cases need of a database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from services.common.jobs.model import Checkpoint, Fence, Progress
from services.common.jobs.tasks import Blob
from services.metadata.model import (
    ApiKey,
    AttemptRecord,
    Audio,
    CheckpointRow,
    Job,
    JobEvent,
    JobState,
    NewJob,
    Page,
    Principal,
    QueueDepth,
    StoredBundle,
    Team,
    Upload,
    Voice,
    WorkerRow,
)


class IdentityRows(Protocol):
    """Teams and keys."""

    async def principal(self, token_sha256: str) -> Principal | None: ...
    async def add_team(self, team: str, display_name: str) -> bool: ...
    async def list_teams(self, page: Page) -> list[Team]: ...
    async def add_key(
        self, team: str, key: str, token_sha256: str, display_name: str, *, operator: bool
    ) -> ApiKey: ...
    async def keep_key(
        self, team: str, key: str, token_sha256: str, display_name: str, *, operator: bool
    ) -> bool: ...
    async def list_keys(self, team: str, page: Page) -> list[ApiKey]: ...
    async def revoke_key(self, team: str, key: str, *, operators: bool) -> bool: ...


class CatalogRows(Protocol):
    """Uploads, audios, voices, bundles."""

    async def remember_request(
        self, team: str, request_id: str, method: str, fingerprint: str, resource: str
    ) -> str:
        """The resource that this request id first made, this one included. Errors: REQUEST_ID_REUSED."""

    async def add_upload(self, upload: Upload) -> bool: ...
    async def get_upload(self, team: str, upload: str, *, lock: bool = False) -> Upload | None: ...
    async def advance_upload(self, team: str, upload: str, from_offset: int, to_offset: int) -> bool: ...
    async def mark_committed(self, team: str, upload: str, audio: str) -> None: ...
    async def drop_upload(self, team: str, upload: str) -> bool: ...
    async def put_artifact(self, team: str, blob: Blob) -> None: ...
    async def add_audio(self, audio: Audio, *, job_id: str = "") -> None: ...
    async def get_audio(self, team: str, audio: str) -> Audio | None: ...
    async def list_audios(self, team: str, page: Page) -> list[Audio]: ...
    async def store_measures(
        self, team: str, audio: str, measures: Mapping[str, Any], assessment: Mapping[str, Any]
    ) -> bool: ...
    async def audio_users(self, team: str, audio: str) -> list[str]:
        """Names of the voices and unfinished jobs that use an audio."""

    async def delete_audio(self, team: str, audio: str) -> bool: ...
    async def audios_of_job(self, job_id: str) -> list[str]: ...
    async def add_voice(self, voice: Voice) -> bool: ...
    async def get_voice(self, team: str, voice: str, *, lock: bool = False) -> Voice | None: ...
    async def list_voices(self, team: str, page: Page, *, show_deleted: bool) -> list[Voice]: ...
    async def update_voice(self, team: str, voice: str, changes: Mapping[str, Any]) -> None: ...
    async def list_bundles(self) -> list[StoredBundle]: ...
    async def put_bundle(self, name: str, manifest: Mapping[str, Any], accepted_by: str) -> StoredBundle: ...
    async def add_usage(
        self, team: str, voice: str, audio_s: float, work_s: float, characters: int
    ) -> None: ...
    async def take_garbage(self, limit: int) -> tuple[list[str], list[str]]:
        """Keys and prefixes in S3 that no row names any more; their rows go in this transaction."""


class JobRows(Protocol):
    """Jobs, as their owners see them."""

    async def add_jobs(self, team: str, jobs: Sequence[NewJob]) -> None: ...
    async def get_job(self, team: str, job: str, *, lock: bool = False) -> Job | None: ...
    async def list_jobs(self, team: str, page: Page, *, batch: str = "") -> list[Job]: ...
    async def batch_counts(self, batches: Sequence[str]) -> dict[str, dict[str, int]]: ...
    async def queue_position(self, job: Job) -> int: ...
    async def events_after(self, job: str, cursor: int) -> list[JobEvent]: ...
    async def attempts(self, job: str) -> list[AttemptRecord]: ...
    async def checkpoints(self, job: str) -> list[CheckpointRow]: ...
    async def change_state(
        self, job: Job, state: JobState, message: str, *, error: Mapping[str, Any] | None = None
    ) -> Job: ...
    async def requeue(self, job: Job, message: str, *, more_attempts: int) -> Job: ...
    async def cancel_items(self, batch: str) -> None: ...
    async def update_job(self, job: str, changes: Mapping[str, Any]) -> None: ...
    async def queue_depths(self) -> list[QueueDepth]: ...
    async def live_workers(self) -> list[WorkerRow]: ...


class LeaseRows(Protocol):
    """Jobs, as workers see them."""

    async def claim(
        self, worker: str, free: Mapping[str, int], lease_s: float
    ) -> list[tuple[Job, Fence]]: ...
    async def heartbeat(
        self, beats: Sequence[tuple[Fence, Progress | None]], lease_s: float
    ) -> list[tuple[Fence, JobState, bool]]:
        """The leases that still hold: (fence, state, paused)."""

    async def lock_lease(self, fence: Fence) -> Job | None: ...
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
    ) -> Job: ...
    async def expired(self) -> list[Job]: ...
    async def add_checkpoint(
        self, job: Job, fence: Fence, checkpoint: Checkpoint, *, keep: int
    ) -> list[str]: ...
    async def checkpoints_of(self, jobs: Sequence[str]) -> dict[str, list[CheckpointRow]]: ...
    async def open_batches(self) -> list[Job]: ...
    async def lock_open_batch(self, batch: str) -> Job | None: ...
    async def set_batch_progress(self, batch: str, progress: Mapping[str, Any]) -> None: ...
    async def put_worker(self, row: WorkerRow) -> None: ...
    async def drop_worker(self, worker: str) -> None: ...


class Transaction(IdentityRows, CatalogRows, JobRows, LeaseRows, Protocol):
    """One transaction; commits when its context ends without an exception."""

    def wake_queue(self, kinds: Sequence[str]) -> None:
        """Wakes the claimers of these kinds once the transaction has committed."""

    def wake_watchers(self, jobs: Sequence[str]) -> None:
        """Wakes the watchers of these jobs once the transaction has committed."""


class Store(Protocol):
    """The database."""

    def tenant(self, team: str) -> AbstractAsyncContextManager[Transaction]:
        """A transaction that sees one team only. Errors: DATABASE_UNAVAILABLE."""

    def service(self) -> AbstractAsyncContextManager[Transaction]:
        """A transaction that sees every team. Errors: DATABASE_UNAVAILABLE."""


class Wakeups(Protocol):
    """Postgres' NOTIFY, fanned out in this process."""

    def queue(self, kinds: Sequence[str]) -> AbstractAsyncContextManager[Wakeup]:
        """Wakes when work of these kinds may have come."""

    def job(self, job: str) -> AbstractAsyncContextManager[Wakeup]:
        """Wakes when something happened to this job."""


class Wakeup(Protocol):
    """Something to wait on."""

    async def wait(self, timeout_s: float) -> bool:
        """Waits for a wake-up, at most so long; says whether one came."""
