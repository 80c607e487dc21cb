"""Loudness, true peak, clipping and offset, in bounded memory however long the file is."""

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


def integrated_lufs(samples: Samples, rate_hz: int) -> float:
    """Gated loudness after ITU-R BS.1770-4.

    The K-weighting is pyloudnorm's (its "DeMan" coefficients, which are the standard's at every rate);
    the gating is here, because pyloudnorm holds several double-precision copies of the whole file.

    Args:
        samples: [channels, samples], or [samples] for mono; channels beyond two count as front ones.
        rate_hz: their rate.

    Returns:
        LUFS; ``SILENCE_LUFS`` where every block is under the gate. A clip under 0.4 s, too short for one
        gating block, is measured ungated as a whole.
    """
    planes = np.atleast_2d(samples)
    step = round(_STEP_S * rate_hz)
    powers, whole = _weighted_powers(planes, rate_hz, step)
    if powers.size < _STEPS_PER_GATE:
        return max(SILENCE_LUFS, _lufs(whole))
    # Blocks of 400 ms every 100 ms are means of four neighbouring steps.
    blocks = np.convolve(powers, np.full(_STEPS_PER_GATE, 1 / _STEPS_PER_GATE), mode="valid")
    loud = blocks[blocks > _power(SILENCE_LUFS)]
    if loud.size == 0:
        return SILENCE_LUFS
    gate = max(_power(SILENCE_LUFS), float(loud.mean()) / 10.0)
    return _lufs(float(loud[loud > gate].mean()))


def _weighted_powers(planes: Samples, rate_hz: int, step: int) -> tuple[NDArray[np.float64], float]:
    """Mean squares after K-weighting, channels summed: of each whole 100 ms, and of everything."""
    sections = _k_weighting(rate_hz)
    state = np.zeros((sections.shape[0], planes.shape[0], 2))
    powers: list[NDArray[np.float64]] = []
    total = 0.0
    chunk = step * round(_CHUNK_S / _STEP_S)
    for start in range(0, planes.shape[1], chunk):
        block = planes[:, start : start + chunk].astype(np.float64)
        weighted, state = scipy.signal.sosfilt(sections, block, axis=1, zi=state)
        squares = np.square(weighted).sum(axis=0)
        total += float(squares.sum())
        whole = squares.size // step * step
        powers.append(squares[:whole].reshape(-1, step).mean(axis=1))
    joined = np.concatenate(powers) if powers else np.zeros(0)
    return joined, total / max(1, planes.shape[1])


def _k_weighting(rate_hz: int) -> NDArray[np.float64]:
    # Parameters from pyloudnorm's meter.py ("DeMan"), after BS.1770-4, annex 1, tables 1 and 2.
    shelf = IIRfilter(3.99984385397, 0.7071752369554193, 1681.9744509555319, rate_hz, "high_shelf_DeMan")
    high_pass = IIRfilter(0.0, 0.5003270373253953, 38.13547087613982, rate_hz, "high_pass_DeMan")
    return np.array([[*section.b, *section.a] for section in (shelf, high_pass)], dtype=np.float64)


def _lufs(power: float) -> float:
    return -0.691 + 10.0 * math.log10(power) if power > 0 else SILENCE_LUFS


def _power(lufs: float) -> float:
    return float(10.0 ** ((lufs + 0.691) / 10.0))


_PHASES = 4
_REACH = 12
"""Input samples on either side that the interpolator sees."""
_WINDOW = 4096


def true_peak_dbtp(samples: Samples) -> float:
    """The peak of the waveform between the samples, by four-fold oversampling (BS.1770-4, annex 2).

    Only windows that could hold the answer are interpolated: a window whose samples stay under the best
    value so far, divided by the interpolator's worst gain, cannot pass it.

    Args:
        samples: [channels, samples] or [samples].

    Returns:
        dB relative to full scale, never under the sample peak; a full-scale sine reads 0.
    """
    taps = scipy.signal.firwin(2 * _REACH * _PHASES + 1, 1 / _PHASES, window=("kaiser", 6.0)) * _PHASES
    worst_gain = float(max(np.abs(taps[phase::_PHASES]).sum() for phase in range(_PHASES)))
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
            reach = plane[max(0, start - _REACH) : start + _WINDOW + _REACH]
            if float(np.abs(reach).max()) * worst_gain <= best:
                # Neighbours may be louder than the window itself, so the rest is not yet done with.
                if float(peaks[index]) * worst_gain * worst_gain <= best:
                    break
                continue
            between = scipy.signal.upfirdn(taps, reach.astype(np.float64), up=_PHASES)
            best = max(best, float(np.abs(between).max()))
    return decibels(best)


_FULL_SCALE = 0.999
_STEP_16_BIT = 2.0**-15


def clipping_ratio(samples: Samples) -> float:
    """Share of samples that were cut off: runs at full scale, or flat tops at a lower ceiling.

    Runs of three at full scale count; below it (a recording clipped first and turned down later) five
    within one 16-bit step, at the file's own extreme. Each polarity has its ceiling, as an offset moves them
    apart.

    Args:
        samples: [channels, samples] or [samples].

    Returns:
        0..1 of all samples.
    """
    planes = np.atleast_2d(samples)
    if planes.size == 0:
        return 0.0
    cut = sum(_flat_samples(sign, plane) for plane in planes for sign in (1, -1))
    return cut / planes.size


def _flat_samples(sign: int, plane: Samples) -> int:
    ceiling = float(plane.max()) if sign > 0 else -float(plane.min())
    # The top of silence is flat, and means nothing.
    if ceiling < 0.01:
        return 0
    least_run = 3 if ceiling >= _FULL_SCALE else 5
    threshold = _FULL_SCALE if ceiling >= _FULL_SCALE else ceiling - _STEP_16_BIT
    at_top = plane >= threshold if sign > 0 else plane <= -threshold
    edges = np.flatnonzero(np.diff(at_top, prepend=False, append=False))
    lengths = edges[1::2] - edges[::2]
    runs = lengths[lengths >= least_run]
    # A square-topped synthetic tone aside, one run below full scale is chance.
    if ceiling < _FULL_SCALE and runs.size < 3:
        return 0
    return int(runs.sum())


def dc_offset(samples: Samples) -> float:
    """The largest mean of any channel, signed as that channel's is; 0.01 is 1 % of full scale."""
    planes = np.atleast_2d(samples)
    if planes.shape[1] == 0:
        return 0.0
    means = planes.mean(axis=1, dtype=np.float64)
    return float(means[np.argmax(np.abs(means))])
