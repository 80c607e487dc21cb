"""Where nothing is heard: 40 dB below the loudest 10 ms, and below −60 dBFS in any case.

Silence is judged against the recording's own loudness, so that a quiet recording is not all silence.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FRAME_S = 0.01
SILENT_DBFS = -60.0
_BELOW_LOUDEST_DB = 40.0


def frame_levels(mono: NDArray[np.float32], rate_hz: int) -> NDArray[np.float64]:
    """The level of every whole 10 ms, in dBFS.

    Args:
        mono: [samples].
        rate_hz: theirs.
    """
    frame = round(FRAME_S * rate_hz)
    whole = mono[: len(mono) // frame * frame].reshape(-1, frame)
    power = np.mean(np.square(whole, dtype=np.float64), axis=1)
    decibels: NDArray[np.float64] = 10 * np.log10(np.maximum(power, 1e-12))
    return decibels


def audible(levels: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Of ``frame_levels``: which frames are not silence."""
    below = max(SILENT_DBFS, float(levels.max()) - _BELOW_LOUDEST_DB) if levels.size else SILENT_DBFS
    return levels >= below


def silent_runs(heard: NDArray[np.bool_], shortest_s: float) -> list[tuple[int, int]]:
    """(first, one past the last) frame of each silence of at least ``shortest_s``, in order.

    Args:
        heard: as ``audible`` says.
        shortest_s: shorter ones are left out.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[True], heard, [True]]).astype(np.int8)))
    runs = zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    return [(first, last) for first, last in runs if (last - first) * FRAME_S >= shortest_s]
