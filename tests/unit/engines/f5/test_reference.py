from __future__ import annotations

import numpy as np
import pytest

from services.common.errors import Reason, VoxfleetError
from services.common.jobs.tasks import TimedWord
from services.engines.f5 import reference

from .conftest import RATE_HZ, babble

TEXT = "Some call me nature, others call me mother nature."


def rms(audio):
    return float(np.sqrt(np.mean(np.square(audio))))


def prepare(audio, rate_hz=RATE_HZ, transcript=TEXT, **settings):
    return reference.prepare("clip", audio, rate_hz, transcript, **settings)


def test_silence_at_the_edges_is_trimmed():
    silence = np.zeros(RATE_HZ, np.float32)
    clip = prepare(np.concatenate([silence, babble(3), silence, silence]))
    assert clip.duration_s == pytest.approx(3.05, abs=0.03)
    assert not clip.cut
    assert clip.text == TEXT + " "


def test_a_quiet_clip_is_raised_and_remembers_by_how_much():
    loud, quiet = prepare(babble(3)), prepare(babble(3) * 0.02)
    speech = quiet.audio[: -round(0.05 * RATE_HZ)]
    assert rms(speech) == pytest.approx(reference.TARGET_RMS, rel=1e-3)
    assert quiet.gain == pytest.approx(50 * loud.gain, rel=0.01)
    assert len(quiet.audio) == len(loud.audio)


def test_a_loud_clip_is_left_as_it_is():
    assert prepare(babble(3) * 4).gain == 1.0


def test_stereo_and_other_rates_become_mono_at_24_khz():
    at = np.arange(2 * 48_000) / 48_000
    tone = (0.3 * np.sin(2 * np.pi * 440 * at)).astype(np.float32)
    clip = prepare(np.stack([tone, tone]), 48_000)
    assert clip.duration_s == pytest.approx(2.05, abs=0.02)
    spectrum = np.abs(np.fft.rfft(clip.audio[: 2 * RATE_HZ]))
    assert np.argmax(spectrum) / 2 == pytest.approx(440, abs=1)


@pytest.mark.parametrize(
    ("audio", "reason"),
    [
        (np.empty(0, np.float32), Reason.AUDIO_EMPTY),
        (np.zeros(RATE_HZ * 3, np.float32), Reason.AUDIO_SILENT),
        (babble(3) * 1e-4, Reason.AUDIO_SILENT),
        (babble(0.5), Reason.AUDIO_TOO_SHORT),
        (np.full(RATE_HZ, np.nan, np.float32), Reason.INVALID_FORMAT),
    ],
)
def test_what_is_no_reference_is_refused(audio, reason):
    with pytest.raises(VoxfleetError) as caught:
        prepare(audio)
    assert caught.value.reason is reason


def test_a_reference_needs_its_transcript():
    with pytest.raises(VoxfleetError) as caught:
        prepare(babble(3), transcript=" ")
    assert caught.value.reason is Reason.TEXT_EMPTY
    assert caught.value.violations[0].field == "reference_text"


def test_a_long_clip_is_cut_at_a_pause_with_its_transcript():
    # Two sentences of like length, ten seconds each, and a pause between.
    first = "The first of the sentences goes on for just about half of all the time there is."
    second = "The second of the sentences goes on for just about half of all the time too, yes."
    clip = prepare(babble(20.4, pauses=((10.0, 10.4),)), transcript=f"{first} {second}")
    assert clip.cut
    assert clip.duration_s == pytest.approx(10.2, abs=0.2)
    assert clip.text == first + " "


def test_a_long_clip_with_times_is_cut_between_its_words():
    words = [TimedWord(text=f"word{index}", start_s=index, end_s=index + 1.0) for index in range(20)]
    clip = prepare(babble(20), transcript=" ".join(word.text for word in words), words=words)
    assert clip.duration_s == pytest.approx(12.05, abs=0.03)
    assert clip.text.split()[-1] == "word11."


def test_a_long_clip_without_a_fitting_pause_is_refused():
    with pytest.raises(VoxfleetError) as caught:
        prepare(babble(20), transcript="It runs on. And on without a breath")
    assert caught.value.reason is Reason.AUDIO_TOO_LONG
    assert caught.value.metadata["max_s"] == "12.0"


def test_with_times_a_clauses_end_goes_before_a_later_word():
    texts = ["我", "说", "话，", "他", "也", "说", "话。", "再", "见", "了"]
    words = [TimedWord(text=text, start_s=1.5 * n, end_s=1.5 * n + 1.4) for n, text in enumerate(texts)]
    clip = prepare(babble(15), transcript="".join(texts), words=words)
    assert clip.text == "我说话，他也说话。", "no spaces that the transcript has not"
    assert clip.duration_s == pytest.approx(1.5 * 6 + 1.4 + 0.05 + 0.05, abs=0.03)


def test_the_cut_is_before_the_next_word():
    words = [TimedWord(text=f"word{n}", start_s=2.0 * n, end_s=2.0 * n + 1.98) for n in range(10)]
    clip = prepare(babble(20), transcript=" ".join(word.text for word in words), words=words)
    assert clip.text.split()[-1] == "word5."
    assert clip.duration_s - 0.05 <= 12.0


def test_no_words_are_no_times():
    with pytest.raises(VoxfleetError) as caught:
        prepare(babble(20), transcript="It runs on. And on without a breath", words=())
    assert caught.value.reason is Reason.AUDIO_TOO_LONG


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_sound_is_checked_without_a_transcript(seconds):
    with pytest.raises(VoxfleetError) as caught:
        reference.check_sound(babble(seconds), RATE_HZ)
    assert caught.value.reason in (Reason.AUDIO_EMPTY, Reason.AUDIO_TOO_SHORT)
    reference.check_sound(babble(2), RATE_HZ)
