"""What a demo leaves: one record a step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Step:
    """One step: what it made, with which weights, and how good that measures."""

    name: str
    title: str
    ok: bool = False
    seconds: float = 0.0
    artifact: str = ""
    weights: str = ""
    measures: dict[str, float | str] = field(default_factory=dict)
    error: str = ""
    files: list[str] = field(default_factory=list)
    """Audio files beside the report, in the order in which to hear them."""
    curve: list[tuple[int, Mapping[str, float]]] = field(default_factory=list)


@dataclass(slots=True)
class Record:
    """The whole demo."""

    version: str
    notes: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every step went well."""
        return bool(self.steps) and all(step.ok for step in self.steps)

    def save(self, path: Path) -> None:
        """Writes ``report.json``."""
        path.write_text(json.dumps({"ok": self.ok, **asdict(self)}, indent=1))
