"""The pool carries its decisions out: slots, deaths, calls that are left early."""

from __future__ import annotations

import asyncio

import pytest

from services.common.errors import FailureClass, Kind, Reason, VoxfleetError, invalid
from services.common.jobs.tasks import SpeakingParameters
from services.inference.app.members import GpusLentError
from services.inference.app.pool import Pool
from services.inference.calls import EngineFacts, EngineSpec, Pcm, StreamSpeech
from services.inference.health import HealthPlan
from services.inference.metrics import VOICES
from services.inference.model import PoolPlan, Rank, ReplicaState, Role
from tests.unit.inference.fakes import VOICE, Clock, FakeExecutor, facts, lost, settle

REQUEST = StreamSpeech("Hello there.", VOICE, SpeakingParameters(seed=1))
PIECE = Pcm(b"ab", 1, 0.1)


class Rig:
    def __init__(self, plan: PoolPlan | None = None, **settings: float) -> None:
        self.clock = Clock()
        self.executor = FakeExecutor()
        self.pool = Pool(plan or PoolPlan(Role.F5), self.executor, clock=self.clock, **settings)
        self.pool.use(EngineSpec(Role.F5))

    async def up(self, found: EngineFacts | None = None) -> None:
        self.executor.engines[-1].loaded.set_result(found or facts())
        await settle()

    @property
    def last(self):
        return self.executor.engines[-1]

    def run(self, rank: Rank = Rank.BATCH) -> asyncio.Task[list]:
        async def work() -> list:
            async with self.pool.call(lambda _: REQUEST, rank) as running:
                return [event async for event in running.events()]

        return asyncio.create_task(work())

    @property
    def busy(self) -> list[int]:
        return [replica.busy for replica in self.pool.replicas]


async def test_a_call_runs_and_gives_its_slot_on() -> None:
    rig = Rig()
    await rig.up()
    first, second = rig.run(), rig.run()
    await settle()
    assert len(rig.last.calls) == 1
    rig.last.calls[0].send(PIECE, None)
    assert await first == [PIECE]
    await settle()
    rig.last.calls[1].send(None)
    assert await second == []
    assert rig.busy == [0]


async def test_a_request_waits_for_a_replica_that_loads() -> None:
    rig = Rig()
    task = rig.run(Rank.INTERACTIVE)
    await settle()
    assert not rig.last.calls
    await rig.up()
    rig.last.calls[0].send(None)
    assert await task == []


async def test_interactive_overtakes_a_batch() -> None:
    rig = Rig()
    await rig.up()
    running, batch, interactive = rig.run(), rig.run(), rig.run(Rank.INTERACTIVE)
    await settle()
    rig.last.calls[0].send(None)
    await running
    await settle()
    rig.last.calls[1].send(None)
    await interactive
    assert not batch.done()
    batch.cancel()


async def test_a_full_queue_is_refused_at_once_with_a_time() -> None:
    rig = Rig(PoolPlan(Role.F5, queue_limit=1))
    await rig.up()
    tasks = [rig.run(Rank.INTERACTIVE) for _ in range(2)]
    await settle()
    with pytest.raises(VoxfleetError) as caught:
        await rig.run(Rank.INTERACTIVE)
    assert caught.value.reason is Reason.QUEUE_FULL
    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s >= 1.0
    for task in tasks:
        task.cancel()


async def test_a_batch_is_never_refused() -> None:
    rig = Rig(PoolPlan(Role.F5, queue_limit=0))
    await rig.up()
    tasks = [rig.run() for _ in range(5)]
    await settle()
    assert not any(task.done() for task in tasks)
    for task in tasks:
        task.cancel()


async def test_a_wait_that_is_too_long_ends() -> None:
    rig = Rig(PoolPlan(Role.F5, queue_wait_s=0.01))
    await rig.up()
    running = rig.run()
    await settle()
    with pytest.raises(VoxfleetError) as caught:
        await rig.run(Rank.INTERACTIVE)
    assert caught.value.reason is Reason.QUEUE_FULL
    running.cancel()


async def test_a_pool_that_cannot_load_says_so() -> None:
    rig = Rig(PoolPlan(Role.F5, queue_wait_s=0.01))
    rig.last.loaded.set_exception(invalid(Reason.MODEL_CORRUPT, "the weights are torn"))
    await settle()
    assert rig.pool.places() == 0
    with pytest.raises(VoxfleetError, match="the weights are torn") as caught:
        await rig.run(Rank.INTERACTIVE)
    assert caught.value.reason is Reason.SERVICE_UNAVAILABLE


async def test_a_failed_start_is_repeated_later_and_later() -> None:
    rig = Rig()
    for number, pause_s in enumerate((1.0, 2.0, 4.0), start=1):
        assert len(rig.executor.engines) == number
        rig.last.loaded.set_exception(RuntimeError("no GPU"))
        await settle()
        assert rig.last.has_ended
        rig.clock.now_s += pause_s - 0.01
        rig.pool.step()
        assert len(rig.executor.engines) == number
        rig.clock.now_s += 0.02
        rig.pool.step()
    await rig.up()
    assert rig.pool.broken is None


async def test_a_dead_replica_is_replaced_and_its_call_says_lost() -> None:
    rig = Rig(PoolPlan(Role.F5, least=2, most=2))
    for engine in rig.executor.engines:
        engine.loaded.set_result(facts())
    await settle()
    first, second = rig.run(), rig.run()
    await settle()
    dying, living = rig.executor.engines
    dying.die()
    with pytest.raises(VoxfleetError) as caught:
        await first
    assert caught.value.reason is Reason.WORKER_LOST
    assert dying.has_ended
    assert len(rig.executor.engines) == 3
    living.calls[0].send(PIECE, None)
    assert await second == [PIECE]


async def test_an_engines_own_error_costs_no_replica() -> None:
    rig = Rig()
    await rig.up()
    task = rig.run()
    await settle()
    rig.last.calls[0].send(invalid(Reason.UNSUPPORTED_CHARACTERS, "ꙮ"))
    with pytest.raises(VoxfleetError):
        await task
    assert rig.busy == [0]
    assert len(rig.executor.engines) == 1


async def test_a_call_that_is_left_is_stopped_and_frees_its_slot() -> None:
    rig = Rig()
    await rig.up()
    task = rig.run()
    await settle()
    task.cancel()
    await settle()
    assert rig.last.calls[0].stops == 1
    assert rig.busy == [0]
    assert not rig.last.has_ended


async def test_a_call_that_does_not_stop_costs_its_replica() -> None:
    rig = Rig(stop_grace_s=0.01)
    await rig.up()
    rig.last.stubborn = True
    stuck = rig.last
    task = rig.run()
    await settle()
    task.cancel()
    await settle()
    assert rig.busy == [1]
    await asyncio.wait(rig.pool._tasks, timeout=5)
    await settle()
    assert stuck.has_ended
    assert len(rig.executor.engines) == 2


async def test_a_request_that_leaves_the_queue_takes_no_slot() -> None:
    rig = Rig()
    await rig.up()
    running, leaving = rig.run(), rig.run()
    await settle()
    # The slot is given and the request cancelled in one breath.
    rig.last.calls[0].send(None)
    await running
    leaving.cancel()
    await settle()
    assert rig.busy == [0]


async def test_what_make_refuses_takes_no_slot() -> None:
    rig = Rig()
    await rig.up()

    def refuse(_: EngineFacts) -> None:
        raise invalid(Reason.UNSUPPORTED_LANGUAGE, "no")

    with pytest.raises(VoxfleetError):
        async with rig.pool.call(refuse, Rank.BATCH):
            pass
    assert rig.busy == [0]


async def test_new_weights_replace_a_replica_when_its_calls_have_ended() -> None:
    rig = Rig()
    await rig.up()
    old = rig.last
    task = rig.run()
    await settle()
    rig.pool.use(EngineSpec(Role.F5, contentvec=None))
    assert rig.pool.replicas[0].state is ReplicaState.READY, "the same weights change nothing"
    from services.engines.bundles.catalogue import F5_V1_BASE

    rig.pool.use(EngineSpec(Role.F5, bundle=F5_V1_BASE))
    assert rig.pool.replicas[0].state is ReplicaState.DRAINING
    assert len(rig.executor.engines) == 1
    old.calls[0].send(None)
    await task
    rig.pool.step()
    assert old.has_ended
    assert rig.last.spec.bundle == F5_V1_BASE


async def test_health_checks_find_the_dead_and_the_mute() -> None:
    rig = Rig(PoolPlan(Role.F5, health=HealthPlan(check_s=5.0)))
    await rig.up()
    keeper = asyncio.create_task(rig.pool.run())
    await settle()
    first = rig.last
    first.health = lost()
    rig.clock.now_s += 6
    rig.pool.watch()
    await settle()
    assert first.has_ended
    assert len(rig.executor.engines) == 2
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)
    assert rig.last.has_ended, "a pool that ends takes its replicas with it"


async def test_a_pool_without_weights_says_so_at_once() -> None:
    pool = Pool(PoolPlan(Role.F5), FakeExecutor())
    pool.refuse(invalid(Reason.MODEL_NOT_FOUND, "bundle f5-blue is not stored"))
    with pytest.raises(VoxfleetError, match="f5-blue"):
        async with pool.call(lambda _: REQUEST, Rank.INTERACTIVE):
            pass
    pool.use(EngineSpec(Role.F5))
    assert pool.broken is None


NONE = frozenset()
HALF = PoolPlan(Role.F5, gpus_each=0.5)


async def test_gpus_that_are_lent_away_are_left_when_the_running_call_has_ended() -> None:
    rig = Rig(HALF)
    await rig.up()
    assert rig.pool.places() == 1
    running, waiting = rig.run(Rank.CONVERSION), rig.run(Rank.BATCH)
    await settle()
    rig.pool.obey(NONE, 0.0)
    assert rig.pool.places() == 0
    with pytest.raises(GpusLentError):
        await waiting
    with pytest.raises(GpusLentError):
        await rig.run(Rank.CONVERSION)
    stream = rig.run(Rank.INTERACTIVE)
    await settle()
    assert not rig.last.has_ended
    assert (rig.pool.state.held_gpus, rig.pool.state.streams_waiting) == (0.5, 1)
    rig.last.calls[0].send(PIECE, None)
    assert await running == [PIECE], "no running call is cut off"
    rig.pool.step()
    assert rig.last.has_ended
    assert (rig.pool.replicas, rig.pool.state.held_gpus) == ((), 0.0)
    # Its share comes back, and with it who waited.
    rig.pool.obey(NONE, 0.5)
    assert len(rig.executor.engines) == 2
    await rig.up()
    await settle()
    assert rig.pool.state.streams_running == 1
    rig.last.calls[0].send(None)
    assert await stream == []
    assert rig.pool.state.streams_running == 0


async def test_a_stream_that_waits_in_vain_for_lent_gpus_is_told_so() -> None:
    rig = Rig(PoolPlan(Role.F5, gpus_each=0.5, queue_wait_s=0.01))
    rig.pool.obey(NONE, 0.0)
    assert rig.last.has_ended, "what only starts is ended at once"
    with pytest.raises(VoxfleetError, match="trainings have the GPUs") as caught:
        await rig.run(Rank.INTERACTIVE)
    assert caught.value.reason is Reason.QUEUE_FULL


async def test_orders_that_were_not_heard_change_nothing() -> None:
    rig = Rig(PoolPlan(Role.F5, least=2, most=2, gpus_each=0.5))
    assert len(rig.executor.engines) == 2
    rig.pool.obey(NONE, None)
    assert len(rig.pool.replicas) == 2


async def test_a_drained_node_is_left_for_another() -> None:
    rig = Rig(HALF)
    await rig.up(facts(node="nodes/a"))
    first = rig.last
    running = rig.run()
    await settle()
    rig.pool.obey(frozenset({"nodes/a"}), 0.5)
    assert rig.last.avoid == {"nodes/a"}
    assert not rig.pool.left("nodes/a")
    # What is held of a drained node counts for nothing.
    assert rig.pool.state.held_gpus == 0.5
    first.calls[0].send(None)
    assert await running == []
    rig.pool.step()
    assert first.has_ended
    assert rig.pool.left("nodes/a")


async def test_an_error_of_a_node_says_which() -> None:
    rig = Rig(HALF)
    await rig.up(facts(node="nodes/a"))
    task = rig.run()
    await settle()
    full = VoxfleetError(Reason.GPU_OUT_OF_MEMORY, "full", kind=Kind.EXHAUSTED, failure=FailureClass.RESOURCE)
    rig.last.calls[0].send(full)
    with pytest.raises(VoxfleetError) as caught:
        await task
    assert caught.value.metadata["node"] == "nodes/a"


async def test_the_scheduler_is_told_what_a_pool_does() -> None:
    rig = Rig(PoolPlan(Role.F5, least=1, most=3, gpus_each=0.2))
    assert rig.pool.state.since_begin_s == -1.0
    await rig.up(facts(slots=1))
    before = rig.pool.state
    tasks = [rig.run(Rank.INTERACTIVE) for _ in range(2)]
    await asyncio.sleep(0)
    # Between being given a slot and taking it, it is not gone.
    assert (rig.pool.state.streams_running, rig.pool.state.streams_waiting) == (1, 1)
    await settle()
    rig.clock.now_s += 3.0
    state = rig.pool.state
    assert (state.name, state.least, state.most, state.places_each) == ("f5", 1, 3, 1)
    # One is served, one waits; another replica is being started for it.
    assert (state.streams_running, state.streams_waiting, state.streams_waited_s) == (1, 1, 3.0)
    assert state.held_gpus == pytest.approx(0.4)
    assert (state.begun, state.since_begin_s) == (before.begun + 1, 3.0)
    rig.clock.now_s += 1.0
    assert rig.pool.state == state, "that time passes is no news"
    for task in tasks:
        task.cancel()


async def test_a_slot_that_comes_as_the_wait_ends_is_used_or_given_on() -> None:
    for _ in range(30):
        rig = Rig(PoolPlan(Role.F5, queue_wait_s=0.001))
        await rig.up()
        first, second = rig.run(), rig.run(Rank.INTERACTIVE)
        await settle()
        # The wait's end and the slot come in the same breath, whichever is first.
        await asyncio.sleep(0.0008)
        rig.last.calls[0].send(None)
        await first
        await settle()
        for call in rig.last.calls[1:]:
            call.send(None)
        await asyncio.gather(second, return_exceptions=True)
        await settle()
        assert rig.busy == [0]


async def test_a_pool_with_some_replicas_takes_work_while_another_does_not_start() -> None:
    rig = Rig(PoolPlan(Role.F5, least=2, most=2))
    first, second = rig.executor.engines
    first.loaded.set_result(facts(slots=3))
    second.loaded.set_exception(RuntimeError("no GPU"))
    await settle()
    assert rig.pool.broken is not None
    assert rig.pool.places() == 6, "three, and as many where the other will be"


async def test_a_pool_that_has_ended_starts_nothing_any_more() -> None:
    rig = Rig()
    await rig.up()
    task = rig.run()
    await settle()
    rig.pool.close()
    assert rig.last.has_ended
    task.cancel()
    await settle()
    rig.pool.step()
    assert len(rig.executor.engines) == 1
    assert rig.pool.replicas == ()


async def test_a_voice_is_found_again_where_it_is_warm_and_forgotten_when_it_is_dropped() -> None:
    rig = Rig(PoolPlan(Role.RVC, least=2, most=2, keeps=2))
    for engine in rig.executor.engines:
        engine.loaded.set_result(facts(Role.RVC, slots=2))
    await settle()
    one, two = rig.executor.engines

    async def convert(voice: str) -> int:
        """Which replica is given the call."""
        begun = [len(engine.calls) for engine in (one, two)]

        async def work() -> None:
            async with rig.pool.call(lambda _: REQUEST, Rank.CONVERSION, needs=voice) as running:
                [event async for event in running.events()]

        task = asyncio.create_task(work())
        await settle()
        (chosen,) = [n for n, engine in enumerate((one, two)) if len(engine.calls) > begun[n]]
        (one, two)[chosen].calls[-1].send(None)
        await task
        return chosen

    before = VOICES.labels(Role.RVC, "warm")._value.get()
    assert await convert("anna") == 0
    held = rig.run()
    await settle()
    assert await convert("bert") == 1, "a cold voice goes where there is most room"
    one.calls[-1].send(None)
    await held
    assert [await convert("bert") for _ in range(3)] == [1, 1, 1], "the emptiest is the first of two"
    assert await convert("anna") == 0
    assert VOICES.labels(Role.RVC, "warm")._value.get() - before == 4
    # A replica keeps two: with a third and a fourth the first is gone from it.
    assert [await convert(name) for name in ("carl", "dora")] == [0, 0]
    members = list(rig.pool._replicas)
    assert list(members[0].holds) == ["carl", "dora"]
    assert list(members[1].holds) == ["bert"]
    # A replica that died remembers nothing.
    one.health = lost()
    rig.pool._lost(members[0])
    await settle()
    rig.last.loaded.set_result(facts(Role.RVC, slots=2))
    await settle()
    assert [list(member.holds) for member in rig.pool._replicas if member.number > 2] == [[]]
