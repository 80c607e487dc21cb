"""At which times the flow is evaluated: the presets, the pruned step tables and sway sampling.

Sources: "Accelerating Flow-Matching-Based Text-to-Speech via Empirically Pruned Step Sampling" (Zheng
et al., 2025) for the tables, "F5-TTS" (Chen et al., 2024), section 3.3, for sway sampling;
``f5_tts/model/utils.py`` and ``cfm.py`` apply the two in this order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

"""Steps for each named quality. 7 steps cost about a quarter of 32."""

MAX_STEPS = 64
SWAY = -1.0

# In 32nds of the way from noise to speech: dense at first, where the flow bends.
_PRUNED: Mapping[int, tuple[int, ...]] = MappingProxyType(
    {
        5: (0, 2, 4, 8, 16, 32),
        6: (0, 2, 4, 6, 8, 16, 32),
        7: (0, 2, 4, 6, 8, 16, 24, 32),
        10: (0, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32),
        12: (0, 2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32),
        16: (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32),
    }
)


def times(steps: int, *, sway: float = SWAY) -> tuple[float, ...]:
    """The ``steps + 1`` times, from 0 (noise) to 1 (speech), in rising order.

    A number of steps without a pruned table is spaced evenly before the sway.
    """
    pruned = _PRUNED.get(steps)
    even = [index / steps for index in range(steps + 1)] if pruned is None else [at / 32 for at in pruned]
    return tuple(t + sway * (math.cos(math.pi / 2 * t) - 1 + t) for t in even)
