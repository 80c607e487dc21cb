"""Workers, nodes and queues, as plain data."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.metadata.model.jobs import PriorityClass


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker process that was heard of lately."""

    worker: str
    queue: str
    node: str
    version: str
    free: Mapping[str, int]
    nodes: tuple[Mapping[str, Any], ...]
    default_bundle: str
    running: int
    last_seen: dt.datetime


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """How many jobs of a kind and class wait and run, and for how long the oldest has waited."""

    kind: str
    priority_class: PriorityClass
    queued: int
    running: int
    oldest_wait_s: float
