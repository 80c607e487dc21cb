"""Submits: names resolved to bytes, states checked, job and rows made, in one transaction."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from services.common import limits, names
from services.common.errors import Kind, Reason, VoxfleetError, invalid, not_found
from services.common.jobs import tasks
from services.common.licences import IMPORTED_LICENCE, check_licence
from services.common.pronouncing import Pronouncer
from services.metadata.app.endings import lane_of
from services.metadata.app.resolving import (
    Line,
    Respeaking,
    Speakers,
    SpokenBy,
    check_respeakable,
    check_trainable,
    converting_item,
    converting_voice,
    exporting_voice,
    line_job,
    respeaking_item,
    respeaking_words,
    source_of,
    speakers_of,
    speaking_pronouncer,
    team_audio,
    voice_file,
    zero_shot_voice,
)
from services.metadata.app.voices import voice_exists
from services.metadata.model.catalog import Voice, VoiceState
from services.metadata.model.jobs import Job, JobState, NewJob, PriorityClass
from services.metadata.ports.store import Store, Transaction
from services.metadata.scheduling.lanes import LaneKey

MAX_BATCH_ITEMS = 100_000


@dataclass(frozen=True, slots=True)
class Request:
    """What every submit carries. ``spec`` is the public request as JSON data, for the record."""

    team: str
    request_id: str
    fingerprint: str
    spec: Mapping[str, Any]
    validate_only: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    display_name: str = ""
    traceparent: str = ""
    depends_on: tuple[str, ...] = ()
    """Names of jobs of the same team that must succeed first."""
    priority: int = 0
    """Order within the class, higher first."""


class Foretelling(Protocol):
    """Says when new jobs will begin, so that it can learn from when they do."""

    def foretell(self, job: NewJob) -> Mapping[str, Any] | None:
        """What is foretold of a job's start."""

    def batch_arrived(self, items: Sequence[NewJob]) -> None:
        """Takes note of a batch's items."""


class Submitter:
    """The use cases that make jobs.

    Args:
        store: the database.
        max_attempts: of a job, unless its submit says otherwise.
        foretelling: told of what is submitted.
    """

    def __init__(self, store: Store, *, max_attempts: int, foretelling: Foretelling | None = None) -> None:
        self._store = store
        self._max_attempts = max_attempts
        self._foretelling = foretelling

    async def train(
        self,
        request: Request,
        voice_id: str,
        audios: Sequence[str],
        parameters: tasks.TrainingParameters,
        *,
        force: bool,
    ) -> Job:
        """Makes a voice in training and its job.

        Errors: AUDIO_NOT_FOUND, AUDIO_TOO_SHORT, QUALITY_TOO_LOW, VOICE_EXISTS.
        """
        team = request.team
        job_id = names.new_id()
        async with self._store.tenant(team) as tx:
            if found := await self._repeat(tx, request, "TrainVoice", job_id):
                return found
            clips = [await team_audio(tx, team, name, f"audios[{i}]") for i, name in enumerate(audios)]
            check_trainable(clips, force=force)
            voice = Voice(
                team,
                voice_id,
                request.display_name or voice_id,
                "rvc",
                VoiceState.TRAINING,
                training_audios=tuple(clip.name for clip in clips),
                job_id=job_id,
                labels=request.labels,
            )
            if await tx.get_voice(team, voice_id) is not None:
                raise voice_exists(voice.name)
            task = tasks.TrainTask(
                team=team,
                voice=voice.name,
                display_name=voice.display_name,
                audios=tuple(source_of(clip) for clip in clips),
                parameters=parameters,
            )
            job = self._job(request, job_id, task.kind, PriorityClass.TRAINING, task.model_dump_json())
            job = replace(
                job,
                gpus=float(parameters.gpus),
                gpu_type=parameters.gpu_type,
                size=sum(clip.duration_s for clip in clips),
            )
            if request.validate_only:
                return _preview(job)
            if not await tx.add_voice(voice):
                raise voice_exists(voice.name)
            return await self._add(tx, job)

    async def convert(
        self,
        request: Request,
        audios: Sequence[str],
        voice_name: str,
        how: tasks.ConversionParameters | Respeaking,
        output: tasks.Output,
    ) -> Job:
        """Makes a conversion's job; of several audios, a batch.

        Errors: AUDIO_NOT_FOUND, AUDIO_TOO_LONG, VOICE_NOT_FOUND, VOICE_NOT_READY, UNSUPPORTED_ENGINE,
        LEXICON_NOT_FOUND.
        """
        team = request.team
        job_id = names.new_id()
        async with self._store.tenant(team) as tx:
            if found := await self._repeat(tx, request, "ConvertAudio", job_id):
                return found
            clips = [await team_audio(tx, team, name, f"audios[{i}]") for i, name in enumerate(audios)]
            if isinstance(how, Respeaking):
                check_respeakable(clips)
                voice = await zero_shot_voice(tx, team, voice_name, how.style)
                words = await respeaking_words(tx, team, how, len(clips))
                items = [respeaking_item(team, clip, voice, how, output, words=words) for clip in clips]
            else:
                target = await converting_voice(tx, team, voice_name, request.depends_on)
                items = [converting_item(team, clip, target, how, output) for clip in clips]
            if len(items) > 1:
                return await self._add_batch(tx, request, job_id, items[0].kind, items)
            (item,) = items
            job = self._job(request, job_id, item.kind, PriorityClass.CONVERSION, item.task)
            name = request.display_name or item.display_name
            job = replace(job, display_name=name, gpus=item.gpus, size=item.size)
            return _preview(job) if request.validate_only else await self._add(tx, job)

    async def batch(self, request: Request, lines: Sequence[Line], output: tasks.Output) -> Job:
        """Makes a batch of texts; a bad one is recorded as failed and harms no other.

        Errors: VOICE_NOT_FOUND, VOICE_NOT_READY, LEXICON_NOT_FOUND where every item names that.
        """
        team = request.team
        job_id = names.new_id()
        async with self._store.tenant(team) as tx:
            if found := await self._repeat(tx, request, "BatchSynthesize", job_id):
                return found
            voices: dict[SpokenBy, Speakers | VoxfleetError] = {}
            pronouncers: dict[tuple[str, ...], Pronouncer | VoxfleetError] = {}
            items = []
            for number, line in enumerate(lines):
                if number % 500 == 0:
                    # A hundred thousand lines take seconds: heartbeats are answered between them.
                    await asyncio.sleep(0)
                key = line.spoken_by
                if key not in voices:
                    voices[key] = await speakers_of(tx, team, key)
                if line.lexicons not in pronouncers:
                    pronouncers[line.lexicons] = await speaking_pronouncer(tx, team, line.lexicons)
                items.append(line_job(team, line, voices[key], pronouncers[line.lexicons], output))
            for resolved in (voices.values(), pronouncers.values()):
                errors = [found for found in resolved if isinstance(found, VoxfleetError)]
                if errors and len(errors) == len(resolved):
                    raise errors[0]
            return await self._add_batch(tx, request, job_id, "f5.item", items)

    async def import_voice(
        self, request: Request, voice_id: str, model: str, index: str, licence: str
    ) -> Job:
        """Makes a voice that is to be imported, and its job. ``index`` may be empty.

        Errors: AUDIO_NOT_FOUND, INVALID_FORMAT, LICENCE_NOT_ALLOWED, VOICE_EXISTS.
        """
        team = request.team
        job_id = names.new_id()
        licence = licence or IMPORTED_LICENCE
        async with self._store.tenant(team) as tx:
            if found := await self._repeat(tx, request, "ImportVoice", job_id):
                return found
            file = await voice_file(tx, team, model, "model_file")
            added = await voice_file(tx, team, index, "index_file") if index else None
            voice = Voice(
                team,
                voice_id,
                request.display_name or voice_id,
                "rvc",
                VoiceState.TRAINING,
                job_id=job_id,
                weights_licence=licence,
                labels=request.labels,
            )
            check_licence(await tx.allowed_licences(team), licence, voice.name)
            if await tx.get_voice(team, voice_id) is not None:
                raise voice_exists(voice.name)
            task = tasks.ImportVoiceTask(
                team=team,
                voice=voice.name,
                display_name=voice.display_name,
                model=file,
                index=added,
                licence=licence,
            )
            job = self._job(request, job_id, task.kind, PriorityClass.CONVERSION, task.model_dump_json())
            if request.validate_only:
                return _preview(job)
            if not await tx.add_voice(voice):
                raise voice_exists(voice.name)
            return await self._add(tx, job)

    async def export_voice(self, request: Request, voice_id: str, form: Literal["voxfleet", "pth"]) -> Job:
        """Makes the job that exports a trained voice.

        Errors: VOICE_NOT_FOUND, VOICE_NOT_READY, UNSUPPORTED_ENGINE, LICENCE_NOT_ALLOWED.
        """
        job_id = names.new_id()
        async with self._store.tenant(request.team) as tx:
            if found := await self._repeat(tx, request, "ExportVoice", job_id):
                return found
            task = await exporting_voice(tx, request.team, voice_id, form)
            job = self._job(request, job_id, task.kind, PriorityClass.CONVERSION, task.model_dump_json())
            job = replace(job, display_name=voice_id)
            return _preview(job) if request.validate_only else await self._add(tx, job)

    async def pull_bundle(self, request: Request, bundle: str, *, accepted_licence: bool) -> Job:
        """Makes the job that brings a bundle of weights into the store."""
        job_id = names.new_id()
        task = tasks.PullBundleTask(team=request.team, bundle=bundle, accepted_licence=accepted_licence)
        job = self._job(request, job_id, task.kind, PriorityClass.CONVERSION, task.model_dump_json())
        async with self._store.tenant(request.team) as tx:
            if found := await self._repeat(tx, request, "PullBundle", job_id):
                return found
            return await self._add(tx, replace(job, display_name=bundle, max_attempts=1))

    async def _repeat(self, tx: Transaction, request: Request, method: str, job_id: str) -> Job | None:
        """The job that this request made the first time, if it is a repeat. Errors: REQUEST_ID_REUSED."""
        if request.validate_only:
            return None
        first = await tx.remember_request(
            request.team, request.request_id, method, request.fingerprint, job_id
        )
        if first == job_id:
            return None
        job = await tx.get_job(request.team, first)
        if job is None:
            raise not_found(Reason.JOB_NOT_FOUND, f"teams/{request.team}/jobs/{first}")
        return job

    async def _check_queue(self, tx: Transaction, team: str, more: int) -> None:
        """Errors: QUEUE_FULL where a team would have more waiting than its quota lets it."""
        quota = await tx.get_quota(team)
        if not quota.max_queued_jobs:
            return
        await tx.lock_submits(team)
        queued = await tx.count_queued(team, quota.max_queued_jobs + 1)
        if queued + more > quota.max_queued_jobs:
            raise VoxfleetError(
                Reason.QUEUE_FULL,
                f"teams/{team} may have {quota.max_queued_jobs} jobs waiting; {queued} do, this adds {more}",
                kind=Kind.EXHAUSTED,
                metadata={"max_queued_jobs": quota.max_queued_jobs, "queued_jobs": queued},
                retry_after_s=30,
            )

    def _job(
        self, request: Request, job_id: str, kind: str, priority_class: PriorityClass, task: str
    ) -> NewJob:
        return NewJob(
            team=request.team,
            id=job_id,
            kind=kind,
            priority_class=priority_class,
            task=task,
            spec=request.spec,
            display_name=request.display_name,
            labels=request.labels,
            max_attempts=self._max_attempts,
            traceparent=request.traceparent,
            depends_on=_dependencies(request),
            priority=request.priority,
        )

    async def _add(self, tx: Transaction, job: NewJob) -> Job:
        await self._check_queue(tx, job.team, 1)
        if self._foretelling is not None:
            job = replace(job, expected=self._foretelling.foretell(job))
        await tx.add_jobs(job.team, [job])
        found = await tx.get_job(job.team, job.id)
        assert found is not None
        if not found.blockers:
            tx.wake_lanes([lane_of(found)])
        return found

    async def _add_batch(
        self, tx: Transaction, request: Request, job_id: str, item_kind: str, items: Sequence[NewJob]
    ) -> Job:
        task = tasks.BatchTask(team=request.team, item_kind=item_kind).model_dump_json()
        batch = self._job(request, job_id, "batch", PriorityClass.BATCH, task)
        if request.validate_only:
            return _preview(batch)
        children = [
            replace(
                item,
                parent_id=job_id,
                item_index=index,
                item_id=item.item_id or str(index),
                max_attempts=self._max_attempts,
                traceparent=request.traceparent,
                priority=request.priority,
            )
            for index, item in enumerate(items)
        ]
        waiting = sum(child.state is JobState.QUEUED for child in children)
        await self._check_queue(tx, request.team, waiting)
        if self._foretelling is not None:
            if not batch.depends_on and children[0].state is JobState.QUEUED:
                children[0] = replace(children[0], expected=self._foretelling.foretell(children[0]))
            self._foretelling.batch_arrived(children)
        batch = replace(batch, items_total=len(children), items_failed=len(children) - waiting)
        await tx.add_jobs(request.team, [batch, *children])
        found = await tx.get_job(request.team, job_id)
        assert found is not None
        if not found.blockers and waiting:
            tx.wake_lanes([LaneKey(item_kind, PriorityClass.BATCH, request.team)])
        return found


def _dependencies(request: Request) -> tuple[str, ...]:
    if len(request.depends_on) > limits.MAX_DEPENDENCIES:
        raise invalid(
            Reason.INVALID_ARGUMENT,
            f"a job depends on at most {limits.MAX_DEPENDENCIES} others, not {len(request.depends_on)}",
            field="depends_on",
        )
    found = []
    for number, name in enumerate(request.depends_on):
        parsed = names.parse(name, "jobs", field=f"depends_on[{number}]")
        if parsed.team != request.team:
            raise not_found(Reason.JOB_NOT_FOUND, name)
        found.append(parsed.id)
    return tuple(dict.fromkeys(found))


def _preview(job: NewJob) -> Job:
    """What a validated submit would have made; it has no row."""
    now = dt.datetime.now(dt.UTC)
    return Job(
        team=job.team,
        id=job.id,
        kind=job.kind,
        state=JobState.QUEUED,
        waiting_reason="",
        priority_class=job.priority_class,
        priority=0,
        task={},
        spec=job.spec,
        display_name=job.display_name,
        labels=job.labels,
        parent_id="",
        item_index=0,
        item_id="",
        attempt=0,
        max_attempts=job.max_attempts,
        phase="",
        progress={},
        result={},
        error=None,
        event_seq=0,
        traceparent=job.traceparent,
        created_at=now,
        started_at=None,
        ended_at=None,
        updated_at=now,
    )
