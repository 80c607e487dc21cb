"""Clipping and offset: what a recording's converter did wrong."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]

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
