"""Levels in decibels, and outlines for drawing."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

SILENCE_DBFS = -120.0
"""What silence reads as: below any converter's noise, and finite, so that it fits a message."""


def decibels(amplitude: float) -> float:
    """20·log10 of a linear amplitude, not below ``SILENCE_DBFS``."""
    return max(SILENCE_DBFS, 20.0 * math.log10(amplitude)) if amplitude > 0 else SILENCE_DBFS


def power_decibels(power: float) -> float:
    """10·log10 of a mean square, not below ``SILENCE_DBFS``."""
    return max(SILENCE_DBFS, 10.0 * math.log10(power)) if power > 0 else SILENCE_DBFS


def peak_dbfs(samples: NDArray[np.float32]) -> float:
    """The largest absolute sample; a full-scale sine reads 0."""
    if samples.size == 0:
        return SILENCE_DBFS
    # Two reductions, no temporary as long as the file.
    return decibels(max(float(samples.max()), -float(samples.min())))


def rms_dbfs(samples: NDArray[np.float32]) -> float:
    """The root mean square of all channels together; a full-scale sine reads -3.01."""
    if samples.size == 0:
        return SILENCE_DBFS
    return power_decibels(mean_square(samples))


def mean_square(samples: NDArray[np.float32]) -> float:
    """The mean square, accumulated in double precision block by block."""
    if samples.size == 0:
        return 0.0
    total = 0.0
    for plane in np.atleast_2d(samples):
        for start in range(0, plane.size, 1 << 20):
            block = plane[start : start + (1 << 20)].astype(np.float64)
            total += float(np.dot(block, block))
    return total / samples.size


def wave_peaks(samples: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """The outline of a waveform: the least and greatest sample in each of ``count`` equal stretches.

    Args:
        samples: [samples] or [channels, samples]; channels share one outline.
        count: how many stretches, at least 1.

    Returns:
        float32, shape [count, 2]: (least, greatest). Stretches shorter than a sample repeat it.
    """
    if count < 1:
        raise ValueError(f"an outline has at least one stretch, not {count}")
    planes = np.atleast_2d(samples)
    length = planes.shape[-1]
    if length == 0:
        return np.zeros((count, 2), dtype=np.float32)
    low = planes.min(axis=0)
    high = planes.max(axis=0)
    starts = np.minimum(np.arange(count, dtype=np.int64) * length // count, length - 1)
    # reduceat gives x[i] itself where the next start is not larger: just the repeat wanted here.
    return np.stack([np.minimum.reduceat(low, starts), np.maximum.reduceat(high, starts)], axis=1)
