"""The public methods that inference serves, between protos and use cases."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from typing import Any

import grpc

from services.common import speaking
from services.common.errors import Reason, invalid
from services.common.jobs.model import PitchMatch
from services.common.jobs.tasks import Output
from services.common.jobs.wire import pitch_to_proto, quality_to_proto, words_to_proto
from services.common.names import parse, parse_team
from services.common.rpc.caller import current_caller, require_operator
from services.inference.app.bundles import Bundles, BundleView, ImportFile, ImportOpen, ImportPart
from services.inference.app.encoding import Encoded, encoded
from services.inference.app.engines import ENGINES
from services.inference.app.listening import Clip, Listening
from services.inference.app.pool import Pool
from services.inference.app.provenance import Provenance
from services.inference.app.synthesis import Header, SpeechRequest, Summary, Synthesis
from services.inference.app.transcripts import check_transcript
from services.inference.calls import Heard
from voxfleet.internal.v1 import catalog_pb2, catalog_pb2_grpc
from voxfleet.v1 import audio_pb2, synthesis_pb2, trust_pb2, voice_pb2

_TIMEOUT_S = 30.0

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
        asked, output = speech_request(request), speaking.output_of(request.output)
        samples = self._synthesis.stream(asked)
        async with aclosing(samples if output.format == "wav" else encoded(samples, output)) as parts:
            async for part in parts:
                match part:
                    case Header():
                        yield synthesis_pb2.SynthesizeResponse(header=_header(part, output))
                    case bytes():
                        yield synthesis_pb2.SynthesizeResponse(pcm=part)
                    case Encoded():
                        yield synthesis_pb2.SynthesizeResponse(encoded=part.data)
                    case Summary():
                        yield synthesis_pb2.SynthesizeResponse(summary=summary_of(part))

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
    """What inference serves of ``voxfleet.v1.VoiceService``: it hears clips, metadata keeps voices."""

    def __init__(
        self, f5: Pool, listening: Listening, catalog: catalog_pb2_grpc.CatalogServiceAsyncStub
    ) -> None:
        self._f5 = f5
        self._listening = listening
        self._catalog = catalog

    async def CreateVoice(self, request: voice_pb2.CreateVoiceRequest, context: Context) -> voice_pb2.Voice:
        """Makes a zero-shot voice; see the proto."""
        voice = request.voice
        language = voice.languages[0] if voice.languages else ""
        stored = catalog_pb2.StoreVoiceRequest(request=request)
        for number, clip in enumerate(voice.references):
            field = f"voice.references[{number}]"
            text = clip.text.strip()
            check_transcript(text, language, self._f5.last_facts, field=f"{field}.text")
            heard = await self._listening.hear(Clip(clip.audio, text, field), language)
            if heard is not None:
                check_transcript(heard.text, language, self._f5.last_facts, field=f"{field}.text")
                stored.heard.append(_heard(number, heard))
        return await self._catalog.StoreVoice(stored, timeout=context.time_remaining() or _TIMEOUT_S)


class TrustServicer:
    """What inference serves of ``voxfleet.v1.TrustService``."""

    def __init__(self, provenance: Provenance) -> None:
        self._provenance = provenance

    async def VerifyProvenance(
        self, request: trust_pb2.VerifyProvenanceRequest, _context: Context
    ) -> trust_pb2.VerifyProvenanceResponse:
        """Says whether an audio was made by a machine; see the proto."""
        name = parse(request.audio, "audios", field="audio")
        found = await self._provenance.verify(name.team, request.audio)
        return trust_pb2.VerifyProvenanceResponse(
            generated=found.generated,
            confidence=found.confidence,
            job=found.job,
            evidence=[
                trust_pb2.ProvenanceEvidence.Value(f"PROVENANCE_EVIDENCE_{source}")
                for source in found.evidence
            ],
        )


def speech_request(request: synthesis_pb2.SynthesizeRequest) -> SpeechRequest:
    """The request as the use case takes it. Errors: INVALID_ARGUMENT."""
    asked = request.parameters
    speaking.refuse(
        [*speaking.spoken_faults(asked, "parameters"), *speaking.output_faults(request.output, "output")]
    )
    return SpeechRequest(
        team=current_caller().team,
        voice=request.voice,
        style=asked.style,
        text=request.text,
        parameters=speaking.speaking_parameters(asked),
        rate_hz=request.output.rate_hz,
        lexicons=tuple(asked.lexicons),
        speaker=asked.speaker,
        conversion=speaking.conversion_of_speech(asked) if asked.HasField("conversion") else None,
    )


def _heard(index: int, heard: Heard) -> catalog_pb2.HeardClip:
    return catalog_pb2.HeardClip(index=index, text=heard.text, words=words_to_proto(heard.words))


def _provenance(header: Header, pitch_match: PitchMatch | None = None) -> audio_pb2.Provenance:
    speaker = header.speaker
    spoken = speaker.weights if speaker is not None else None
    return audio_pb2.Provenance(
        generated=True,
        voice=header.voice,
        engine=header.engine,
        weights=header.weights.name,
        weights_trained=header.weights.trained,
        weights_licence=header.weights.licence,
        seed=header.seed,
        watermarked=header.watermarked,
        speaker=speaker.name if speaker is not None else "",
        speaker_weights=spoken.name if spoken is not None else "",
        speaker_weights_trained=spoken.trained if spoken is not None else False,
        speaker_weights_licence=spoken.licence if spoken is not None else "",
        pitch_match=pitch_to_proto(pitch_match),
    )


def _header(header: Header, output: Output) -> synthesis_pb2.SynthesisHeader:
    return synthesis_pb2.SynthesisHeader(
        rate_hz=header.rate_hz,
        chunks=header.chunks,
        provenance=_provenance(header),
        format=speaking.format_of(output.format),
    )


def summary_of(summary: Summary) -> synthesis_pb2.SynthesisSummary:
    """What came, as the API says it."""
    header = replace(summary.header, seed=summary.closed.seed or summary.header.seed)
    made = synthesis_pb2.SynthesisSummary(
        provenance=_provenance(header, summary.closed.pitch_match),
        duration_s=summary.duration_s,
        steps=summary.steps,
        rtf=summary.rtf,
        words=words_to_proto(summary.closed.words),
        quality=quality_to_proto(summary.closed.quality),
        spoken_text=summary.closed.spoken_text,
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
        speaks=view.speaks,
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
