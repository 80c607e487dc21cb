"""The record over gRPC: ``voxfleet.internal.v1.CatalogService``."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TypeVar

import grpc

from services.common.jobs.tasks import F5Voice, Pronunciation, RvcVoice
from services.common.jobs.wire import blob_from_proto, words_from_proto
from services.common.rpc import status
from services.engines.bundles.manifest import Manifest
from services.inference.ports import ResolvedAudio, ResolvedVoice, Usage
from voxfleet.internal.v1 import catalog_pb2, catalog_pb2_grpc

T = TypeVar("T")

_TIMEOUT_S = 10.0


class GrpcCatalog:
    """The catalogue behind a channel to metadata."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = catalog_pb2_grpc.CatalogServiceStub(channel)

    async def resolve_voice(self, name: str, style: str) -> ResolvedVoice:
        """See :class:`services.inference.ports.Catalog`."""
        request = catalog_pb2.ResolveVoiceRequest(name=name, style=style)
        found = await _answer(self._stub.ResolveVoice(request, timeout=_TIMEOUT_S))
        f5 = None
        if found.HasField("reference"):
            f5 = F5Voice(
                name=found.reference_audio if found.voice.engine == "rvc" else found.voice.name,
                reference=blob_from_proto(found.reference),
                reference_text=found.reference_text,
                languages=tuple(found.voice.languages),
                reference_words=words_from_proto(found.reference_words),
            )
        rvc = None
        if found.HasField("package"):
            rvc = RvcVoice(name=found.voice.name, package=blob_from_proto(found.package))
        return ResolvedVoice(
            found.voice.name,
            found.voice.engine,
            f5,
            tuple(found.allowed_licences),
            rvc,
            found.voice.weights_licence,
        )

    async def pronunciations(
        self, team: str, lexicons: Sequence[str], text: str
    ) -> tuple[Pronunciation, ...]:
        """See :class:`services.inference.ports.Catalog`."""
        request = catalog_pb2.ResolvePronunciationsRequest(
            parent=f"teams/{team}", lexicons=lexicons, text=text
        )
        found = await _answer(self._stub.ResolvePronunciations(request, timeout=_TIMEOUT_S))
        return tuple(
            Pronunciation(grapheme=entry.grapheme, alias=entry.alias) for entry in found.pronunciations
        )

    async def resolve_audio(self, name: str) -> ResolvedAudio:
        """See :class:`services.inference.ports.Catalog`."""
        request = catalog_pb2.ResolveAudioRequest(name=name)
        found = await _answer(self._stub.ResolveAudio(request, timeout=_TIMEOUT_S))
        how = found.audio.provenance
        return ResolvedAudio(
            blob_from_proto(found.blob), found.audio.measures.duration_s, how.generated, how.job
        )

    async def allowed_licences(self, team: str) -> tuple[str, ...]:
        """See :class:`services.inference.ports.Catalog`."""
        request = catalog_pb2.ResolveTeamRequest(name=f"teams/{team.removeprefix('teams/')}")
        found = await _answer(self._stub.ResolveTeam(request, timeout=_TIMEOUT_S))
        return tuple(found.allowed_licences)

    async def stored_bundles(self) -> Sequence[Manifest]:
        """See :class:`services.inference.ports.Catalog`."""
        request = catalog_pb2.ListStoredBundlesRequest()
        found = await _answer(self._stub.ListStoredBundles(request, timeout=_TIMEOUT_S))
        return [Manifest.from_json(bundle.manifest_json) for bundle in found.bundles]

    async def store_bundle(self, manifest: Manifest, accepted_by: str) -> None:
        """See :class:`services.inference.ports.Catalog`."""
        request = catalog_pb2.StoreBundleRequest(
            manifest_json=manifest.to_json(), accepted_by=f"teams/{accepted_by.removeprefix('teams/')}"
        )
        await _answer(self._stub.StoreBundle(request, timeout=_TIMEOUT_S))

    async def record_usage(self, usage: Usage) -> None:
        """See :class:`services.inference.ports.Catalog`."""
        request = catalog_pb2.RecordUsageRequest(
            parent=f"teams/{usage.team}",
            voice=usage.voice,
            audio_s=usage.audio_s,
            work_s=usage.work_s,
            characters=usage.characters,
        )
        await _answer(self._stub.RecordUsage(request, timeout=_TIMEOUT_S))


async def _answer(call: Awaitable[T]) -> T:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise status.from_rpc_error(error) from None
