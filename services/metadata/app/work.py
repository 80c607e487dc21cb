"""The workers' side: heartbeats in, attempts ended, each write fenced."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from services.common import names
from services.common.errors import FailureClass, Kind, Reason, VoxfleetError
from services.common.jobs.model import (
    AudioOutput,
    Checkpoint,
    Fence,
    GpuFacts,
    Progress,
    Released,
    StopKind,
    Succeeded,
)
from services.common.together import Together
from services.metadata.app.endings import fail_voice_of, lane_of
from services.metadata.model.catalog import VOICE_FILE, Audio, VoiceState
from services.metadata.model.fleet import WorkerRow
from services.metadata.model.jobs import (
    FINAL_STATES,
    AttemptOutcome,
    CheckpointRow,
    DoneJob,
    End,
    Job,
    JobState,
    LeasedJob,
)
from services.metadata.ports.store import Store, Transaction
from services.metadata.scheduling.retry import Retry, decide

log = logging.getLogger(__name__)

_AT_ONCE = 500
_NOTHING = Succeeded()
_Plain = Mapping[Fence, Mapping[str, Any] | None]


@dataclass(frozen=True, slots=True)
class Claimed:
    """A lease as it goes out."""

    job: LeasedJob
    checkpoints: tuple[CheckpointRow, ...] = ()

    @property
    def fence(self) -> Fence:
        """The right to work on it, once."""
        return self.job.fence


@dataclass(frozen=True, slots=True)
class Ended:
    """A job after an attempt, and the names of what now exists."""

    job: Job | DoneJob
    audios: tuple[str, ...] = ()
    voice: str = ""


class Work:
    """The use cases of workers.

    Args:
        store: the database.
        ended: told of jobs whose attempt has ended, once that is committed.
        lease_s: how long a lease holds without a heartbeat.
        keep_checkpoints: of one training.
        output_ttl_s: after which what a job made is deleted.
        chance: of the jitter in back-offs.
    """

    def __init__(
        self,
        store: Store,
        ended: Callable[[Sequence[Job | DoneJob]], None],
        *,
        lease_s: float,
        keep_checkpoints: int,
        output_ttl_s: float,
        chance: random.Random | None = None,
    ) -> None:
        self._store = store
        self._ended = ended
        self.lease_s = lease_s
        self._keep = keep_checkpoints
        self._output_ttl = dt.timedelta(seconds=output_ttl_s)
        self._chance = chance or random.Random()  # noqa: S311 - jitter
        self._successes = Together(self._succeed, most=_AT_ONCE)
        self._giving_back: set[asyncio.Task[None]] = set()

    async def put_worker(self, row: WorkerRow, gpus: GpuFacts | None = None) -> None:
        """Keeps what a worker said of itself, and of GPUs where it did."""
        async with self._store.service() as tx:
            await tx.put_worker(row)
            if gpus is not None:
                await tx.put_worker_gpus(row.worker, gpus)

    async def drop_worker(self, worker: str) -> None:
        """Forgets a worker whose channel closed; its leases stay until they expire."""
        async with self._store.service() as tx:
            await tx.drop_worker(worker)

    async def with_checkpoints(self, jobs: Sequence[LeasedJob]) -> list[Claimed]:
        """Claimed jobs as they go out, with what earlier attempts saved."""
        trainings = [job.id for job in jobs if job.kind == "rvc.train" and job.attempt > 1]
        if not trainings:
            return [Claimed(job) for job in jobs]
        async with self._store.leases() as rows:
            saved = await rows.checkpoints_of(trainings)
        return [Claimed(job, tuple(saved.get(job.id, ()))) for job in jobs]

    async def heartbeat(self, beats: Sequence[tuple[Fence, Progress | None]]) -> list[tuple[Fence, StopKind]]:
        """Extends leases; says which are lost, cancelled or to be given back."""
        async with self._store.leases() as rows:
            kept = await rows.heartbeat(beats, self.lease_s)
        held = {fence for fence, _, _ in kept}
        notices = [(fence, StopKind.LOST) for fence, _ in beats if fence not in held]
        for fence, state, give_back in kept:
            if state is JobState.CANCELLING:
                notices.append((fence, StopKind.CANCEL))
            elif give_back:
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
        if _makes_rows(outcome):
            return await self._commit(fence, outcome)
        (ended,) = await self.succeed_all([(fence, outcome)])
        if isinstance(ended, VoxfleetError):
            raise ended
        return ended

    async def succeed_all(self, outcomes: Sequence[tuple[Fence, Succeeded]]) -> list[Ended | VoxfleetError]:
        """Ends attempts that made no rows, all in one statement; each is judged by itself.

        What else is ended at the same time goes with them. Returns for each its job, or LEASE_LOST.
        """
        asked = {fence: _plain(outcome) for fence, outcome in outcomes}
        if not asked:
            return []
        found = await self._successes(asked, asked)
        self._ended(list(found.values()))
        return [Ended(found[fence]) if fence in found else lease_lost(fence) for fence, _ in outcomes]

    async def _commit(self, fence: Fence, outcome: Succeeded) -> Ended:
        async with self._store.service() as tx:
            job = await _held(tx, fence)
            audios = [await self._add_output(tx, job, output) for output in outcome.audios]
            voice = await _publish_voice(tx, job, outcome)
            job = await _finish(tx, _success(fence, outcome, audios, voice))
        self._ended([job])
        return Ended(job, tuple(audios), voice)

    async def _succeed(self, asked: Sequence[_Plain]) -> Sequence[dict[Fence, DoneJob]]:
        async with self._store.leases() as rows:
            done = await rows.succeed({fence: result for each in asked for fence, result in each.items()})
        return [{fence: done[fence] for fence in each if fence in done} for each in asked]

    def give_back(self, jobs: Sequence[LeasedJob]) -> None:
        """Takes back, soon, what was leased and will not be delivered."""
        for job in jobs:
            task = asyncio.create_task(self._give_back(job))
            self._giving_back.add(task)
            task.add_done_callback(self._giving_back.discard)

    async def _give_back(self, job: LeasedJob) -> None:
        with contextlib.suppress(VoxfleetError):  # then its lease expires
            await self.release(job.fence, Released("the worker went before it was told"))

    async def release(self, fence: Fence, outcome: Released) -> Ended:
        """Takes a job back unharmed; it costs no attempt. Errors: LEASE_LOST."""
        async with self._store.service() as tx:
            job = await _held(tx, fence)
            if job.state is JobState.CANCELLING:
                end = _cancellation(job)
            else:
                yielded = outcome.message.partition(":")[0] == StopKind.YIELD.value
                end = End(
                    fence,
                    JobState.QUEUED,
                    AttemptOutcome.RELEASED,
                    f"given back: {outcome.message}",
                    waiting_reason="PAUSED" if job.paused else "PREEMPTED" if yielded else "",
                    more_attempts=1,
                )
            job = await self._end(tx, job, end)
        self._ended([job])
        return Ended(job)

    async def cancelled(self, fence: Fence) -> Ended:
        """Ends an attempt that was stopped as asked. Errors: LEASE_LOST."""
        async with self._store.service() as tx:
            job = await _held(tx, fence)
            if job.state is not JobState.CANCELLING:
                raise lease_lost(fence)
            job = await self._end(tx, job, _cancellation(job))
        self._ended([job])
        return Ended(job)

    async def fail(
        self, fence: Fence, error: Mapping[str, Any], failure: FailureClass, *, node: str = ""
    ) -> Ended:
        """Ends an attempt badly; tries again where its class and the attempts left allow.

        Errors: LEASE_LOST.
        """
        async with self._store.service() as tx:
            job = await _held(tx, fence)
            end = self._failure(job, AttemptOutcome.FAILED, error, failure, node)
            job = await self._end(tx, job, end)
        self._ended([job])
        return Ended(job)

    async def expire(self) -> int:
        """Takes back the jobs whose lease has expired; returns how many."""
        done: list[Job] = []
        async with self._store.service() as tx:
            for job in await tx.expired(_AT_ONCE):
                log.warning("%s: the lease of attempt %d expired", job.name, job.attempt)
                error = VoxfleetError(
                    Reason.WORKER_LOST,
                    f"the worker of attempt {job.attempt} was not heard of in time",
                    kind=Kind.UNAVAILABLE,
                    failure=FailureClass.NODE,
                )
                end = self._failure(job, AttemptOutcome.EXPIRED, error.to_dict(), FailureClass.NODE, job.node)
                done.append(await self._end(tx, job, end))
        self._ended(done)
        return len(done)

    def _failure(
        self,
        job: Job,
        outcome: AttemptOutcome,
        error: Mapping[str, Any],
        failure: FailureClass,
        node: str,
    ) -> End:
        """What becomes of a job whose attempt went badly."""
        if job.state is JobState.CANCELLING:
            return _cancellation(job)
        message = f"{error.get('reason', '')}: {error.get('message', '')}"
        verdict = decide(
            failure,
            attempt=job.attempt,
            max_attempts=job.max_attempts,
            node=node or job.node,
            batch_scale=job.batch_scale,
            chance=self._chance,
            kind=job.kind,
        )
        if not isinstance(verdict, Retry):
            return End(job.fence, JobState.FAILED, outcome, message, error=error, failure_class=failure.value)
        return End(
            job.fence,
            JobState.QUEUED,
            outcome,
            f"attempt {job.attempt} failed, next in {verdict.delay_s:.1f} s: {message}",
            error=error,
            failure_class=failure.value,
            waiting_reason="BACK_OFF",
            delay_s=verdict.delay_s,
            batch_scale=verdict.batch_scale,
            avoid_node=verdict.avoid_node,
        )

    async def _end(self, tx: Transaction, job: Job, end: End) -> Job:
        """Ends the attempt of a job that is locked."""
        job = await _finish(tx, end)
        if job.state in FINAL_STATES:
            await fail_voice_of(tx, job)
        elif not job.paused:
            tx.wake_lanes([lane_of(job)])
        return job

    async def _add_output(self, tx: Transaction, job: Job, output: AudioOutput) -> str:
        now = dt.datetime.now(dt.UTC)
        audio = Audio(
            team=job.team,
            id=names.new_id(),
            display_name=output.display_name,
            purpose=VOICE_FILE if output.voice_file else "AUDIO_PURPOSE_OUTPUT",
            blob=output.blob,
            measures={} if output.voice_file else _measures(output),
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
                "watermarked": output.watermarked,
                **_spoken(output),
                **({"pitch_match": asdict(output.pitch_match)} if output.pitch_match else {}),
            },
            source_audio=output.source_audio,
            created_at=now,
            expires_at=now + self._output_ttl,
        )
        await tx.put_artifact(job.team, output.blob)
        await tx.add_audio(audio, job_id=job.id)
        return audio.name


def _spoken(output: AudioOutput) -> dict[str, Any]:
    """What spoke before a conversion, as provenance tells it."""
    if (spoken := output.spoken) is None:
        return {}
    return {
        "speaker": spoken.name,
        "speaker_weights": spoken.weights,
        "speaker_weights_trained": spoken.weights_trained,
        "speaker_weights_licence": spoken.weights_licence,
    }


def _measures(output: AudioOutput) -> dict[str, Any]:
    """What is known of an output; what is said in it, and how well, stands with the measures."""
    found: dict[str, Any] = {
        "duration_s": output.duration_s,
        "rate_hz": output.rate_hz,
        "channels": output.channels,
        "codec": output.codec,
    }
    if output.words:
        found["words"] = [
            {"word": word.text, "start_s": word.start_s, "end_s": word.end_s} for word in output.words
        ]
    if output.quality is not None:
        found["quality"] = asdict(output.quality)
    return found


def lease_lost(fence: Fence) -> VoxfleetError:
    """The error of a write under a lease that is gone."""
    return VoxfleetError(
        Reason.LEASE_LOST,
        "this lease is gone: another attempt may be running; stop and commit nothing",
        kind=Kind.ABORTED,
        metadata={"job_id": fence.job_id, "attempt": fence.attempt},
        failure=FailureClass.PERMANENT,
    )


async def _held(tx: Transaction, fence: Fence) -> Job:
    found = await tx.lock_leases([fence])
    if not found:
        raise lease_lost(fence)
    return found[0]


async def _finish(tx: Transaction, end: End) -> Job:
    done = await tx.finish([end])
    if not done:
        raise lease_lost(end.fence)
    return done[0]


def _success(fence: Fence, outcome: Succeeded, audios: Sequence[str], voice: str) -> End:
    result = _result(outcome, audios, voice)
    return End(fence, JobState.SUCCEEDED, AttemptOutcome.SUCCEEDED, "done", result=result)


def _result(outcome: Succeeded, audios: Sequence[str], voice: str) -> Mapping[str, Any]:
    return {
        "voice": voice,
        "audios": list(audios),
        "metrics": dict(outcome.metrics),
        "weights": outcome.weights,
        "weights_trained": outcome.weights_trained,
        "curve": [{"step": step, "metrics": dict(point)} for step, point in outcome.curve],
    }


def _makes_rows(outcome: Succeeded) -> bool:
    return bool(outcome.audios) or outcome.voice is not None


def _plain(outcome: Succeeded) -> Mapping[str, Any] | None:
    """The result of an attempt that made no rows; None where there is nothing to say."""
    return None if outcome == _NOTHING else _result(outcome, [], "")


def _cancellation(job: Job) -> End:
    return End(job.fence, JobState.CANCELLED, AttemptOutcome.CANCELLED, "stopped as asked")


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
