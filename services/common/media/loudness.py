"""Loudness and true peak (ITU-R BS.1770-4), in bounded memory however long the audio is."""

from __future__ import annotations

import math

import numpy as np
import scipy.signal
from numpy.typing import NDArray
from pyloudnorm.iirfilter import IIRfilter

from services.common.media.levels import decibels

Samples = NDArray[np.float32]

SILENCE_LUFS = -70.0
"""The absolute gate of BS.1770: nothing quieter has a loudness."""

_STEP_S = 0.1
_STEPS_PER_GATE = 4
_CHUNK_S = 10


class LoudnessMeter:
    """Gated loudness of audio that arrives block by block.

    The K-weighting is pyloudnorm's (its "DeMan" coefficients, which are the standard's at every rate);
    the gating is here, because pyloudnorm holds several double-precision copies of the whole file.

    Args:
        rate_hz: of the samples.
        channels: channels of every block; those beyond two count as front ones.
    """

    def __init__(self, rate_hz: int, channels: int = 1) -> None:
        self._step = round(_STEP_S * rate_hz)
        self._sections = _k_weighting(rate_hz)
        self._state = np.zeros((self._sections.shape[0], channels, 2))
        self._powers: list[NDArray[np.float64]] = []
        self._rest = np.zeros(0)
        self._total = 0.0
        self._samples = 0

    def add(self, planes: Samples) -> None:
        """Hears [channels, samples]."""
        chunk = self._step * round(_CHUNK_S / _STEP_S)
        for start in range(0, planes.shape[1], chunk):
            block = planes[:, start : start + chunk].astype(np.float64)
            weighted, self._state = scipy.signal.sosfilt(self._sections, block, axis=1, zi=self._state)
            squares = np.square(weighted).sum(axis=0)
            self._total += float(squares.sum())
            self._samples += squares.size
            squares = np.concatenate([self._rest, squares])
            whole = squares.size // self._step * self._step
            self._powers.append(squares[:whole].reshape(-1, self._step).mean(axis=1))
            self._rest = squares[whole:]

    @property
    def lufs(self) -> float:
        """Loudness of all that was heard; see :func:`integrated_lufs`."""
        powers = np.concatenate(self._powers) if self._powers else np.zeros(0)
        if powers.size < _STEPS_PER_GATE:
            return max(SILENCE_LUFS, _lufs(self._total / max(1, self._samples)))
        # Blocks of 400 ms every 100 ms are means of four neighbouring steps.
        blocks = np.convolve(powers, np.full(_STEPS_PER_GATE, 1 / _STEPS_PER_GATE), mode="valid")
        loud = blocks[blocks > _power(SILENCE_LUFS)]
        if loud.size == 0:
            return SILENCE_LUFS
        gate = max(_power(SILENCE_LUFS), float(loud.mean()) / 10.0)
        return _lufs(float(loud[loud > gate].mean()))


def integrated_lufs(samples: Samples, rate_hz: int) -> float:
    """Gated loudness after ITU-R BS.1770-4.

    Args:
        samples: [channels, samples], or [samples] for mono; channels beyond two count as front ones.
        rate_hz: their rate.

    Returns:
        LUFS; ``SILENCE_LUFS`` where every block is under the gate. A clip under 0.4 s, too short for one
        gating block, is measured ungated as a whole.
    """
    planes = np.atleast_2d(samples)
    meter = LoudnessMeter(rate_hz, planes.shape[0])
    meter.add(planes)
    return meter.lufs


def _k_weighting(rate_hz: int) -> NDArray[np.float64]:
    # Parameters from pyloudnorm's meter.py ("DeMan"), after BS.1770-4, annex 1, tables 1 and 2.
    shelf = IIRfilter(3.99984385397, 0.7071752369554193, 1681.9744509555319, rate_hz, "high_shelf_DeMan")
    high_pass = IIRfilter(0.0, 0.5003270373253953, 38.13547087613982, rate_hz, "high_pass_DeMan")
    return np.array([[*section.b, *section.a] for section in (shelf, high_pass)], dtype=np.float64)


def _lufs(power: float) -> float:
    return -0.691 + 10.0 * math.log10(power) if power > 0 else SILENCE_LUFS


def _power(lufs: float) -> float:
    return float(10.0 ** ((lufs + 0.691) / 10.0))


PHASES = 4
"""Points a sample at which the waveform is looked at."""
REACH = 12
"""Input samples on either side that the interpolator sees."""
_WINDOW = 4096


def interpolator() -> NDArray[np.float64]:
    """The low-pass filter that finds the waveform between the samples (BS.1770-4, annex 2)."""
    taps = scipy.signal.firwin(2 * REACH * PHASES + 1, 1 / PHASES, window=("kaiser", 6.0)) * PHASES
    return np.asarray(taps, dtype=np.float64)


def true_peak_dbtp(samples: Samples) -> float:
    """The peak of the waveform between the samples, by four-fold oversampling (BS.1770-4, annex 2).

    Only windows that could hold the answer are interpolated: a window whose samples stay under the best
    value so far, divided by the interpolator's worst gain, cannot pass it.

    Args:
        samples: [channels, samples] or [samples].

    Returns:
        dB relative to full scale, never under the sample peak; a full-scale sine reads 0.
    """
    taps = interpolator()
    worst_gain = float(max(np.abs(taps[phase::PHASES]).sum() for phase in range(PHASES)))
    planes = np.atleast_2d(samples)
    best = 0.0
    for plane in planes:
        starts = np.arange(0, plane.size, _WINDOW)
        if starts.size == 0:
            continue
        peaks = np.maximum(np.maximum.reduceat(plane, starts), -np.minimum.reduceat(plane, starts))
        best = max(best, float(peaks.max()))
        for index in np.argsort(peaks)[::-1]:
            start = int(starts[index])
            reach = plane[max(0, start - REACH) : start + _WINDOW + REACH]
            if float(np.abs(reach).max()) * worst_gain <= best:
                # Neighbours may be louder than the window itself, so the rest is not yet done with.
                if float(peaks[index]) * worst_gain * worst_gain <= best:
                    break
                continue
            between = scipy.signal.upfirdn(taps, reach.astype(np.float64), up=PHASES)
            # The filter delays by its reach; what lies outside of the window was cut off, and would ring.
            first = (min(start, REACH) + REACH) * PHASES
            best = max(best, float(np.abs(between[first : first + _WINDOW * PHASES]).max()))
    return decibels(best)
