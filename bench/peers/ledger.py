"""Our ledger, in this process: the use cases and the adapter that the metadata service runs, without gRPC.

Everything is on: a fence for each lease, events, attempts, the order of lanes over many teams, quotas that
are checked by the claiming statement, wake-ups that travel with commits.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import LiteralString

import psycopg

from bench.peers.port import document, team_names
from services.common import names
from services.common.errors import VoxfleetError
from services.common.jobs.model import Fence, Succeeded
from services.metadata import migrate
from services.metadata.adapters.postgres import PostgresStore, PostgresWakeups
from services.metadata.app.channel import WorkSession
from services.metadata.app.dispatch import Offer
from services.metadata.app.ledger import Ledger, LedgerSettings
from services.metadata.app.work import Claimed
from services.metadata.model.fleet import WorkerRow
from services.metadata.model.jobs import NewJob, PriorityClass
from services.metadata.scheduling.lanes import LaneKey

KIND = "f5.item"
GPUS = 0.2
MAX_GPUS = 1000.0
_POOL_SIZE = 8  # the metadata service's own default
_SUBMITTED_TOGETHER = 50  # from a hundred on, a store takes what follows a job for the items of a batch
_COPIED = ("jobs", "job_events")
_FILL: tuple[LiteralString, ...] = (
    """
    INSERT INTO jobs (id, team, kind, state, priority_class, task, gpus, attempt, worker, result, event_seq,
                      created_at, started_at, ended_at, updated_at)
    SELECT 'filled-' || n, (%(teams)s::text[])[1 + n %% cardinality(%(teams)s::text[])], 'f5.item',
           'SUCCEEDED', 3, jsonb_build_object('kind', 'f5.item', 'text', repeat('x', 150)),
           0.2, 1, 'filled', '{}', 3, at, at, at, at
    FROM generate_series(1, %(count)s) AS n,
         LATERAL (SELECT now() - interval '2 days' + n * interval '1 millisecond' AS at)
    """,
    """
    INSERT INTO job_attempts (job_id, attempt, team, worker, started_at, ended_at, kind, outcome, gpus)
    SELECT id, 1, team, worker, started_at, ended_at, kind, 'SUCCEEDED', gpus
    FROM jobs WHERE worker = 'filled'
    """,
    """
    INSERT INTO job_events (job_id, seq, team, state, attempt, at)
    SELECT id, e.seq, team, e.state, 1, ended_at
    FROM jobs, (VALUES (1, 'QUEUED'), (2, 'RUNNING'), (3, 'SUCCEEDED')) AS e(seq, state)
    WHERE worker = 'filled'
    """,
)


class LedgerPeer:
    """The ledger over one database.

    Args:
        teams: how many there are, each with a quota.
        serving: whether the ledger's own loops run here (lanes and quotas read anew each second, expired
            leases and batches swept, estimates learnt), as they do in the service.
    """

    name = "voxfleet"

    def __init__(self, *, teams: int, serving: bool = True) -> None:
        self._teams = team_names(teams)
        self._serving = serving
        self._url = ""
        self._store: PostgresStore | None = None
        self._loops: list[asyncio.Task[None]] = []
        self._workers = 0

    @property
    def url(self) -> str:
        """Where it is."""
        return self._url

    @property
    def store(self) -> PostgresStore:
        """The store that :meth:`setup` opened."""
        assert self._store is not None
        return self._store

    async def setup(self, url: str) -> None:
        """The migrations; teams, each with a quota of its own that no claim can pass by unlooked."""
        self._url = url
        await asyncio.to_thread(migrate.migrate, url)
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            await connection.execute(
                "INSERT INTO teams (id) SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING", [self._teams]
            )
            await connection.execute(
                "INSERT INTO team_quotas (team, max_gpus) SELECT id, %s FROM teams"
                " ON CONFLICT (team) DO UPDATE SET max_gpus = excluded.max_gpus",
                [MAX_GPUS],
            )
        self._store = PostgresStore(url, pool_size=_POOL_SIZE)
        wakeups = PostgresWakeups(url)
        self._ledger = Ledger(self._store, wakeups, LedgerSettings())
        if self._serving:
            self._loops = [asyncio.create_task(loop) for loop in (wakeups.run(), self._ledger.run())]

    async def enqueue(self, count: int, teams: int, *, first: int = 0) -> None:
        """Single jobs, a transaction for each team's share, as tenants submit them; team ``first`` begins."""
        shares = [
            (self._teams[(first + turn) % len(self._teams)], range(turn, count, teams))
            for turn in range(min(teams, count))
        ]
        for start in range(0, len(shares), _POOL_SIZE):
            await asyncio.gather(*(self._submit(*share) for share in shares[start : start + _POOL_SIZE]))

    async def claimer(self) -> LedgerClaimer:
        """One more worker of the same service."""
        self._workers += 1
        return LedgerClaimer(self._ledger, f"bench-{self._workers}")

    async def finished(self) -> int:
        """Jobs in their good final state."""
        return await self._count("SELECT count(*) FROM jobs WHERE state = 'SUCCEEDED' AND worker <> 'filled'")

    async def teardown(self) -> None:
        """Ends the loops and closes the pools."""
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        self._loops.clear()
        if self._store is not None:
            await self._store.close()
            self._store = None

    async def add_batch(self, team: str, jobs: Sequence[NewJob]) -> None:
        """A batch and its items as a tenant's submit adds them, in one transaction."""
        async with self.store.tenant(team) as tx:
            await tx.add_jobs(team, jobs)
            tx.wake_lanes([lane_of(team)])

    async def fill_finished(self, count: int) -> None:
        """As many jobs that ended long ago, with their attempts and events, made inside the server."""
        jobs, *records = _FILL
        await self._fill(jobs, count)
        await asyncio.gather(*(self._fill(statement, count) for statement in records))

    async def _fill(self, statement: LiteralString, count: int) -> None:
        async with await psycopg.AsyncConnection.connect(self._url, autocommit=True) as connection:
            await connection.execute(statement, {"count": count, "teams": self._teams})

    async def copy_out(self) -> dict[str, list[bytes]]:
        """Every row that a submit writes, as COPY gives them."""
        found: dict[str, list[bytes]] = {}
        async with await psycopg.AsyncConnection.connect(self._url) as connection:
            for table in _COPIED:
                async with connection.cursor().copy(f"COPY {table} TO STDOUT") as copy:
                    found[table] = [bytes(block) async for block in copy]
        return found

    async def copy_in(self, rows: dict[str, list[bytes]]) -> None:
        """The same rows into the same tables with all their indexes, in one transaction, and nothing else."""
        async with await psycopg.AsyncConnection.connect(self._url) as connection:
            for table in _COPIED:
                async with connection.cursor().copy(f"COPY {table} FROM STDIN") as copy:
                    for block in rows[table]:
                        await copy.write(block)

    async def queued(self) -> int:
        """Jobs that wait."""
        return await self._count("SELECT count(*) FROM jobs WHERE state = 'QUEUED'")

    @asynccontextmanager
    async def idle_transaction(self) -> AsyncIterator[None]:
        """Another session with a snapshot that it does not let go."""
        async with await psycopg.AsyncConnection.connect(self._url) as connection:
            await connection.execute("SET idle_in_transaction_session_timeout = 0")
            await connection.commit()
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            await connection.execute("SELECT 1 FROM jobs LIMIT 1")
            yield

    async def _submit(self, team: str, numbers: range) -> None:
        async with self.store.tenant(team) as tx:
            for start in range(0, len(numbers), _SUBMITTED_TOGETHER):
                some = numbers[start : start + _SUBMITTED_TOGETHER]
                await tx.add_jobs(team, [new_job(team, number) for number in some])
            tx.wake_lanes([lane_of(team)])

    async def _count(self, query: str) -> int:
        async with await psycopg.AsyncConnection.connect(self._url) as connection:
            row = await (await connection.execute(query)).fetchone()
        assert row is not None
        return int(row[0])


class LedgerClaimer:
    """One worker as the service sees it."""

    def __init__(self, ledger: Ledger, worker: str) -> None:
        self._ledger = ledger
        self._worker = worker
        self._leases: AsyncIterator[list[Claimed]] | None = None
        self._seen = 0

    async def claim(self, batch: int) -> list[Fence]:
        """Leases up to ``batch`` jobs, whichever lanes' turn it is."""
        offer = Offer(self._worker, "bench", {KIND: batch})
        return [job.fence for job in await self._ledger.dispatcher.claim(offer)]

    async def wait(self) -> list[Fence]:
        """One job, as soon as there is one: the channel that a worker holds, without gRPC."""
        if self._leases is None:
            self._session = WorkSession(self._ledger.work, self._ledger.dispatcher, self._row())
            self._leases = self._session.leases()
        await self._session.offer(self._row(), self._seen)
        leases = [claimed.fence for claimed in await anext(self._leases)]
        self._seen += len(leases)
        return leases

    def _row(self) -> WorkerRow:
        now = dt.datetime.now(dt.UTC)
        return WorkerRow(self._worker, "inference", "bench", "0", {KIND: 1}, (), "", 0, now)

    async def finish(self, jobs: Sequence[Fence]) -> None:
        """Ends each attempt under its fence, all in one statement, as EndAttempts does."""
        for ended in await self._ledger.work.succeed_all([(fence, Succeeded()) for fence in jobs]):
            if isinstance(ended, VoxfleetError):
                raise ended


def lane_of(team: str) -> LaneKey:
    """Where a team's jobs wait."""
    return LaneKey(KIND, PriorityClass.BATCH, team)


def new_job(team: str, number: int, *, parent_id: str = "") -> NewJob:
    """A job of :func:`bench.peers.port.document`; an item where it has a parent."""
    return NewJob(
        team=team,
        id=names.new_id(),
        kind=KIND,
        priority_class=PriorityClass.BATCH,
        task=_json(document(team, number)),
        spec={},
        parent_id=parent_id,
        item_index=number if parent_id else 0,
        item_id=str(number) if parent_id else "",
        gpus=GPUS,
    )


def batch_of(team: str, items: int) -> list[NewJob]:
    """A batch and its items."""
    batch = NewJob(
        team=team,
        id=names.new_id(),
        kind="batch",
        priority_class=PriorityClass.BATCH,
        task=_json({"kind": "batch", "team": team, "item_kind": KIND}),
        spec={},
        items_total=items,
    )
    return [batch, *(new_job(team, n, parent_id=batch.id) for n in range(items))]


def _json(document: dict[str, object]) -> str:
    return json.dumps(document)
