"""Pitch and loudness of what was spoken, against real speech."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.jobs.tasks import SpeakingParameters
from services.common.media.decode import decode
from services.common.media.limiter import TruePeakLimiter
from services.common.media.loudness import SILENCE_LUFS, integrated_lufs, true_peak_dbtp
from services.common.media.resample import resample
from services.engines.rvc.f0 import f0_method
from services.inference.engine.finishing import Finisher, finished

SPEECH = Path(__file__).resolve().parents[2] / "fixtures" / "speech"
RATE_HZ = 24_000


def speech(name: str, seconds: float = 6.0) -> np.ndarray:
    audio = decode(SPEECH / name)
    return resample(audio.samples, audio.rate_hz, RATE_HZ)[: round(seconds * RATE_HZ)]


def pitch(samples: np.ndarray) -> np.ndarray:
    at_16k = resample(samples, RATE_HZ, 16_000)
    return f0_method("swift").track(at_16k, len(at_16k) // 160)


def streamed(samples: np.ndarray, parameters: SpeakingParameters, sizes: list[int]) -> list[np.ndarray]:
    finisher = Finisher(RATE_HZ, parameters)
    pieces, at = [], 0
    while True:
        size = sizes[len(pieces) % len(sizes)]
        last = at + size >= len(samples)
        pieces.append(finisher.push(samples[at : at + size], last))
        at += size
        if last:
            return pieces


def moved_cents(before: np.ndarray, after: np.ndarray) -> float:
    old, new = pitch(before), pitch(after)
    both = (old > 0) & (new > 0)
    assert both.mean() > 0.4
    return float(1200 * np.log2(np.median(new[both]) / np.median(old[both])))


def envelope_db(samples: np.ndarray) -> np.ndarray:
    """Bands wide enough to hold formants and no harmonics, [bands, frames]."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, 720)[::240] * np.hanning(720)
    power = np.square(np.abs(np.fft.rfft(frames, 1024, axis=1)))
    edges = np.unique(np.geomspace(12, 340, 16).astype(int))
    return 10 * np.log10(np.add.reduceat(power, edges, axis=1)[:, :-1].T + 1e-6)


@pytest.mark.parametrize("name", ["clip_en_2.flac", "clip_fr.flac", "clip_ru.flac"])
@pytest.mark.parametrize("semitones", [-7.0, -2.0, 3.5, 12.0])
def test_pitch_moves_by_what_was_asked_and_nothing_else(name: str, semitones: float) -> None:
    before = speech(name)
    after = finished(before, RATE_HZ, SpeakingParameters(pitch_shift=semitones))
    assert after.shape == before.shape
    assert after.dtype == np.float32
    assert moved_cents(before, after) == pytest.approx(100 * semitones, abs=20)
    # The pace is the same: loud and quiet come when they came.
    loud = [np.square(x[: len(x) // 480 * 480]).reshape(-1, 480).sum(axis=1) for x in (before, after)]
    assert np.corrcoef(*np.log(np.asarray(loud) + 1e-4))[0, 1] > 0.8


@pytest.mark.parametrize("semitones", [-4.0, 4.0])
def test_formants_stay_where_they_are(semitones: float) -> None:
    before = speech("clip_en_2.flac")
    after = finished(before, RATE_HZ, SpeakingParameters(pitch_shift=semitones))
    # What moving the spectrum as a whole does: played faster or slower.
    chipmunk = resample(before, RATE_HZ, round(RATE_HZ * 2 ** (-semitones / 12)))
    old, new = envelope_db(before), envelope_db(after)
    loud = old.max(axis=0) > old.max() - 30
    kept = np.abs(old - new)[:, loud].mean()
    fast = envelope_db(chipmunk)
    at = np.minimum((np.arange(old.shape[1]) * fast.shape[1] / old.shape[1]).astype(int), fast.shape[1] - 1)
    moved = np.abs(old - fast[:, at])[:, loud].mean()
    assert kept < 0.6 * moved


def test_pitch_of_a_stream_is_that_of_the_whole() -> None:
    before = speech("heldout_en.flac", 12)
    parameters = SpeakingParameters(pitch_shift=3)
    pieces = streamed(before, parameters, [30_000, 7_000, 48_000])
    after = np.concatenate(pieces)
    assert after.shape == before.shape
    assert sum(bool(len(piece)) for piece in pieces[:-1]) >= 3, "it does not wait for the end"
    assert moved_cents(before, after) == pytest.approx(300, abs=20)
    # No clicks where windows meet: no step is larger than those that the voice makes itself.
    whole = finished(before, RATE_HZ, parameters)
    assert np.abs(np.diff(after)).max() < 1.5 * np.abs(np.diff(whole)).max()


@pytest.mark.parametrize("lufs", [-40.0, -23.0, -16.0, -10.0])
@pytest.mark.parametrize("name", ["clip_en_1.flac", "clip_it.flac"])
def test_loudness_is_met_under_the_peak(name: str, lufs: float) -> None:
    before = speech(name)
    after = finished(before, RATE_HZ, SpeakingParameters(loudness_lufs=lufs))
    assert after.shape == before.shape
    assert integrated_lufs(after, RATE_HZ) == pytest.approx(lufs, abs=0.5)
    assert true_peak_dbtp(after) <= -0.8


def test_beyond_what_peaks_allow_it_is_as_loud_as_can_be() -> None:
    after = finished(speech("clip_en_1.flac"), RATE_HZ, SpeakingParameters(loudness_lufs=-5.0))
    assert true_peak_dbtp(after) <= -0.8
    assert integrated_lufs(after, RATE_HZ) > -9.5


def test_both_at_once() -> None:
    before = speech("clip_en_2.flac")
    after = finished(before, RATE_HZ, SpeakingParameters(pitch_shift=-3, loudness_lufs=-18.0))
    assert after.shape == before.shape
    assert moved_cents(before, after) == pytest.approx(-300, abs=20)
    assert integrated_lufs(after, RATE_HZ) == pytest.approx(-18.0, abs=0.5)


def test_a_stream_comes_near_the_loudness_and_moves_slowly() -> None:
    loud = speech("heldout_en.flac", 10)
    before = np.concatenate([loud, loud * np.float32(0.6), loud * np.float32(0.6)])
    parameters = SpeakingParameters(loudness_lufs=-20.0)
    pieces = streamed(before, parameters, [2 * RATE_HZ])
    after = np.concatenate(pieces)
    assert after.shape == before.shape
    assert len(pieces[0]) > 1.9 * RATE_HZ, "the first piece goes out at once"
    assert integrated_lufs(after, RATE_HZ) == pytest.approx(-20.0, abs=2.0)
    assert true_peak_dbtp(after) <= -0.8
    heard = np.abs(before) > 0.01
    gain_db = 20 * np.log10(np.abs(after[heard]) / np.abs(before[heard]))
    seconds = np.flatnonzero(heard) / RATE_HZ
    knots = [np.median(gain_db[(seconds >= at) & (seconds < at + 1)]) for at in range(29)]
    assert np.abs(np.diff(knots)).max() <= 0.55


@pytest.mark.parametrize(
    "parameters",
    [
        SpeakingParameters(),
        SpeakingParameters(pitch_shift=5),
        SpeakingParameters(loudness_lufs=-16.0),
        SpeakingParameters(pitch_shift=-5, loudness_lufs=-16.0),
    ],
)
@pytest.mark.parametrize("length", [0, 1, 23, 100, 599, 1201, 24_000])
def test_silence_and_scraps_do_not_fail(parameters: SpeakingParameters, length: int) -> None:
    for before in (np.zeros(length, np.float32), speech("clip_en_1.flac", 2)[12_000 : 12_000 + length]):
        after = finished(before, RATE_HZ, parameters)
        assert after.shape == before.shape
        assert np.isfinite(after).all()
        assert sum(map(len, streamed(before, parameters, [77]))) == length
    silence = finished(np.zeros(length, np.float32), RATE_HZ, parameters)
    assert not silence.any()


def test_a_stream_that_begins_with_silence_is_made_loud_once_it_speaks() -> None:
    before = np.concatenate([np.zeros(RATE_HZ, np.float32), speech("clip_en_1.flac")])
    after = np.concatenate(streamed(before, SpeakingParameters(loudness_lufs=-16.0), [RATE_HZ]))
    assert not after[: RATE_HZ // 2].any()
    assert integrated_lufs(after, RATE_HZ) == pytest.approx(-16.0, abs=1.5)


def test_what_is_hardly_there_is_not_blown_up() -> None:
    hiss = (8e-4 * np.random.default_rng(1).standard_normal(RATE_HZ)).astype(np.float32)
    assert SILENCE_LUFS < integrated_lufs(hiss, RATE_HZ) < -58
    after = finished(hiss, RATE_HZ, SpeakingParameters(loudness_lufs=-16.0))
    assert integrated_lufs(after, RATE_HZ) - integrated_lufs(hiss, RATE_HZ) == pytest.approx(40, abs=0.2)


def test_nothing_asked_changes_nothing() -> None:
    before = speech("clip_en_1.flac", 1)
    assert finished(before, RATE_HZ, SpeakingParameters()) is before
    assert Finisher(RATE_HZ, SpeakingParameters()).push(before, False) is before


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(0, 6000),
    gain_db=st.floats(-40, 40),
    sizes=st.lists(st.integers(1, 2500), min_size=1, max_size=5),
    rate_hz=st.sampled_from([8000, 24_000, 48_000]),
)
def test_a_limiter_holds_its_ceiling_however_it_is_fed(
    seed: int, length: int, gain_db: float, sizes: list[int], rate_hz: int
) -> None:
    rng = np.random.default_rng(seed)
    samples = (10 ** (gain_db / 20) * rng.standard_normal(length) * rng.random(length)).astype(np.float32)
    whole = TruePeakLimiter(rate_hz).push(samples, last=True)
    limiter, pieces, at, turn = TruePeakLimiter(rate_hz), [], 0, 0
    while at < length:
        size = sizes[turn % len(sizes)]
        pieces.append(limiter.push(samples[at : at + size]))
        at, turn = at + size, turn + 1
    pieces.append(limiter.push(np.zeros(0, np.float32), last=True))
    after = np.concatenate(pieces)
    assert after.shape == whole.shape == samples.shape
    np.testing.assert_allclose(after, whole, atol=1e-6)
    assert true_peak_dbtp(whole) <= -0.8
    assert (np.abs(whole) <= np.abs(samples) + 1e-7).all()
    if true_peak_dbtp(samples) < -1.2:
        np.testing.assert_array_equal(whole, samples)


def test_threads_of_a_replica_do_not_disturb_each_other() -> None:
    parameters = SpeakingParameters(pitch_shift=3, loudness_lufs=-18.0)
    clips = [speech(name, 3) for name in ("clip_en_1.flac", "clip_fr.flac", "clip_ru.flac", "clip_es.flac")]
    alone = [finished(clip, RATE_HZ, parameters) for clip in clips]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda clip: finished(clip, RATE_HZ, parameters), clips * 3))
    for index, found in enumerate(together):
        np.testing.assert_array_equal(found, alone[index % 4])
