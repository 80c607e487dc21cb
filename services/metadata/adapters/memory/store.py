"""A store over a database in memory: the ledger's port, for tests and simulations.

It keeps what the ledger and its use cases need: jobs, batches, leases, fleet, lexicons, and of the catalogue
the voices, audios and requests that jobs touch. Teams and keys it does not know; any team's name will do.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from services.metadata.adapters.memory.batches import MemoryBatches
from services.metadata.adapters.memory.catalog import MemoryCatalog
from services.metadata.adapters.memory.database import MemoryDatabase
from services.metadata.adapters.memory.grants import MemoryGrants
from services.metadata.adapters.memory.jobs import MemoryJobs
from services.metadata.adapters.memory.leases import MemoryLeases
from services.metadata.adapters.memory.lexicons import MemoryLexicons
from services.metadata.adapters.memory.tables import Session
from services.metadata.ports.grants import GrantRows
from services.metadata.ports.jobs import LeaseRows
from services.metadata.ports.lexicons import LexiconRows
from services.metadata.ports.store import LedgerTransaction
from services.metadata.scheduling.lanes import LaneKey


class MemoryTransaction(MemoryBatches, MemoryJobs, MemoryGrants, MemoryLexicons, MemoryCatalog):
    """One transaction."""

    lanes_to_wake: set[LaneKey] | None = None

    def wake_lanes(self, lanes: Iterable[LaneKey]) -> None:
        """Tells every claimer, once this has committed, that there may be something in these lanes."""
        self.lanes_to_wake = (self.lanes_to_wake or set()) | set(lanes)


class MemoryStore:
    """One process's view of a database in memory.

    Args:
        database: whose rows they are; several stores may share one.
        now: what this process's clock shows, with an offset.
    """

    transaction_type: type[MemoryTransaction] = MemoryTransaction
    leases_type: type[MemoryLeases] = MemoryLeases

    def __init__(
        self,
        database: MemoryDatabase | None = None,
        *,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self.database = database or MemoryDatabase()
        self._now = now

    @asynccontextmanager
    async def tenant(self, team: str) -> AsyncIterator[MemoryTransaction]:
        """A transaction that sees one team only. Errors: DATABASE_UNAVAILABLE on a deadlock."""
        async with self._transaction(team) as transaction:
            yield transaction

    @asynccontextmanager
    async def service(self) -> AsyncIterator[MemoryTransaction]:
        """A transaction that sees every team. Errors: DATABASE_UNAVAILABLE on a deadlock."""
        async with self._transaction("") as transaction:
            yield transaction

    @asynccontextmanager
    async def leases(self) -> AsyncIterator[MemoryLeases]:
        """Single statements, each of which commits by itself."""
        yield self.leases_type(self.database, self._now, None)

    @asynccontextmanager
    async def _transaction(self, team: str) -> AsyncIterator[MemoryTransaction]:
        session = Session(self._now(), team)
        transaction = self.transaction_type(self.database, self._now, session)
        try:
            yield transaction
        except BaseException:
            session.roll_back()
            raise
        await self.database.commit(session, sorted(transaction.lanes_to_wake or ()))


# What this adapter promises, as the type checker sees it.
_LEDGER: type[LedgerTransaction] = MemoryTransaction
_LEASES: type[LeaseRows] = MemoryLeases
_GRANTS: type[GrantRows] = MemoryTransaction
_LEXICONS: type[LexiconRows] = MemoryTransaction
