"""What a replica says of itself when it is asked whether it is there."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from services.inference.health import Vitals

_STATM = Path("/proc/self/statm")


def own_vitals() -> Vitals:
    """How much memory this process holds; see :class:`Vitals`."""
    _, resident, shared = (int(pages) for pages in _STATM.read_text(encoding="ascii").split()[:3])
    return Vitals(max(resident - shared, 0) * os.sysconf("SC_PAGE_SIZE"), _gpu_bytes())


def _gpu_bytes() -> int:
    if "torch" not in sys.modules:
        # An engine without it is not made to load it.
        return 0
    from services.engines.device import held_bytes

    return held_bytes()
