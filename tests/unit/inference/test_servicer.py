"""Between protos and use cases."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest

from services.common.errors import Reason, VoxfleetError
from services.common.jobs.tasks import ConversionParameters, SpeakingParameters
from services.common.media.decode import decode
from services.inference.app.bundles import Bundles
from services.inference.app.engines import ENGINES
from services.inference.app.synthesis import Header, Part, SpeechRequest, Summary, Synthesis
from services.inference.calls import Weights
from services.inference.servicer import InferenceServicer, speech_request
from voxfleet.v1 import synthesis_pb2

Parameters = synthesis_pb2.SynthesisParameters


def request(parameters: Parameters | None = None, **fields: object) -> synthesis_pb2.SynthesizeRequest:
    return synthesis_pb2.SynthesizeRequest(voice="v", text="t", parameters=parameters, **fields)


def test_what_is_asked_reaches_the_use_case() -> None:
    asked = speech_request(
        request(
            Parameters(preset="fast", style="calm", lexicons=["teams/a-b/lexicons/names"], pitch_shift=2),
            output=synthesis_pb2.OutputFormat(format="AUDIO_FORMAT_MP3", rate_hz=44_100, bitrate_kbps=64),
        )
    )
    assert asked.parameters == SpeakingParameters(steps=7, pitch_shift=2)
    assert (asked.style, asked.rate_hz) == ("calm", 44_100)
    assert asked.lexicons == ("teams/a-b/lexicons/names",)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (request(Parameters(preset="best")), Reason.INVALID_ARGUMENT),
        (request(Parameters(pitch_shift=13)), Reason.INVALID_ARGUMENT),
        (request(output=synthesis_pb2.OutputFormat(bitrate_kbps=64)), Reason.INVALID_ARGUMENT),
        (request(output=synthesis_pb2.OutputFormat(rate_hz=96_000)), Reason.INVALID_ARGUMENT),
    ],
)
def test_what_a_stream_cannot_do_is_refused(asked: synthesis_pb2.SynthesizeRequest, reason: Reason) -> None:
    with pytest.raises(VoxfleetError) as caught:
        speech_request(asked)
    assert caught.value.reason is reason


def test_schemas_describe_what_tasks_carry() -> None:
    schemas = {engine.name: json.loads(engine.parameter_schema)["properties"] for engine in ENGINES}
    of_trained_voices = {"speaker", "conversion"}
    assert set(schemas["f5"]) == set(Parameters.DESCRIPTOR.fields_by_name) - of_trained_voices
    assert set(schemas["f5"]) - {"preset", "style", "lexicons"} == set(SpeakingParameters.model_fields)
    assert set(schemas["rvc"]) == set(ConversionParameters.model_fields)
    for name, model in (("f5", SpeakingParameters), ("rvc", ConversionParameters)):
        for field, info in model.model_fields.items():
            assert schemas[name][field]["default"] == info.default


class Spoken:
    """A use case that speaks a second of silence."""

    def __init__(self) -> None:
        self.asked: list[SpeechRequest] = []

    async def stream(self, request: SpeechRequest) -> AsyncGenerator[Part]:
        self.asked.append(request)
        header = Header(24_000, 1, "teams/blue/voices/anna", Weights("w", trained=True, licence="MIT"), 7)
        yield header
        yield bytes(48_000)
        yield Summary(header, 1.0, 16, 0.5, 0.0, 0.5)


async def answers(output: synthesis_pb2.OutputFormat) -> list[synthesis_pb2.SynthesizeResponse]:
    servicer = InferenceServicer(cast("Synthesis", Spoken()), cast("Bundles", None))
    context = cast("Any", None)
    return [part async for part in servicer.Synthesize(request(output=output), context)]


@pytest.mark.parametrize("fmt", ["AUDIO_FORMAT_UNSPECIFIED", "AUDIO_FORMAT_WAV"])
async def test_wav_is_plain_samples(fmt: str) -> None:
    first, samples, last = await answers(synthesis_pb2.OutputFormat(format=fmt))
    assert first.header.format == synthesis_pb2.AUDIO_FORMAT_WAV
    assert samples.pcm == bytes(48_000)
    assert last.summary.duration_s == 1.0


@pytest.mark.parametrize(
    ("fmt", "magic"),
    [("FLAC", b"fLaC"), ("MP3", b"ID3"), ("OPUS", b"OggS"), ("AAC", b"\0\0\0\x1cftyp")],
)
async def test_other_formats_are_the_bytes_of_a_file(fmt: str, magic: bytes) -> None:
    parts = await answers(synthesis_pb2.OutputFormat(format=f"AUDIO_FORMAT_{fmt}"))
    assert parts[0].header.format == synthesis_pb2.AudioFormat.Value(f"AUDIO_FORMAT_{fmt}")
    assert [part.WhichOneof("part") for part in parts[1:-1]] == ["encoded"] * (len(parts) - 2)
    data = b"".join(part.encoded for part in parts)
    assert data.startswith(magic)
    found = decode(data)
    assert found.rate_hz == parts[0].header.rate_hz
    assert found.info.tags["voice"] == parts[-1].summary.provenance.voice
