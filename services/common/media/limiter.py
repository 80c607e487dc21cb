"""Keeps the waveform under a true peak, by turning it down around what would pass it."""

from __future__ import annotations

import numpy as np
import scipy.signal
from numpy.typing import NDArray

from services.common.media.loudness import PHASES, REACH, interpolator

Samples = NDArray[np.float32]
Gains = NDArray[np.float64]

_BLOCK_S = 0.001
_AHEAD = 5
"""Blocks before a peak in which the gain glides down to what it allows: steps would click."""
RELEASE_S = 0.06
_MARGIN_DB = 0.05
"""A gain that moves bends the waveform between the samples a little."""


class TruePeakLimiter:
    """A limiter that looks ahead; blocks in, as many samples out, end to end.

    Args:
        rate_hz: of the samples.
        ceiling_dbtp: what the true peak (BS.1770-4, annex 2) is to stay under.
        release_s: in which it lets go of a peak; the shorter, the louder and the rougher.
    """

    def __init__(self, rate_hz: int, ceiling_dbtp: float = -1.0, release_s: float = RELEASE_S) -> None:
        self._ceiling = 10.0 ** ((ceiling_dbtp - _MARGIN_DB) / 20.0)
        self._block = max(1, round(_BLOCK_S * rate_hz))
        self._recover = 1.0 - float(np.exp(-_BLOCK_S / release_s))
        self._taps = interpolator()
        # Samples already looked at stay in front, as many as the interpolator reaches over.
        self._seen = np.zeros(REACH, np.float32)
        self._new = np.zeros(0, np.float32)
        self._waiting = np.zeros(0, np.float32)
        # One gain a block, of the blocks that wait and of those before them that smoothing still needs.
        self._gains: Gains = np.ones(_AHEAD + 1)
        self._gain = 1.0

    def push(self, samples: Samples, *, last: bool = False) -> Samples:
        """Takes [samples] and returns what is ready; all the rest where they are the last."""
        self._new = np.concatenate([self._new, samples])
        self._waiting = np.concatenate([self._waiting, samples])
        self._look(last=last)
        blocks = len(self._gains) - (_AHEAD + 1)
        ready = blocks if last else blocks - (_AHEAD + 1)
        if ready <= 0:
            return np.zeros(0, np.float32)
        knots = self._knots(ready)
        count = min(ready * self._block, len(self._waiting))
        at = np.arange(count) / self._block
        gain = np.interp(at, np.arange(ready + 1), knots).astype(np.float32)
        out: Samples = self._waiting[:count] * gain
        self._waiting = self._waiting[count:]
        self._gains = self._gains[ready:]
        return out

    def _look(self, *, last: bool) -> None:
        """Finds what each block that is whole, with all that the interpolator sees of it, allows."""
        usable = len(self._new) if last else max(0, len(self._new) - REACH)
        blocks = -(-usable // self._block) if last else usable // self._block
        if blocks == 0:
            return
        length = blocks * self._block
        window = np.concatenate([self._seen, self._new])[: REACH + length + REACH]
        window = np.pad(window, (0, REACH + length + REACH - len(window)))
        between = np.abs(scipy.signal.upfirdn(self._taps, window.astype(np.float64), up=PHASES))
        # The filter delays by REACH samples, and REACH of context stand in front.
        start = 2 * REACH * PHASES
        peaks = between[start : start + length * PHASES].reshape(blocks, -1).max(axis=1)
        np.maximum(peaks, np.abs(window[REACH : REACH + length]).reshape(blocks, -1).max(axis=1), out=peaks)
        allowed = self._ceiling / np.maximum(peaks, self._ceiling)
        self._gains = np.concatenate([self._gains, self._released(allowed)])
        taken = min(length, len(self._new))
        self._seen = window[taken : taken + REACH]
        self._new = self._new[taken:]

    def _released(self, allowed: Gains) -> Gains:
        """Down at once, up slowly."""
        if self._gain > 1.0 - 1e-6 and float(allowed.min()) >= 1.0:
            return allowed
        found = np.empty_like(allowed)
        gain = self._gain
        for index, most in enumerate(allowed.tolist()):
            gain = min(most, gain + (1.0 - gain) * self._recover)
            found[index] = gain
        self._gain = gain
        return found

    def _knots(self, ready: int) -> Gains:
        """The gain at the edges of the blocks that are ready: never above what either side allows."""
        padded = np.concatenate([self._gains, np.ones(2 * _AHEAD + 2)])
        least = np.lib.stride_tricks.sliding_window_view(padded, _AHEAD + 1).min(axis=1)
        # Each mean is over minima that all include the block itself, so it allows no more than that.
        smooth = np.convolve(least, np.full(_AHEAD + 1, 1 / (_AHEAD + 1)), mode="valid")
        edges: Gains = np.minimum(smooth[:-1], smooth[1:])[: ready + 1]
        return edges
