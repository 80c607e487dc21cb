"""Weights change under a pool that goes on serving, or goes back to the old ones."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from prometheus_client import REGISTRY

from services.common.errors import Reason, invalid
from services.common.jobs.tasks import SpeakingParameters
from services.engines.bundles.catalogue import F5_V1_BASE
from services.inference.app.pool import Pool
from services.inference.calls import EngineSpec, Pcm, StreamSpeech
from services.inference.model import PoolPlan, Rank, ReplicaState, Role
from tests.unit.inference.fakes import VOICE, Clock, FakeEngine, FakeExecutor, facts, settle

REQUEST = StreamSpeech("Hello there.", VOICE, SpeakingParameters(seed=1))
PIECE = Pcm(b"ab", 1, 0.1)
OLD, NEW = EngineSpec(Role.F5), EngineSpec(Role.F5, bundle=F5_V1_BASE)
NEWEST = EngineSpec(Role.F5, bundle=replace(F5_V1_BASE, name="f5-other"))
TORN = invalid(Reason.MODEL_CORRUPT, "the weights are torn")


class Rig:
    """A pool that serves with the old weights."""

    def __init__(self, plan: PoolPlan) -> None:
        self.clock = Clock()
        self.executor = FakeExecutor()
        self.pool = Pool(plan, self.executor, clock=self.clock)
        self.pool.use(OLD)

    @classmethod
    async def up(cls, most: int = 2, least: int = 1, surge: int = 0) -> Rig:
        rig = cls(PoolPlan(Role.F5, least, most, surge=surge, start_tries=3, retry_s=900.0))
        for engine in rig.engines:
            await rig.ready(engine)
        return rig

    @property
    def engines(self) -> list[FakeEngine]:
        return self.executor.engines

    async def ready(self, engine: FakeEngine, *, slots: int = 1) -> None:
        engine.loaded.set_result(facts(name="new" if engine.spec == NEW else "old", slots=slots))
        await settle()

    async def fails(self) -> None:
        self.engines[-1].loaded.set_exception(TORN)
        await settle()

    async def later(self, seconds: float) -> None:
        self.clock.now_s += seconds
        self.pool.step()
        await settle()

    def run(self, rank: Rank = Rank.BATCH) -> asyncio.Task[list]:
        async def work() -> list:
            async with self.pool.call(lambda _: REQUEST, rank) as running:
                return [event async for event in running.events()]

        return asyncio.create_task(work())

    async def serves(self, engine: FakeEngine) -> None:
        """A request is answered, and by this replica."""
        task = self.run(Rank.INTERACTIVE)
        await settle()
        engine.calls[-1].send(PIECE, None)
        assert await task == [PIECE]
        await settle()


async def test_with_room_the_new_weights_come_before_the_old_ones_go() -> None:
    rig = await Rig.up()
    old = rig.engines[0]
    running = rig.run()
    await settle()
    rig.pool.use(NEW)
    assert rig.engines[1].spec == NEW
    assert rig.pool.replicas[0].state is ReplicaState.READY
    old.calls[0].send(None)
    await running
    await rig.serves(old)
    assert rig.pool.facts.weights.name == "old"
    await rig.ready(rig.engines[1])
    assert rig.pool.facts.weights.name == "new"
    assert old.has_ended
    await rig.serves(rig.engines[1])


async def test_a_call_of_the_old_weights_is_let_end() -> None:
    rig = await Rig.up()
    running = rig.run()
    await settle()
    rig.pool.use(NEW)
    await rig.ready(rig.engines[1])
    assert not rig.engines[0].has_ended
    await rig.serves(rig.engines[1])
    rig.engines[0].calls[0].send(PIECE, None)
    assert await running == [PIECE]
    rig.pool.step()
    assert rig.engines[0].has_ended
    labels = {"engine": "f5", "reason": "outdated"}
    assert REGISTRY.get_sample_value("voxfleet_pool_replicas_ended_total", labels), "not merely 'drained'"


async def test_without_room_requests_wait_instead_of_failing() -> None:
    rig = await Rig.up(most=1)
    rig.pool.use(NEW)
    assert rig.engines[0].has_ended
    waiting = [rig.run(Rank.INTERACTIVE), rig.run(Rank.BATCH)]
    await rig.later(1.0)
    assert not any(task.done() for task in waiting)
    await rig.ready(rig.engines[1], slots=2)
    for call in rig.engines[1].calls:
        call.send(PIECE, None)
    assert await asyncio.gather(*waiting) == [[PIECE], [PIECE]]


async def test_new_weights_that_do_not_start_leave_the_old_ones_at_work() -> None:
    rig = await Rig.up()
    rig.pool.use(NEW)
    for _ in range(3):
        await rig.fails()
        await rig.serves(rig.engines[0])
        assert rig.pool.broken is TORN
        assert rig.pool.places() > 0
        await rig.later(60.0)
    # After three failures they are let be for a while, then tried once more, ever later.
    assert [engine.spec for engine in rig.engines] == [OLD, NEW, NEW, NEW]
    await rig.later(900.0)
    assert len(rig.engines) == 5
    await rig.fails()
    await rig.later(1000.0)
    assert len(rig.engines) == 5
    await rig.later(900.0)
    assert len(rig.engines) == 6
    await rig.ready(rig.engines[-1])
    assert rig.engines[0].has_ended
    assert rig.pool.broken is None
    await rig.serves(rig.engines[-1])


async def test_a_pool_that_could_not_hold_both_goes_back_to_the_old_weights() -> None:
    rig = await Rig.up(most=1)
    rig.pool.use(NEW)
    assert rig.engines[0].has_ended
    for _ in range(3):
        assert rig.engines[-1].spec == NEW
        await rig.fails()
        await rig.later(10.0)
    assert rig.engines[-1].spec == OLD
    waiting = rig.run(Rank.INTERACTIVE)
    await settle()
    await rig.ready(rig.engines[-1])
    rig.engines[-1].calls[0].send(PIECE, None)
    assert await waiting == [PIECE]
    await rig.later(100.0)
    assert not rig.engines[-1].has_ended, "and stays with them for a while"


async def test_growing_while_the_new_weights_do_not_start_is_done_with_the_old() -> None:
    rig = await Rig.up(most=3)
    rig.pool.use(NEW)
    for _ in range(3):
        await rig.fails()
        await rig.later(10.0)
    tasks = [rig.run() for _ in range(2)]
    await settle()
    assert rig.engines[-1].spec == OLD
    await rig.ready(rig.engines[-1])
    for engine in (rig.engines[0], rig.engines[-1]):
        engine.calls[0].send(None)
    assert await asyncio.gather(*tasks) == [[], []]


async def test_weights_that_come_back_need_no_new_replica() -> None:
    rig = await Rig.up()
    rig.pool.use(NEW)
    coming = rig.engines[-1]
    rig.pool.use(OLD)
    assert coming.has_ended
    assert not rig.engines[0].has_ended
    await rig.later(10.0)
    assert len(rig.engines) == 2
    await rig.serves(rig.engines[0])


async def test_weights_that_change_again_meanwhile_are_passed_over() -> None:
    rig = await Rig.up()
    rig.pool.use(NEW)
    rig.pool.use(NEWEST)
    assert rig.engines[1].has_ended
    await rig.serves(rig.engines[0])
    await rig.ready(rig.engines[2])
    assert rig.engines[2].spec == NEWEST
    assert rig.engines[0].has_ended


async def test_a_full_pool_changes_one_by_one() -> None:
    rig = await Rig.up(least=2)
    first, second = rig.engines
    rig.pool.use(NEW)
    assert [first.has_ended, second.has_ended] == [True, False]
    await rig.serves(second)
    await rig.later(1.0)
    await rig.ready(rig.engines[2])
    assert second.has_ended
    await rig.serves(rig.engines[2])
    await rig.later(1.0)
    await rig.ready(rig.engines[3])
    assert [engine.spec for engine in rig.engines[2:]] == [NEW, NEW]


async def test_a_replica_above_the_most_bridges_the_change_where_it_may() -> None:
    rig = await Rig.up(most=1, surge=1)
    rig.pool.use(NEW)
    await rig.serves(rig.engines[0])
    await rig.ready(rig.engines[1])
    assert rig.engines[0].has_ended
    await rig.serves(rig.engines[1])


async def test_the_first_weights_that_do_not_start_are_tried_again_and_again() -> None:
    rig = Rig(PoolPlan(Role.F5))
    for count in range(1, 8):
        assert [engine.spec for engine in rig.engines] == [OLD] * count, "there is nothing to go back to"
        await rig.fails()
        assert rig.pool.places() == 0
        await rig.later(100.0)
