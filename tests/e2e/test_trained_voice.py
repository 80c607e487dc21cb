"""Text in a trained voice, through the public API: streamed, as a batch, by whomever it is spoken."""

import numpy as np
import pytest

from services.common.media.decode import decode, probe
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
