"""Change of sample rate, through soxr."""

from __future__ import annotations

import numpy as np
import soxr
from numpy.typing import NDArray


def resample(samples: NDArray[np.float32], from_hz: int, to_hz: int) -> NDArray[np.float32]:
    """Resample the last axis, at soxr's high quality (delay compensated, no phase shift).

    Args:
        samples: float32, shape [samples] or [channels, samples].
        from_hz: rate of the samples given.
        to_hz: rate wanted.

    Returns:
        float32 of the same number of axes, ``round(n * to_hz / from_hz)`` samples long, give or take one.
    """
    if from_hz <= 0 or to_hz <= 0:
        raise ValueError(f"rates are positive: from {from_hz} Hz to {to_hz} Hz")
    if from_hz == to_hz or samples.shape[-1] == 0:
        return samples.astype(np.float32, copy=False)
    # soxr wants time first.
    out = soxr.resample(np.ascontiguousarray(samples.T), from_hz, to_hz, quality="HQ")
    return np.ascontiguousarray(out.T, dtype=np.float32)


class StreamResampler:
    """The same, block by block, so that a long file is never held twice.

    Args:
        channels: channels of every block.
        from_hz: rate of the blocks given.
        to_hz: rate wanted.
    """

    def __init__(self, channels: int, from_hz: int, to_hz: int) -> None:
        self._stream = soxr.ResampleStream(from_hz, to_hz, channels, dtype="float32", quality="HQ")
        self._channels = channels

    def __call__(self, block: NDArray[np.float32], *, last: bool = False) -> NDArray[np.float32]:
        """Feed [channels, samples]; returns what is ready, [channels, fewer or more samples]."""
        out = self._stream.resample_chunk(np.ascontiguousarray(block.T), last=last)
        return np.ascontiguousarray(out.reshape(-1, self._channels).T)
