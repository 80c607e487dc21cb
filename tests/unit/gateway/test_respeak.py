"""What is judged of a zero-shot conversion before anyone is asked."""

import pytest

from services.common.errors import Reason, VoxfleetError
from services.common.rpc.caller import Caller
from services.gateway.validation import validate
from voxfleet.v1 import synthesis_pb2

A = "teams/alpha"
CALLER = Caller(team="alpha")


def ask(engine: str = "f5", **parameters: object) -> synthesis_pb2.ConvertAudioRequest:
    return synthesis_pb2.ConvertAudioRequest(
        parent=A, audios=[f"{A}/audios/abcd"], voice=f"{A}/voices/abcd", engine=engine, parameters=parameters
    )


@pytest.mark.parametrize(
    "request_",
    [
        ask(),
        ask(seed=3, pitch_shift=-2, speaking={"preset": "fast", "language": "en", "speed": 1.0}),
        ask("", index_rate=0.0, filter_radius=0),
        ask("rvc", pitch_shift=20),
    ],
)
def test_each_engine_takes_its_own_parameters(request_):
    validate(request_, CALLER)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (ask(index_rate=0.0), "parameters.index_rate"),
        (ask(filter_radius=3), "parameters.filter_radius"),
        (ask(rms_mix_rate=0.25), "parameters.rms_mix_rate"),
        (ask(protect=0.3), "parameters.protect"),
        (ask(f0_method="fcpe"), "parameters.f0_method"),
        (ask(pitch_shift=13), "parameters.pitch_shift"),
        (ask(speaking={"duration_s": 3.0}), "parameters.speaking.duration_s"),
        (ask(speaking={"speed": 1.5}), "parameters.speaking.speed"),
        (ask(speaking={"speed": float("nan")}), "parameters.speaking.speed"),
        (ask(speaking={"steps": 1}), "parameters.speaking.steps"),
        (ask("", speaking={"steps": 16}), "parameters.speaking"),
        (ask("rvc", speaking={}), "parameters.speaking"),
    ],
)
def test_what_the_engine_would_not_heed_is_wrong(request_, field):
    with pytest.raises(VoxfleetError) as caught:
        validate(request_, CALLER)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
    assert field in [violation.field for violation in caught.value.violations]


def test_an_engine_that_is_not_there_says_which_are():
    with pytest.raises(VoxfleetError) as caught:
        validate(ask("bark"), CALLER)
    assert caught.value.reason is Reason.UNSUPPORTED_ENGINE
    assert caught.value.metadata == {"engine": "bark", "supported_engines": "rvc, f5"}
