"""What the division of GPUs needs of a database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from services.common.jobs.model import GpuFacts
from services.metadata.model.jobs import PriorityClass


@dataclass(frozen=True, slots=True)
class KindLoad:
    """Jobs of a kind and class that could begin, counted up to a bound; the oldest has waited so long."""

    kind: str
    priority_class: PriorityClass
    queued: int
    waited_s: float


@dataclass(frozen=True, slots=True)
class WantingTraining:
    """A training without GPUs; ``waited_s`` is since its submission."""

    job_id: str
    gpus: int
    waited_s: float


class GrantRows(Protocol):
    """What workers have of the GPUs, and what was decided."""

    async def put_worker_gpus(self, worker: str, facts: GpuFacts) -> None:
        """Keeps what a worker said; forgotten with it."""

    async def worker_gpus(self) -> list[tuple[GpuFacts, float]]:
        """What each live worker said, newest first, and how many seconds ago."""

    async def lock_division(self) -> tuple[float, Mapping[str, Any]] | None:
        """The time (s) and the memory of whoever decided last, locked; None where another process has it."""

    async def keep_division(self, memory: Mapping[str, Any]) -> None:
        """Keeps the memory of a decision."""

    async def job_loads(self, kinds: Sequence[str], full: Sequence[str]) -> list[KindLoad]:
        """What waits of these kinds, but for the teams that are at their quota."""

    async def waiting_trainings(self, known: Sequence[str], full: Sequence[str]) -> list[WantingTraining]:
        """Trainings to be claimed (not of teams at their quota), and running ones not in ``known``."""
