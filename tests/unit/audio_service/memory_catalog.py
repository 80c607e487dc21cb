"""The catalogue in memory: metadata's behaviours, without Postgres."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

from services.audio import wire
from services.audio.model import Assessment, Judged, Measures
from services.audio.records import AudioSpec, ResolvedAudio, UploadRecord
from services.common import names
from services.common.errors import Kind, Reason, VoxfleetError, not_found
from services.common.jobs.tasks import Blob
from voxfleet.v1 import audio_pb2

UPLOAD_TTL = dt.timedelta(hours=24)


class MemoryCatalog:
    """Implements the audio service's port ``Catalog``."""

    def __init__(self, now=lambda: dt.datetime.now(dt.UTC)) -> None:
        self.now = now
        self.uploads: dict[str, UploadRecord] = {}
        self.audios: dict[str, audio_pb2.Audio] = {}
        self.blobs: dict[str, Blob] = {}
        """The artefacts' rows, by key."""
        self.key_of: dict[str, str] = {}
        self.commits = 0
        self.drops: list[str] = []

    async def open_upload(self, team: str, upload_id: str, spec: AudioSpec) -> UploadRecord:
        name = f"teams/{team}/uploads/{upload_id or names.new_id()}"
        if name in self.uploads:
            raise VoxfleetError(
                Reason.UPLOAD_OFFSET_MISMATCH,
                "open already",
                kind=Kind.CONFLICT,
                metadata={"durable_offset": self.uploads[name].durable_offset},
            )
        self.uploads[name] = UploadRecord(name, spec, 0, "", self.now() + UPLOAD_TTL)
        return self.uploads[name]

    async def fetch_upload(self, name: str) -> UploadRecord:
        if name not in self.uploads:
            raise not_found(Reason.UPLOAD_NOT_FOUND, name)
        return self.uploads[name]

    async def advance_upload(self, name: str, from_offset: int, to_offset: int) -> UploadRecord:
        record = await self.fetch_upload(name)
        if record.durable_offset != from_offset:
            raise VoxfleetError(
                Reason.UPLOAD_OFFSET_MISMATCH,
                "moved",
                kind=Kind.OUT_OF_RANGE,
                metadata={"durable_offset": record.durable_offset},
            )
        self.uploads[name] = replace(record, durable_offset=to_offset)
        return self.uploads[name]

    async def drop_upload(self, name: str) -> None:
        record = self.uploads.get(name)
        if record is not None and not record.committed_audio:
            del self.uploads[name]
            self.drops.append(name)

    async def commit_audio(self, upload: str, blob: Blob, judged: Judged | None) -> audio_pb2.Audio:
        record = await self.fetch_upload(upload)
        if record.committed_audio:
            return self.audios[record.committed_audio]
        team = names.parse(upload, "uploads").team
        audio = audio_pb2.Audio(
            name=f"teams/{team}/audios/{names.new_id()}",
            display_name=record.spec.display_name,
            purpose=wire.spec_to_proto(record.spec).purpose,
            state=audio_pb2.AUDIO_STATE_READY,
            measures=judged and wire.measures_to_proto(judged.measures),
            assessment=judged and wire.assessment_to_proto(judged.assessment),
            labels=dict(record.spec.labels),
        )
        self._add(audio, blob)
        self.uploads[upload] = replace(record, committed_audio=audio.name)
        self.commits += 1
        return audio

    async def resolve_audio(self, name: str) -> ResolvedAudio[audio_pb2.Audio]:
        if name not in self.audios:
            raise not_found(Reason.AUDIO_NOT_FOUND, name)
        audio = self.audios[name]
        blob = self.blobs[self.key_of[name]]
        return ResolvedAudio(audio, blob, wire.purpose_of(audio.purpose), bool(audio.assessment.grade))

    async def store_measures(self, name: str, measures: Measures, assessment: Assessment) -> audio_pb2.Audio:
        audio = (await self.resolve_audio(name)).audio
        audio.measures.CopyFrom(wire.measures_to_proto(measures))
        audio.assessment.CopyFrom(wire.assessment_to_proto(assessment))
        return audio

    def add_output(self, name: str, blob: Blob) -> None:
        """An audio that a job made: it comes without measures."""
        self._add(
            audio_pb2.Audio(
                name=name, purpose=audio_pb2.AUDIO_PURPOSE_OUTPUT, state=audio_pb2.AUDIO_STATE_READY
            ),
            blob,
        )

    def _add(self, audio: audio_pb2.Audio, blob: Blob) -> None:
        audio.sha256, audio.size_bytes, audio.media_type = blob.sha256, blob.size_bytes, blob.media_type
        self.audios[audio.name] = audio
        self.blobs[blob.key] = blob
        self.key_of[audio.name] = blob.key
