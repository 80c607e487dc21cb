"""Recordings to slices."""

import itertools

import numpy as np
import pytest

from services.common.errors import Reason, VoxfleetError
from services.engines.rvc.audio import fit_length, frame_levels, high_pass, mono, resample, resampled_length
from services.engines.rvc.preprocess import PEAK, level_peak, piece_spans, prepare, speech_spans

from .conftest import voiced_tone

RATE = 16_000


def silence(seconds):
    return np.zeros(round(seconds * RATE), np.float32)


def test_pieces_overlap_and_cover():
    spans = piece_spans(20 * RATE, RATE)
    assert spans[0] == (0, round(3.7 * RATE))
    for (begin, end), (following, _) in itertools.pairwise(spans):
        assert end - following == round(0.3 * RATE)
        assert end - begin == round(3.7 * RATE)
    assert spans[-1][1] == 20 * RATE
    assert spans[-1][1] - spans[-1][0] <= 4.0 * RATE
    assert piece_spans(4 * RATE, RATE) == [(0, 4 * RATE)]


def test_long_silences_are_cut_out_and_short_ones_kept():
    audio = np.concatenate(
        [
            silence(2),
            voiced_tone(1, RATE),
            silence(0.2),
            voiced_tone(1, RATE),
            silence(3),
            voiced_tone(1, RATE),
        ]
    )
    spans = speech_spans(audio, RATE)
    assert len(spans) == 2
    (first, last), (second, end) = spans
    assert 1.7 * RATE < first < 2.0 * RATE
    assert 4.2 * RATE < last < 4.6 * RATE
    assert 6.9 * RATE < second < 7.2 * RATE
    assert end == len(audio)


def test_a_click_is_no_speech():
    audio = silence(3)
    audio[RATE] = 1.0
    assert speech_spans(audio, RATE) == []


def test_slices_know_where_they_are_from_and_exist_at_both_rates():
    clips = [voiced_tone(1.5, RATE), np.concatenate([silence(1), voiced_tone(6, RATE)])]
    slices = prepare(clips, RATE, 40_000)
    assert [part.clip for part in slices] == [0, 1, 1]
    assert slices[1].start_s == pytest.approx(0.75, abs=0.05)
    for part in slices:
        assert len(part.samples_16k) == resampled_length(len(part.samples), 40_000, 16_000)
        assert np.abs(part.samples).max() <= 1.0


def test_a_quiet_recording_gives_the_slices_of_a_loud_one():
    tone = voiced_tone(2, RATE)
    loud, quiet = prepare([tone], RATE, RATE), prepare([tone * 0.01], RATE, RATE)
    np.testing.assert_allclose(quiet[0].samples, loud[0].samples, atol=1e-4)


def test_nothing_but_silence_is_an_error():
    with pytest.raises(VoxfleetError) as caught:
        prepare([silence(5), silence(5)], RATE, 40_000)
    assert caught.value.reason is Reason.AUDIO_SILENT


def test_preparing_stops_when_asked():
    with pytest.raises(VoxfleetError) as caught:
        prepare([voiced_tone(2, RATE)], RATE, 40_000, should_stop=lambda: True)
    assert caught.value.reason is Reason.CANCELLED


def test_peaks_move_most_of_the_way():
    assert np.abs(level_peak(np.array([0.1, -0.45], np.float32))).max() == pytest.approx(
        0.75 * PEAK + 0.25 * 0.45
    )
    assert not level_peak(np.zeros(4, np.float32)).any()


def test_high_pass_takes_rumble_and_leaves_speech():
    time = np.arange(RATE) / RATE
    for hz, low, high in ((15, 0.0, 0.01), (200, 0.98, 1.02)):
        tone = np.sin(2 * np.pi * hz * time).astype(np.float32)
        middle = high_pass(tone, RATE)[RATE // 4 : -RATE // 4]
        gain = np.std(middle) / np.std(tone)
        assert low <= gain <= high


@pytest.mark.parametrize(
    ("samples", "source", "target"), [(1, 48_000, 16_000), (44_101, 44_100, 40_000), (7, 8000, 48_000)]
)
def test_resampling_gives_the_length_it_says(samples, source, target):
    audio = np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    got = resample(audio, source, target)
    assert len(got) == resampled_length(samples, source, target)
    assert abs(len(got) / target - samples / source) <= 0.5 / target + 1e-12


def test_levels_are_root_mean_squares():
    levels = frame_levels(np.full(1000, 0.5, np.float32), 100, 50)
    assert len(levels) == 20
    np.testing.assert_allclose(levels, 0.5)
    assert len(fit_length(np.ones(3, np.float32), 5)) == 5


def test_stereo_becomes_mono_and_bad_samples_are_refused():
    np.testing.assert_allclose(mono(np.array([[1.0, 0.0, 0.2], [0.0, 0.5, 0.2]])), [0.5, 0.25, 0.2])
    for bad, reason in (
        (np.array([0.0, np.nan]), Reason.INVALID_FORMAT),
        (np.zeros((2, 2, 2)), Reason.INVALID_FORMAT),
        (np.zeros(0), Reason.AUDIO_EMPTY),
    ):
        with pytest.raises(VoxfleetError) as caught:
            mono(bad)
        assert caught.value.reason is reason
