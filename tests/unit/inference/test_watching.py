"""Sick replicas are noticed and replaced, each with its reason; a busy or a slowly read one is not sick."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from prometheus_client import REGISTRY

from services.common.errors import FailureClass, Kind, Reason, VoxfleetError, invalid
from services.common.jobs.tasks import SpeakingParameters
from services.inference.app.pool import Pool
from services.inference.calls import EngineSpec, Pcm, Probe, StreamSpeech
from services.inference.health import HealthPlan, Vitals
from services.inference.model import PoolPlan, Rank, Role
from tests.unit.inference.fakes import VOICE, Clock, FakeCall, FakeEngine, FakeExecutor, facts, lost, settle

HEALTH = HealthPlan(check_s=5.0, probe_s=60.0, hang_floor_s=60.0, first_call_s=600.0)
PIECE = Pcm(b"ab", 1, 0.1)
MIB = 1 << 20
FULL = VoxfleetError(Reason.GPU_OUT_OF_MEMORY, "full", kind=Kind.EXHAUSTED, failure=FailureClass.RESOURCE)


def asking(text: str = "x" * 100) -> StreamSpeech:
    return StreamSpeech(text, VOICE, SpeakingParameters(seed=1, steps=1))


class Rig:
    """A pool of replicas that are ready."""

    def __init__(self, health: HealthPlan, count: int, slots: int, stop_grace_s: float) -> None:
        self.clock = Clock()
        self.executor = FakeExecutor()
        plan = PoolPlan(Role.F5, least=count, most=count + 1, health=health)
        self.pool = Pool(plan, self.executor, clock=self.clock, stop_grace_s=stop_grace_s)
        self.pool.use(EngineSpec(Role.F5))
        self.slots = slots
        self.before = {reason: ended(reason) for reason in REASONS}

    async def up(self) -> None:
        for engine in self.engines:
            if not engine.loaded.done():
                engine.loaded.set_result(facts(slots=self.slots))
        await settle()

    @property
    def engines(self) -> list[FakeEngine]:
        return self.executor.engines

    @property
    def probes(self) -> list[FakeCall]:
        return [call for call in self.engines[0].calls if isinstance(call.request, Probe)]

    async def later(self, seconds: float) -> None:
        self.clock.now_s += seconds
        # Twice, as the pool looks every second: what it sees once may be its own standing still.
        for _ in range(2):
            self.pool.watch()
            self.pool.step()
            await settle()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.002)

    def run(self, request: StreamSpeech | None = None, rank: Rank = Rank.BATCH) -> asyncio.Task[list]:
        async def work() -> list:
            async with self.pool.call(lambda _: request or asking(), rank) as running:
                return [event async for event in running.events()]

        return asyncio.create_task(work())

    async def run_well(self, seconds: float, request: StreamSpeech | None = None) -> None:
        task = self.run(request)
        await settle()
        self.clock.now_s += seconds
        next(call for engine in self.engines for call in engine.calls if not call.is_over).send(None)
        await task
        await settle()

    def ended(self) -> dict[str, float]:
        found = {reason: ended(reason) - self.before[reason] for reason in REASONS}
        return {reason: count for reason, count in found.items() if count}


REASONS = (
    "unresponsive",
    "failed probe",
    "hung",
    "out of memory",
    "leaked memory",
    "died",
    "idle",
    "drained",
)


def ended(reason: str) -> float:
    labels = {"engine": "f5", "reason": reason}
    return REGISTRY.get_sample_value("voxfleet_pool_replicas_ended_total", labels) or 0.0


@asynccontextmanager
async def up(
    health: HealthPlan = HEALTH, *, count: int = 1, slots: int = 4, stop_grace_s: float = 10.0
) -> AsyncIterator[Rig]:
    rig = Rig(health, count, slots, stop_grace_s)
    await rig.up()
    try:
        yield rig
    finally:
        rig.pool.close()


async def test_a_replica_that_does_not_answer_is_replaced() -> None:
    async with up(replace(HEALTH, check_limit_s=0.005)) as rig:
        rig.engines[0].mute = True
        for missed in (1, 2, 3):
            await rig.later(6.0)
            await rig.until(
                lambda missed=missed: (
                    rig.engines[0].has_ended or rig.pool.replicas[0].condition.missed == missed
                )
            )
            assert rig.engines[0].has_ended == (missed == 3)
        assert len(rig.engines) == 2
        assert rig.ended() == {"unresponsive": 1}


async def test_an_answer_wipes_out_the_misses_before() -> None:
    async with up(replace(HEALTH, check_limit_s=0.005)) as rig:
        rig.engines[0].mute = True
        await rig.later(6.0)
        await rig.until(lambda: rig.pool.replicas[0].condition.missed == 1)
        rig.engines[0].mute = False
        await rig.later(6.0)
        assert rig.pool.replicas[0].condition.missed == 0


# ---- probes


async def test_only_an_idle_replica_is_probed_and_only_now_and_then() -> None:
    async with up() as rig:
        await rig.later(0.0)
        await rig.later(59.0)
        assert not rig.probes
        await rig.later(1.0)
        assert len(rig.probes) == 1
        await rig.later(60.0)
        assert len(rig.probes) == 1, "one at a time"
        rig.probes[0].send(None)
        await settle()
        await rig.later(59.0)
        assert len(rig.probes) == 1
        task = rig.run()
        await settle()
        await rig.later(60.0)
        assert len(rig.probes) == 1, "who works shows that it can"
        rig.engines[0].calls[-1].send(None)
        await task
        await rig.later(59.0)
        assert len(rig.probes) == 1
        await rig.later(1.0)
        assert len(rig.probes) == 2
        assert rig.pool.replicas[0].busy == 0, "a probe takes no slot"


async def test_probes_can_be_turned_off() -> None:
    async with up(replace(HEALTH, probe_s=0.0)) as rig:
        for _ in range(5):
            await rig.later(1000.0)
        assert not rig.probes


async def test_a_replica_whose_probes_fail_is_replaced() -> None:
    async with up() as rig:
        await rig.later(0.0)
        await rig.later(60.0)
        for failed in (1, 2, 3):
            assert len(rig.probes) == failed
            rig.probes[-1].send(invalid(Reason.INTERNAL, "CUDA error: device-side assert triggered"))
            await settle()
            assert rig.engines[0].has_ended == (failed == 3)
            # After a failure the next one does not wait for a minute.
            await rig.later(5.0)
        assert len(rig.engines) == 2
        assert rig.ended() == {"failed probe": 1}


async def test_work_that_goes_well_makes_up_for_failed_probes() -> None:
    async with up() as rig:
        await rig.later(0.0)
        await rig.later(60.0)
        rig.probes[-1].send(invalid(Reason.INTERNAL, "CUDA error"))
        await settle()
        assert rig.pool.replicas[0].condition.probes_failed == 1
        await rig.run_well(1.0)
        assert rig.pool.replicas[0].condition.probes_failed == 0


async def test_a_late_probe_counts_and_is_stopped() -> None:
    async with up(replace(HEALTH, probe_limit_s=0.005)) as rig:
        await rig.later(0.0)
        await rig.later(60.0)
        await rig.until(lambda: rig.pool.replicas[0].condition.probes_failed == 1)
        assert rig.probes[0].stops == 1


async def test_a_probe_that_does_not_end_counts() -> None:
    async with up(replace(HEALTH, probe_limit_s=0.005), stop_grace_s=0.005) as rig:
        rig.engines[0].stubborn = True
        await rig.later(0.0)
        await rig.later(60.0)
        await rig.until(lambda: rig.pool.replicas[0].condition.probes_failed == 1)


async def test_work_that_came_meanwhile_excuses_a_late_probe() -> None:
    async with up(replace(HEALTH, probe_limit_s=0.02)) as rig:
        await rig.later(0.0)
        await rig.later(60.0)
        task = rig.run()
        await settle()
        await rig.until(lambda: rig.probes[0].stops == 1)
        await settle()
        assert rig.pool.replicas[0].condition.probes_failed == 0
        rig.engines[0].calls[-1].send(None)
        await task


async def test_a_replica_that_dies_under_a_probe_is_replaced() -> None:
    async with up() as rig:
        await rig.later(0.0)
        await rig.later(60.0)
        rig.probes[0].send(lost())
        await settle()
        assert rig.engines[0].has_ended
        assert len(rig.engines) == 2
        assert rig.ended() == {"died": 1}


# ---- calls that hang


async def test_a_call_that_is_silent_for_twice_its_time_ends_its_replica() -> None:
    async with up() as rig:
        await rig.run_well(10.0)
        task = rig.run()
        await settle()
        # Ten seconds are expected of it: twice that and the floor of sixty make eighty.
        await rig.later(80.0)
        assert not rig.engines[0].has_ended
        await rig.later(0.5)
        assert rig.engines[0].has_ended
        assert len(rig.engines) == 2
        assert rig.ended() == {"hung": 1}
        rig.engines[0].die()
        with pytest.raises(VoxfleetError) as caught:
            await task
        assert caught.value.reason is Reason.WORKER_LOST, "so it is tried elsewhere"


async def test_a_larger_request_may_take_longer() -> None:
    async with up() as rig:
        await rig.run_well(10.0)
        task = rig.run(asking("x" * 1000))
        await settle()
        await rig.later(250.0)
        assert not rig.engines[0].has_ended
        await rig.later(20.0)
        assert rig.engines[0].has_ended
        task.cancel()


async def test_each_event_begins_the_time_anew() -> None:
    async with up() as rig:
        await rig.run_well(10.0)
        task = rig.run()
        await settle()
        for _ in range(5):
            await rig.later(70.0)
            rig.engines[0].calls[-1].send(PIECE)
            await settle()
        assert not rig.engines[0].has_ended
        rig.engines[0].calls[-1].send(None)
        assert len(await task) == 5


async def test_a_controller_that_stood_still_takes_nobody_for_hung() -> None:
    async with up() as rig:
        await rig.run_well(10.0)
        task = rig.run()
        await settle()
        rig.clock.now_s += 3600.0
        # What the engine sent meanwhile lies unread when the pool looks.
        rig.engines[0].calls[-1].send(PIECE, PIECE)
        rig.pool.watch()
        rig.pool.step()
        await settle()
        rig.pool.watch()
        rig.pool.step()
        assert not rig.engines[0].has_ended
        rig.engines[0].calls[-1].send(None)
        assert await task == [PIECE, PIECE]


async def test_the_first_call_of_a_kind_is_given_long() -> None:
    async with up() as rig:
        task = rig.run()
        await settle()
        await rig.later(590.0)
        assert not rig.engines[0].has_ended
        await rig.later(20.0)
        assert rig.engines[0].has_ended
        task.cancel()


async def test_a_client_that_stops_reading_makes_nobody_sick() -> None:
    async with up() as rig:
        await rig.run_well(10.0)
        read_on = asyncio.Event()

        async def read_slowly() -> int:
            count = 0
            async with rig.pool.call(lambda _: asking(), Rank.INTERACTIVE) as running:
                async for _ in running.events():
                    count += 1
                    await read_on.wait()
            return count

        task = asyncio.create_task(read_slowly())
        await settle()
        rig.engines[0].calls[-1].send(PIECE, PIECE, None)
        await settle()
        for _ in range(10):
            await rig.later(1000.0)
        assert not rig.engines[0].has_ended
        read_on.set()
        assert await task == 2
        # Nor is what it held up taken for the engine's own slowness.
        task = rig.run()
        await settle()
        await rig.later(81.0)
        assert rig.engines[0].has_ended
        task.cancel()


async def test_a_call_that_waits_behind_others_is_given_longer() -> None:
    async with up() as rig:
        await rig.run_well(10.0)
        behind, before = rig.run(), rig.run(rank=Rank.INTERACTIVE)
        await settle()
        # Two share the replica: twice twenty, and sixty.
        for _ in range(3):
            await rig.later(60.0)
            rig.engines[0].calls[-1].send(PIECE)
            await settle()
        assert not rig.engines[0].has_ended
        for _ in range(4):
            await rig.later(60.0)
            rig.engines[0].calls[-1].send(PIECE)
            await settle()
        assert rig.engines[0].has_ended
        for task in (behind, before):
            task.cancel()


# ---- memory


async def test_a_replica_that_leaks_gives_way_to_a_successor() -> None:
    async with up(replace(HEALTH, rss_growth_bytes=100 * MIB)) as rig:
        rig.engines[0].vitals = Vitals(300 * MIB)
        await rig.later(0.0)
        rig.engines[0].vitals = Vitals(401 * MIB)
        task = rig.run()
        await settle()
        for _ in range(2):
            await rig.later(6.0)
        assert len(rig.engines) == 1
        rig.engines[0].vitals = Vitals(350 * MIB)
        await rig.later(6.0)
        rig.engines[0].vitals = Vitals(401 * MIB)
        for _ in range(2):
            await rig.later(6.0)
        assert len(rig.engines) == 1, "what is given back is no leak"
        await rig.later(6.0)
        assert len(rig.engines) == 2
        await rig.up()
        assert not rig.engines[0].has_ended, "its call goes on"
        rig.engines[0].calls[-1].send(PIECE, None)
        assert await task == [PIECE]
        rig.pool.step()
        assert rig.engines[0].has_ended
        assert not rig.engines[1].has_ended
        assert rig.ended() == {"leaked memory": 1}


async def test_a_replica_that_keeps_lacking_memory_is_replaced_and_its_neighbours_end_well() -> None:
    async with up() as rig:
        first = rig.engines[0]
        neighbour = rig.run()
        await settle()
        for count in (1, 2, 3):
            task = rig.run()
            await settle()
            assert not first.has_ended
            first.calls[-1].send(FULL)
            with pytest.raises(VoxfleetError):
                await task
            await settle()
            assert len(rig.engines) == (2 if count == 3 else 1)
        later = rig.run()
        await rig.up()
        assert len(rig.engines[1].calls) == 1, "new work goes to the successor"
        first.calls[0].send(PIECE, None)
        assert await neighbour == [PIECE]
        rig.pool.step()
        assert first.has_ended
        assert rig.ended() == {"out of memory": 1}
        rig.engines[1].calls[0].send(None)
        await later


async def test_a_lack_of_memory_now_and_then_costs_no_replica() -> None:
    async with up() as rig:
        for _ in range(5):
            for _ in range(2):
                task = rig.run()
                await settle()
                rig.engines[0].calls[-1].send(FULL)
                with pytest.raises(VoxfleetError):
                    await task
            await rig.run_well(1.0)
        assert len(rig.engines) == 1
        assert not rig.engines[0].has_ended


async def test_what_is_suspected_gets_new_work_last() -> None:
    async with up(count=2) as rig:
        task = rig.run()
        await settle()
        rig.engines[0].calls[0].send(FULL)
        with pytest.raises(VoxfleetError):
            await task
        tasks = [rig.run() for _ in range(4)]
        await settle()
        assert [len(engine.calls) for engine in rig.engines] == [1, 4]
        for task in tasks:
            task.cancel()
