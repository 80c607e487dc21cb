"""What several processes do to one database at once; importable by processes that a test spawns."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg

from services.common.errors import Reason, VoxfleetError
from services.common.jobs import tasks
from services.common.jobs.model import Succeeded
from services.metadata.adapters.postgres import PostgresStore
from services.metadata.app.resolving import Line
from services.metadata.app.submit import Request, Submitter
from services.metadata.app.work import Work
from services.metadata.model.jobs import PriorityClass
from services.metadata.scheduling.lanes import LaneKey, Pick, Turn

TEAM = "alpha"
ITEMS = LaneKey("f5.item", PriorityClass.BATCH, TEAM)

_BARRIER = 4_711_001
_DEADLINE_S = 120.0
_TRY_AGAIN_S = 0.03

Answer = TypeVar("Answer")


@contextmanager
def processes(count: int) -> Iterator[Callable[..., Future[Any]]]:
    """So many fresh processes; what is yielded submits a call to one of them."""
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool.submit


class Barrier:
    """Holds processes that :func:`arrive` until all are there; a lock in the database itself."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)
        self._connection.execute("SELECT pg_advisory_lock(%s)", [_BARRIER])

    def lift(self, arrived: int) -> None:
        """Waits until so many are there, then lets them all go."""
        until_waiting(self._connection, arrived)
        self._connection.close()


def until_waiting(connection: psycopg.Connection[Any], count: int) -> None:
    """Waits until so many sessions of this database stand before an advisory lock."""
    deadline = time.monotonic() + _DEADLINE_S
    while True:
        row = connection.execute(
            "SELECT count(*) FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database"
            " WHERE l.locktype = 'advisory' AND NOT l.granted AND d.datname = current_database()"
        ).fetchone()
        if row is not None and row[0] >= count:
            return
        assert time.monotonic() < deadline, f"{row} of {count} are waiting"
        time.sleep(0.01)


def arrive(url: str) -> None:
    """Waits at the barrier."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock_shared(%s)", [_BARRIER])


async def insist(call: Callable[[], Awaitable[Answer]]) -> Answer | None:
    """The answer of a call, repeated while the database does not answer; None where the lease is gone."""
    while True:
        try:
            return await call()
        except VoxfleetError as error:
            if error.reason is Reason.LEASE_LOST:
                return None
            if error.reason is not Reason.DATABASE_UNAVAILABLE:
                raise
            await asyncio.sleep(_TRY_AGAIN_S)


def submit_alike(url: str, voice: str, request_id: str, count: int, items: int) -> set[str]:
    """So many concurrent submits of one batch under one request id; the ids that they were answered with."""

    async def submit(submitter: Submitter) -> str:
        request = Request(team=TEAM, request_id=request_id, fingerprint="the same", spec={})
        lines = [Line(f"l{n}", f"text {n}", voice, tasks.SpeakingParameters()) for n in range(items)]
        # A pool that is too busy is said to the client, who tries again.
        answer = await insist(lambda: submitter.batch(request, lines, tasks.Output()))
        assert answer is not None
        return answer.id

    async def race() -> set[str]:
        store = PostgresStore(url, pool_size=8)
        try:
            submitter = Submitter(store, max_attempts=3)
            return set(await asyncio.gather(*(submit(submitter) for _ in range(count))))
        finally:
            await store.close()

    arrive(url)
    return asyncio.run(race())


def claim_all(url: str, worker: str, at_once: int) -> list[tuple[str, int]]:
    """Claims and ends items until none is left; the (job, attempt) of each, as this process saw them."""

    async def race() -> list[tuple[str, int]]:
        store = PostgresStore(url, pool_size=4)
        work = Work(store, lambda _: None, lease_s=60.0, keep_checkpoints=1, output_ttl_s=60.0)
        mine: list[tuple[str, int]] = []
        deadline = time.monotonic() + _DEADLINE_S
        try:
            while time.monotonic() < deadline:
                async with store.leases() as rows:
                    turn = Turn(worker, worker, Pick(ITEMS, at_once, 0))
                    found = await rows.claim([turn], 60.0, gpu_types=(), max_gpus=1e9)
                    waiting = bool(found) or ITEMS in await rows.lanes()
                if not waiting:
                    return mine
                mine += [(job.id, job.attempt) for job in found]
                await asyncio.gather(*(work.succeed(job.fence, Succeeded()) for job in found))
        finally:
            await store.close()
        raise TimeoutError(f"{worker} was not done in {_DEADLINE_S:g} s")

    arrive(url)
    return asyncio.run(race())
