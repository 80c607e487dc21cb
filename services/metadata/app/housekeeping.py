"""What nobody asks for: expired leases, batches' counts, what waits for ended jobs, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence

from services.common.errors import VoxfleetError
from services.metadata.app.batches import roll_up
from services.metadata.app.dispatch import Dispatcher
from services.metadata.app.endings import settle_dependencies
from services.metadata.app.feed import JobFeed
from services.metadata.app.work import Work
from services.metadata.model.jobs import FINAL_STATES, DoneJob, Job
from services.metadata.ports.store import Store

log = logging.getLogger(__name__)

_LEAST_S = 0.1


class Aftermath:
    """Told of every job whose state was changed here, once that is committed: makes what follows prompt.

    Nothing depends on it: what it misses, because a process died, the next sweep finds.
    """

    def __init__(self, feed: JobFeed, dispatcher: Dispatcher) -> None:
        self._feed = feed
        self._dispatcher = dispatcher
        self.settled: set[str] = set()
        self.counted = asyncio.Event()

    def __call__(self, jobs: Sequence[Job | DoneJob]) -> None:
        """Wakes watchers, whoever waits for a quota, the sweep of batches and of dependencies."""
        if not jobs:
            return
        self._feed.poke(name for job in jobs for name in (job.id, job.parent_id) if name)
        self._dispatcher.freed(job.team for job in jobs)
        for job in jobs:
            if job.has_dependents and job.state in FINAL_STATES:
                self.settled.add(job.id)
            if job.parent_id or job.kind == "batch" or job.has_dependents:
                self.counted.set()


class Housekeeping:
    """The sweeps of one metadata process; several may run beside one another.

    Args:
        store: the database.
        work: the workers' use cases.
        aftermath: what was said to have ended.
        every_s: between two sweeps.
        others: further sweeps, each with the seconds between two of it.
    """

    def __init__(
        self,
        store: Store,
        work: Work,
        aftermath: Aftermath,
        *,
        every_s: float = 1.0,
        others: Iterable[tuple[float, Callable[[], Awaitable[object]]]] = (),
    ) -> None:
        self._store = store
        self._work = work
        self._aftermath = aftermath
        self._every_s = every_s
        self._others = tuple(others)

    async def run(self) -> None:
        """Sweeps until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._repeat(self._every_s, self._work.expire))
            group.create_task(self._repeat(10 * self._every_s, self._settle_all))
            group.create_task(self._prompt())
            for every_s, sweep in self._others:
                group.create_task(self._repeat(every_s, sweep))

    async def sweep(self) -> None:
        """Each of the sweeps once."""
        await self._work.expire()
        await self._settle_all()
        await self.count()

    async def count(self) -> None:
        """Adds up batches, begins and ends them, and settles what waited for what has ended."""
        moved = await roll_up(self._store)
        while moved:
            # Of what ended some may be waited for, and what then fails may be waited for in turn.
            self._aftermath(moved)
            self._aftermath.counted.clear()
            moved = await roll_up(self._store) if await self._settle() else []
        await self._settle()

    async def _settle(self) -> bool:
        ids, self._aftermath.settled = self._aftermath.settled, set()
        some = bool(ids)
        while ids:
            ids = set(await settle_dependencies(self._store, sorted(ids)))
        return some

    async def _settle_all(self) -> None:
        while await settle_dependencies(self._store):
            pass

    async def _prompt(self) -> None:
        """Counts every second, and soon after something ended."""
        while True:
            await self._guarded(self.count)
            await asyncio.sleep(min(_LEAST_S, self._every_s))
            with contextlib.suppress(TimeoutError):
                # Not wait_for, which on Python 3.11 can swallow a cancellation.
                async with asyncio.timeout(self._every_s):
                    await self._aftermath.counted.wait()
            self._aftermath.counted.clear()

    async def _repeat(self, every_s: float, sweep: Callable[[], Awaitable[object]]) -> None:
        while True:
            await self._guarded(sweep)
            await asyncio.sleep(every_s)

    async def _guarded(self, sweep: Callable[[], Awaitable[object]]) -> None:
        try:
            await sweep()
        except VoxfleetError as error:
            log.warning("sweep: %s", error.message)
        except Exception:
            log.exception("sweep failed")
