"""One worker process's channel: what it offered, and what was sent since."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Sequence

from services.common.jobs.model import Fence, FleetOrders, GpuFacts, Progress, StopKind
from services.metadata.app.dispatch import Dispatcher, Offer
from services.metadata.app.work import Claimed, Work
from services.metadata.model.fleet import WorkerRow

_SAY_S = 10.0
# A pool has room or has not; which GPU its replicas share is its own matter.
_ANY = 1e9


class Orders:
    """What every worker is asked for, told to each channel when it opens and whenever it changes.

    Nothing is told before anything was set: a worker that comes back to a process which has just started
    keeps to what it heard last.
    """

    def __init__(self) -> None:
        self._now: FleetOrders | None = None
        self._changed = asyncio.Event()

    @property
    def now(self) -> FleetOrders:
        """What holds now."""
        return self._now or FleetOrders()

    def set(self, orders: FleetOrders) -> None:
        """What holds from now on."""
        if orders != self._now:
            self._now = orders
            self._changed.set()
            self._changed = asyncio.Event()

    async def changes(self) -> AsyncIterator[FleetOrders]:
        """What holds now, and each time that it changes."""
        told: FleetOrders | None = None
        while True:
            changed = self._changed
            if self._now is not None and self._now != told:
                told = self._now
                yield told
            await changed.wait()


class WorkSession:
    """What one worker process offered, and the leases that it was sent.

    Args:
        work: the workers' use cases.
        dispatcher: hands out work.
        worker: who it is.
    """

    def __init__(self, work: Work, dispatcher: Dispatcher, worker: WorkerRow) -> None:
        self._work = work
        self._dispatcher = dispatcher
        self._row = worker
        self._gpus: GpuFacts | None = None
        self._sent = 0
        self._said = False
        self._draining = False
        self._offered = asyncio.Event()
        self._woken = asyncio.Event()

    async def offer(self, row: WorkerRow, leases_seen: int, gpus: GpuFacts | None = None) -> None:
        """Takes an offer of capacity, unless it was made before our last leases arrived.

        Args:
            row: what the worker says of itself.
            leases_seen: by it, on this channel, when it said so.
            gpus: who of its has GPUs; None where it does not say.
        """
        if leases_seen < self._sent:
            return
        changed = (row.free, row.nodes, row.default_bundle) != (
            self._row.free,
            self._row.nodes,
            self._row.default_bundle,
        )
        stale = row.last_seen - self._row.last_seen > dt.timedelta(seconds=_SAY_S)
        if changed or stale or not self._said or gpus != self._gpus:
            self._row, self._gpus = row, gpus
            self._said = True
            await self._work.put_worker(row, gpus)
        self._offered.set()
        # It may be waiting for work of kinds that are no longer those that it offers.
        self._woken.set()

    async def heartbeat(self, beats: Sequence[tuple[Fence, Progress | None]]) -> list[tuple[Fence, StopKind]]:
        """Extends leases; see :meth:`Work.heartbeat`."""
        return await self._work.heartbeat(beats)

    def drain(self) -> None:
        """Hands out nothing more; heartbeats are still answered."""
        self._draining = True
        self._woken.set()

    async def leases(self) -> AsyncIterator[list[Claimed]]:
        """Leases as work comes, within what was offered; after each batch a fresh offer is awaited."""
        while True:
            await self._offered.wait()
            kinds = [kind for kind, count in self._row.free.items() if count > 0]
            if not kinds or self._draining:
                self._offered.clear()
                continue
            self._woken.clear()
            with self._dispatcher.waiting(kinds, self._woken):
                found = await self._dispatcher.claim(_offer(self._row))
                if not found:
                    await self._woken.wait()
                    continue
            self._sent += len(found)
            self._offered.clear()
            yield await self._work.with_checkpoints(found)


def _offer(row: WorkerRow) -> Offer:
    """What a worker could take; nodes that go out of service count for nothing."""
    alive = [node for node in row.nodes if node.get("state", "alive") == "alive"]
    return Offer(
        worker=row.worker,
        node=row.node,
        free=row.free,
        gpu_types=tuple({str(node["gpu_type"]) for node in alive if node.get("gpu_type")}),
        max_gpus=max((float(node.get("gpus", 0.0)) for node in alive), default=_ANY)
        if row.queue == "trainer"
        else _ANY,
    )
