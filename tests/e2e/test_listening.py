"""What the fleet hears: clips without a text, word times, judged speech."""

import pytest

from services.engines.whisper.scoring import word_error_rate
from voxfleet.client import VoxfleetError
from voxfleet.v1 import synthesis_pb2


def test_a_clip_without_a_text_is_listened_to(alpha, reference, clips):
    voice = alpha.client.voices.create(reference=reference.name, voice_id="heard", languages=["en"])
    text = voice.references[0].text
    assert word_error_rate(clips["reference_en.flac"]["text"], text) <= 0.2
    assert alpha.client.voices.get(voice.name) == voice
    said = alpha.client.synthesis.say("Good morning.", voice.name)
    assert len(said.pcm) > 0


def test_another_text_is_refused_and_says_what_was_heard(alpha, reference, clips):
    with pytest.raises(VoxfleetError) as caught:
        alpha.client.voices.create(reference=reference.name, text=clips["clip_en_5.flac"]["text"])
    assert caught.value.reason == "TRANSCRIPT_MISMATCH"
    heard = caught.value.metadata["heard"]
    assert word_error_rate(clips["reference_en.flac"]["text"], heard) <= 0.2
    assert all(clip.text for voice in alpha.client.voices.list() for clip in voice.references)


def test_words_and_quality_come_with_the_speech(alpha, clone):
    """Untrained weights say nothing that can be heard: words are spread over it, and the gate fails."""
    text = "Good morning, 2 of you."
    said = alpha.client.synthesis.say(
        text,
        clone.name,
        parameters=synthesis_pb2.SynthesisParameters(
            preset="fast",
            language="en",
            word_timestamps=True,
            quality=synthesis_pb2.QualityGate(max_word_error_rate=0.1, tries=2),
        ),
    )
    summary = said.summary
    assert summary.spoken_text == "Good morning, two of you."
    assert [word.word for word in summary.words] == ["Good", "morning,", "two", "of", "you."]
    marks = [at for word in summary.words for at in (word.start_s, word.end_s)]
    assert marks == sorted(marks)
    assert marks[-1] <= summary.duration_s + 1e-3
    assert (summary.quality.tries, summary.quality.passed) == (2, False)
    assert summary.quality.word_error_rate > 0.1
