"""Submits: names resolved to bytes, states checked, job and rows made, in one transaction."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from services.common import names
from services.common.errors import Kind, Reason, VoxfleetError, invalid, not_found
from services.common.jobs import tasks
from services.metadata.app.voices import resolve_voice, voice_exists
from services.metadata.model.catalog import Audio, Voice, VoiceState
from services.metadata.model.jobs import Job, JobState, NewJob, PriorityClass
from services.metadata.ports.store import Store, Transaction

MIN_TRAINING_S = 10.0
MAX_TEXT = 5000
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


@dataclass(frozen=True, slots=True)
class Line:
    """One text of a batch, with the batch's own settings already applied."""

    id: str
    text: str
    voice: str
    parameters: tasks.SpeakingParameters
    style: str = ""


class Submitter:
    """The use cases that make jobs."""

    def __init__(self, store: Store, *, max_attempts: int) -> None:
        self._store = store
        self._max_attempts = max_attempts

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
            clips = [await _audio(tx, team, name, f"audios[{i}]") for i, name in enumerate(audios)]
            _check_trainable(clips, force=force)
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
                audios=tuple(_source(clip) for clip in clips),
                parameters=parameters,
            )
            job = self._job(request, job_id, task.kind, PriorityClass.TRAINING, task.model_dump_json())
            job = replace(job, gpus=float(parameters.gpus))
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
        parameters: tasks.ConversionParameters,
        output: tasks.Output,
    ) -> Job:
        """Makes a conversion's job; of several audios, a batch.

        Errors: AUDIO_NOT_FOUND, VOICE_NOT_FOUND, VOICE_NOT_READY, UNSUPPORTED_ENGINE.
        """
        team = request.team
        job_id = names.new_id()
        async with self._store.tenant(team) as tx:
            if found := await self._repeat(tx, request, "ConvertAudio", job_id):
                return found
            clips = [await _audio(tx, team, name, f"audios[{i}]") for i, name in enumerate(audios)]
            voice, _, _ = await resolve_voice(tx, team, names.parse(voice_name, "voices", field="voice").id)
            if voice.engine != "rvc" or voice.package is None:
                raise invalid(
                    Reason.UNSUPPORTED_ENGINE,
                    f"{voice.name} is a zero-shot voice; converting needs a trained one: use TrainVoice",
                    field="voice",
                    engine=voice.engine,
                )
            target = tasks.RvcVoice(name=voice.name, package=voice.package)
            jobs = [
                tasks.ConvertTask(
                    team=team, audio=_source(clip), voice=target, parameters=parameters, output=output
                )
                for clip in clips
            ]
            if len(jobs) == 1:
                task = jobs[0].model_dump_json()
                job = self._job(request, job_id, "rvc.convert", PriorityClass.CONVERSION, task)
                job = replace(job, display_name=request.display_name or clips[0].display_name)
                return _preview(job) if request.validate_only else await self._add(tx, job)
            items = [
                NewJob(
                    team=team,
                    id=names.new_id(),
                    kind="rvc.convert",
                    priority_class=PriorityClass.BATCH,
                    task=task.model_dump_json(),
                    spec={},
                    display_name=clip.display_name,
                    item_id=clip.name,
                )
                for task, clip in zip(jobs, clips, strict=True)
            ]
            return await self._add_batch(tx, request, job_id, "rvc.convert", items)

    async def batch(self, request: Request, lines: Sequence[Line], output: tasks.Output) -> Job:
        """Makes a batch of texts; a bad one is recorded as failed and harms no other.

        Errors: VOICE_NOT_FOUND, VOICE_NOT_READY where every item names that voice.
        """
        team = request.team
        job_id = names.new_id()
        async with self._store.tenant(team) as tx:
            if found := await self._repeat(tx, request, "BatchSynthesize", job_id):
                return found
            voices: dict[tuple[str, str], tasks.F5Voice | VoxfleetError] = {}
            items = []
            for number, line in enumerate(lines):
                if number % 500 == 0:
                    # A hundred thousand lines take seconds: heartbeats are answered between them.
                    await asyncio.sleep(0)
                key = (line.voice, line.style)
                if key not in voices:
                    voices[key] = await _speaking_voice(tx, team, line.voice, line.style)
                items.append(_line_job(team, line, voices[key], output))
            errors = [found for found in voices.values() if isinstance(found, VoxfleetError)]
            if errors and len(errors) == len(voices):
                raise errors[0]
            return await self._add_batch(tx, request, job_id, "f5.item", items)

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
        )

    async def _add(self, tx: Transaction, job: NewJob) -> Job:
        await tx.add_jobs(job.team, [job])
        tx.wake_queue([job.kind])
        found = await tx.get_job(job.team, job.id)
        assert found is not None
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
            )
            for index, item in enumerate(items)
        ]
        await tx.add_jobs(request.team, [batch, *children])
        tx.wake_queue([item_kind])
        found = await tx.get_job(request.team, job_id)
        assert found is not None
        return found


def _line_job(team: str, line: Line, voice: tasks.F5Voice | VoxfleetError, output: tasks.Output) -> NewJob:
    error: VoxfleetError | None = voice if isinstance(voice, VoxfleetError) else None
    if not line.text.strip():
        error = invalid(Reason.TEXT_EMPTY, "this item has no text to speak", field="text")
    elif len(line.text) > MAX_TEXT:
        error = invalid(
            Reason.TEXT_TOO_LONG,
            f"an item has at most {MAX_TEXT} characters; this one has {len(line.text)}",
            field="text",
            max_characters=MAX_TEXT,
        )
    elif "\x00" in line.text:
        error = invalid(Reason.UNSUPPORTED_CHARACTERS, "this item's text holds a NUL character", field="text")
    if error is not None or isinstance(voice, VoxfleetError):
        assert error is not None
        task = tasks.BatchTask(team=team, item_kind="f5.item").model_dump_json()
        state, stored = JobState.FAILED, error.to_dict()
    else:
        task = tasks.SpeakTask(
            team=team,
            text=line.text,
            voice=voice,
            parameters=line.parameters,
            output=output,
            display_name=line.id,
        ).model_dump_json()
        state, stored = JobState.QUEUED, None
    text = line.text[:MAX_TEXT].replace("\x00", "\N{REPLACEMENT CHARACTER}")
    return NewJob(
        team=team,
        id=names.new_id(),
        kind="f5.item",
        priority_class=PriorityClass.BATCH,
        task=task,
        spec={"text": text},
        display_name=text[:80],
        item_id=line.id,
        state=state,
        error=stored,
    )


async def _speaking_voice(
    tx: Transaction, team: str, voice_name: str, style: str
) -> tasks.F5Voice | VoxfleetError:
    try:
        name = names.parse(voice_name, "voices", field="voice")
        if name.team != team:
            return not_found(Reason.VOICE_NOT_FOUND, voice_name)
        voice, reference, text = await resolve_voice(tx, team, name.id, style=style)
    except VoxfleetError as error:
        return error
    if reference is None:
        return invalid(
            Reason.UNSUPPORTED_ENGINE,
            f"{voice.name} is a trained voice, which converts; speaking text needs a zero-shot voice",
            field="voice",
            engine=voice.engine,
        )
    return tasks.F5Voice(name=voice.name, reference=reference, reference_text=text, languages=voice.languages)


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


async def _audio(tx: Transaction, team: str, name: str, field: str) -> Audio:
    parsed = names.parse(name, "audios", field=field)
    audio = await tx.get_audio(team, parsed.id) if parsed.team == team else None
    if audio is None:
        raise not_found(Reason.AUDIO_NOT_FOUND, name)
    return audio


def _source(audio: Audio) -> tasks.SourceAudio:
    return tasks.SourceAudio(
        name=audio.name,
        blob=audio.blob,
        duration_s=audio.duration_s,
        display_name=audio.display_name,
    )


def _check_trainable(clips: Sequence[Audio], *, force: bool) -> None:
    total_s = sum(clip.duration_s for clip in clips)
    if total_s < MIN_TRAINING_S:
        raise invalid(
            Reason.AUDIO_TOO_SHORT,
            f"training needs at least {MIN_TRAINING_S:g} s of audio, best 5 to 10 minutes; "
            f"these have {total_s:.1f} s",
            field="audios",
            duration_s=f"{total_s:.3f}",
            min_duration_s=MIN_TRAINING_S,
        )
    for number, clip in enumerate(clips):
        if force or clip.assessment.get("trainable"):
            continue
        reasons = "; ".join(clip.assessment.get("reasons", ()))
        raise VoxfleetError(
            Reason.QUALITY_TOO_LOW,
            f"audios[{number}] is graded {clip.assessment.get('grade', '?')}: {reasons or 'too noisy'}. "
            "Record it again, clean it, or set `force`",
            kind=Kind.PRECONDITION,
            metadata={
                "grade": clip.assessment.get("grade", ""),
                "actual_snr_db": f"{clip.measures.get('snr_db', 0.0):.1f}",
                "min_snr_db": 15,
            },
        )
