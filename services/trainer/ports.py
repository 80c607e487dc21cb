"""What the trainer needs of the world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from services.common.jobs.model import NodeFacts
from services.engines.bundles.manifest import Manifest
from services.trainer.stage import Snapshot, StageSpec


class RunningStage(Protocol):
    """A stage in a process of its own."""

    @property
    def node(self) -> str:
        """The node that it has its place on; empty until :meth:`ready` is over, or where nobody can tell."""

    async def ready(self) -> None:
        """Waits until it has its place and has begun. Errors: WORKER_LOST."""

    async def poll(self, acknowledged: int) -> Snapshot:
        """How far it is; checkpoints up to number ``acknowledged`` are not told again.

        Errors: WORKER_LOST where its process or its node died.
        """

    async def ask_stop(self, *, save: bool) -> None:
        """Asks it to end soon, with a checkpoint first where ``save``. Errors: WORKER_LOST."""

    async def end(self) -> None:
        """Ends its process and every child of that, whatever it does, and waits until it is gone."""


class Backend(Protocol):
    """Where stages run."""

    async def start(self, spec: StageSpec, nodes: frozenset[str]) -> RunningStage:
        """Begins a process for a stage, with GPUs for TRAIN alone; returns before it is placed.

        Args:
            spec: the stage.
            nodes: where it may be placed, by name.

        Errors: WORKER_LOST where none of them is there any more.
        """

    async def nodes(self) -> tuple[NodeFacts, ...]:
        """The nodes it sees. Errors: WORKER_LOST."""


class WorkFiles(Protocol):
    """The files of a job's attempts in the artefact store."""

    async def find(self, team: str, job_id: str, name: str) -> bytes | None:
        """A small file of that name of whichever attempt, the newest first; None where there is none."""

    async def delete(self, keys: Sequence[str]) -> None:
        """Deletes what is no longer needed; a failure is logged, not raised."""


class Bundles(Protocol):
    """The weights that the store has."""

    async def contentvec(self) -> Manifest | None:
        """The stored ContentVec bundle, or None."""
