"""Who has the GPUs, decided on real Postgres: preemption at a checkpoint, grants, several processes."""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest

from services.common.jobs.model import (
    Checkpoint,
    FleetOrders,
    GpuFacts,
    PoolState,
    Released,
    StopKind,
    Succeeded,
    TrainingGpus,
    VoiceOutput,
)
from services.metadata.app.channel import Orders, WorkSession
from services.metadata.app.fleet import Fleet
from services.metadata.app.grants import Granting
from services.metadata.model.fleet import Quota, WorkerRow
from services.metadata.model.jobs import JobState
from services.metadata.scheduling.grants import Rules
from tests.integration.metadata.test_ledger import blob, claim_one, train
from tests.integration.metadata.test_order import batch_of, put_quota

NODE = {"name": "nodes/a", "state": "alive", "gpus": 1.0, "gpus_free": 0.0, "cpus": 8.0}
RUN_S = 120.0
LINGER_S = Rules().linger_s


class Clock:
    def __init__(self) -> None:
        self.now = dt.datetime.now(dt.UTC)

    def __call__(self) -> dt.datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += dt.timedelta(seconds=seconds)


class Cluster:
    """The workers of one cluster, as the ledger hears them."""

    def __init__(self, metadata, clock: Clock) -> None:
        self.metadata = metadata
        self.clock = clock
        self.orders = Orders()
        self.granting = Granting(metadata.store, self.orders, Rules(guaranteed_run_s=RUN_S))
        self.nodes = (NODE,)

    async def pools(self, *, held: float, **f5: float) -> None:
        """What the inference service says: ``held`` GPUs of each pool."""
        pools = (PoolState("f5", 0.5, held_gpus=held, **f5), PoolState("rvc", 0.5, held_gpus=held))
        await self._say("inference", GpuFacts(pools=pools))

    async def trainings(self, *trainings: TrainingGpus) -> None:
        """What the trainer says."""
        await self._say("trainer", GpuFacts(trainings=trainings))

    async def _say(self, queue: str, facts: GpuFacts) -> None:
        row = WorkerRow(f"{queue}-1", queue, "host", "1", {}, self.nodes, "", 0, self.clock())
        await self.metadata.work.put_worker(row, facts)

    async def decided(self) -> dict[str, float]:
        """What every worker is told after one look more."""
        await self.granting.sweep()
        return dict(self.orders.now.grants)


@pytest.fixture
def clock(metadata) -> Clock:
    found = Clock()
    metadata.store._now = found
    return found


@pytest.fixture
async def cluster(metadata, clock) -> Cluster:
    found = Cluster(metadata, clock)
    await found.pools(held=0.5)
    await found.trainings()
    await found.decided()
    # They have been idle for a moment.
    clock.advance(LINGER_S)
    return found


async def begin(cluster: Cluster, metadata, voice: str = "v-anna"):
    """A training that has had the cluster's GPU for a moment."""
    job = await train(metadata, voice=voice)
    await cluster.decided()
    await cluster.pools(held=0.0)
    await cluster.decided()
    claimed = await claim_one(metadata)
    await cluster.trainings(TrainingGpus(job.id, 1, "nodes/a", 0.0))
    await cluster.decided()
    return job, claimed


async def test_idle_pools_lend_the_only_gpu_to_a_training_and_only_once_they_have_left_it(metadata, cluster):
    assert await cluster.decided() == {"trainer": 0.0, "f5": 0.5, "rvc": 0.5}
    await train(metadata)
    assert await cluster.decided() == {"trainer": 0.0, "f5": 0.0, "rvc": 0.0}
    await cluster.pools(held=0.0)
    assert await cluster.decided() == {"trainer": 1.0, "f5": 0.0, "rvc": 0.0}


async def test_a_training_yields_after_its_guaranteed_run_and_resumes_where_it_was(metadata, cluster, clock):
    job, claimed = await begin(cluster, metadata)
    clock.advance(RUN_S - 30)
    await cluster.pools(held=0.0, streams_waiting=1)
    assert await cluster.decided() == {"trainer": 1.0, "f5": 0.0, "rvc": 0.0}
    assert await metadata.work.heartbeat([(claimed.fence, None)]) == [], "not before its guaranteed run"
    clock.advance(31)
    # What it is to give up is nobody's until it has: the trainer may begin nothing with it.
    assert await cluster.decided() == {"trainer": 0.0, "f5": 0.0, "rvc": 0.0}
    assert await metadata.work.heartbeat([(claimed.fence, None)]) == [(claimed.fence, StopKind.YIELD)]
    assert await cluster.decided() == {"trainer": 0.0, "f5": 0.0, "rvc": 0.0}

    await metadata.work.record_checkpoint(claimed.fence, Checkpoint(blob(), 3, 30))
    given_back = (await metadata.work.release(claimed.fence, Released("yield: saved at step 30"))).job
    assert (given_back.state, given_back.waiting_reason) == (JobState.QUEUED, "PREEMPTED")
    assert not given_back.yield_asked
    assert given_back.max_attempts - given_back.attempt == job.max_attempts, "it cost no attempt"
    await cluster.trainings()
    assert await cluster.decided() == {"trainer": 0.0, "f5": 0.5, "rvc": 0.5}
    await cluster.pools(held=0.5, streams_running=1)
    clock.advance(20)
    assert await cluster.decided() == {"trainer": 0.0, "f5": 0.5, "rvc": 0.5}

    # The stream has ended, and no other came for a moment: the training goes on from its checkpoint.
    await cluster.pools(held=0.5)
    assert await cluster.decided() == {"trainer": 0.0, "f5": 0.5, "rvc": 0.5}
    clock.advance(LINGER_S)
    assert await cluster.decided() == {"trainer": 0.0, "f5": 0.0, "rvc": 0.0}
    await cluster.pools(held=0.0)
    assert (await cluster.decided())["trainer"] == 1.0
    again = await claim_one(metadata)
    assert (again.job.id, again.job.attempt) == (job.id, 2)
    assert [row.step for row in again.checkpoints] == [30]
    await cluster.trainings(TrainingGpus(job.id, 1, "nodes/a", 0.0))
    await cluster.pools(held=0.0, streams_waiting=1)
    clock.advance(RUN_S - 1)
    await cluster.decided()
    assert await metadata.work.heartbeat([(again.fence, None)]) == [], "its guarantee holds for each run"
    voice = VoiceOutput(blob("cd" * 32), "whisper-base", 40_000, {})
    assert (await metadata.work.succeed(again.fence, Succeeded(voice=voice))).job.state is JobState.SUCCEEDED


async def test_a_training_that_needs_no_gpu_any_more_is_not_asked_for_one(metadata, cluster, clock):
    job, claimed = await begin(cluster, metadata)
    clock.advance(RUN_S + 1)
    await cluster.trainings(TrainingGpus(job.id, 0))
    await cluster.pools(held=0.0, streams_waiting=1)
    assert await cluster.decided() == {"trainer": 0.0, "f5": 0.5, "rvc": 0.5}
    assert await metadata.work.heartbeat([(claimed.fence, None)]) == []


async def test_jobs_of_a_team_at_its_quota_make_no_training_yield(metadata, cluster, clock):
    _, claimed = await begin(cluster, metadata)
    await batch_of(metadata, 3)
    await put_quota(metadata, Quota("alpha", max_gpus=1.0))
    clock.advance(RUN_S + 100)
    await cluster.decided()
    assert await metadata.work.heartbeat([(claimed.fence, None)]) == []
    # Without that bound a batch that nobody serves may ask for one replica once it is old.
    await put_quota(metadata, Quota("alpha"))
    await cluster.decided()
    assert await metadata.work.heartbeat([(claimed.fence, None)]) == [(claimed.fence, StopKind.YIELD)]


async def test_under_endless_streams_a_training_has_its_turn(metadata, cluster, clock):
    """Three classes below them, and a leased one that waits in vain for its GPU loses nothing by that."""
    await train(metadata)
    await cluster.pools(held=0.5, streams_running=1, streams_waiting=3, begun=1, since_begin_s=0.1)
    assert (await cluster.decided())["f5"] == 0.5
    clock.advance(100)
    claimed = await claim_one(metadata)
    await cluster.trainings(TrainingGpus(claimed.job.id, 1))
    await cluster.decided()
    await metadata.work.release(claimed.fence, Released("no place with 1 free GPUs in 100 s"))
    await cluster.trainings()
    clock.advance(81)
    await cluster.pools(held=0.5, streams_running=1, streams_waiting=3, begun=2, since_begin_s=0.1)
    assert await cluster.decided() == {"trainer": 0.0, "f5": 0.0, "rvc": 0.0}
    await cluster.pools(held=0.0, streams_waiting=4, begun=2, since_begin_s=5.0)
    assert (await cluster.decided())["trainer"] == 1.0


async def test_a_drained_node_counts_for_nobody(metadata, cluster, clock):
    cluster.nodes = (NODE, {**NODE, "name": "nodes/b"})
    job, claimed = await begin(cluster, metadata)
    await cluster.pools(held=0.5)
    assert await cluster.decided() == {"trainer": 1.0, "f5": 0.5, "rvc": 0.5}
    await Fleet(metadata.store).drain("nodes/b")
    await cluster.pools(held=0.0, streams_waiting=1)
    clock.advance(RUN_S + 1)
    assert await cluster.decided() == {"trainer": 0.0, "f5": 0.0, "rvc": 0.0}
    assert cluster.orders.now.drained_nodes == {"nodes/b"}
    assert await metadata.work.heartbeat([(claimed.fence, None)]) == [(claimed.fence, StopKind.YIELD)]
    assert job.id == claimed.job.id


async def test_what_was_decided_holds_while_every_worker_is_away(metadata, cluster):
    before = await cluster.decided()
    for worker in ("inference-1", "trainer-1"):
        await metadata.work.drop_worker(worker)
    assert await cluster.decided() == before
    async with metadata.store.service() as tx:
        assert await tx.worker_gpus() == []


async def test_one_process_decides_and_all_tell(metadata, cluster):
    other = Orders()
    beside = Granting(metadata.store, other, Rules())
    first = await cluster.decided()
    await train(metadata)
    async with metadata.store.service() as tx:
        assert await tx.lock_division() is not None
        await beside.sweep()
        assert dict(other.now.grants) == first, "it waits for nobody and decides nothing"
    await beside.sweep()
    assert dict(other.now.grants) == {"trainer": 0.0, "f5": 0.0, "rvc": 0.0}
    assert await cluster.decided() == dict(other.now.grants)


async def test_what_a_worker_says_of_gpus_is_written_when_it_changes(metadata, cluster, clock):
    row = WorkerRow("t", "trainer", "host", "1", {"rvc.train": 0}, (NODE,), "", 0, clock())
    session = WorkSession(metadata.work, metadata.ledger.dispatcher, row)

    async def told() -> list[tuple[GpuFacts, float]]:
        async with metadata.store.service() as tx:
            return [found for found in await tx.worker_gpus() if found[0].trainings]

    await session.offer(row, 0, GpuFacts((TrainingGpus("j", 1),)))
    clock.advance(5)
    await session.offer(row, 0, GpuFacts((TrainingGpus("j", 1, "nodes/a", 0.5),)))
    clock.advance(2)
    await session.offer(row, 0, GpuFacts((TrainingGpus("j", 1, "nodes/a", 2.5),)))
    ((facts, age_s),) = await told()
    assert facts.trainings[0].node == "nodes/a"
    assert facts.trainings[0].held_s + age_s == pytest.approx(2.5, abs=0.1)
    await session.offer(row, 0, GpuFacts())
    assert await told() == []


async def test_orders_say_what_changed_and_that_alone():
    orders = Orders()
    changes = orders.changes()
    first = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0)
    assert not first.done(), "a process that has just started knows nothing better than what a worker heard"
    orders.set(FleetOrders())
    assert await first == FleetOrders()
    orders.set(FleetOrders(grants={"trainer": 1.0}))
    orders.set(FleetOrders(frozenset({"nodes/a"}), {"trainer": 0.0}))
    assert await anext(changes) == FleetOrders(frozenset({"nodes/a"}), {"trainer": 0.0})
