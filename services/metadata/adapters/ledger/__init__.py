"""The ledger in Postgres: named SQL run by raw psycopg."""

from services.metadata.adapters.ledger.batches import BatchQueries
from services.metadata.adapters.ledger.fleet import FleetQueries
from services.metadata.adapters.ledger.jobs import JobQueries
from services.metadata.adapters.ledger.leases import LeaseQueries

__all__ = ["LedgerQueries"]


class LedgerQueries(JobQueries, BatchQueries, LeaseQueries, FleetQueries):
    """The ledger's part of a transaction."""
