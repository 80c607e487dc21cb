"""The two databases that every test of this suite runs on, each with a clock that a test moves."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections.abc import Callable
from typing import Protocol

import psycopg

from services.metadata.adapters.memory import MemoryDatabase, MemoryStore
from services.metadata.adapters.postgres import PostgresStore, PostgresWakeups
from services.metadata.app.identity import Identity
from services.metadata.ports.store import Store, Wakeups

TEAMS = ("alpha", "beta", "gamma")


class Clock:
    """What the ledger's clock shows; it stands still unless a test moves it."""

    def __init__(self) -> None:
        self.now = dt.datetime(2030, 5, 6, 12, tzinfo=dt.UTC)

    def advance(self, seconds: float) -> None:
        """Lets time pass."""
        self.now += dt.timedelta(seconds=seconds)

    def skewed(self, seconds: float) -> Callable[[], dt.datetime]:
        """This clock as a process sees it whose own is off by so much."""
        return lambda: self.now + dt.timedelta(seconds=seconds)


class Backend(Protocol):
    """A database, and processes' views of it."""

    clock: Clock
    wakeups: Wakeups

    def store(self, *, skew_s: float = 0.0) -> Store:
        """The view of one process."""

    async def blocked(self) -> None:
        """Waits until some transaction waits for another's lock."""

    async def hear(self) -> asyncio.Task[None]:
        """Lets wake-ups in, until the task is cancelled."""

    async def close(self) -> None:
        """Lets go of everything."""


class MemoryBackend:
    """The adapter in memory."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.database = MemoryDatabase(chance=random.Random(1))
        self.wakeups = self.database.wakeups

    def store(self, *, skew_s: float = 0.0) -> MemoryStore:
        return MemoryStore(self.database, now=self.clock.skewed(skew_s))

    async def blocked(self) -> None:
        # Nothing else than a lock makes a task here wait: after so many turns all that can have run has.
        for _ in range(100):
            await asyncio.sleep(0)

    async def hear(self) -> asyncio.Task[None]:
        return asyncio.create_task(asyncio.sleep(3600))

    async def close(self) -> None:
        pass


class PostgresBackend:
    """The adapter of Postgres, over a database that is migrated and empty."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.clock = Clock()
        self.wakeups = PostgresWakeups(url)
        self._stores: list[PostgresStore] = []

    def store(self, *, skew_s: float = 0.0) -> PostgresStore:
        self._stores.append(PostgresStore(self.url, pool_size=4, now=self.clock.skewed(skew_s)))
        return self._stores[-1]

    async def make_teams(self) -> None:
        """Every job's team must be known here."""
        identity = Identity(self.store())
        for team in TEAMS:
            await identity.create_team(team, team)

    async def blocked(self) -> None:
        async with asyncio.timeout(10):
            while not await self._locks_awaited():
                await asyncio.sleep(0.01)

    async def _locks_awaited(self) -> int:
        query = (
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            row = await (await connection.execute(query)).fetchone()
        assert row is not None
        return int(row[0])

    async def hear(self) -> asyncio.Task[None]:
        listening = asyncio.Event()
        self.wakeups.subscribe(lambda _: listening.set())
        task = asyncio.create_task(self.wakeups.run())
        async with asyncio.timeout(10):
            await listening.wait()
        return task

    async def empty(self) -> None:
        """As if nothing had ever happened."""
        tables = (
            "jobs, job_events, job_attempts, job_checkpoints, job_dependencies, batch_ticks, team_quotas, "
            "requests, workers, drained_nodes, gpu_grants, job_estimates, gpu_usage, usage_records, "
            "watermarks"
        )
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            await connection.execute(f"TRUNCATE {tables} RESTART IDENTITY CASCADE")

    async def close(self) -> None:
        for store in self._stores:
            await store.close()
