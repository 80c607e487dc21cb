"""Text in a trained voice, through the public API: streamed, as a batch, by whomever it is spoken."""

import numpy as np
import pytest

from services.common.media.decode import decode, probe
from tests.e2e.conftest import SPEECH
from voxfleet.client import VoxfleetError
from voxfleet.v1 import synthesis_pb2


def parameters(**changes):
    return synthesis_pb2.SynthesisParameters(preset="fast", seed=7, **changes)


def test_a_text_is_streamed_in_the_trained_voice_and_names_both(alpha, trained, target):
    first = alpha.client.synthesis.say("Good morning to you.", trained.name, parameters=parameters())
    assert first.rate_hz == trained.rate_hz
    assert np.abs(np.frombuffer(first.pcm, np.int16)).max() > 300, "it is silent"
    made = first.provenance
    assert (made.engine, made.voice, made.speaker) == ("rvc", trained.name, target.name)
    assert (made.speaker_weights, made.speaker_weights_trained) == ("f5-small-random", False)
    again = alpha.client.synthesis.say("Good morning to you.", trained.name, parameters=parameters())
    assert first.pcm == again.pcm, "the same seed gives the same audio"


def test_another_voice_speaks_for_it_in_any_format_to_the_sample(alpha, trained, clone):
    how = synthesis_pb2.ConversionParameters(index_rate=0.0, pitch_shift=-3)
    asked = parameters(speaker="clone", duration_s=2.5, word_timestamps=True, conversion=how)
    speech = alpha.client.synthesis.say("Good morning.", trained.name, parameters=asked, format="flac")
    assert decode(speech.data).samples.shape[-1] == round(2.5 * trained.rate_hz)
    tags = probe(speech.data).tags
    assert (tags["engine"], tags["voice"], tags["speaker"]) == ("rvc", trained.name, clone.name)
    assert [word.word for word in speech.summary.words] == ["Good", "morning."]


def test_a_batch_has_items_of_both_kinds_and_a_bad_one_fails_alone(alpha, trained, clone):
    items = [
        synthesis_pb2.BatchItem(id="own", text="First line."),
        synthesis_pb2.BatchItem(id="clone", text="Second line.", voice=clone.name),
        synthesis_pb2.BatchItem(id="bad", text="Third line.", parameters=parameters(speaker=trained.name)),
    ]
    job = alpha.client.synthesis.batch(items, trained.name, parameters=parameters(), format="flac")
    done = alpha.client.jobs.wait(job.name, timeout_s=240)
    assert (done.batch_counts.succeeded, done.batch_counts.failed) == (2, 1)
    own, cloned, bad = alpha.client.jobs.items(job.name)
    assert bad.error.reason == "UNSUPPORTED_ENGINE"
    made = alpha.client.audio.get(own.result.audios[0])
    assert (made.provenance.engine, made.provenance.voice) == ("rvc", trained.name)
    assert made.provenance.speaker_weights == "f5-small-random"
    assert made.measures.rate_hz == trained.rate_hz
    assert alpha.client.audio.get(cloned.result.audios[0]).provenance.engine == "f5"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"speaker": "trained"}, "UNSUPPORTED_ENGINE"),
        ({"speaker": "no-such-voice"}, "VOICE_NOT_FOUND"),
        ({"speaker": "teams/beta/voices/theirs"}, "VOICE_NOT_FOUND"),
        ({"style": "calm"}, "INVALID_ARGUMENT"),
        ({"conversion": synthesis_pb2.ConversionParameters(index_rate=2.0)}, "INVALID_ARGUMENT"),
        (
            {"pitch_shift": 12, "conversion": synthesis_pb2.ConversionParameters(pitch_shift=13)},
            "INVALID_ARGUMENT",
        ),
        (
            {
                "conversion": synthesis_pb2.ConversionParameters(
                    speaking=synthesis_pb2.SynthesisParameters(steps=4)
                )
            },
            "INVALID_ARGUMENT",
        ),
    ],
)
def test_what_cannot_be_says_why(alpha, trained, changes, reason):
    with pytest.raises(VoxfleetError) as caught:
        alpha.client.synthesis.say("Good morning.", trained.name, parameters=parameters(**changes))
    assert caught.value.reason == reason


def test_the_pitch_is_brought_to_the_voices_and_the_record_says_by_how_much(alpha, trained):
    source = alpha.client.audio.upload(SPEECH / "source_it.flac")
    how = synthesis_pb2.ConversionParameters(auto_pitch=True)
    job = alpha.client.synthesis.convert(source.name, trained.name, parameters=how, format="flac")
    done = alpha.client.jobs.wait(job.name, timeout_s=240)
    found = alpha.client.audio.get(done.result.audios[0]).provenance.pitch_match
    assert 70 < found.source_hz < 400
    assert 70 < found.voice_hz < 400
    assert found.semitones == round(12 * np.log2(found.voice_hz / found.source_hz))
    with pytest.raises(VoxfleetError) as caught:
        alpha.client.synthesis.convert(source.name, "clone", engine="f5", parameters=how)
    assert caught.value.reason == "INVALID_ARGUMENT"


def test_several_recordings_are_one_job_with_a_result_each(alpha, trained):
    good = [alpha.client.audio.upload(SPEECH / name) for name in ("clip_en_1.flac", "clip_en_3.flac")]
    request = [good[0].name, good[1].name]
    done = alpha.client.jobs.wait(
        alpha.client.synthesis.convert(request, trained.name, format="opus").name, timeout_s=240
    )
    assert (done.batch_counts.total, done.batch_counts.succeeded) == (2, 2)
    for source, item in zip(good, alpha.client.jobs.items(done.name), strict=True):
        made = alpha.client.audio.get(item.result.audios[0])
        assert item.item_id == source.name
        assert made.provenance.voice == trained.name
        assert made.measures.duration_s == pytest.approx(source.measures.duration_s, abs=0.02)
