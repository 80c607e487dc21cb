"""Drives the ledger's use cases over a store, as its servicers and workers do."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

from services.common.errors import FailureClass
from services.common.jobs import tasks
from services.common.jobs.model import Fence, Succeeded
from services.metadata.app.dispatch import Offer
from services.metadata.app.endings import lane_of
from services.metadata.app.ledger import Ledger, LedgerSettings
from services.metadata.app.work import Claimed, Ended
from services.metadata.model.fleet import Quota, QuotaUse
from services.metadata.model.jobs import (
    AttemptRecord,
    Job,
    JobEvent,
    JobState,
    LeasedJob,
    NewJob,
    PriorityClass,
)
from services.metadata.ports.store import Store, Transaction
from services.metadata.scheduling.lanes import LaneKey, Pick, Turn
from tests.contract.ledger.backends import Backend

LEASE_S = 15.0
CLASS_OF = {
    "rvc.train": PriorityClass.TRAINING,
    "rvc.convert": PriorityClass.CONVERSION,
    "f5.item": PriorityClass.BATCH,
    "bundle.pull": PriorityClass.CONVERSION,
}
ITEM_LANE = LaneKey("f5.item", PriorityClass.BATCH, "alpha")
ANY = 1e9


def new_job(job_id: str, kind: str = "f5.item", team: str = "alpha", **changes) -> NewJob:
    task = {"kind": kind, "team": team}
    if kind == "rvc.train":
        task["voice"] = f"teams/{team}/voices/v-{job_id}"
    fields = {
        "priority_class": CLASS_OF.get(kind, PriorityClass.BATCH),
        "task": json.dumps(task),
        "spec": {},
        **changes,
    }
    return NewJob(team=team, id=job_id, kind=kind, **fields)


class _BrokenOffError(Exception):
    pass


@asynccontextmanager
async def broken_off(transaction: AbstractAsyncContextManager[Transaction]) -> AsyncIterator[Transaction]:
    """A transaction whose process fails just before it would have committed."""
    with suppress(_BrokenOffError):
        async with transaction as tx:
            yield tx
            raise _BrokenOffError


class Desk:
    """One process's ledger; what loops do is done when a test asks for it."""

    numbers = itertools.count(1)

    def __init__(self, backend: Backend, *, store: Store | None = None, seed: int = 1) -> None:
        self.backend = backend
        self.clock = backend.clock
        self.store: Store = store or backend.store()
        self.chance = random.Random(seed)
        self.ledger = Ledger(
            self.store,
            backend.wakeups,
            LedgerSettings(lease_s=LEASE_S, look_s=0.02, output_ttl_s=3600),
            chance=self.chance,
        )
        self.jobs, self.work = self.ledger.jobs, self.ledger.work
        self.dispatcher = self.ledger.dispatcher

    # -- submits

    async def submit(
        self, kind: str = "f5.item", *, team: str = "alpha", request_id: str = "", **changes
    ) -> str:
        """Makes a job; a repeat of a request id finds the first."""
        job = new_job(f"{team}-{next(self.numbers):08d}", kind, team, **changes)
        async with self.store.tenant(team) as tx:
            return await self.add(tx, job, request_id=request_id)

    async def add(self, tx: Transaction, job: NewJob, *, request_id: str = "", fingerprint: str = "f") -> str:
        """Makes a job in a transaction, as submits do."""
        first = await tx.remember_request(job.team, request_id, "Submit", fingerprint, job.id)
        if first != job.id:
            return first
        await tx.add_jobs(job.team, [job])
        found = await tx.get_job(job.team, job.id)
        assert found is not None
        if not found.blockers:
            tx.wake_lanes([lane_of(found)])
        return job.id

    async def batch(
        self,
        count: int,
        *,
        bad: Iterable[int] = (),
        team: str = "alpha",
        depends_on: tuple[str, ...] = (),
        **changes,
    ) -> tuple[str, list[str]]:
        """Makes a batch of items, the ``bad`` of which have failed from the start; returns their ids."""
        batch_id = f"{team}-{next(self.numbers):08d}"
        failed = set(bad)
        task = tasks.BatchTask(team=team, item_kind="f5.item").model_dump_json()
        items = []
        for index in range(count):
            common = {"parent_id": batch_id, "item_index": index, "item_id": f"line-{index}", **changes}
            item_id = f"{batch_id}-{index:06d}"
            if index in failed:
                common |= {"state": JobState.FAILED, "error": {"reason": "TEXT_EMPTY"}, "task": task}
            items.append(new_job(item_id, "f5.item", team, **common))
        head = new_job(
            batch_id,
            "batch",
            team,
            task=task,
            depends_on=depends_on,
            items_total=count,
            items_failed=len(failed),
        )
        async with self.store.tenant(team) as tx:
            await tx.add_jobs(team, [head, *items])
        return batch_id, [item.id for item in items]

    # -- workers

    async def claim(
        self, free: Mapping[str, int] | None = None, *, worker: str = "w1", node: str = "n1", **offer
    ) -> list[Claimed]:
        """What a worker is handed by the dispatcher."""
        await self.dispatcher.refresh()
        places = dict.fromkeys(CLASS_OF, 100) if free is None else free
        leased = await self.dispatcher.claim(Offer(worker, node, places, **offer))
        return await self.work.with_checkpoints(leased)

    async def claim_one(self, kind: str = "f5.item", **offer) -> Claimed:
        """The one job that a worker is handed."""
        (claimed,) = await self.claim({kind: 1}, **offer)
        return claimed

    async def pick(
        self,
        lane: LaneKey = ITEM_LANE,
        count: int = 100,
        *,
        after: int = 0,
        worker: str = "w1",
        node: str = "n1",
        gpu_types: Sequence[str] = (),
        max_gpus: float = ANY,
    ) -> list[LeasedJob]:
        """What the claiming statement leases of one lane."""
        return await self.pick_all([Pick(lane, count, after)], worker, node, gpu_types, max_gpus)

    async def pick_all(
        self,
        picks: Sequence[Pick],
        worker: str = "w1",
        node: str = "n1",
        gpu_types: Sequence[str] = (),
        max_gpus: float = ANY,
    ) -> list[LeasedJob]:
        """What the claiming statement leases of several lanes."""
        async with self.store.leases() as rows:
            turns = [Turn(worker, node, pick) for pick in picks]
            return await rows.claim(turns, LEASE_S, gpu_types=gpu_types, max_gpus=max_gpus)

    async def succeed(self, fence: Fence) -> Ended:
        return await self.work.succeed(fence, Succeeded(weights="w"))

    async def fail(
        self, fence: Fence, failure: FailureClass = FailureClass.TRANSIENT, node: str = ""
    ) -> Ended:
        return await self.work.fail(fence, {"reason": "X", "message": "y"}, failure, node=node)

    async def ruin(self, fence: Fence) -> Ended:
        """Fails a job for good."""
        return await self.fail(fence, FailureClass.INPUT)

    # -- what others do

    async def count(self) -> None:
        """One sweep over batches and dependencies."""
        await self.ledger.housekeeping.sweep()

    async def set_quota(self, team: str = "alpha", **bounds) -> None:
        async with self.store.service() as tx:
            await tx.put_quota(Quota(team, **bounds))

    async def quota_use(self, team: str = "alpha") -> QuotaUse:
        async with self.store.leases() as rows:
            (found,) = [use for use in await rows.quota_uses() if use.quota.team == team]
        return found

    # -- looks

    async def job(self, job_id: str) -> Job:
        async with self.store.service() as tx:
            (found,) = await tx.jobs_now([job_id])
        return found

    async def all(self, job_ids: Sequence[str]) -> list[Job]:
        async with self.store.service() as tx:
            found = {job.id: job for job in await tx.jobs_now(job_ids)}
        return [found[job_id] for job_id in job_ids]

    async def states(self, job_ids: Sequence[str]) -> list[JobState]:
        return [job.state for job in await self.all(job_ids)]

    async def events(self, job_id: str) -> list[JobEvent]:
        async with self.store.service() as tx:
            return (await tx.events_after({job_id: 0}))[job_id]

    async def attempts(self, job_id: str) -> list[AttemptRecord]:
        async with self.store.service() as tx:
            return await tx.attempts(job_id)

    @asynccontextmanager
    async def locked(self, job_id: str, team: str = "alpha") -> AsyncIterator[Transaction]:
        """A transaction that holds a job's row."""
        async with self.store.tenant(team) as tx:
            assert await tx.get_job(team, job_id, lock=True) is not None
            yield tx
