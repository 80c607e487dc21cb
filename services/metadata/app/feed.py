"""What happens to jobs, told to those who watch: one look for all of them.

Every watcher of this process is served by one loop. A look costs two statements however many watch: which
of the watched jobs have moved, and the events of those. Use cases of this process poke it when they have
committed something; what other processes commit is found by the next look. Events come from their rows and
are told by their sequence numbers, so that none is skipped or repeated, whichever process serves a stream.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from services.common.errors import VoxfleetError
from services.metadata.model.jobs import FINAL_STATES, Job, JobEvent, JobState
from services.metadata.ports.store import Store

log = logging.getLogger(__name__)

LOOK_S = 0.25
HEARTBEAT_S = 10.0
_MOST_AT_ONCE = 2000


@dataclass(frozen=True, slots=True)
class Seen:
    """One message of a watch: the job, and the event where it is one; else its progress moved."""

    cursor: int
    job: Job
    event: JobEvent | None = None


@dataclass(eq=False)
class _Watcher:
    cursor: int
    untold: deque[Seen | None] = field(default_factory=deque)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    shown: Mapping[str, Any] | None = None

    def tell(self, seen: Seen | None) -> None:
        """Adds a message; a snapshot takes the place of one that was not yet read."""
        last = self.untold[-1] if self.untold else None
        if seen is not None and seen.event is None and last is not None and last.event is None:
            self.untold.pop()
        self.untold.append(seen)
        self.ready.set()

    async def next(self) -> Seen | None:
        """The oldest message that was not yet read; None where there will be no more."""
        while not self.untold:
            self.ready.clear()
            await self.ready.wait()
        return self.untold.popleft()


class JobFeed:
    """One loop that looks at every watched job.

    Args:
        store: the database.
        look_s: between two looks.
        heartbeat_s: after which a watcher that heard nothing is told that the stream is alive.
    """

    def __init__(self, store: Store, *, look_s: float = LOOK_S, heartbeat_s: float = HEARTBEAT_S) -> None:
        self._store = store
        self._look_s = look_s
        self._heartbeat_s = heartbeat_s
        self._watched: dict[str, set[_Watcher]] = {}
        self._known: dict[str, tuple[int, Any]] = {}
        self._poked = asyncio.Event()
        self._closing = False

    def poke(self, jobs: Iterable[str]) -> None:
        """Says that something of these jobs was committed; they are looked at as soon as may be."""
        if any(job in self._watched for job in jobs):
            self._poked.set()

    def close(self) -> None:
        """Ends every watch, so that a process can stop; clients go on at their cursor elsewhere."""
        self._closing = True
        for watchers in self._watched.values():
            for watcher in watchers:
                watcher.tell(None)

    async def watch(self, job: Job, cursor: int) -> AsyncIterator[Seen | None]:
        """What happens to a job after a cursor, until it ends; None is a heartbeat."""
        watcher = _Watcher(min(cursor, job.event_seq))
        self._watched.setdefault(job.id, set()).add(watcher)
        # Its next look must not be skipped because nothing moved since another watcher's.
        self._known.pop(job.id, None)
        self._poked.set()
        try:
            while not self._closing:
                try:
                    async with asyncio.timeout(self._heartbeat_s):
                        seen = await watcher.next()
                except TimeoutError:
                    yield None
                    continue
                if seen is None:
                    return
                yield seen
                if seen.job.state in FINAL_STATES and seen.cursor >= seen.job.event_seq:
                    return
        finally:
            self._watched[job.id].discard(watcher)
            if not self._watched[job.id]:
                del self._watched[job.id]
                self._known.pop(job.id, None)

    async def run(self) -> None:
        """Looks until cancelled."""
        while True:
            try:
                # Not wait_for, which on Python 3.11 can swallow a cancellation.
                async with asyncio.timeout(self._look_s):
                    await self._poked.wait()
            except TimeoutError:
                pass
            self._poked.clear()
            began = time.monotonic()
            try:
                await self.look()
            except VoxfleetError as error:
                log.warning("feed: %s", error.message)
            except Exception:
                log.exception("the feed could not look")
            # However many watch, a look takes at most half of the time.
            await asyncio.sleep(max(0.01, time.monotonic() - began))

    async def look(self) -> None:
        """One look at every watched job."""
        watched = list(self._watched)
        for start in range(0, len(watched), _MOST_AT_ONCE):
            await self._look_at(watched[start : start + _MOST_AT_ONCE])

    async def _look_at(self, ids: list[str]) -> None:
        async with self._store.service() as tx:
            marks = await tx.job_marks(ids)
            moved = [job for job in ids if marks.get(job) != self._known.get(job)]
            gone = [job for job in ids if job not in marks]
            jobs = {job.id: job for job in await tx.jobs_now(moved)} if moved else {}
            batches = [job.id for job in jobs.values() if job.kind == "batch"]
            running = await tx.items_running(batches) if batches else {}
            cursors = {
                job: min(watcher.cursor for watcher in self._watched.get(job, ()))
                for job in jobs
                if self._watched.get(job)
            }
            behind = {job: cursor for job, cursor in cursors.items() if cursor < jobs[job].event_seq}
            events = await tx.events_after(behind) if behind else {}
        for job_id in gone:
            for watcher in self._watched.get(job_id, ()):
                watcher.tell(None)
        for job_id, job in jobs.items():
            self._known[job_id] = marks[job_id]
            found = with_running(job, running.get(job_id, 0))
            if events.get(job_id) and events[job_id][-1].seq < job.event_seq:
                self._known.pop(job_id)
                self._poked.set()
            for watcher in self._watched.get(job_id, ()):
                self._tell(watcher, found, events.get(job_id, []))

    def _tell(self, watcher: _Watcher, job: Job, events: Iterable[JobEvent]) -> None:
        for event in events:
            if event.seq > watcher.cursor:
                watcher.cursor = event.seq
                watcher.tell(Seen(event.seq, job, event))
        snapshot = {**job.progress, "counts": dict(job.counts)}
        if job.state not in (JobState.QUEUED, *FINAL_STATES) and snapshot != watcher.shown:
            watcher.shown = snapshot
            watcher.tell(Seen(watcher.cursor, job))
        elif job.state in FINAL_STATES and watcher.cursor >= job.event_seq:
            # All was over and seen when it came; or the end was told with what the job had been before it.
            watcher.tell(Seen(watcher.cursor, job) if watcher.untold else None)


def with_running(job: Job, running: int) -> Job:
    """A batch with how many of its items run now."""
    if job.kind != "batch":
        return job
    queued = max(0, job.counts.get("queued", 0) - running)
    return replace(job, counts={**job.counts, "running": running, "queued": queued})
