"""Between protos and use cases."""

from __future__ import annotations

import json

import pytest

from services.common.errors import Reason, VoxfleetError
from services.common.jobs.tasks import ConversionParameters, SpeakingParameters
from services.engines.f5.schedule import PRESETS as ENGINE_PRESETS
from services.inference.app.engines import ENGINES
from services.inference.servicer import PRESETS, speech_request
from voxfleet.v1 import synthesis_pb2

Parameters = synthesis_pb2.SynthesisParameters


def request(parameters: Parameters | None = None, **fields: object) -> synthesis_pb2.SynthesizeRequest:
    return synthesis_pb2.SynthesizeRequest(voice="v", text="t", parameters=parameters, **fields)


def test_zero_means_the_default() -> None:
    asked = speech_request(request())
    assert asked.parameters == SpeakingParameters(steps=16, speed=1.0, seed=0, cfg_strength=2.0)
    assert speech_request(request(Parameters(preset="fast"))).parameters.steps == 7
    assert speech_request(request(Parameters(preset="fast", steps=12))).parameters.steps == 12


def test_presets_are_the_engines() -> None:
    assert {name: steps for name, steps in PRESETS.items() if name} == dict(ENGINE_PRESETS)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (request(Parameters(preset="best")), Reason.INVALID_ARGUMENT),
        (request(Parameters(word_timestamps=True)), Reason.FEATURE_NOT_BUILT),
        (request(output=synthesis_pb2.OutputFormat(format="AUDIO_FORMAT_MP3")), Reason.INVALID_ARGUMENT),
        (request(output=synthesis_pb2.OutputFormat(rate_hz=96_000)), Reason.INVALID_ARGUMENT),
    ],
)
def test_what_a_stream_cannot_do_is_refused(asked: synthesis_pb2.SynthesizeRequest, reason: Reason) -> None:
    with pytest.raises(VoxfleetError) as caught:
        speech_request(asked)
    assert caught.value.reason is reason


def test_schemas_describe_what_tasks_carry() -> None:
    schemas = {engine.name: json.loads(engine.parameter_schema)["properties"] for engine in ENGINES}
    assert set(schemas["f5"]) - {"preset"} == set(SpeakingParameters.model_fields)
    assert set(schemas["rvc"]) == set(ConversionParameters.model_fields)
    for name, model in (("f5", SpeakingParameters), ("rvc", ConversionParameters)):
        for field, info in model.model_fields.items():
            assert schemas[name][field]["default"] == info.default
