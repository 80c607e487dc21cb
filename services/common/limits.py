"""What the API takes: every limit that more than one service holds to, in one place.

A pair is the least and the most, both included.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

# ---- texts

MAX_TEXT: Final = 5_000
"""Characters that are spoken in one request, or as one item of a batch."""
MAX_WORD: Final = 64
"""Characters of a language, a style, a GPU type, a licence."""
MAX_LEXICONS: Final = 8
"""That a text is spoken with."""

# ---- speaking

PRESETS: Final[Mapping[str, int]] = MappingProxyType({"fast": 7, "balanced": 16, "quality": 32})
"""Evaluations of F5's flow; ``services.engines.f5.schedule`` says at which times."""
DEFAULT_PRESET: Final = "balanced"
MAX_SEED: Final = 2**31 - 1
STEPS: Final = (4, 64)
SPEED: Final = (0.5, 2.0)
CFG_STRENGTH: Final = (0.0, 5.0)
DURATION_S: Final = (0.0, 300.0)
PITCH_SHIFT: Final = (-12.0, 12.0)
"""Semitones."""
LOUDNESS_LUFS: Final = (-40.0, -5.0)
TRIES: Final = (1, 5)
"""Of a quality gate."""
RATE_HZ: Final = (8_000, 48_000)
"""Of what is made."""

# ---- converting

CONVERTING_ENGINES: Final = ("rvc", "f5")
CONVERSION_PITCH: Final = (-24.0, 24.0)
"""Semitones."""
INDEX_RATE: Final = (0.0, 1.0)
FILTER_RADIUS: Final = (0, 7)
RMS_MIX_RATE: Final = (0.0, 1.0)
PROTECT: Final = (0.0, 0.5)
F0_METHODS: Final = ("", "fcpe", "swift", "harvest", "dio", "pm", "crepe", "rmvpe")
MAX_RESPOKEN_S: Final = 300.0
"""Of a recording that is spoken again."""

# ---- jobs

MAX_DEPENDENCIES: Final = 100
