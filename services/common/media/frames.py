"""Decoded frames into float32 planes, and the room in which they are put together."""

from __future__ import annotations

import math

import numpy as np
from av.audio.frame import AudioFrame
from numpy.typing import NDArray

from services.common.media import refusals

Samples = NDArray[np.float32]

_LOUDEST = 16.0
"""+24 dBFS: no mix peaks there, but integers stored as floats do."""
_SCALES = {"u8": 128.0, "s16": 32768.0, "s32": 2147483648.0}


def planes(frame: AudioFrame, channels: int) -> Samples:
    """A frame as float32 [channels, samples], full scale ±1."""
    name = frame.format.name
    kind = name.removesuffix("p")
    raw = frame.to_ndarray()
    if not frame.format.is_planar:
        raw = raw.reshape(-1, channels).T
    if kind in ("flt", "dbl"):
        # A double beyond float32 becomes inf here, which the check for numbers then refuses.
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(raw, dtype=np.float32)
    if kind not in _SCALES:
        raise refusals.invalid_format(f"its samples are stored as {name}, which is not taken")
    offset = 128.0 if kind == "u8" else 0.0
    return ((raw.astype(np.float64) - offset) / _SCALES[kind]).astype(np.float32)


def check_numbers(block: Samples) -> None:
    """Refuse NaN, infinities and integers that were stored as floats (INVALID_FORMAT)."""
    if block.size == 0:
        return
    low, high = float(block.min()), float(block.max())
    # min and max pass NaN on, so two reductions find it.
    if not (math.isfinite(low) and math.isfinite(high)):
        raise refusals.invalid_format("it holds samples that are not numbers (NaN or infinite)")
    if max(-low, high) > _LOUDEST:
        raise refusals.invalid_format(
            f"its samples reach {max(-low, high):.0f} times full scale: "
            "floating-point samples must lie between -1 and 1"
        )


_MOST_RESERVED = 1 << 28
"""1 GiB of float32: a header may claim more, and gets it only as samples arrive."""


class Tape:
    """Samples that arrive block by block, put where they stay.

    With the header's length known the room is reserved once (and the system commits it as it fills), so
    that the peak is one copy of the audio; joining a list of blocks would need two.
    """

    def __init__(self, width: int, expected: int) -> None:
        room = min(max(expected, 1 << 16), _MOST_RESERVED // width)
        self._room = np.empty((width, room), dtype=np.float32)
        self.length = 0

    def append(self, block: Samples) -> None:
        """Add [width, samples]."""
        end = self.length + block.shape[1]
        if end > self._room.shape[1]:
            larger = np.empty((self._room.shape[0], max(end, self._room.shape[1] * 3 // 2)), np.float32)
            larger[:, : self.length] = self._room[:, : self.length]
            self._room = larger
        self._room[:, self.length : end] = block
        self.length = end

    def upto(self, length: int) -> Samples:
        """The first samples, [width, length], without a copy."""
        if length == 0:
            raise refusals.empty("it decodes to no samples")
        return self._room[:, :length]
