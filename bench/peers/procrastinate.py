"""``procrastinate`` with its psycopg connector: what its worker does for each job, without the worker.

A claim is ``JobManager.fetch_job`` and an end ``JobManager.finish_job`` (it keeps done jobs, its default).
It fetches one job at a time, so it is measured at batches of one alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import procrastinate
from procrastinate.jobs import Job, Status

from bench.peers.port import document

_DEFER_ROWS = 1000
_QUEUE = "inference"
_TASK = "f5"


class ProcrastinatePeer:
    """Its jobs table, driven through its job manager."""

    name = "procrastinate"

    def __init__(self) -> None:
        self._url = ""
        self._apps: list[procrastinate.App] = []

    async def setup(self, url: str) -> None:
        """``procrastinate schema --apply``."""
        self._url = url
        app = await self._app()
        await app.schema_manager.apply_schema_async()

    async def enqueue(self, count: int, teams: int) -> None:
        """``batch_defer_async``, a thousand at a time, with no lock."""
        deferrer = self._apps[0].configure_task(name=_TASK, queue=_QUEUE, allow_unknown=True)
        for start in range(0, count, _DEFER_ROWS):
            numbers = range(start, min(start + _DEFER_ROWS, count))
            await deferrer.batch_defer_async(*(document(f"team-{n % teams:04d}", n) for n in numbers))

    async def claimer(self) -> ProcrastinateClaimer:
        """A registered worker with a pool of one."""
        app = await self._app()
        return ProcrastinateClaimer(app, await app.job_manager.register_worker())

    async def finished(self) -> int:
        """Its jobs in their good final state."""
        rows = await self._apps[0].connector.execute_query_all_async(
            "SELECT count(*) AS done FROM procrastinate_jobs WHERE status = 'succeeded'"
        )
        return int(rows[0]["done"])

    async def teardown(self) -> None:
        """Closes every pool."""
        for app in self._apps:
            await app.close_async()
        self._apps.clear()

    async def _app(self) -> procrastinate.App:
        connector = procrastinate.PsycopgConnector(conninfo=self._url, min_size=1, max_size=1)
        app = procrastinate.App(connector=connector)
        await app.open_async()
        self._apps.append(app)
        return app


class ProcrastinateClaimer:
    """One worker."""

    def __init__(self, app: procrastinate.App, worker_id: int) -> None:
        self._manager = app.job_manager
        self._worker_id = worker_id

    async def claim(self, batch: int) -> list[Job]:
        """Its fetch. Errors: ValueError for a batch, which it does not have."""
        if batch != 1:
            raise ValueError("procrastinate fetches one job at a time")
        job = await self._manager.fetch_job(queues=[_QUEUE], worker_id=self._worker_id)
        return [] if job is None else [job]

    async def finish(self, jobs: Sequence[Job]) -> None:
        """Marks each job as succeeded."""
        for job in jobs:
            await self._manager.finish_job(job=job, status=Status.SUCCEEDED, delete_job=False)
