"""The class that RVC names to torch as safe to unpickle."""

from __future__ import annotations


class Dictionary:
    """Never made: no fairseq checkpoint is read."""
