"""Jobs as their owners see them: read, watch, stop, run again."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from services.common.errors import Kind, Reason, VoxfleetError, not_found
from services.metadata.model.catalog import VoiceState
from services.metadata.model.fleet import QueueDepth, WorkerRow
from services.metadata.model.jobs import FINAL_STATES, AttemptRecord, Job, JobEvent, JobState
from services.metadata.model.page import Page
from services.metadata.ports.store import Store, Transaction, Wakeups

PROGRESS_S = 1.0
HEARTBEAT_S = 10.0


@dataclass(frozen=True, slots=True)
class Seen:
    """One message of a watch: the job, and the event where it is one, or whether its progress moved."""

    cursor: int
    job: Job
    event: JobEvent | None = None
    progressed: bool = False


class Jobs:
    """The use cases of jobs."""

    def __init__(self, store: Store, wakeups: Wakeups) -> None:
        self._store = store
        self._wakeups = wakeups

    async def get(self, team: str, job_id: str) -> tuple[Job, list[AttemptRecord]]:
        """A job and its attempts. Errors: JOB_NOT_FOUND."""
        async with self._store.tenant(team) as tx:
            job = await _counted(tx, await _get(tx, team, job_id))
            attempts = await tx.attempts(job_id)
        return await self._placed(job), attempts

    async def page(self, team: str, page: Page, *, batch: str = "") -> list[Job]:
        """A team's jobs, or the items of a batch. Errors: JOB_NOT_FOUND."""
        async with self._store.tenant(team) as tx:
            if batch:
                await _get(tx, team, batch)
            jobs = await tx.list_jobs(team, page, batch=batch)
            counts = await tx.batch_counts([job.id for job in jobs if job.kind == "batch"])
            return [replace(job, counts=counts.get(job.id, {})) for job in jobs]

    async def watch(self, team: str, job_id: str, cursor: int) -> AsyncIterator[Seen | None]:
        """What happens to a job after a cursor, until it ends; None is a heartbeat.

        Events come from their rows, so that none is skipped or repeated whichever process serves the
        stream; wake-ups only make it prompt.
        """
        shown: Mapping[str, Any] | None = None
        said = time.monotonic()
        async with self._wakeups.job(job_id) as wakeup:
            while True:
                async with self._store.tenant(team) as tx:
                    events = await tx.events_after(job_id, cursor)
                    job = await _counted(tx, await _get(tx, team, job_id))
                if events:
                    job = await self._placed(job)
                for event in events:
                    cursor, said = event.seq, time.monotonic()
                    yield Seen(cursor, job, event)
                if job.state in FINAL_STATES and cursor >= job.event_seq:
                    return
                snapshot = {**job.progress, "counts": dict(job.counts)}
                if job.state is not JobState.QUEUED and snapshot != shown:
                    shown, said = snapshot, time.monotonic()
                    yield Seen(cursor, job, progressed=True)
                elif time.monotonic() - said >= HEARTBEAT_S:
                    said = time.monotonic()
                    yield None
                await wakeup.wait(PROGRESS_S)

    async def cancel(self, team: str, job_id: str) -> Job:
        """Asks a job to stop; one that has ended is left as it is. Errors: JOB_NOT_FOUND."""
        async with self._store.tenant(team) as tx:
            job = await _get(tx, team, job_id, lock=True)
            if job.kind == "batch" and job.state not in FINAL_STATES:
                await tx.cancel_items(job_id)
                counts = (await tx.batch_counts([job_id])).get(job_id, {})
                if job.state is JobState.QUEUED and counts.get("running"):
                    # The roll-up has not seen it yet; what runs ends before the batch does.
                    job = await tx.change_state(job, JobState.RUNNING, "first item began")
            if job.state is JobState.QUEUED:
                job = await tx.change_state(job, JobState.CANCELLED, "cancelled while waiting")
                await fail_voice_of(tx, job)
            elif job.state is JobState.RUNNING:
                job = await tx.change_state(job, JobState.CANCELLING, "cancellation asked for")
            tx.wake_watchers([job_id, job.parent_id])
            return job

    async def retry(self, team: str, job_id: str) -> Job:
        """Queues a failed or cancelled job again; training goes on from its last checkpoint.

        Errors: JOB_NOT_FOUND, JOB_STATE_CONFLICT.
        """
        async with self._store.tenant(team) as tx:
            if parent_id := (await _get(tx, team, job_id)).parent_id:
                # Before its item, as CancelJob does: an item is not brought back into a batch being stopped.
                batch = await _get(tx, team, parent_id, lock=True)
                if batch.state is JobState.CANCELLING:
                    raise state_conflict(batch, "its items can be retried once it has ended")
            job = await _get(tx, team, job_id, lock=True)
            batch_like = job.kind == "batch" or job.task.get("kind") == "batch"
            if job.state not in (JobState.FAILED, JobState.CANCELLED) or batch_like:
                raise state_conflict(job, "only a failed or cancelled job that is no batch can be retried")
            job = await tx.requeue(job, "retried by its owner", more_attempts=4)
            if job.kind == "rvc.train":
                voice = await _set_voice_state(tx, job, VoiceState.FAILED, VoiceState.TRAINING)
                if voice is VoiceState.DELETED:
                    raise state_conflict(job, "its voice was deleted: undelete that first")
            tx.wake_queue([job.kind])
            tx.wake_watchers([job_id, job.parent_id])
            return job

    async def pause(self, team: str, job_id: str) -> Job:
        """Holds a job back; a running one saves and gives back. Errors: JOB_STATE_CONFLICT."""
        return await self._set_paused(team, job_id, paused=True)

    async def resume(self, team: str, job_id: str) -> Job:
        """Lets a paused job go on. Errors: JOB_STATE_CONFLICT."""
        return await self._set_paused(team, job_id, paused=False)

    async def update(self, team: str, job_id: str, changes: Mapping[str, Any]) -> Job:
        """Changes priority, labels or display name. Errors: JOB_NOT_FOUND."""
        async with self._store.tenant(team) as tx:
            await _get(tx, team, job_id, lock=True)
            if changes:
                await tx.update_job(job_id, changes)
            job = await _counted(tx, await _get(tx, team, job_id))
        return await self._placed(job)

    async def queues(self) -> list[QueueDepth]:
        """How deep and old the queues are, over all teams."""
        async with self._store.service() as tx:
            return await tx.queue_depths()

    async def workers(self) -> list[WorkerRow]:
        """Workers heard of lately."""
        async with self._store.service() as tx:
            return await tx.live_workers()

    async def _set_paused(self, team: str, job_id: str, *, paused: bool) -> Job:
        async with self._store.tenant(team) as tx:
            job = await _get(tx, team, job_id, lock=True)
            if job.state not in (JobState.QUEUED, JobState.RUNNING) or job.kind == "batch":
                raise state_conflict(job, "only a waiting or running job that is no batch can be paused")
            await tx.update_job(job_id, {"paused": paused, "waiting_reason": "PAUSED" if paused else ""})
            if not paused:
                tx.wake_queue([job.kind])
            tx.wake_watchers([job_id])
            job = await _get(tx, team, job_id)
        return await self._placed(job)

    async def _placed(self, job: Job) -> Job:
        """Adds a waiting job's position among the jobs of every team; a tenant's transaction sees its own."""
        if job.state is not JobState.QUEUED or job.kind == "batch":
            return job
        async with self._store.service() as tx:
            return replace(job, position=await tx.queue_position(job))


def state_conflict(job: Job, message: str) -> VoxfleetError:
    """The error of a change that a job's state does not allow."""
    return VoxfleetError(
        Reason.JOB_STATE_CONFLICT,
        f"{job.name} is {job.state.value}: {message}",
        kind=Kind.PRECONDITION,
        metadata={"name": job.name, "state": job.state.value},
    )


async def fail_voice_of(tx: Transaction, job: Job) -> None:
    """Marks the voice of a training that will not go on as failed."""
    if job.kind == "rvc.train":
        await _set_voice_state(tx, job, VoiceState.TRAINING, VoiceState.FAILED)


async def _set_voice_state(
    tx: Transaction, job: Job, before: VoiceState, after: VoiceState
) -> VoiceState | None:
    """Moves the job's voice from one state to another, where it is in it; returns what it was."""
    voice_id = str(job.task["voice"]).rpartition("/")[2]
    voice = await tx.get_voice(job.team, voice_id, lock=True)
    if voice is not None and voice.job_id == job.id and voice.state is before:
        await tx.update_voice(job.team, voice_id, {"state": after.value})
    return voice.state if voice is not None else None


async def _get(tx: Transaction, team: str, job_id: str, *, lock: bool = False) -> Job:
    job = await tx.get_job(team, job_id, lock=lock)
    if job is None:
        raise not_found(Reason.JOB_NOT_FOUND, f"teams/{team}/jobs/{job_id}")
    return job


async def _counted(tx: Transaction, job: Job) -> Job:
    """Adds a batch's counts of its items, which are not stored."""
    if job.kind == "batch":
        return replace(job, counts=(await tx.batch_counts([job.id])).get(job.id, {}))
    return job


def waiting_reason(job: Job, now: dt.datetime) -> str:
    """Why a queued job waits: what is known of it, else that the GPUs that fit it work."""
    if job.state is not JobState.QUEUED:
        return ""
    if job.paused:
        return "PAUSED"
    if job.waiting_reason == "BACK_OFF" and job.updated_at > now - dt.timedelta(minutes=5):
        return "BACK_OFF"
    on_gpu = job.kind.startswith(("rvc.", "f5."))
    return job.waiting_reason or ("GPU_BUSY" if on_gpu else "")
