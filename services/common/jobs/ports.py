"""What the worker loop needs of the ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from services.common.errors import VoxfleetError
from services.common.jobs.model import Capacity, Checkpoint, Fence, Message, Outcome, Progress


class WorkStream(Protocol):
    """One open work channel. Its methods raise SERVICE_UNAVAILABLE once it is broken."""

    async def offer(self, capacity: Capacity, *, leases_seen: int) -> None:
        """Says what the worker could take now, having received so many leases on this channel."""

    async def heartbeat(self, beats: Sequence[tuple[Fence, Progress | None]]) -> None:
        """Extends leases, with the newest progress where there is any."""

    def messages(self) -> AsyncIterator[Message]:
        """Leases, answers to heartbeats, notices of what became of leases; ends when the channel does."""

    async def close(self) -> None:
        """Closes the channel; leases stay until they expire."""


class LedgerPort(Protocol):
    """The ledger, as a worker sees it."""

    async def connect(self) -> WorkStream:
        """Opens the work channel."""

    async def succeed(self, fence: Fence, outcome: Outcome) -> None:
        """Ends an attempt well, or gives it back. Errors: LEASE_LOST."""

    async def fail(self, fence: Fence, error: VoxfleetError) -> None:
        """Ends an attempt badly. Errors: LEASE_LOST."""

    async def cancelled(self, fence: Fence) -> None:
        """Ends an attempt that was stopped as asked. Errors: LEASE_LOST."""

    async def record_checkpoint(self, fence: Fence, checkpoint: Checkpoint) -> list[str]:
        """Makes a checkpoint's row; returns keys whose bytes may go. Errors: LEASE_LOST."""
