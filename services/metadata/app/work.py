"""The workers' side: leases out, heartbeats in, attempts ended, each write fenced."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.common import names
from services.common.errors import FailureClass, Kind, Reason, VoxfleetError
from services.common.jobs.model import (
    AudioOutput,
    Checkpoint,
    Fence,
    Progress,
    Released,
    StopKind,
    Succeeded,
)
from services.metadata.app.jobs import fail_voice_of
from services.metadata.model.catalog import Audio, VoiceState
from services.metadata.model.fleet import WorkerRow
from services.metadata.model.jobs import CheckpointRow, Job, JobState
from services.metadata.model.page import Page
from services.metadata.ports.store import Store, Transaction, Wakeups

log = logging.getLogger(__name__)

RETRYABLE = frozenset({FailureClass.TRANSIENT, FailureClass.RESOURCE, FailureClass.NODE})
BACK_OFF_BASE_S = 1.0
BACK_OFF_CAP_S = 60.0

_FIRST_GOOD = Page(size=1, filters={"state": "SUCCEEDED"})


@dataclass(frozen=True, slots=True)
class Claimed:
    """A lease as it goes out."""

    job: Job
    fence: Fence
    checkpoints: tuple[CheckpointRow, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """A job after an attempt, and the names of what now exists."""

    job: Job
    audios: tuple[str, ...] = ()
    voice: str = ""


class Work:
    """The use cases of workers."""

    def __init__(
        self,
        store: Store,
        wakeups: Wakeups,
        *,
        lease_s: float,
        poll_s: float,
        keep_checkpoints: int,
        output_ttl_s: float,
    ) -> None:
        self._store = store
        self.wakeups = wakeups
        self.lease_s = lease_s
        self.poll_s = poll_s
        self._keep = keep_checkpoints
        self._output_ttl = dt.timedelta(seconds=output_ttl_s)

    async def put_worker(self, row: WorkerRow) -> None:
        """Keeps what a worker said of itself."""
        async with self._store.service() as tx:
            await tx.put_worker(row)

    async def drop_worker(self, worker: str) -> None:
        """Forgets a worker whose channel closed; its leases stay until they expire."""
        async with self._store.service() as tx:
            await tx.drop_worker(worker)

    async def claim(self, worker: str, free: Mapping[str, int]) -> list[Claimed]:
        """Leases up to ``free[kind]`` jobs of each kind."""
        wanted = {kind: count for kind, count in free.items() if count > 0}
        if not wanted:
            return []
        async with self._store.service() as tx:
            claimed = await tx.claim(worker, wanted, self.lease_s)
            trainings = [job.id for job, _ in claimed if job.kind == "rvc.train"]
            saved = await tx.checkpoints_of(trainings) if trainings else {}
            tx.wake_watchers([name for job, _ in claimed for name in (job.id, job.parent_id)])
        return [Claimed(job, fence, tuple(saved.get(job.id, ()))) for job, fence in claimed]

    async def heartbeat(self, beats: Sequence[tuple[Fence, Progress | None]]) -> list[tuple[Fence, StopKind]]:
        """Extends leases; says which are lost, cancelled or to be given back."""
        async with self._store.service() as tx:
            kept = await tx.heartbeat(beats, self.lease_s)
            tx.wake_watchers([fence.job_id for fence, progress in beats if progress is not None])
        held = {fence for fence, _, _ in kept}
        notices = [(fence, StopKind.LOST) for fence, _ in beats if fence not in held]
        for fence, state, paused in kept:
            if state is JobState.CANCELLING:
                notices.append((fence, StopKind.CANCEL))
            elif paused:
                notices.append((fence, StopKind.YIELD))
        return notices

    async def record_checkpoint(self, fence: Fence, checkpoint: Checkpoint) -> list[str]:
        """Makes a checkpoint's row; returns keys whose bytes may go. Errors: LEASE_LOST."""
        async with self._store.service() as tx:
            job = await _held(tx, fence)
            return await tx.add_checkpoint(job, fence, checkpoint, keep=self._keep)

    async def succeed(self, fence: Fence, outcome: Succeeded) -> Ended:
        """Ends an attempt well: every row of what it made, and the job's state, at once.

        Errors: LEASE_LOST.
        """
        async with self._store.service() as tx:
            job = await _held(tx, fence)
            audios = [await self._add_output(tx, job, output) for output in outcome.audios]
            voice = await _publish_voice(tx, job, outcome)
            result = {
                "voice": voice,
                "audios": audios,
                "metrics": dict(outcome.metrics),
                "weights": outcome.weights,
                "weights_trained": outcome.weights_trained,
                "curve": [{"step": step, "metrics": dict(point)} for step, point in outcome.curve],
            }
            job = await tx.end_attempt(job, JobState.SUCCEEDED, "done", result=result)
            _wake(tx, job)
        return Ended(job, tuple(audios), voice)

    async def release(self, fence: Fence, outcome: Released) -> Ended:
        """Takes a job back unharmed; it costs no attempt. Errors: LEASE_LOST."""
        async with self._store.service() as tx:
            job = await _held(tx, fence)
            if job.state is JobState.CANCELLING:
                return Ended(await _cancelled(tx, job))
            reason = "PAUSED" if job.paused else "PREEMPTED" if outcome.message == "yield" else ""
            message = f"given back: {outcome.message}"
            job = await tx.end_attempt(job, JobState.QUEUED, message, waiting_reason=reason, more_attempts=1)
            _wake(tx, job)
            tx.wake_queue([job.kind])
        return Ended(job)

    async def cancelled(self, fence: Fence) -> Ended:
        """Ends an attempt that was stopped as asked. Errors: LEASE_LOST."""
        async with self._store.service() as tx:
            job = await _held(tx, fence)
            if job.state is not JobState.CANCELLING:
                raise _lost(fence)
            return Ended(await _cancelled(tx, job))

    async def fail(self, fence: Fence, error: Mapping[str, Any], failure: FailureClass) -> Ended:
        """Ends an attempt badly; tries again where its class and the attempts left allow.

        Errors: LEASE_LOST.
        """
        async with self._store.service() as tx:
            job = await _held(tx, fence)
            return Ended(await _failed(tx, job, error, failure))

    async def expire(self) -> int:
        """Takes back the jobs whose lease has expired; returns how many."""
        async with self._store.service() as tx:
            jobs = await tx.expired()
            for job in jobs:
                log.warning("%s: the lease of attempt %d expired", job.name, job.attempt)
                error = VoxfleetError(
                    Reason.WORKER_LOST,
                    f"the worker of attempt {job.attempt} was not heard of in time",
                    kind=Kind.UNAVAILABLE,
                    failure=FailureClass.NODE,
                )
                await _failed(tx, job, error.to_dict(), FailureClass.NODE)
        return len(jobs)

    async def roll_up(self) -> int:
        """Counts the items of open batches, ends those that are done; returns how many are open."""
        async with self._store.service() as tx:
            batches = await tx.open_batches()
            counts = await tx.batch_counts([batch.id for batch in batches])
        for batch in batches:
            await self._roll_up(batch, counts.get(batch.id, {}))
        return len(batches)

    async def _roll_up(self, seen: Job, counts: Mapping[str, int]) -> None:
        total = counts.get("total", 0)
        done = counts.get("succeeded", 0) + counts.get("failed", 0) + counts.get("cancelled", 0)
        progress = {
            "phase": "items",
            "step": done,
            "total_steps": total,
            "percent": 100.0 * done / total if total else 100.0,
            "metrics": {},
            "message": f"{done} of {total} items, {counts.get('failed', 0)} failed",
        }
        began = counts.get("running", 0) + done > 0
        if seen.progress == progress and done < total and not (began and seen.state is JobState.QUEUED):
            return
        async with self._store.service() as tx:
            batch = await tx.lock_open_batch(seen.id)
            if batch is None:
                return
            await tx.set_batch_progress(batch.id, progress)
            if batch.state is JobState.QUEUED and began:
                batch = await tx.change_state(batch, JobState.RUNNING, "first item began")
            if done == total:
                await _end_batch(tx, batch, counts)
            tx.wake_watchers([batch.id])

    async def _add_output(self, tx: Transaction, job: Job, output: AudioOutput) -> str:
        now = dt.datetime.now(dt.UTC)
        audio = Audio(
            team=job.team,
            id=names.new_id(),
            display_name=output.display_name,
            purpose="AUDIO_PURPOSE_OUTPUT",
            blob=output.blob,
            measures={
                "duration_s": output.duration_s,
                "rate_hz": output.rate_hz,
                "channels": output.channels,
                "codec": output.codec,
            },
            assessment={},
            labels={},
            provenance={
                "generated": True,
                "voice": output.voice,
                "job": job.name,
                "engine": output.engine,
                "weights": output.weights,
                "weights_trained": output.weights_trained,
                "weights_licence": output.weights_licence,
                "seed": str(output.seed),
            },
            source_audio=output.source_audio,
            created_at=now,
            expires_at=now + self._output_ttl,
        )
        await tx.put_artifact(job.team, output.blob)
        await tx.add_audio(audio, job_id=job.id)
        return audio.name


class WorkSession:
    """One worker process's channel: what it offered, and what was sent since."""

    def __init__(self, work: Work, worker: WorkerRow) -> None:
        self._work = work
        self._row = worker
        self._sent = 0
        self._free: Mapping[str, int] = {}
        self._offered = asyncio.Event()

    async def offer(self, row: WorkerRow, leases_seen: int) -> None:
        """Takes an offer of capacity, unless it was made before our last leases arrived."""
        if leases_seen < self._sent:
            return
        changed = (row.free, row.nodes, row.default_bundle) != (
            self._row.free,
            self._row.nodes,
            self._row.default_bundle,
        )
        stale = row.last_seen - self._row.last_seen > dt.timedelta(seconds=10)
        self._free = row.free
        self._offered.set()
        if changed or stale or not self._sent:
            self._row = row
            await self._work.put_worker(row)

    async def heartbeat(self, beats: Sequence[tuple[Fence, Progress | None]]) -> list[tuple[Fence, StopKind]]:
        """Extends leases; see :meth:`Work.heartbeat`."""
        return await self._work.heartbeat(beats)

    async def leases(self) -> AsyncIterator[list[Claimed]]:
        """Leases as work comes, within what was offered; after each batch a fresh offer is awaited."""
        while True:
            await self._offered.wait()
            kinds = [kind for kind, count in self._free.items() if count > 0]
            if not kinds:
                self._offered.clear()
                continue
            async with self._work.wakeups.queue(kinds) as wakeup:
                offer = self._free
                claimed = await self._work.claim(self._row.worker, offer)
                if not claimed:
                    await wakeup.wait(self._work.poll_s)
                    continue
            self._sent += len(claimed)
            self._free = {}
            self._offered.clear()
            yield claimed


def back_off_s(attempt: int) -> float:
    """Seconds before the next try: exponential, capped, with full jitter in its upper half."""
    ceiling: float = min(BACK_OFF_CAP_S, BACK_OFF_BASE_S * 2 ** max(0, attempt - 1))
    return ceiling * random.uniform(0.5, 1.0)  # noqa: S311 - jitter


async def _held(tx: Transaction, fence: Fence) -> Job:
    job = await tx.lock_lease(fence)
    if job is None:
        raise _lost(fence)
    return job


def _lost(fence: Fence) -> VoxfleetError:
    return VoxfleetError(
        Reason.LEASE_LOST,
        "this lease is gone: another attempt may be running; stop and commit nothing",
        kind=Kind.ABORTED,
        metadata={"job_id": fence.job_id, "attempt": fence.attempt},
        failure=FailureClass.PERMANENT,
    )


def _wake(tx: Transaction, job: Job) -> None:
    tx.wake_watchers([job.id, job.parent_id])


async def _cancelled(tx: Transaction, job: Job) -> Job:
    job = await tx.end_attempt(job, JobState.CANCELLED, "stopped as asked")
    await fail_voice_of(tx, job)
    _wake(tx, job)
    return job


async def _failed(tx: Transaction, job: Job, error: Mapping[str, Any], failure: FailureClass) -> Job:
    if job.state is JobState.CANCELLING:
        return await _cancelled(tx, job)
    message = f"{error.get('reason', '')}: {error.get('message', '')}"
    if failure in RETRYABLE and job.attempt < job.max_attempts:
        delay_s = back_off_s(job.attempt)
        job = await tx.end_attempt(
            job,
            JobState.QUEUED,
            f"attempt {job.attempt} failed, next in {delay_s:.1f} s: {message}",
            error=error,
            waiting_reason="BACK_OFF",
            delay_s=delay_s,
        )
    else:
        job = await tx.end_attempt(job, JobState.FAILED, message, error=error)
        await fail_voice_of(tx, job)
    _wake(tx, job)
    return job


async def _publish_voice(tx: Transaction, job: Job, outcome: Succeeded) -> str:
    output = outcome.voice
    if output is None:
        return ""
    name = str(job.task["voice"])
    await tx.put_artifact(job.team, output.package)
    await tx.update_voice(
        job.team,
        name.rpartition("/")[2],
        {
            "state": VoiceState.READY.value,
            "package_sha256": output.package.sha256,
            "content_encoder": output.content_encoder,
            "rate_hz": output.rate_hz,
            "metrics": dict(output.metrics),
            "weights_trained": outcome.weights_trained,
        },
    )
    return name


async def _end_batch(tx: Transaction, batch: Job, counts: Mapping[str, int]) -> None:
    """SUCCEEDED with any good item, CANCELLED when it was asked to stop, FAILED only if every item failed."""
    items = await tx.list_jobs(batch.team, _FIRST_GOOD, batch=batch.id)
    made_with = items[0].result if items else {}
    result = {
        "weights": made_with.get("weights", ""),
        "weights_trained": made_with.get("weights_trained", False),
        "metrics": {key: float(value) for key, value in counts.items()},
    }
    error: Mapping[str, Any] | None = None
    if batch.state is JobState.CANCELLING:
        state, message = JobState.CANCELLED, "stopped as asked"
    elif counts.get("succeeded", 0) > 0 or counts.get("total", 0) == 0:
        state, message = JobState.SUCCEEDED, "all items ended"
    else:
        state, message = JobState.FAILED, "every item failed"
        failure = VoxfleetError(
            Reason.BATCH_ALL_FAILED, "every item failed: see each item's own error", kind=Kind.INVALID
        )
        error = failure.to_dict()
    await tx.end_attempt(batch, state, message, error=error, result=result)
