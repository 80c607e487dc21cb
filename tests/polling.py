"""Waiting for a condition, with a deadline and without guessing how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Return as soon as ``condition`` holds; fail the test where it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not so after {timeout_s:g} s"
        time.sleep(0.02)
