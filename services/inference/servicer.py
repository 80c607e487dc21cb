"""The public methods that inference serves, between protos and use cases."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import timedelta
from typing import Any

import grpc

from services.common.errors import Reason, invalid, not_built
from services.common.jobs.tasks import SpeakingParameters
from services.common.names import parse_team
from services.common.rpc.caller import current_caller, require_operator
from services.inference.app.bundles import Bundles, BundleView, ImportFile, ImportOpen, ImportPart
from services.inference.app.engines import ENGINES
from services.inference.app.pool import Pool
from services.inference.app.synthesis import Header, SpeechRequest, Summary, Synthesis
from services.inference.app.transcripts import check_transcript
from voxfleet.v1 import audio_pb2, synthesis_pb2, voice_pb2, voice_pb2_grpc

_TIMEOUT_S = 30.0

PRESETS = {"": 16, "fast": 7, "balanced": 16, "quality": 32}
_PCM_FORMATS = (synthesis_pb2.AUDIO_FORMAT_UNSPECIFIED, synthesis_pb2.AUDIO_FORMAT_WAV)

Context = grpc.aio.ServicerContext[Any, Any]


class InferenceServicer:
    """What inference serves of ``voxfleet.v1.SynthesisService``."""

    def __init__(self, synthesis: Synthesis, bundles: Bundles) -> None:
        self._synthesis = synthesis
        self._bundles = bundles

    async def Synthesize(
        self, request: synthesis_pb2.SynthesizeRequest, _context: Context
    ) -> AsyncIterator[synthesis_pb2.SynthesizeResponse]:
        """Speaks a text; see the proto."""
        async with aclosing(self._synthesis.stream(speech_request(request))) as parts:
            async for part in parts:
                match part:
                    case Header():
                        yield synthesis_pb2.SynthesizeResponse(header=_header(part))
                    case bytes():
                        yield synthesis_pb2.SynthesizeResponse(pcm=part)
                    case Summary():
                        yield synthesis_pb2.SynthesizeResponse(summary=_summary(part))

    async def ListEngines(
        self, _request: synthesis_pb2.ListEnginesRequest, _context: Context
    ) -> synthesis_pb2.ListEnginesResponse:
        """The engines; there are few, so one page holds them all."""
        return synthesis_pb2.ListEnginesResponse(
            engines=[
                synthesis_pb2.Engine(
                    name=engine.name,
                    capabilities=engine.capabilities,
                    parameter_schema=engine.parameter_schema,
                    description=engine.description,
                )
                for engine in ENGINES
            ]
        )

    async def ListBundles(
        self, request: synthesis_pb2.ListBundlesRequest, _context: Context
    ) -> synthesis_pb2.ListBundlesResponse:
        """The bundles by name; the page token is the last name of the page before."""
        after = request.page_token
        views = [view for view in await self._bundles.views() if view.manifest.name > after]
        page = views[: request.page_size or 50]
        return synthesis_pb2.ListBundlesResponse(
            bundles=[_bundle(view) for view in page],
            next_page_token=page[-1].manifest.name if len(page) < len(views) else "",
        )

    async def ImportBundle(
        self, requests: AsyncIterator[synthesis_pb2.ImportBundleRequest], _context: Context
    ) -> synthesis_pb2.Bundle:
        """Takes a bundle from the caller's disk. Operators only."""
        require_operator()
        return _bundle(await self._bundles.import_bundle(_import_parts(requests)))


class VoiceServicer:
    """What inference serves of ``voxfleet.v1.VoiceService``: it judges transcripts, metadata keeps voices."""

    def __init__(self, f5: Pool, metadata: voice_pb2_grpc.VoiceServiceAsyncStub) -> None:
        self._f5 = f5
        self._metadata = metadata

    async def CreateVoice(self, request: voice_pb2.CreateVoiceRequest, context: Context) -> voice_pb2.Voice:
        """Makes a zero-shot voice; see the proto."""
        for number, clip in enumerate(request.voice.references):
            check_transcript(clip.text, self._f5.last_facts, field=f"voice.references[{number}].text")
        return await self._metadata.CreateVoice(request, timeout=context.time_remaining() or _TIMEOUT_S)


def speech_request(request: synthesis_pb2.SynthesizeRequest) -> SpeechRequest:
    """The request as the use case takes it. Errors: INVALID_ARGUMENT, FEATURE_NOT_BUILT."""
    asked = request.parameters
    if asked.preset not in PRESETS:
        raise invalid(
            Reason.INVALID_ARGUMENT,
            f"preset is {asked.preset[:40]!r}; use fast, balanced or quality",
            field="parameters.preset",
        )
    if asked.word_timestamps:
        raise not_built("word timestamps")
    if request.output.format not in _PCM_FORMATS:
        raise invalid(
            Reason.INVALID_ARGUMENT,
            "Synthesize streams PCM samples: leave output.format empty, or use BatchSynthesize for files",
            field="output.format",
        )
    return SpeechRequest(
        team=current_caller().team,
        voice=request.voice,
        style=asked.style,
        text=request.text,
        parameters=SpeakingParameters(
            steps=asked.steps or PRESETS[asked.preset],
            speed=asked.speed or 1.0,
            seed=asked.seed,
            cfg_strength=asked.cfg_strength or 2.0,
            duration_s=asked.duration_s,
            language=asked.language,
        ),
        rate_hz=_rate(request.output.rate_hz),
    )


def _rate(rate_hz: int) -> int:
    if rate_hz and not 8_000 <= rate_hz <= 48_000:
        raise invalid(
            Reason.INVALID_ARGUMENT, f"rate_hz is {rate_hz}; it must be 8000 to 48000", field="output.rate_hz"
        )
    return rate_hz


def _provenance(header: Header) -> audio_pb2.Provenance:
    return audio_pb2.Provenance(
        generated=True,
        voice=header.voice,
        engine="f5",
        weights=header.weights.name,
        weights_trained=header.weights.trained,
        weights_licence=header.weights.licence,
        seed=header.seed,
    )


def _header(header: Header) -> synthesis_pb2.SynthesisHeader:
    return synthesis_pb2.SynthesisHeader(
        rate_hz=header.rate_hz, chunks=header.chunks, provenance=_provenance(header)
    )


def _summary(summary: Summary) -> synthesis_pb2.SynthesisSummary:
    made = synthesis_pb2.SynthesisSummary(
        provenance=_provenance(summary.header),
        duration_s=summary.duration_s,
        steps=summary.steps,
        rtf=summary.rtf,
    )
    made.queue_time.FromTimedelta(timedelta(seconds=summary.queue_s))
    made.work_time.FromTimedelta(timedelta(seconds=summary.work_s))
    return made


def _bundle(view: BundleView) -> synthesis_pb2.Bundle:
    manifest = view.manifest
    return synthesis_pb2.Bundle(
        name=manifest.name,
        engine=manifest.engine,
        licence=manifest.licence,
        licence_url=manifest.licence_url,
        trained=manifest.trained,
        languages=manifest.languages,
        size_bytes=manifest.size_bytes,
        present=view.present,
        source=manifest.source,
        description=manifest.description,
        is_default=view.is_default,
        requires_acceptance=manifest.requires_acceptance,
    )


async def _import_parts(
    requests: AsyncIterator[synthesis_pb2.ImportBundleRequest],
) -> AsyncIterator[ImportPart]:
    async for request in requests:
        match request.WhichOneof("part"):
            case "open":
                opened = request.open
                team = parse_team(opened.parent)
                yield ImportOpen(team, opened.bundle, opened.accept_licence, opened.manifest_json)
            case "file":
                yield ImportFile(request.file.path, request.file.size_bytes, request.file.sha256)
            case "chunk":
                yield request.chunk
            case _:
                raise invalid(Reason.INVALID_ARGUMENT, "a message of an import is empty", field="part")
