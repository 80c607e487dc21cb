"""Messages to plain data and back, and the settings' limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.audio import wire
from services.audio.adapters.examine_child import ExamineTask, _answer
from services.audio.model import Purpose
from services.audio.records import OpenStep, ResumeStep
from services.audio.settings import AudioSettings
from services.common.errors import Reason, VoxfleetError
from tests.unit.audio_service.bench import encoded, spec, tone
from voxfleet.v1 import audio_pb2


async def steps(*requests, team="acme"):
    async def messages():
        for request in requests:
            yield request

    return [step async for step in wire.read_steps(messages(), team)]


def opening(parent="teams/acme", **given):
    return audio_pb2.UploadAudioRequest(
        open=audio_pb2.OpenUpload(parent=parent, upload_id="abcd", audio=audio_pb2.AudioSpec(**given))
    )


def resuming(name):
    return audio_pb2.UploadAudioRequest(resume=audio_pb2.ResumeUpload(upload=name, offset=7))


async def test_a_stream_is_read_as_steps():
    found = await steps(
        opening(sha256="AB", labels={"a": "b"}),
        audio_pb2.UploadAudioRequest(chunk=b"xyz"),
        resuming("teams/acme/uploads/abcd"),
    )
    assert found == [
        OpenStep("acme", "abcd", spec(sha256="ab", labels={"a": "b"})),
        b"xyz",
        ResumeStep("teams/acme/uploads/abcd", 7),
    ]


@pytest.mark.parametrize(
    ("request_", "team", "reason"),
    [
        (audio_pb2.UploadAudioRequest(), "acme", Reason.INVALID_ARGUMENT),
        (opening("acme"), "acme", Reason.INVALID_ARGUMENT),
        (opening(purpose=audio_pb2.AUDIO_PURPOSE_OUTPUT), "acme", Reason.INVALID_ARGUMENT),
        (opening(purpose=77), "acme", Reason.INVALID_ARGUMENT),
        (opening(), "other", Reason.TEAM_NOT_FOUND),
        (resuming("teams/acme/audios/abcd"), "acme", Reason.INVALID_ARGUMENT),
        (resuming("teams/acme/uploads/abcd"), "other", Reason.UPLOAD_NOT_FOUND),
    ],
)
async def test_what_a_stream_may_not_say(request_, team, reason):
    with pytest.raises(VoxfleetError) as caught:
        await steps(request_, team=team)
    assert caught.value.reason is reason


async def test_a_service_in_its_own_name_sees_every_team():
    assert len(await steps(opening(), resuming("teams/other/uploads/abcd"), team="")) == 2


@pytest.mark.parametrize("purpose", list(Purpose))
def test_a_spec_comes_back_as_it_went(purpose):
    given = spec(purpose=purpose, display_name="a", size_bytes=5, sha256="0" * 64, labels={"x": "y"})
    assert wire.spec_from_proto(wire.spec_to_proto(given)) == given


def test_measures_without_a_voice_have_an_snr_of_zero(tmp_path):
    path = tmp_path / "tone"
    path.write_bytes(encoded(tone(1)))
    measures = _answer(ExamineTask(path, 10.0, 2)).measures
    found = wire.measures_to_proto(replace(measures, snr_db=None, bit_depth=None))
    assert (found.snr_db, found.bit_depth) == (0.0, 0)
    assert found.duration_s == pytest.approx(1.0)
    assert (found.codec, found.container, found.rate_hz) == ("pcm_s16le", "wav", 16_000)


def test_fast_files_are_measured_at_48_khz_and_described_as_they_are(tmp_path):
    path = tmp_path / "fast"
    path.write_bytes(encoded(tone(1, 192_000), 192_000))
    found = _answer(ExamineTask(path, 10.0, 2)).measures
    assert found.rate_hz == 192_000
    assert found.duration_s == pytest.approx(1.0, abs=1e-3)


def test_the_limits_of_an_upload():
    limits = AudioSettings(service_token="x" * 16).limits
    assert (limits.training.min_duration_s, limits.training.max_duration_s) == (10.0, 600.0)
    assert (limits.reference.min_duration_s, limits.reference.max_duration_s) == (3.0, 30.0)
    assert (limits.conversion.min_duration_s, limits.conversion.max_duration_s) == (0.0, 1800.0)
