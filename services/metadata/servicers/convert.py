"""Between metadata's model and the protos."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import json_format, message, timestamp_pb2

from services.common import telemetry
from services.common.jobs.tasks import Blob
from services.common.jobs.wire import blob_to_proto, words_to_proto
from services.metadata.app.jobs import waiting_reason
from services.metadata.model.catalog import Audio, Reference, Upload, Voice, VoiceState
from services.metadata.model.identity import ApiKey, Team
from services.metadata.model.jobs import AttemptRecord, CheckpointRow, Job, JobEvent, JobState
from services.metadata.scheduling.explain import Explanation
from voxfleet.internal.v1 import catalog_pb2
from voxfleet.v1 import audio_pb2, error_pb2, job_pb2, trust_pb2, voice_pb2


def as_json(request: message.Message) -> dict[str, Any]:
    """A message as JSON data with its own field names."""
    data: dict[str, Any] = json_format.MessageToDict(request, preserving_proto_field_name=True)
    return data


def fingerprint(request: message.Message) -> str:
    """SHA-256 of a request without its request_id: what a repeat must agree in."""
    copy = type(request)()
    copy.CopyFrom(request)
    copy.ClearField("request_id")
    return hashlib.sha256(copy.SerializeToString(deterministic=True)).hexdigest()


def stamp(moment: dt.datetime | None) -> timestamp_pb2.Timestamp | None:
    """A timestamp, or nothing."""
    if moment is None:
        return None
    found = timestamp_pb2.Timestamp()
    found.FromDatetime(moment)
    return found


def audio_to_proto(audio: Audio) -> audio_pb2.Audio:
    """An audio as the API shows it."""
    found = audio_pb2.Audio(
        name=audio.name,
        display_name=audio.display_name,
        purpose=_enum(audio_pb2.AudioPurpose, audio.purpose),
        state=audio_pb2.AUDIO_STATE_READY,
        sha256=audio.blob.sha256,
        size_bytes=audio.blob.size_bytes,
        media_type=audio.blob.media_type,
        labels=audio.labels,
        create_time=stamp(audio.created_at),
        expire_time=stamp(audio.expires_at),
    )
    _fill(found.measures, audio.measures)
    _fill(found.assessment, audio.assessment)
    # What is said, and how well, stands with the measures; the API shows it beside them.
    _fill(found, {name: audio.measures[name] for name in ("words", "quality") if name in audio.measures})
    if audio.provenance:
        _fill(found.provenance, audio.provenance)
    return found


def upload_to_proto(upload: Upload) -> catalog_pb2.UploadRecord:
    """An upload as services see it."""
    found = catalog_pb2.UploadRecord(
        name=f"teams/{upload.team}/uploads/{upload.id}",
        durable_offset=upload.durable_offset,
        committed_audio=f"teams/{upload.team}/audios/{upload.audio_id}" if upload.audio_id else "",
        expire_time=stamp(upload.expires_at),
    )
    _fill(found.audio, upload.spec)
    return found


def voice_to_proto(voice: Voice) -> voice_pb2.Voice:
    """A voice as the API shows it."""
    return voice_pb2.Voice(
        name=voice.name,
        display_name=voice.display_name,
        engine=voice.engine,
        state=_enum(voice_pb2.VoiceState, f"VOICE_STATE_{voice.state.value}"),
        languages=voice.languages,
        references=[
            voice_pb2.ReferenceClip(audio=clip.audio, text=clip.text, style=clip.style)
            for clip in voice.references
        ],
        training_audios=voice.training_audios,
        training_job=f"teams/{voice.team}/jobs/{voice.job_id}" if voice.job_id else "",
        bundle=voice.bundle,
        content_encoder=voice.content_encoder,
        rate_hz=voice.rate_hz,
        weights_licence=voice.weights_licence,
        weights_trained=voice.weights_trained,
        consent=voice.consent,
        labels=voice.labels,
        metrics=voice.metrics,
        create_time=stamp(voice.created_at),
        delete_time=stamp(voice.deleted_at) if voice.state is VoiceState.DELETED else None,
    )


def job_to_proto(job: Job, attempts: Sequence[AttemptRecord] = ()) -> job_pb2.Job:
    """A job as the API shows it."""
    now = dt.datetime.now(dt.UTC)
    reason = waiting_reason(job, now)
    found = job_pb2.Job(
        name=job.name,
        kind=job.kind,
        state=job_state(job.state),
        waiting_reason=_enum(job_pb2.WaitingReason, f"WAITING_REASON_{reason}"),
        priority_class=_enum(job_pb2.PriorityClass, f"PRIORITY_CLASS_{job.priority_class.name}"),
        priority=job.priority,
        attempt=job.attempt,
        queue_position=job.position,
        create_time=stamp(job.created_at),
        start_time=stamp(job.started_at),
        end_time=stamp(job.ended_at),
        batch_job=f"teams/{job.team}/jobs/{job.parent_id}" if job.parent_id else "",
        item_index=job.item_index,
        item_id=job.item_id,
        labels=job.labels,
        display_name=job.display_name,
        trace_id=telemetry.trace_id_of(job.traceparent),
        attempts=[_attempt_to_proto(attempt) for attempt in attempts],
        batch_scale=job.batch_scale,
        depends_on=job.depends_on,
    )
    if job.expected is not None:
        if job.state is JobState.QUEUED:
            found.expected_start_time.FromDatetime(job.expected.start)
            found.earliest_start_time.FromDatetime(job.expected.earliest)
            found.latest_start_time.FromDatetime(job.expected.latest)
        found.expected_end_time.FromDatetime(job.expected.end)
    found.spec.update(dict(job.spec))
    _fill(found.progress, job.progress)
    if job.state is JobState.SUCCEEDED:
        found.progress.percent = 100.0
        found.progress.remaining_s = 0.0
    found.progress.update_time.FromDatetime(job.updated_at)
    remaining_s = float(job.progress.get("remaining_s", 0.0))
    if remaining_s and job.state is JobState.RUNNING:
        found.expected_end_time.FromDatetime(job.updated_at + dt.timedelta(seconds=remaining_s))
    if job.counts:
        _fill(found.batch_counts, job.counts)
    if job.result and job.state is not JobState.QUEUED:
        _fill(found.result, job.result)
    if job.error and job.state is not JobState.SUCCEEDED:
        found.error.CopyFrom(error_to_proto(job.error))
    return found


def explanation_to_proto(job: Job, why: Explanation) -> job_pb2.ExplainJobResponse:
    """Why a job waits, as the API says it."""
    found = job_pb2.ExplainJobResponse(
        waiting_reason=_enum(job_pb2.WaitingReason, f"WAITING_REASON_{why.code}"),
        explanation=why.sentence,
        queue_position=job.position,
        depends_on=job.depends_on,
    )
    if job.expected is not None and job.state is JobState.QUEUED:
        found.expected_start_time.FromDatetime(job.expected.start)
        found.earliest_start_time.FromDatetime(job.expected.earliest)
        found.latest_start_time.FromDatetime(job.expected.latest)
    return found


def job_state(state: JobState) -> job_pb2.JobState.ValueType:
    """A state on the wire."""
    return job_pb2.JobState.Value(f"JOB_STATE_{state.value}")


def event_to_proto(event: JobEvent) -> job_pb2.JobEvent:
    """An event as the API shows it."""
    return job_pb2.JobEvent(
        seq=event.seq,
        state=job_state(event.state),
        phase=event.phase,
        attempt=event.attempt,
        message=event.message,
        time=stamp(event.at),
    )


def error_to_proto(error: Mapping[str, Any]) -> error_pb2.Error:
    """A stored error as the API shows it."""
    return error_pb2.Error(
        reason=str(error.get("reason", "")),
        message=str(error.get("message", "")),
        user_message=str(error.get("user_message", "")),
        metadata={key: str(value) for key, value in (error.get("metadata") or {}).items()},
        trace_id=str(error.get("trace_id", "")),
    )


def checkpoint_to_proto(voice: str, row: CheckpointRow) -> voice_pb2.Checkpoint:
    """A checkpoint as the API shows it."""
    return voice_pb2.Checkpoint(
        name=f"{voice}/checkpoints/{row.attempt}-{row.step}",
        epoch=row.epoch,
        step=row.step,
        size_bytes=row.blob.size_bytes,
        sha256=row.blob.sha256,
        create_time=stamp(row.created_at),
        attempt=row.attempt,
    )


def team_to_proto(team: Team) -> trust_pb2.Team:
    """A team as the API shows it."""
    return trust_pb2.Team(
        name=f"teams/{team.id}",
        display_name=team.display_name,
        allowed_licences=team.allowed_licences,
        create_time=stamp(team.created_at),
    )


def key_to_proto(key: ApiKey, token: str = "") -> trust_pb2.ApiKey:
    """A key as the API shows it; the token only where it was just made."""
    return trust_pb2.ApiKey(
        name=f"teams/{key.team}/apiKeys/{key.id}",
        display_name=key.display_name,
        role=trust_pb2.ROLE_OPERATOR if key.operator else trust_pb2.ROLE_MEMBER,
        token=token,
        create_time=stamp(key.created_at),
        revoke_time=stamp(key.revoked_at),
    )


def voice_resolution(
    voice: Voice, reference: Blob | None, clip: Reference
) -> catalog_pb2.ResolveVoiceResponse:
    """A voice with where its bytes are."""
    return catalog_pb2.ResolveVoiceResponse(
        voice=voice_to_proto(voice),
        reference=blob_to_proto(reference) if reference is not None else None,
        reference_text=clip.text,
        package=blob_to_proto(voice.package) if voice.package is not None else None,
        reference_words=words_to_proto(clip.words),
        reference_audio=clip.audio,
    )


def _attempt_to_proto(attempt: AttemptRecord) -> job_pb2.JobAttempt:
    return job_pb2.JobAttempt(
        attempt=attempt.attempt,
        worker=attempt.worker,
        start_time=stamp(attempt.started_at),
        end_time=stamp(attempt.ended_at),
        error=error_to_proto(attempt.error) if attempt.error else None,
        outcome=attempt.outcome,
        failure_class=attempt.failure_class,
        node=attempt.node,
        batch_scale=attempt.batch_scale,
    )


def _fill(target: message.Message, data: Mapping[str, Any]) -> None:
    """Fills a message from JSON data that an older or newer release may have written."""
    json_format.ParseDict(dict(data), target, ignore_unknown_fields=True)


def _enum(kind: Any, name: str) -> Any:
    """An enum's value by name; its zero where the name is not one."""
    return kind.Value(name) if name in kind.keys() else 0  # noqa: SIM118 - an enum wrapper, not a dict
