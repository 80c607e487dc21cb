"""Which part of a list is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Page:
    """Which page of a list is asked for: at most ``size`` rows after the row at ``after``."""

    size: int
    after: str = ""
    filters: Mapping[str, str] = field(default_factory=dict)
    query: str = ""
    ascending: bool = False
