"""The main job, through the public API: upload, measure, train, clone, speak, convert, batch, download."""

import hashlib

import numpy as np
import pytest

from services.common.media.decode import decode
from tests.e2e.conftest import SPEECH
from voxfleet.client import VoxfleetError
from voxfleet.v1 import audio_pb2, job_pb2, synthesis_pb2, voice_pb2


def test_an_upload_is_measured_graded_and_kept_byte_for_byte(alpha, target):
    data = (SPEECH / "target_en.flac").read_bytes()
    assert target.sha256 == hashlib.sha256(data).hexdigest()
    assert (target.state, target.purpose) == (
        audio_pb2.AUDIO_STATE_READY,
        audio_pb2.AUDIO_PURPOSE_TRAINING,
    )
    assert target.measures.duration_s == pytest.approx(60.8, abs=0.1)
    assert target.assessment.trainable
    assert alpha.client.audio.download_bytes(target.name) == data
    analysed = alpha.client.audio.analyze(target.name, waveform_points=100)
    assert len(analysed.measures.waveform_peaks) == 100
    assert analysed.measures.snr_db > 30


def test_training_makes_a_voice_with_falling_loss_and_a_curve(alpha, trained):
    assert (trained.engine, trained.state) == ("rvc", voice_pb2.VOICE_STATE_READY)
    assert trained.weights_trained
    assert trained.content_encoder == "whisper-base"
    job = alpha.client.jobs.get(trained.training_job)
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED
    assert job.result.metrics["loss_mel_end"] < job.result.metrics["loss_mel_start"]
    assert len(job.result.curve) >= 5


def test_watching_tells_every_change_once_and_in_order(alpha, trained):
    messages = list(alpha.client.jobs.watch(trained.training_job))
    changes = [message.change for message in messages if message.HasField("change")]
    assert [change.seq for change in changes] == list(range(1, len(changes) + 1))
    phases = [change.phase for change in changes if change.phase]
    order = ["fetch", "slice", "f0", "features", "train", "index", "publish"]
    seen = list(dict.fromkeys(phases))
    assert seen == [phase for phase in order if phase in seen]
    assert {"f0", "features", "train", "publish"} <= set(seen)
    assert changes[-1].state == job_pb2.JOB_STATE_SUCCEEDED
    middle = len(changes) // 2
    again = alpha.client.jobs.watch(trained.training_job, cursor=middle)
    assert [m.change.seq for m in again if m.HasField("change")] == list(range(middle + 1, len(changes) + 1))


def test_speech_streams_and_says_that_its_weights_are_untrained(alpha, clone):
    first = alpha.client.synthesis.say("Good morning to you.", clone.name, parameters=_seeded(7))
    again = alpha.client.synthesis.say("Good morning to you.", clone.name, parameters=_seeded(7))
    other = alpha.client.synthesis.say("Good morning to you.", clone.name, parameters=_seeded(8))
    assert first.rate_hz == 24000
    assert 0.3 < first.duration_s < 20
    assert np.abs(np.frombuffer(first.pcm, np.int16)).max() > 300, "it is silent"
    assert not first.provenance.weights_trained
    assert first.provenance.weights == "f5-small-random"
    assert first.summary.provenance.seed == 7
    assert first.pcm == again.pcm, "the same seed gives the same audio"
    assert first.pcm != other.pcm


def test_conversion_keeps_the_length_and_names_its_voice(alpha, trained):
    source = alpha.client.audio.upload(SPEECH / "source_it.flac")
    job = alpha.client.synthesis.convert(source.name, trained.name, format="flac")
    done = alpha.client.jobs.wait(job.name, timeout_s=240)
    (name,) = done.result.audios
    output = alpha.client.audio.get(name)
    assert output.purpose == audio_pb2.AUDIO_PURPOSE_OUTPUT
    assert output.provenance.voice == trained.name
    assert output.provenance.generated
    before, after = decode(SPEECH / "source_it.flac"), decode(alpha.client.audio.download_bytes(name))
    assert after.duration_s == pytest.approx(before.duration_s, abs=0.02)
    assert np.isfinite(after.samples).all()
    assert np.abs(after.samples).max() > 0.01


def test_a_batch_gives_a_result_per_item_and_one_bad_item_harms_no_other(alpha, clone):
    lines = [("a", "First line."), ("b", ""), ("c", "Third line."), ("d", "☃ snow falls ☃")]
    job = alpha.client.synthesis.batch(lines, clone.name, format="opus", parameters=_seeded(3))
    done = alpha.client.jobs.wait(job.name, timeout_s=240)
    assert (done.batch_counts.total, done.batch_counts.succeeded, done.batch_counts.failed) == (4, 2, 2)
    items = list(alpha.client.jobs.items(job.name))
    assert [item.item_id for item in items] == ["a", "b", "c", "d"]
    assert [item.error.reason for item in items] == ["", "TEXT_EMPTY", "", "UNSUPPORTED_CHARACTERS"]
    for item in (items[0], items[2]):
        (name,) = item.result.audios
        assert alpha.client.audio.get(name).media_type.startswith("audio/ogg")
        assert decode(alpha.client.audio.download_bytes(name)).duration_s > 0.2


def test_lists_page_and_deletes_delete(alpha, clone):
    audio = alpha.client.audio.upload(SPEECH / "clip_fr.flac", labels={"lang": "fr"})
    found = list(alpha.client.audio.list(page_size=1))
    assert len({each.name for each in found}) == len(found) > 1
    assert [each.name for each in alpha.client.audio.list(filter="labels.lang=fr")] == [audio.name]
    assert clone.name in {voice.name for voice in alpha.client.voices.list()}
    alpha.client.audio.delete(audio.name)
    with pytest.raises(VoxfleetError) as caught:
        alpha.client.audio.get(audio.name)
    assert caught.value.reason == "AUDIO_NOT_FOUND"


def test_the_same_request_id_makes_one_job(alpha, trained, target):
    def submit(**changes: object) -> job_pb2.Job:
        return alpha.client.synthesis.convert(target.name, trained.name, request_id="once", **changes)

    first, second = submit(), submit()
    assert first.name == second.name
    with pytest.raises(VoxfleetError) as caught:
        submit(format="mp3")
    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert alpha.client.jobs.cancel(first.name).state in (
        job_pb2.JOB_STATE_CANCELLED,
        job_pb2.JOB_STATE_CANCELLING,
    )


def test_the_fleet_shows_workers_nodes_and_bundles(alpha):
    fleet = alpha.client.fleet.get()
    assert {worker.queue for worker in fleet.workers} == {"trainer", "inference"}
    assert sum(node.gpus for node in fleet.nodes) == 2
    assert all(node.virtual_gpus for node in fleet.nodes)
    bundles = {bundle.name: bundle for bundle in alpha.client.synthesis.bundles()}
    assert bundles["f5-small-random"].is_default
    assert not bundles["f5-v1-base"].present
    assert {"f5", "rvc"} <= {engine.name for engine in alpha.client.synthesis.engines()}


def test_pulling_weights_without_a_network_says_what_to_do(alpha):
    job = alpha.client.synthesis.pull_bundle("f5-v1-base", accept_licence=True)
    with pytest.raises(VoxfleetError) as caught:
        alpha.client.jobs.wait(job.name, timeout_s=240)
    assert caught.value.reason == "HUB_UNREACHABLE"
    assert "import" in str(caught.value)


def _seeded(seed: int) -> synthesis_pb2.SynthesisParameters:
    return synthesis_pb2.SynthesisParameters(preset="fast", seed=seed)
