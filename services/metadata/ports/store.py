"""The database as a whole: transactions, and its wake-ups."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from services.metadata.ports.catalog import CatalogRows
from services.metadata.ports.grants import GrantRows
from services.metadata.ports.identity import IdentityRows
from services.metadata.ports.jobs import BatchRows, FleetRows, JobRows, LeaseRows
from services.metadata.ports.lexicons import LexiconRows
from services.metadata.scheduling.lanes import LaneKey


class LedgerTransaction(JobRows, BatchRows, LeaseRows, FleetRows, Protocol):
    """One transaction over the ledger alone; commits when its context ends without an exception."""

    def wake_lanes(self, lanes: Iterable[LaneKey]) -> None:
        """Tells every claimer, once this has committed, that there may be something in these lanes."""


class Transaction(LedgerTransaction, CatalogRows, IdentityRows, LexiconRows, GrantRows, Protocol):
    """One transaction over everything."""


class Store(Protocol):
    """The database. Every context may raise DATABASE_UNAVAILABLE."""

    def tenant(self, team: str) -> AbstractAsyncContextManager[Transaction]:
        """A transaction that sees one team only."""

    def service(self) -> AbstractAsyncContextManager[Transaction]:
        """A transaction that sees every team."""

    def leases(self) -> AbstractAsyncContextManager[LeaseRows]:
        """Single statements of the workers' side, each of which commits by itself."""


class Wakeups(Protocol):
    """What other processes, and this one, say when they have committed work."""

    def subscribe(self, heard: Callable[[LaneKey | None], None]) -> None:
        """Calls with each lane that may have got something; with None where some may have been missed."""
