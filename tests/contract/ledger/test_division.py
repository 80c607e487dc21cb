"""What GPUs are divided by: what workers said of them, what waits, and one who decides at a time."""

import pytest

from services.common.jobs.model import GpuFacts, PoolState, TrainingGpus
from services.metadata.model.fleet import WorkerRow
from services.metadata.model.jobs import PriorityClass
from services.metadata.ports.grants import KindLoad
from services.metadata.scheduling.lanes import LaneKey
from tests.contract.ledger.desk import broken_off

FACTS = GpuFacts((TrainingGpus("job", 2, "n1", 3.0),), (PoolState("f5", 0.2, 1, 5),))
TRAINING = LaneKey("rvc.train", PriorityClass.TRAINING, "alpha")


async def test_what_a_worker_said_is_kept_until_it_is_gone(desk):
    row = WorkerRow("w1", "trainer", "n1", "v", {}, (), "", 0, desk.clock.now)
    async with desk.store.service() as tx:
        await tx.put_worker_gpus("w1", FACTS)
        assert await tx.worker_gpus() == [], "nobody knows this worker"
        await tx.put_worker(row)
        await tx.put_worker_gpus("w1", GpuFacts())
        await tx.put_worker_gpus("w1", FACTS)
    async with desk.store.service() as tx:
        assert await tx.worker_gpus() == [(FACTS, 0.0)]
        await tx.drop_worker("w1")
    async with desk.store.service() as tx:
        assert await tx.worker_gpus() == []


async def test_one_decides_at_a_time_and_what_it_remembers_is_kept(desk):
    async with desk.store.service() as tx:
        now_s, memory = await tx.lock_division()
        assert (now_s, memory) == (desk.clock.now.timestamp(), {})
        async with desk.store.service() as other:
            assert await other.lock_division() is None
        await tx.keep_division({"since": 1.5})
    async with broken_off(desk.store.service()) as tx:
        await tx.lock_division()
        await tx.keep_division({"since": 2.5})
    async with desk.store.service() as tx:
        assert (await tx.lock_division())[1] == {"since": 1.5}


async def test_what_waits_is_told_by_kind_and_class(desk):
    for team in ("alpha", "beta"):
        await desk.submit("rvc.convert", team=team)
    desk.clock.advance(7)
    await desk.submit("rvc.convert")
    await desk.submit()
    await desk.submit("bundle.pull")
    paused = await desk.submit()
    await desk.jobs.pause("alpha", paused)
    await desk.submit(depends_on=(paused,))
    async with desk.store.service() as tx:
        loads = await tx.job_loads(["rvc.convert", "f5.item"], ["beta"])
    assert sorted(loads, key=lambda load: load.kind) == [
        KindLoad("f5.item", PriorityClass.BATCH, 1, 0.0),
        KindLoad("rvc.convert", PriorityClass.CONVERSION, 2, 7.0),
    ]


async def test_trainings_that_want_gpus_wait_or_run_without(desk):
    first = await desk.submit("rvc.train", gpus=2, priority=1)
    held = await desk.submit("rvc.train", gpus=1, priority=1)
    plain = await desk.submit("rvc.train", gpus=1)
    await desk.submit("rvc.train", team="beta", gpus=1)
    await desk.pick(TRAINING, 2)
    desk.clock.advance(3)
    high = await desk.submit("rvc.train", gpus=4, priority=9)
    async with desk.store.service() as tx:
        found = await tx.waiting_trainings([held], ["beta"])
    assert [(one.job_id, one.gpus) for one in found] == [(high, 4), (plain, 1), (first, 2)]
    assert [one.waited_s for one in found] == [0.0, pytest.approx(3), pytest.approx(3)]
