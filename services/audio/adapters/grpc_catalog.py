"""The catalogue over gRPC: ``voxfleet.internal.v1.CatalogService``."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.audio import wire
from services.audio.model import Assessment, Judged, Measures
from services.audio.records import AudioSpec, ResolvedAudio, UploadRecord
from services.common.errors import VoxfleetError
from services.common.jobs.tasks import Blob
from services.common.jobs.wire import blob_from_proto, blob_to_proto
from services.common.rpc import status
from voxfleet.internal.v1 import catalog_pb2, catalog_pb2_grpc
from voxfleet.v1 import audio_pb2

T = TypeVar("T")

TIMEOUT_S: Final = 20.0
PROBE_TIMEOUT_S: Final = 2.0


class GrpcCatalog:
    """The catalogue behind a channel, in the name of the present caller."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: catalog_pb2_grpc.CatalogServiceAsyncStub = catalog_pb2_grpc.CatalogServiceStub(channel)
        self._health = health_pb2_grpc.HealthStub(channel)

    async def is_serving(self) -> bool:
        """Whether metadata answers and is ready."""
        try:
            answer = await self._health.Check(health_pb2.HealthCheckRequest(), timeout=PROBE_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def open_upload(self, team: str, upload_id: str, spec: AudioSpec) -> UploadRecord:
        """See the port."""
        request = catalog_pb2.OpenUploadRequest(
            parent=f"teams/{team}", upload_id=upload_id, audio=wire.spec_to_proto(spec)
        )
        return wire.record_from_proto(await _answer(self._stub.OpenUpload(request, timeout=TIMEOUT_S)))

    async def fetch_upload(self, name: str) -> UploadRecord:
        """See the port."""
        request = catalog_pb2.FetchUploadRequest(name=name)
        return wire.record_from_proto(await _answer(self._stub.FetchUpload(request, timeout=TIMEOUT_S)))

    async def advance_upload(self, name: str, from_offset: int, to_offset: int) -> UploadRecord:
        """See the port."""
        request = catalog_pb2.AdvanceUploadRequest(name=name, from_offset=from_offset, to_offset=to_offset)
        return wire.record_from_proto(await _answer(self._stub.AdvanceUpload(request, timeout=TIMEOUT_S)))

    async def drop_upload(self, name: str) -> None:
        """See the port."""
        await _answer(self._stub.DropUpload(catalog_pb2.DropUploadRequest(name=name), timeout=TIMEOUT_S))

    async def commit_audio(self, upload: str, blob: Blob, judged: Judged | None) -> audio_pb2.Audio:
        """See the port."""
        request = catalog_pb2.CommitAudioRequest(upload=upload, blob=blob_to_proto(blob))
        if judged is not None:
            request.measures.CopyFrom(wire.measures_to_proto(judged.measures))
            request.assessment.CopyFrom(wire.assessment_to_proto(judged.assessment))
        return await _answer(self._stub.CommitAudio(request, timeout=TIMEOUT_S))

    async def resolve_audio(self, name: str) -> ResolvedAudio[audio_pb2.Audio]:
        """See the port. An audio is measured once it has a grade: outputs come with a length alone."""
        request = catalog_pb2.ResolveAudioRequest(name=name)
        found = await _answer(self._stub.ResolveAudio(request, timeout=TIMEOUT_S))
        return ResolvedAudio(
            audio=found.audio,
            blob=blob_from_proto(found.blob),
            purpose=wire.purpose_of(found.audio.purpose),
            is_measured=bool(found.audio.assessment.grade),
        )

    async def store_measures(self, name: str, measures: Measures, assessment: Assessment) -> audio_pb2.Audio:
        """See the port."""
        request = catalog_pb2.StoreMeasuresRequest(
            name=name,
            measures=wire.measures_to_proto(measures),
            assessment=wire.assessment_to_proto(assessment),
        )
        return await _answer(self._stub.StoreMeasures(request, timeout=TIMEOUT_S))


async def _answer(call: Awaitable[T]) -> T:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        found: VoxfleetError = status.from_rpc_error(error)
        raise found from None
