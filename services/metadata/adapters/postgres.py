"""The database: transactions in a role, and NOTIFY fanned out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager

import psycopg
import sqlalchemy as sa
from psycopg import sql as pg
from sqlalchemy.exc import DataError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from services.common.errors import Reason, VoxfleetError, invalid, unavailable
from services.metadata.adapters.catalog import CatalogQueries
from services.metadata.adapters.ledger import LedgerQueries
from services.metadata.migrate import sqlalchemy_url

log = logging.getLogger(__name__)

QUEUE_CHANNEL = "voxfleet_queue"
JOB_CHANNEL = "voxfleet_job"


class PostgresTransaction(CatalogQueries, LedgerQueries):
    """One transaction over the catalogue (SQLAlchemy) and the ledger (psycopg), on one connection."""

    def __init__(self, connection: AsyncConnection, driver: psycopg.AsyncConnection[object]) -> None:
        CatalogQueries.__init__(self, connection)
        LedgerQueries.__init__(self, driver)
        self._wake: dict[str, set[str]] = {QUEUE_CHANNEL: set(), JOB_CHANNEL: set()}

    def wake_queue(self, kinds: Sequence[str]) -> None:
        """Wakes the claimers of these kinds once the transaction has committed."""
        self._wake[QUEUE_CHANNEL].update(kinds)

    def wake_watchers(self, jobs: Sequence[str]) -> None:
        """Wakes the watchers of these jobs once the transaction has committed."""
        self._wake[JOB_CHANNEL].update(job for job in jobs if job)

    async def send_wakeups(self) -> None:
        """NOTIFY travels with the commit."""
        for channel, payloads in self._wake.items():
            if payloads:
                await self._run("notify", channel=channel, payloads=sorted(payloads))


class PostgresStore:
    """The database behind two pools of connections.

    Tenants have one of their own: however many of them list and watch, the leases of running work are
    extended in time.
    """

    def __init__(self, database_url: str, *, pool_size: int) -> None:
        self._services, self._tenants = (
            create_async_engine(
                sqlalchemy_url(database_url),
                pool_size=pool_size,
                max_overflow=0,
                pool_timeout=10,
                pool_pre_ping=True,
                connect_args={
                    "options": "-c statement_timeout=30000 -c idle_in_transaction_session_timeout=60000"
                },
            )
            for _ in range(2)
        )

    async def close(self) -> None:
        """Closes the pools."""
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
    async def _transaction(
        self, engine: AsyncEngine, role: str, team: str
    ) -> AsyncIterator[PostgresTransaction]:
        try:
            async with engine.begin() as connection:
                await connection.execute(_ENTER, {"role": role, "team": team})
                raw = await connection.get_raw_connection()
                driver = raw.driver_connection
                assert isinstance(driver, psycopg.AsyncConnection)
                transaction = PostgresTransaction(connection, driver)
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


def _unavailable(error: Exception) -> VoxfleetError:
    log.warning("database: %s", str(error).splitlines()[0] if str(error) else type(error).__name__)
    return unavailable(
        Reason.DATABASE_UNAVAILABLE, "the database does not answer just now: try again shortly"
    )


class PostgresWakeups:
    """One LISTEN connection of this process, fanned out to whoever waits."""

    def __init__(self, database_url: str) -> None:
        self._url = database_url
        self._waiting: dict[tuple[str, str], set[_Wakeup]] = {}

    async def run(self) -> None:
        """Listens until cancelled; opens the connection anew when it breaks."""
        while True:
            try:
                connection = await psycopg.AsyncConnection.connect(self._url, autocommit=True)
                async with connection:
                    for channel in (QUEUE_CHANNEL, JOB_CHANNEL):
                        await connection.execute(pg.SQL("LISTEN {}").format(pg.Identifier(channel)))
                    # Whoever waited while we were deaf looks for itself.
                    self._wake(waiter for waiters in self._waiting.values() for waiter in waiters)
                    async for notice in connection.notifies():
                        self._wake(self._waiting.get((notice.channel, notice.payload), ()))
            except psycopg.Error as error:
                log.warning("wake-ups: %s", error)
            await asyncio.sleep(0.5)

    @asynccontextmanager
    async def queue(self, kinds: Sequence[str]) -> AsyncIterator[_Wakeup]:
        """Wakes when work of these kinds may have come."""
        with self._registered([(QUEUE_CHANNEL, kind) for kind in kinds]) as wakeup:
            yield wakeup

    @asynccontextmanager
    async def job(self, job: str) -> AsyncIterator[_Wakeup]:
        """Wakes when something happened to this job."""
        with self._registered([(JOB_CHANNEL, job)]) as wakeup:
            yield wakeup

    @contextlib.contextmanager
    def _registered(self, keys: Sequence[tuple[str, str]]) -> Iterator[_Wakeup]:
        wakeup = _Wakeup()
        for key in keys:
            self._waiting.setdefault(key, set()).add(wakeup)
        try:
            yield wakeup
        finally:
            for key in keys:
                self._waiting[key].discard(wakeup)
                if not self._waiting[key]:
                    del self._waiting[key]

    def _wake(self, waiters: Iterable[_Wakeup]) -> None:
        for waiter in list(waiters):
            waiter.set()


class _Wakeup:
    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self, timeout_s: float) -> bool:
        try:
            # Not wait_for, which on Python 3.11 can swallow a cancellation.
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True
