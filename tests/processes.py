"""Child processes of a test, or of what it started."""

from __future__ import annotations

from contextlib import suppress

import psutil

RANKS = "services.trainer.stages.ranks"


def children_running(module: str, parent: int | None = None) -> list[psutil.Process]:
    """Live descendants of a process (this one) that run ``python -m module``; those that ended are none."""
    found = []
    for child in psutil.Process(parent).children(recursive=True):
        # One that nobody waited for yet has no command line any more.
        with suppress(psutil.NoSuchProcess):
            if module in child.cmdline():
                found.append(child)
    return found
