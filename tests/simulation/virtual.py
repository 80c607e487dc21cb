"""An event loop whose clock jumps to what is due next: nothing sleeps, and each run is like the other."""

from __future__ import annotations

import asyncio
from typing import Any


class StuckError(Exception):
    """Nothing is due any more, or no time passes, and what was waited for has not come."""


_MOST_AT_ONCE = 200_000


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs what asyncio runs, in the same order each time; ``time()`` is in seconds from 0."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        self._turns = 0
        # The base class asks its selector to wait; no file is ever waited for here.
        self._selector = self

    def time(self) -> float:
        """Seconds since the beginning of this world."""
        return self._now_s

    def select(self, timeout_s: float | None) -> tuple[()]:
        """Lets the time pass that there is nothing to do."""
        if timeout_s is None:
            raise StuckError("nothing is due any more")
        self._turns = 0 if timeout_s > 0 else self._turns + 1
        if self._turns > _MOST_AT_ONCE:
            raise StuckError(f"no time passes at {self._now_s:.3f} s")
        self._now_s += timeout_s
        return ()

    def _process_events(self, _: Any) -> None:
        pass

    def _write_to_self(self) -> None:
        pass
