"""Where audio came from, and which weights a team may use, through the public API."""

from __future__ import annotations

import io

import pytest

from services.common.media.decode import decode
from services.common.media.encode import Format, encode
from tests.e2e.conftest import SPEECH
from voxfleet.client import Client, JobFailed, VoxfleetError
from voxfleet.v1 import job_pb2, synthesis_pb2, trust_pb2

RECORD = trust_pb2.PROVENANCE_EVIDENCE_RECORD
TAGS = trust_pb2.PROVENANCE_EVIDENCE_TAGS
WATERMARK = trust_pb2.PROVENANCE_EVIDENCE_WATERMARK
TWO_SECONDS = synthesis_pb2.SynthesisParameters(preset="fast", seed=5, duration_s=2.0)


def mp3(data: bytes) -> bytes:
    """The sound alone, as a stranger would pass it on: MP3 of 128 kbit/s, without its tags."""
    audio = decode(data)
    return encode(audio.samples, audio.rate_hz, Format.MP3, bitrate_kbps=128)


def check_traces(alpha, done: job_pb2.Job) -> None:
    (name,), job = done.result.audios, done.name
    output = alpha.client.audio.get(name)
    assert output.provenance.watermarked
    assert output.provenance.job == job
    found = alpha.client.trust.verify_provenance(output.name)
    assert (found.generated, found.confidence, found.job) == (True, 1.0, job)
    assert list(found.evidence) == [RECORD, WATERMARK, TAGS]

    data = alpha.client.audio.download_bytes(output.name)
    again = alpha.client.audio.upload(data, display_name="as it was")
    found = alpha.client.trust.verify_provenance(again.name)
    assert (list(found.evidence), found.job) == ([WATERMARK, TAGS], job)
    stripped = alpha.client.audio.upload(mp3(data), display_name="passed on")
    found = alpha.client.trust.verify_provenance(stripped.name)
    assert (found.generated, list(found.evidence), found.job) == (True, [WATERMARK], "")
    assert found.confidence > 0.99


def test_a_conversion_is_known_again_after_mp3(alpha, trained):
    source = alpha.client.audio.upload(SPEECH / "source_it.flac")
    job = alpha.client.synthesis.convert(source.name, trained.name, format="opus")
    check_traces(alpha, alpha.client.jobs.wait(job.name, timeout_s=240))


def test_a_spoken_text_is_known_again_after_mp3(alpha, clone):
    job = alpha.client.synthesis.batch(
        ["Good morning to you."], clone.name, format="mp3", parameters=TWO_SECONDS
    )
    alpha.client.jobs.wait(job.name, timeout_s=240)
    (item,) = alpha.client.jobs.items(job.name)
    check_traces(alpha, item)


def test_a_stream_is_marked(alpha, clone):
    spoken = alpha.client.synthesis.say("Good morning to you.", clone.name, parameters=TWO_SECONDS)
    assert spoken.provenance.watermarked
    assert spoken.provenance.generated
    recorded = io.BytesIO()
    spoken.save_wav(recorded)
    kept = alpha.client.audio.upload(recorded.getvalue(), display_name="recorded")
    found = alpha.client.trust.verify_provenance(kept.name)
    assert list(found.evidence) == [WATERMARK]


def test_a_real_speaker_is_not_taken_for_a_machine(alpha, beta, reference):
    found = alpha.client.trust.verify_provenance(reference.name)
    assert (found.generated, list(found.evidence), found.job) == (False, [], "")
    assert found.confidence < 0.5
    with pytest.raises(VoxfleetError) as caught:
        beta.client.trust.verify_provenance(reference.name)
    assert caught.value.reason == "AUDIO_NOT_FOUND"


def test_a_team_speaks_only_with_weights_whose_licence_it_may_use(alpha, stack, clips):
    made = alpha.client.trust.create_team("strict", allowed_licences=["CC-BY-4.0"])
    assert list(made.allowed_licences) == ["CC-BY-4.0"]
    token = alpha.client.trust.create_key(team="strict").token
    with Client(endpoint=stack.endpoint, token=token, team="strict") as strict:
        clip = strict.audio.upload(SPEECH / "reference_en.flac", purpose="reference")
        voice = strict.voices.create(reference=clip.name, text=clips["reference_en.flac"]["text"])
        with pytest.raises(VoxfleetError) as caught:
            strict.synthesis.say("Good morning.", voice.name, parameters=TWO_SECONDS)
        assert caught.value.reason == "LICENCE_NOT_ALLOWED"
        assert caught.value.metadata["allowed"] == "CC-BY-4.0"
        licence = caught.value.metadata["licence"]
        job = strict.synthesis.batch(["Good morning."], voice.name, parameters=TWO_SECONDS)
        with pytest.raises(JobFailed):
            strict.jobs.wait(job.name, timeout_s=120)
        (item,) = strict.jobs.items(job.name)
        assert item.error.reason == "LICENCE_NOT_ALLOWED"
        with pytest.raises(VoxfleetError) as caught:
            strict.trust.update_team("strict", allowed_licences=[])
        assert caught.value.reason == "PERMISSION_DENIED"

        changed = alpha.client.trust.update_team("strict", allowed_licences=["CC-BY-4.0", licence])
        assert list(changed.allowed_licences) == ["CC-BY-4.0", licence]
        assert strict.synthesis.say("Good morning.", voice.name, parameters=TWO_SECONDS).duration_s == 2.0
