"""Between the messages of the API and the plain data of the use cases."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator
from typing import Final

from google.protobuf import timestamp_pb2

from services.audio.model import Assessment, Measures, Purpose
from services.audio.records import AudioSpec, OpenStep, ResumeStep, Step, UploadRecord
from services.common import names
from services.common.errors import Reason, invalid, not_found
from voxfleet.internal.v1 import catalog_pb2
from voxfleet.v1 import audio_pb2

_PURPOSES: Final[dict[int, Purpose]] = {
    audio_pb2.AUDIO_PURPOSE_UNSPECIFIED: Purpose.CONVERSION,
    audio_pb2.AUDIO_PURPOSE_TRAINING: Purpose.TRAINING,
    audio_pb2.AUDIO_PURPOSE_CONVERSION: Purpose.CONVERSION,
    audio_pb2.AUDIO_PURPOSE_REFERENCE: Purpose.REFERENCE,
    audio_pb2.AUDIO_PURPOSE_VOICE_FILE: Purpose.VOICE_FILE,
    # What Voxfleet made is judged as what may be converted again.
    audio_pb2.AUDIO_PURPOSE_OUTPUT: Purpose.CONVERSION,
}
_PURPOSE_VALUES: Final[dict[Purpose, audio_pb2.AudioPurpose.ValueType]] = {
    Purpose.TRAINING: audio_pb2.AUDIO_PURPOSE_TRAINING,
    Purpose.CONVERSION: audio_pb2.AUDIO_PURPOSE_CONVERSION,
    Purpose.REFERENCE: audio_pb2.AUDIO_PURPOSE_REFERENCE,
    Purpose.VOICE_FILE: audio_pb2.AUDIO_PURPOSE_VOICE_FILE,
}


def purpose_of(value: int) -> Purpose:
    """The purpose by whose limits an audio is judged."""
    return _PURPOSES.get(value, Purpose.CONVERSION)


async def read_steps(requests: AsyncIterator[audio_pb2.UploadAudioRequest], team: str) -> AsyncIterator[Step]:
    """An upload's messages, of ``team`` alone unless that is empty.

    Errors: INVALID_ARGUMENT; TEAM_NOT_FOUND and UPLOAD_NOT_FOUND for another team's names.
    """
    async for request in requests:
        kind = request.WhichOneof("step")
        if kind == "chunk":
            yield request.chunk
        elif kind == "open":
            yield _open_step(request.open, team)
        elif kind == "resume":
            yield _resume_step(request.resume, team)
        else:
            raise invalid(Reason.INVALID_ARGUMENT, "a message has no step: set one", field="step")


def _open_step(found: audio_pb2.OpenUpload, team: str) -> OpenStep:
    parent = names.parse_team(found.parent, field="open.parent")
    if team and parent != team:
        raise not_found(Reason.TEAM_NOT_FOUND, found.parent)
    if found.audio.purpose not in _PURPOSES or found.audio.purpose == audio_pb2.AUDIO_PURPOSE_OUTPUT:
        raise invalid(
            Reason.INVALID_ARGUMENT,
            "purpose must be TRAINING, CONVERSION, REFERENCE or VOICE_FILE: outputs are made, not uploaded",
            field="open.audio.purpose",
        )
    return OpenStep(parent, found.upload_id, spec_from_proto(found.audio))


def _resume_step(found: audio_pb2.ResumeUpload, team: str) -> ResumeStep:
    name = names.parse(found.upload, "uploads", field="resume.upload")
    if team and name.team != team:
        raise not_found(Reason.UPLOAD_NOT_FOUND, found.upload)
    return ResumeStep(str(name), found.offset)


def spec_from_proto(spec: audio_pb2.AudioSpec) -> AudioSpec:
    """What an upload announces."""
    return AudioSpec(
        display_name=spec.display_name,
        purpose=purpose_of(spec.purpose),
        size_bytes=spec.size_bytes,
        sha256=spec.sha256.lower(),
        labels=dict(spec.labels),
    )


def spec_to_proto(spec: AudioSpec) -> audio_pb2.AudioSpec:
    """The same, on the wire."""
    return audio_pb2.AudioSpec(
        display_name=spec.display_name,
        purpose=_PURPOSE_VALUES[spec.purpose],
        size_bytes=spec.size_bytes,
        sha256=spec.sha256,
        labels=dict(spec.labels),
    )


def record_from_proto(record: catalog_pb2.UploadRecord) -> UploadRecord:
    """An upload's row."""
    return UploadRecord(
        name=record.name,
        spec=spec_from_proto(record.audio),
        durable_offset=record.durable_offset,
        committed_audio=record.committed_audio,
        expires_at=record.expire_time.ToDatetime(dt.UTC) if record.HasField("expire_time") else None,
    )


def upload_to_proto(record: UploadRecord) -> audio_pb2.Upload:
    """An upload as its owner sees it."""
    return audio_pb2.Upload(
        name=record.name,
        durable_offset=record.durable_offset,
        size_bytes=record.spec.size_bytes,
        audio=record.committed_audio,
        expire_time=timestamp(record.expires_at) if record.expires_at else None,
    )


def timestamp(moment: dt.datetime) -> timestamp_pb2.Timestamp:
    """A moment on the wire."""
    found = timestamp_pb2.Timestamp()
    found.FromDatetime(moment)
    return found


def measures_to_proto(measures: Measures) -> audio_pb2.AudioMeasures:
    """Measures on the wire; an SNR that nobody's voice gives is 0, and the grade says why."""
    return audio_pb2.AudioMeasures(
        duration_s=measures.duration_s,
        codec=measures.codec,
        container=measures.container,
        rate_hz=measures.rate_hz,
        channels=measures.channels,
        bit_depth=measures.bit_depth or 0,
        peak_dbfs=measures.peak_dbfs,
        true_peak_dbtp=measures.true_peak_dbtp,
        integrated_lufs=measures.integrated_lufs,
        rms_dbfs=measures.rms_dbfs,
        snr_db=measures.snr_db if measures.snr_db is not None else 0.0,
        noise_floor_dbfs=measures.noise_floor_dbfs,
        clipping_ratio=measures.clipping_ratio,
        dc_offset=measures.dc_offset,
        voice_activity_ratio=measures.voice_activity_ratio,
        voice_activity_ratio_webrtc=measures.voice_activity_ratio_webrtc,
        segments=[
            audio_pb2.SpeechSegment(start_s=start_s, end_s=end_s)
            for start_s, end_s in measures.speech_segments
        ],
        bandwidth_hz=measures.bandwidth_hz,
    )


def assessment_to_proto(assessment: Assessment) -> audio_pb2.AudioAssessment:
    """A grade on the wire."""
    return audio_pb2.AudioAssessment(
        grade=assessment.grade.value,
        reasons=assessment.reasons,
        recommendations=assessment.recommendations,
        trainable=assessment.trainable,
    )
