"""``CatalogService`` over the in-memory catalogue: metadata's wire, without Postgres."""

from __future__ import annotations

from services.audio import wire
from services.audio.model import Assessment, Grade, Judged, Measures
from services.common.jobs.wire import blob_from_proto, blob_to_proto
from services.common.names import parse_team
from services.common.rpc.caller import current_caller
from services.common.telemetry import current_trace_id
from tests.unit.audio_service.memory_catalog import MemoryCatalog
from voxfleet.internal.v1 import catalog_pb2
from voxfleet.v1 import audio_pb2


class CatalogServer:
    """The methods that the audio service calls."""

    def __init__(self, catalog: MemoryCatalog) -> None:
        self.catalog = catalog
        self.callers: set[tuple[str, str]] = set()
        self.trace_ids: set[str] = set()

    async def OpenUpload(self, request, context):
        team = parse_team(request.parent)
        spec = wire.spec_from_proto(request.audio)
        return self._record("OpenUpload", await self.catalog.open_upload(team, request.upload_id, spec))

    async def FetchUpload(self, request, context):
        return self._record("FetchUpload", await self.catalog.fetch_upload(request.name))

    async def AdvanceUpload(self, request, context):
        record = await self.catalog.advance_upload(request.name, request.from_offset, request.to_offset)
        return self._record("AdvanceUpload", record)

    async def DropUpload(self, request, context):
        await self.catalog.drop_upload(request.name)
        return catalog_pb2.DropUploadResponse()

    async def CommitAudio(self, request, context):
        blob = blob_from_proto(request.blob)
        judged = None
        if request.HasField("measures"):
            judged = Judged(_measures(request.measures), _assessment(request.assessment))
        return await self.catalog.commit_audio(request.upload, blob, judged)

    async def ResolveAudio(self, request, context):
        found = await self.catalog.resolve_audio(request.name)
        return catalog_pb2.ResolveAudioResponse(audio=found.audio, blob=blob_to_proto(found.blob))

    async def StoreMeasures(self, request, context):
        return await self.catalog.store_measures(
            request.name, _measures(request.measures), _assessment(request.assessment)
        )

    def _record(self, method, record):
        self.callers.add((method, current_caller().team))
        self.trace_ids.add(current_trace_id())
        return catalog_pb2.UploadRecord(
            name=record.name,
            durable_offset=record.durable_offset,
            audio=wire.spec_to_proto(record.spec),
            committed_audio=record.committed_audio,
            expire_time=wire.timestamp(record.expires_at),
        )


def _measures(found: audio_pb2.AudioMeasures) -> Measures:
    return Measures(
        duration_s=found.duration_s,
        codec=found.codec,
        container=found.container,
        rate_hz=found.rate_hz,
        channels=found.channels,
        bit_depth=found.bit_depth or None,
        size_bytes=0,
        peak_dbfs=found.peak_dbfs,
        true_peak_dbtp=found.true_peak_dbtp,
        integrated_lufs=found.integrated_lufs,
        rms_dbfs=found.rms_dbfs,
        snr_db=found.snr_db,
        snr_is_floor=False,
        noise_floor_dbfs=found.noise_floor_dbfs,
        background_dbfs=found.noise_floor_dbfs,
        clipping_ratio=found.clipping_ratio,
        dc_offset=found.dc_offset,
        voice_activity_ratio=found.voice_activity_ratio,
        voice_activity_ratio_webrtc=found.voice_activity_ratio_webrtc,
        speech_segments=tuple((segment.start_s, segment.end_s) for segment in found.segments),
        bandwidth_hz=found.bandwidth_hz,
    )


def _assessment(found: audio_pb2.AudioAssessment) -> Assessment:
    return Assessment(Grade(found.grade), tuple(found.reasons), tuple(found.recommendations), found.trainable)
