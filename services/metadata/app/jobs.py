"""Jobs as their owners see them: read, watch, stop, run again."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from services.common.errors import Kind, Reason, VoxfleetError, not_found
from services.common.jobs.tasks import VOICE_MAKING
from services.metadata.app.endings import fail_voice_of, lane_of, set_voice_state
from services.metadata.app.feed import JobFeed, Seen, with_running
from services.metadata.model.catalog import VoiceState
from services.metadata.model.fleet import QueueDepth, WorkerRow
from services.metadata.model.jobs import FINAL_STATES, AttemptRecord, Job, JobState
from services.metadata.model.page import Page
from services.metadata.ports.store import Store, Transaction
from services.metadata.scheduling.explain import Explanation

_MORE_ATTEMPTS = 4
_ITEMS_AT_ONCE = 5000


class Placing(Protocol):
    """Says where a waiting job stands."""

    async def placed(self, job: Job) -> Job:
        """The job with its position, its expected times and why it waits."""

    async def explain(self, job: Job) -> Explanation:
        """Why it waits, in a code and a sentence."""


class Jobs:
    """The use cases of jobs.

    Args:
        store: the database.
        feed: tells watchers what happens.
        placing: says where waiting jobs stand.
        ended: told of jobs that ended here.
    """

    def __init__(self, store: Store, feed: JobFeed, placing: Placing, ended: Ended) -> None:
        self._store = store
        self._feed = feed
        self._placing = placing
        self._ended = ended

    async def get(self, team: str, job_id: str) -> tuple[Job, list[AttemptRecord]]:
        """A job and its attempts. Errors: JOB_NOT_FOUND."""
        async with self._store.tenant(team) as tx:
            job = await _counted(tx, await get_job(tx, team, job_id))
            attempts = await tx.attempts(job_id)
            if job.blockers:
                waited_for = tuple(found.name for found in await tx.dependencies(job_id))
                job = replace(job, depends_on=waited_for)
        return await self._placing.placed(job), attempts

    async def explain(self, team: str, job_id: str) -> tuple[Job, Explanation]:
        """A job, placed, and why it waits; of a batch, why its next item does. Errors: JOB_NOT_FOUND."""
        job, _ = await self.get(team, job_id)
        return job, await self._placing.explain(job)

    async def page(self, team: str, page: Page, *, batch: str = "") -> list[Job]:
        """A team's jobs, or the items of a batch. Errors: JOB_NOT_FOUND."""
        async with self._store.tenant(team) as tx:
            if batch:
                await get_job(tx, team, batch)
            jobs = await tx.list_jobs(team, page, batch=batch)
            open_batches = [job.id for job in jobs if job.kind == "batch" and job.state not in FINAL_STATES]
            running = await tx.items_running(open_batches) if open_batches else {}
        return [with_running(job, running.get(job.id, 0)) for job in jobs]

    async def watch(self, team: str, job_id: str, cursor: int) -> AsyncIterator[Seen | None]:
        """What happens to a job after a cursor, until it ends; None is a heartbeat.

        Errors: JOB_NOT_FOUND.
        """
        async with self._store.tenant(team) as tx:
            job = await get_job(tx, team, job_id)
        async for seen in self._feed.watch(job, cursor):
            if seen is not None and seen.event is not None and seen.job.state is JobState.QUEUED:
                yield replace(seen, job=await self._placing.placed(seen.job))
            else:
                yield seen

    async def cancel(self, team: str, job_id: str) -> Job:
        """Asks a job to stop; one that has ended is left as it is. Errors: JOB_NOT_FOUND."""
        async with self._store.tenant(team) as tx:
            job = await get_job(tx, team, job_id, lock=True)
            if job.state in FINAL_STATES:
                return job
            if job.kind == "batch":
                job = await self._cancel_batch(tx, job)
            elif job.state is JobState.QUEUED:
                job = await tx.change_state(job, JobState.CANCELLED, "cancelled while waiting")
                await fail_voice_of(tx, job)
            elif job.state is JobState.RUNNING:
                job = await tx.change_state(job, JobState.CANCELLING, "cancellation asked for")
        while job.kind == "batch":
            # In parts, each a transaction of its own: a large batch holds up nobody.
            async with self._store.tenant(team) as tx:
                if await tx.cancel_items(job_id, _ITEMS_AT_ONCE) < _ITEMS_AT_ONCE:
                    break
        self._ended([job])
        return job

    async def _cancel_batch(self, tx: Transaction, batch: Job) -> Job:
        """A batch is being cancelled until its last item has ended."""
        if batch.state is JobState.QUEUED:
            batch = await tx.change_state(batch, JobState.RUNNING, "being cancelled")
        if batch.state is JobState.RUNNING:
            batch = await tx.change_state(batch, JobState.CANCELLING, "cancellation asked for")
        return batch

    async def retry(self, team: str, job_id: str) -> Job:
        """Queues a failed or cancelled job again; training goes on from its last checkpoint.

        Of a batch its failed and cancelled items are queued again. An item that is retried takes its batch
        along where that has ended.

        Errors: JOB_NOT_FOUND, JOB_STATE_CONFLICT.
        """
        async with self._store.tenant(team) as tx:
            if parent_id := (await get_job(tx, team, job_id)).parent_id:
                # Before its item, as CancelJob does: an item is not brought back into a batch being stopped.
                batch = await get_job(tx, team, parent_id, lock=True)
                if batch.state is JobState.CANCELLING:
                    raise state_conflict(batch, "its items can be retried once it has ended")
                if batch.state in FINAL_STATES:
                    await tx.requeue(batch, "an item is retried", more_attempts=0)
            job = await get_job(tx, team, job_id, lock=True)
            if job.kind == "batch":
                job = await _retry_batch(tx, job)
            else:
                if job.state not in (JobState.FAILED, JobState.CANCELLED) or job.task.get("kind") == "batch":
                    raise state_conflict(job, "only a failed or cancelled job can be retried")
                job = await tx.requeue(job, "retried by its owner", more_attempts=_MORE_ATTEMPTS)
                tx.wake_lanes([lane_of(job)])
            if job.kind in VOICE_MAKING:
                voice = await set_voice_state(tx, job, VoiceState.FAILED, VoiceState.TRAINING)
                if voice is VoiceState.DELETED:
                    raise state_conflict(job, "its voice was deleted: undelete that first")
        self._feed.poke([job_id, job.parent_id])
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
            job = await get_job(tx, team, job_id, lock=True)
            if changes:
                stale = {"expected": None} if "priority" in changes else {}
                await tx.update_job(job_id, {**changes, **stale})
            if "priority" in changes and job.kind == "batch":
                await tx.set_items_priority(job_id, int(changes["priority"]))
            if "priority" in changes:
                # It may stand before what was last claimed of its lane.
                tx.wake_lanes([lane_of(job)] if job.kind != "batch" else await tx.lanes_of_batch(job_id))
            job = await _counted(tx, await get_job(tx, team, job_id))
        self._feed.poke([job_id])
        return await self._placing.placed(job)

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
            job = await get_job(tx, team, job_id, lock=True)
            if job.state not in (JobState.QUEUED, JobState.RUNNING):
                raise state_conflict(job, "only a waiting or running job can be paused")
            reason = "PAUSED" if paused else ""
            # What was foretold of it says nothing any more.
            await tx.update_job(job_id, {"paused": paused, "waiting_reason": reason, "expected": None})
            if job.kind == "batch":
                await tx.pause_items(job_id, paused=paused)
            if not paused:
                tx.wake_lanes([lane_of(job)] if job.kind != "batch" else await tx.lanes_of_batch(job_id))
            job = await _counted(tx, await get_job(tx, team, job_id))
        self._feed.poke([job_id])
        return await self._placing.placed(job)


class Ended(Protocol):
    """Told of jobs whose state was changed, once that is committed."""

    def __call__(self, jobs: Sequence[Job], /) -> None:
        """Takes note of them."""


def state_conflict(job: Job, message: str) -> VoxfleetError:
    """The error of a change that a job's state does not allow."""
    return VoxfleetError(
        Reason.JOB_STATE_CONFLICT,
        f"{job.name} is {job.state.value}: {message}",
        kind=Kind.PRECONDITION,
        metadata={"name": job.name, "state": job.state.value},
    )


async def get_job(tx: Transaction, team: str, job_id: str, *, lock: bool = False) -> Job:
    """A job of a team. Errors: JOB_NOT_FOUND."""
    job = await tx.get_job(team, job_id, lock=lock)
    if job is None:
        raise not_found(Reason.JOB_NOT_FOUND, f"teams/{team}/jobs/{job_id}")
    return job


async def _retry_batch(tx: Transaction, batch: Job) -> Job:
    if batch.state not in FINAL_STATES:
        raise state_conflict(batch, "its items can be retried once it has ended")
    lanes = await tx.retry_items(batch.id, _MORE_ATTEMPTS)
    if not lanes:
        raise state_conflict(batch, "it has no failed or cancelled item that could do better")
    tx.wake_lanes(lanes)
    return await _counted(tx, await tx.requeue(batch, "its failed items are retried", more_attempts=0))


async def _counted(tx: Transaction, job: Job) -> Job:
    """Adds to an open batch how many of its items run."""
    if job.kind == "batch" and job.state not in FINAL_STATES:
        return with_running(job, (await tx.items_running([job.id])).get(job.id, 0))
    return job


def waiting_reason(job: Job, now: dt.datetime) -> str:
    """Why a queued job waits, as far as its own row tells."""
    if job.state is not JobState.QUEUED:
        return ""
    if job.paused:
        return "PAUSED"
    if job.blockers:
        return "DEPENDENCY"
    if job.waiting_reason == "BACK_OFF":
        return "BACK_OFF" if job.not_before is not None and job.not_before > now else "GPU_BUSY"
    on_gpu = job.kind.startswith(("rvc.", "f5."))
    return job.waiting_reason or ("GPU_BUSY" if on_gpu else "")
