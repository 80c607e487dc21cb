"""The database: transactions in a role, single statements of the workers' side, and NOTIFY fanned out."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import psycopg
import sqlalchemy as sa
from psycopg import sql as pg
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout
from sqlalchemy.exc import DataError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from services.common.errors import Reason, VoxfleetError, invalid, unavailable
from services.metadata.adapters.catalog import CatalogQueries, Stored
from services.metadata.adapters.grants import GrantQueries
from services.metadata.adapters.identity import IdentityQueries
from services.metadata.adapters.ledger import LedgerQueries
from services.metadata.adapters.lexicons import LexiconQueries
from services.metadata.adapters.retention import RetentionQueries
from services.metadata.adapters.webhooks import WebhookQueries
from services.metadata.migrate import sqlalchemy_url
from services.metadata.model.jobs import PriorityClass
from services.metadata.scheduling.lanes import LaneKey

log = logging.getLogger(__name__)

QUEUE_CHANNEL = "voxfleet_queue"

_TIMEOUTS = "-c statement_timeout=30000 -c idle_in_transaction_session_timeout=60000"

# Every statement of the workers' side finds its rows by an index, whatever the statistics say of a table
# that was empty a minute ago; and it is planned once a connection.
_HOT = (
    f"{_TIMEOUTS} -c role=voxfleet_worker -c jit=off -c enable_seqscan=off -c enable_hashjoin=off "
    "-c enable_mergejoin=off -c plan_cache_mode=force_generic_plan"
)


class PostgresTransaction(
    CatalogQueries,
    IdentityQueries,
    LexiconQueries,
    LedgerQueries,
    WebhookQueries,
    RetentionQueries,
    GrantQueries,
):
    """One transaction over catalogue (SQLAlchemy), ledger and the rest (psycopg), on one connection."""

    def __init__(
        self,
        connection: AsyncConnection,
        driver: psycopg.AsyncConnection[object],
        stored: Stored | None = None,
    ) -> None:
        CatalogQueries.__init__(self, connection, stored)
        LedgerQueries.__init__(self, driver)
        self._lanes: set[LaneKey] = set()

    def wake_lanes(self, lanes: Iterable[LaneKey]) -> None:
        """Tells every claimer, once this has committed, that there may be something in these lanes."""
        self._lanes.update(lanes)

    async def send_wakeups(self) -> None:
        """NOTIFY travels with the commit."""
        if self._lanes:
            payloads = [f"{lane.kind}/{int(lane.priority_class)}/{lane.team}" for lane in self._lanes]
            await self._run("notify", channel=QUEUE_CHANNEL, payloads=sorted(payloads))


class PostgresStore:
    """The database behind three pools of connections.

    Tenants have one of their own: however many of them list and watch, the leases of running work are
    extended in time. Claims, heartbeats and ends go through a third, of connections that are in the workers'
    role from the start and commit each statement by itself: one round trip each.

    Args:
        database_url: of the database.
        pool_size: connections in each pool.
        now: what the ledger's clock shows, for tests; the database's own where None.
        stored: whether the artefact store holds a key: asked where swept content is committed again.
    """

    def __init__(
        self,
        database_url: str,
        *,
        pool_size: int,
        now: Callable[[], dt.datetime] | None = None,
        stored: Stored | None = None,
    ) -> None:
        self._now = now
        self._stored = stored
        self._services, self._tenants = (
            create_async_engine(
                sqlalchemy_url(database_url),
                pool_size=pool_size,
                max_overflow=0,
                pool_timeout=10,
                pool_pre_ping=True,
                connect_args={"options": _TIMEOUTS},
            )
            for _ in range(2)
        )
        self._hot = AsyncConnectionPool(
            database_url,
            min_size=0,
            max_size=pool_size,
            timeout=10,
            open=False,
            kwargs={"autocommit": True, "options": _HOT, "prepare_threshold": 2},
        )
        self._opening = asyncio.Lock()

    async def close(self) -> None:
        """Closes the pools."""
        await self._hot.close()
        await self._services.dispose()
        await self._tenants.dispose()

    @asynccontextmanager
    async def tenant(self, team: str) -> AsyncIterator[PostgresTransaction]:
        """A transaction that sees one team only. Errors: DATABASE_UNAVAILABLE."""
        async with self._transaction(self._tenants, "voxfleet_tenant", team) as transaction:
            yield transaction

    @asynccontextmanager
    async def service(self) -> AsyncIterator[PostgresTransaction]:
        """A transaction that sees every team. Errors: DATABASE_UNAVAILABLE."""
        async with self._transaction(self._services, "voxfleet_worker", "") as transaction:
            yield transaction

    @asynccontextmanager
    async def leases(self) -> AsyncIterator[LedgerQueries]:
        """Single statements, each of which commits by itself. Errors: DATABASE_UNAVAILABLE."""
        if self._hot.closed:
            async with self._opening:
                if self._hot.closed:
                    await self._hot.open()
        try:
            async with self._hot.connection() as connection:
                if self._now is not None:
                    await connection.execute(_SET_NOW, [self._now().isoformat()])
                yield LedgerQueries(connection)
        except (psycopg.OperationalError, PoolTimeout, PoolClosed) as error:
            raise _unavailable(error) from error

    @asynccontextmanager
    async def _transaction(
        self, engine: AsyncEngine, role: str, team: str
    ) -> AsyncIterator[PostgresTransaction]:
        try:
            async with engine.begin() as connection:
                await connection.execute(_ENTER, {"role": role, "team": team})
                raw = await connection.get_raw_connection()
                driver = raw.driver_connection
                assert isinstance(driver, psycopg.AsyncConnection)
                if self._now is not None:
                    await driver.execute(_SET_NOW, [self._now().isoformat()])
                transaction = PostgresTransaction(connection, driver, self._stored)
                yield transaction
                await transaction.send_wakeups()
        except (OperationalError, PoolTimeoutError, psycopg.OperationalError) as error:
            raise _unavailable(error) from error
        except (DataError, psycopg.DataError) as error:
            log.warning("a value was refused: %s", str(error).splitlines()[0])
            raise invalid(
                Reason.INVALID_ARGUMENT,
                "a value in this request cannot be stored: text holds no NUL character, numbers are in range",
            ) from error
        except DBAPIError as error:
            if error.connection_invalidated:
                raise _unavailable(error) from error
            raise


_ENTER = sa.text("SELECT set_config('role', :role, true), set_config('voxfleet.team', :team, true)")
_SET_NOW = "SELECT set_config('voxfleet.now', %s, false)"


def _unavailable(error: Exception) -> VoxfleetError:
    log.warning("database: %s", str(error).splitlines()[0] if str(error) else type(error).__name__)
    return unavailable(
        Reason.DATABASE_UNAVAILABLE, "the database does not answer just now: try again shortly"
    )


class PostgresWakeups:
    """One LISTEN connection of this process, fanned out to whoever subscribed."""

    def __init__(self, database_url: str) -> None:
        self._url = database_url
        self._subscribers: list[Callable[[LaneKey | None], None]] = []

    def subscribe(self, heard: Callable[[LaneKey | None], None]) -> None:
        """Calls with each lane that may have got something; with None where some may have been missed."""
        self._subscribers.append(heard)

    async def run(self) -> None:
        """Listens until cancelled; opens the connection anew when it breaks."""
        while True:
            try:
                connection = await psycopg.AsyncConnection.connect(self._url, autocommit=True)
                async with connection:
                    await connection.execute(pg.SQL("LISTEN {}").format(pg.Identifier(QUEUE_CHANNEL)))
                    # Whoever waited while we were deaf looks for itself.
                    self._tell(None)
                    async for notice in connection.notifies():
                        self._tell(_lane(notice.payload))
            except psycopg.Error as error:
                log.warning("wake-ups: %s", error)
            await asyncio.sleep(0.5)

    def _tell(self, lane: LaneKey | None) -> None:
        for heard in self._subscribers:
            heard(lane)


def _lane(payload: str) -> LaneKey | None:
    """The lane that a notice names; None of a release that says it otherwise."""
    try:
        kind, priority_class, team = payload.split("/")
        return LaneKey(kind, PriorityClass(int(priority_class)), team)
    except ValueError:
        return None
