"""The database as a whole: transactions, and its wake-ups."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from services.metadata.ports.catalog import CatalogRows
from services.metadata.ports.identity import IdentityRows
from services.metadata.ports.jobs import JobRows, LeaseRows


class Transaction(IdentityRows, CatalogRows, JobRows, LeaseRows, Protocol):
    """One transaction; commits when its context ends without an exception."""

    def wake_queue(self, kinds: Sequence[str]) -> None:
        """Wakes the claimers of these kinds once the transaction has committed."""

    def wake_watchers(self, jobs: Sequence[str]) -> None:
        """Wakes the watchers of these jobs once the transaction has committed."""


class Store(Protocol):
    """The database."""

    def tenant(self, team: str) -> AbstractAsyncContextManager[Transaction]:
        """A transaction that sees one team only. Errors: DATABASE_UNAVAILABLE."""

    def service(self) -> AbstractAsyncContextManager[Transaction]:
        """A transaction that sees every team. Errors: DATABASE_UNAVAILABLE."""


class Wakeups(Protocol):
    """Postgres' NOTIFY, fanned out in this process."""

    def queue(self, kinds: Sequence[str]) -> AbstractAsyncContextManager[Wakeup]:
        """Wakes when work of these kinds may have come."""

    def job(self, job: str) -> AbstractAsyncContextManager[Wakeup]:
        """Wakes when something happened to this job."""


class Wakeup(Protocol):
    """Something to wait on."""

    async def wait(self, timeout_s: float) -> bool:
        """Waits for a wake-up, at most so long; says whether one came."""
