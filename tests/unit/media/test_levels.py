from __future__ import annotations

import numpy as np
import pytest

from services.common.media.levels import SILENCE_DBFS, peak_dbfs, rms_dbfs, wave_peaks
from services.common.media.resample import resample


def sine(level: float) -> np.ndarray:
    return (level * np.sin(2 * np.pi * 1000 * np.arange(48_000) / 48_000)).astype(np.float32)


def test_levels_of_a_sine() -> None:
    assert peak_dbfs(sine(1.0)) == pytest.approx(0.0, abs=0.01)
    assert peak_dbfs(sine(0.1)) == pytest.approx(-20.0, abs=0.01)
    assert peak_dbfs(-np.abs(sine(0.5))) == pytest.approx(-6.02, abs=0.01)
    assert rms_dbfs(sine(1.0)) == pytest.approx(-3.01, abs=0.01)
    assert rms_dbfs(np.stack([sine(1.0), 0 * sine(1.0)])) == pytest.approx(-6.02, abs=0.01)


@pytest.mark.parametrize("shape", [(0,), (2, 0), (100,), (2, 100)])
def test_silence_and_nothing_are_finite(shape: tuple[int, ...]) -> None:
    samples = np.zeros(shape, np.float32)
    assert (peak_dbfs(samples), rms_dbfs(samples)) == (SILENCE_DBFS, SILENCE_DBFS)


def test_outline_holds_the_extremes_of_each_stretch() -> None:
    samples = np.zeros(1000, np.float32)
    samples[250] = 0.8
    samples[999] = -0.4
    outline = wave_peaks(samples, 10)
    assert outline.shape == (10, 2)
    assert outline[2].tolist() == pytest.approx([0.0, 0.8])
    assert outline[9].tolist() == pytest.approx([-0.4, 0.0])
    assert not outline[[0, 1, 3, 4, 5, 6, 7, 8]].any()


def test_outline_of_channels_and_of_very_little() -> None:
    assert wave_peaks(np.array([[0.1, 0.2], [-0.3, 0.0]], np.float32), 1).tolist() == [
        pytest.approx([-0.3, 0.2])
    ]
    assert wave_peaks(np.array([0.5], np.float32), 4).tolist() == [[0.5, 0.5]] * 4
    assert wave_peaks(np.zeros(0, np.float32), 3).tolist() == [[0.0, 0.0]] * 3
    with pytest.raises(ValueError):
        wave_peaks(np.zeros(5, np.float32), 0)


def test_resampling_keeps_the_tone_and_drops_what_no_longer_fits() -> None:
    both = sine(0.5) + (0.5 * np.sin(2 * np.pi * 12_000 * np.arange(48_000) / 48_000)).astype(np.float32)
    down = resample(both, 48_000, 16_000)
    assert down.shape == (16_000,)
    want = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(down[1000:-1000], want[1000:-1000], atol=1e-3)
    stereo = resample(np.stack([both, both]), 48_000, 16_000)
    assert stereo.shape == (2, 16_000)
    with pytest.raises(ValueError):
        resample(both, 48_000, 0)
