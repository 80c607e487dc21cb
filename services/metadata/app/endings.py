"""What a job's end means for others: its voice, and the jobs that wait for it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from services.common.errors import Kind, Reason, VoxfleetError
from services.common.jobs.tasks import VOICE_MAKING
from services.metadata.model.catalog import VoiceState
from services.metadata.model.jobs import Job, JobState
from services.metadata.ports.store import Store, Transaction
from services.metadata.scheduling.lanes import LaneKey

log = logging.getLogger(__name__)

_AT_ONCE = 200
_ITEMS_AT_ONCE = 5000


def lane_of(job: Job) -> LaneKey:
    """The lane in which a job waits."""
    return LaneKey(job.kind, job.priority_class, job.team)


async def fail_voice_of(tx: Transaction, job: Job) -> None:
    """Marks the voice of a training or an import that will not go on as failed."""
    if job.kind in VOICE_MAKING:
        await set_voice_state(tx, job, VoiceState.TRAINING, VoiceState.FAILED)


async def set_voice_state(
    tx: Transaction, job: Job, before: VoiceState, after: VoiceState
) -> VoiceState | None:
    """Moves the job's voice from one state to another, where it is in it; returns what it was."""
    voice_id = str(job.task["voice"]).rpartition("/")[2]
    voice = await tx.get_voice(job.team, voice_id, lock=True)
    if voice is not None and voice.job_id == job.id and voice.state is before:
        await tx.update_voice(job.team, voice_id, {"state": after.value})
    return voice.state if voice is not None else None


async def settle_dependencies(store: Store, jobs: Sequence[str] | None = None) -> list[str]:
    """Lets go, or fails, what waited for jobs that have ended: these jobs, or all.

    Returns the ids of the jobs that this failed: what waits for them is to be settled next.
    """
    failed: list[str] = []
    while True:
        async with store.service() as tx:
            taken = await tx.take_settled(jobs, _AT_ONCE)
            for team, job_id, on_id, state in taken:
                job = await tx.get_job(team, job_id, lock=True)
                if job is None or job.state is not JobState.QUEUED:
                    continue
                if state is JobState.SUCCEEDED:
                    await _let_go(tx, job)
                else:
                    await _fail(tx, job, on_id, state)
                    failed.append(job_id)
        if len(taken) < _AT_ONCE:
            return failed


async def _let_go(tx: Transaction, job: Job) -> None:
    job = await tx.unblock(job.id, await _completed(tx, job))
    if job.blockers == 0:
        item_kind = str(job.task.get("item_kind", job.kind))
        kinds = [lane_of(job)._replace(kind=item_kind)] if job.kind == "batch" else [lane_of(job)]
        tx.wake_lanes(kinds)


async def _completed(tx: Transaction, job: Job) -> Mapping[str, Any] | None:
    """A conversion's task, with the voice that the training it waited for has made."""
    voice = job.task.get("voice")
    if job.kind != "rvc.convert" or not isinstance(voice, Mapping) or voice.get("package"):
        return None
    found = await tx.get_voice(job.team, str(voice["name"]).rpartition("/")[2])
    if found is None or found.package is None:
        return None
    return {**job.task, "voice": {**voice, "package": found.package.model_dump()}}


async def _fail(tx: Transaction, job: Job, on_id: str, state: JobState) -> None:
    on_name = f"teams/{job.team}/jobs/{on_id}"
    error = VoxfleetError(
        Reason.DEPENDENCY_FAILED,
        f"{on_name} is {state.value}, and this job depends on it: retry that, then this",
        kind=Kind.PRECONDITION,
        metadata={"job": on_name, "state": state.value},
    )
    if job.kind == "batch":
        while await tx.cancel_items(job.id, _ITEMS_AT_ONCE) == _ITEMS_AT_ONCE:
            pass
    job = await tx.change_state(job, JobState.FAILED, error.message, error=error.to_dict())
    await fail_voice_of(tx, job)
