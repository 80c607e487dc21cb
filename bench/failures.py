"""What a benchmark raises that cannot measure: it then fails, and prints no figure."""

from __future__ import annotations


class UnmeasurableError(RuntimeError):
    """A figure that cannot be had; the text says why."""
