"""``pgqueuer`` as its performance guide would have it: asyncpg, durable tables, its autovacuum settings.

A claim is ``Queries.dequeue`` and an end ``Queries.log_jobs``, which its own worker calls too (there behind
a buffer of the batch's size). One entry point without concurrency limits, which is its cheapest query.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import timedelta

import asyncpg
from pgqueuer.db import AsyncpgDriver
from pgqueuer.domain.types import QueueEntrypoint, QueueManagerId
from pgqueuer.models import Job
from pgqueuer.ports.repository import EntrypointExecutionParameter
from pgqueuer.queries import Queries

from bench.peers.port import document

_ENTRYPOINT = "f5"
_ENQUEUE_ROWS = 1000
_HEARTBEAT_TIMEOUT = timedelta(seconds=30)  # the default of its worker


class PgqueuerPeer:
    """Its queue table, driven through its Queries."""

    name = "pgqueuer"

    def __init__(self) -> None:
        self._url = ""
        self._connections: list[asyncpg.Connection] = []

    async def setup(self, url: str) -> None:
        """``pgq install`` and ``pgq autovac``."""
        self._url = url
        queries = await self._queries()
        await queries.install()
        await queries.optimize_autovacuum()

    async def enqueue(self, count: int, teams: int) -> None:
        """Batches of a thousand. It knows no teams: that spares it work."""
        queries = await self._queries()
        for start in range(0, count, _ENQUEUE_ROWS):
            numbers = range(start, min(start + _ENQUEUE_ROWS, count))
            payloads: list[bytes | None] = [
                json.dumps(document(f"team-{n % teams:04d}", n)).encode() for n in numbers
            ]
            await queries.enqueue([_ENTRYPOINT] * len(payloads), payloads, [0] * len(payloads))

    async def claimer(self) -> PgqueuerClaimer:
        """A queue manager's id and a connection."""
        return PgqueuerClaimer(await self._queries())

    async def finished(self) -> int:
        """Its log's rows of success; those jobs have left the queue's table."""
        connection = self._connections[0]
        done = await connection.fetchval("SELECT count(*) FROM pgqueuer_log WHERE status = 'successful'")
        return int(done)

    async def teardown(self) -> None:
        """Closes every connection."""
        for connection in self._connections:
            await connection.close()
        self._connections.clear()

    async def _queries(self) -> Queries:
        connection = await asyncpg.connect(self._url)
        self._connections.append(connection)
        return Queries(AsyncpgDriver(connection))


class PgqueuerClaimer:
    """One queue manager."""

    def __init__(self, queries: Queries) -> None:
        self._queries = queries
        self._id = QueueManagerId(uuid.uuid4())
        self._entrypoints = {QueueEntrypoint(_ENTRYPOINT): EntrypointExecutionParameter(concurrency_limit=0)}

    async def claim(self, batch: int) -> list[Job]:
        """Its dequeue, without any limit."""
        return await self._queries.dequeue(
            batch_size=batch,
            entrypoints=self._entrypoints,
            queue_manager_id=self._id,
            global_concurrency_limit=None,
            heartbeat_timeout=_HEARTBEAT_TIMEOUT,
        )

    async def finish(self, jobs: Sequence[Job]) -> None:
        """Moves the jobs to its log, all in one statement."""
        await self._queries.log_jobs([(job, "successful", None) for job in jobs])
