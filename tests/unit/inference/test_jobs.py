"""Leased jobs: texts, conversions, stops, second tries."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from services.common.artifacts.memory_store import MemoryArtifactStore
from services.common.errors import Reason, VoxfleetError, invalid
from services.common.jail.running import run_jailed
from services.common.jail.work import JailLimits
from services.common.jobs.model import (
    AttemptStopped,
    Fence,
    FleetOrders,
    Lease,
    NodeFacts,
    Outcome,
    Released,
    StopKind,
    Succeeded,
)
from services.common.jobs.tasks import (
    ConvertTask,
    RvcVoice,
    SourceAudio,
    SpeakingParameters,
    SpeakTask,
    Task,
    TrainTask,
)
from services.common.jobs.worker import Attempt
from services.inference.app.bundles import Bundles
from services.inference.app.exchange import Exchange
from services.inference.app.jobs import Jobs
from services.inference.app.licences import TeamLicences
from services.inference.app.pool import Pool
from services.inference.app.speakers import Speakers
from services.inference.calls import Advance, EngineSpec, Speak
from services.inference.model import PoolPlan, Role
from tests.unit.inference.fakes import BLOB, VOICE, FakeCatalog, FakeExecutor, facts, lost, made, settle

CONVERT = ConvertTask(
    team="blue",
    audio=SourceAudio(name="teams/blue/audios/one", blob=BLOB, duration_s=2.0, display_name="One"),
    voice=RvcVoice(name="teams/blue/voices/singer", package=BLOB),
)


def text(words: str, **parameters: object) -> SpeakTask:
    return SpeakTask(team="blue", text=words, voice=VOICE, parameters=SpeakingParameters(**parameters))


EXCHANGE = {"voice.import": 1, "voice.export": 1}


class Rig:
    def __init__(self, tmp_path: Path, *, slots: int = 1) -> None:
        self.executor = FakeExecutor()
        self.f5 = Pool(PoolPlan(Role.F5), self.executor)
        self.rvc = Pool(PoolPlan(Role.RVC), self.executor)
        self.catalog = FakeCatalog()
        bundles = Bundles(self.catalog, MemoryArtifactStore(), tmp_path)
        exchange = Exchange(MemoryArtifactStore(), tmp_path, run_jailed, JailLimits())
        self.jobs = Jobs(
            self.f5,
            self.rvc,
            bundles,
            speakers=Speakers(self.f5),
            licences=TeamLicences(self.catalog),
            exchange=exchange,
        )
        for pool in (self.f5, self.rvc):
            pool.use(EngineSpec(pool.plan.role))
        self.speaker, self.converter = self.executor.engines
        self.speaker.loaded.set_result(facts(slots=slots))
        self.converter.loaded.set_result(facts(Role.RVC))
        self.count = 0

    @classmethod
    async def up(cls, tmp_path: Path, **settings: int) -> Rig:
        rig = cls(tmp_path, **settings)
        await settle()
        return rig

    def begin(
        self, task: Task, *, batch_scale: float = 1.0, avoid_nodes: tuple[str, ...] = ()
    ) -> tuple[Attempt, asyncio.Task[Outcome]]:
        self.count += 1
        lease = Lease(
            Fence(str(self.count), 1, "t"),
            f"teams/blue/jobs/{self.count}",
            task,
            30.0,
            batch_scale=batch_scale,
            avoid_nodes=avoid_nodes,
        )
        attempt = Attempt(lease, None)  # type: ignore[arg-type]
        return attempt, asyncio.create_task(self.jobs(attempt))

    @property
    def speech(self) -> list[str]:
        requests = [call.request for call in self.speaker.calls]
        return [request.task.text for request in requests if isinstance(request, Speak)]


async def test_texts_take_the_slots_there_are(tmp_path: Path) -> None:
    rig = await Rig.up(tmp_path, slots=2)
    tasks = [rig.begin(text(words))[1] for words in "abc"]
    await settle()
    assert rig.speech == ["a", "b"]
    rig.speaker.calls[1].send(made(), None)
    assert isinstance(await tasks[1], Succeeded)
    await settle()
    assert rig.speech == ["a", "b", "c"]
    rig.speaker.calls[0].send(made(), None)
    rig.speaker.calls[2].send(made(), None)
    done = await tasks[2]
    assert isinstance(done, Succeeded)
    assert done.audios[0].display_name == "c"
    assert done.metrics["rtf"] == 0.25
    await tasks[0]
    assert rig.f5.replicas[0].busy == 0


async def test_a_bad_text_fails_alone(tmp_path: Path) -> None:
    rig = await Rig.up(tmp_path, slots=3)
    tasks = [rig.begin(text("a"))[1], rig.begin(text("b"))[1], rig.begin(text("c", language="ru"))[1]]
    await settle()
    assert rig.speech == ["a", "b"], "a language that the weights lack is not even tried"
    rig.speaker.calls[0].send(invalid(Reason.UNSUPPORTED_CHARACTERS, "ꙮ"))
    rig.speaker.calls[1].send(made(), None)
    found = await asyncio.gather(*tasks, return_exceptions=True)
    reasons = [error.reason if isinstance(error, VoxfleetError) else None for error in found]
    assert reasons == [Reason.UNSUPPORTED_CHARACTERS, None, Reason.UNSUPPORTED_LANGUAGE]


async def test_of_texts_whose_replica_dies_each_is_tried_once_more(tmp_path: Path) -> None:
    rig = await Rig.up(tmp_path, slots=2)
    tasks = [rig.begin(text(words))[1] for words in "ab"]
    await settle()
    rig.speaker.calls[0].send(made(), None)
    assert isinstance(await tasks[0], Succeeded)
    rig.speaker.calls[1].send(lost())
    await settle()
    successor = rig.executor.engines[-1]
    successor.loaded.set_result(facts())
    await settle()
    assert [call.request.task.text for call in successor.calls] == ["b"]
    successor.calls[0].send(made(), None)
    assert isinstance(await tasks[1], Succeeded)


async def test_an_engine_that_says_nothing_is_an_error(tmp_path: Path) -> None:
    rig = await Rig.up(tmp_path)
    task = rig.begin(text("a"))[1]
    await settle()
    rig.speaker.calls[0].send(None)
    with pytest.raises(VoxfleetError) as caught:
        await task
    assert caught.value.reason is Reason.INTERNAL


async def test_a_text_without_a_seed_gets_one_and_keeps_it_on_a_second_try(tmp_path: Path) -> None:
    rig = await Rig.up(tmp_path)
    task = rig.begin(text("a"))[1]
    await settle()
    first = rig.speaker.calls[0].request.task.parameters.seed
    assert first > 0
    rig.speaker.die()
    await settle()
    successor = rig.executor.engines[-1]
    successor.loaded.set_result(facts())
    await settle()
    assert successor.calls[0].request.task.parameters.seed == first
    successor.calls[0].send(made(), None)
    assert isinstance(await task, Succeeded)


async def test_a_second_death_is_the_ledgers_to_handle(tmp_path: Path) -> None:
    rig = await Rig.up(tmp_path)
    for task in (text("a"), CONVERT):
        _, working = rig.begin(task)
        for _ in range(2):
            await settle()
            role = Role.F5 if isinstance(task, SpeakTask) else Role.RVC
            engine = [each for each in rig.executor.engines if each.spec.role is role][-1]
            if not engine.loaded.done():
                engine.loaded.set_result(facts(role))
                await settle()
            engine.calls[0].send(lost())
        with pytest.raises(VoxfleetError) as caught:
            await working
        assert caught.value.reason is Reason.WORKER_LOST


async def test_a_stopped_text_stops_its_call_and_one_that_waits_is_not_spoken(tmp_path: Path) -> None:
    rig = await Rig.up(tmp_path)
    running, queued = rig.begin(text("a")), rig.begin(text("b"))
    await settle()
    for attempt, task in (queued, running):
        attempt.tell_stop(StopKind.CANCEL)
        with pytest.raises(AttemptStopped):
            await task
    await settle()
    assert [call.stops for call in rig.speaker.calls] == [1]
    assert rig.f5.replicas[0].busy == 0


async def test_a_conversion_reports_and_names_its_source(tmp_path: Path) -> None:
    rig = await Rig.up(tmp_path)
    attempt, task = rig.begin(CONVERT)
    await settle()
    call = rig.converter.calls[0]
    call.send(Advance("fetch"))
    await settle()
    assert attempt.take_progress().percent == 0.0
    call.send(Advance("convert", 0.5))
    await settle()
    progress = attempt.take_progress()
    assert (progress.phase, progress.percent) == ("convert", 47.5)
    call.send(made(), None)
    done = await task
    audio = done.audios[0]
    assert (audio.engine, audio.display_name, audio.source_audio) == ("rvc", "One", "teams/blue/audios/one")
    assert not audio.weights_trained


async def test_a_stopped_conversion_stops_its_engine(tmp_path: Path) -> None:
    rig = await Rig.up(tmp_path)
    attempt, task = rig.begin(CONVERT)
    await settle()
    attempt.tell_stop(StopKind.SHUTDOWN)
    with pytest.raises(AttemptStopped):
        await task
    await settle()
    assert rig.converter.calls[0].stops == 1


async def test_capacity_falls_as_jobs_run(tmp_path: Path) -> None:
    rig = await Rig.up(tmp_path, slots=5)
    # One of the slots is kept for streams; for each of the others one text waits.
    rig.f5.plan = PoolPlan(Role.F5, reserved=1)
    free = {"f5.item": 8, "f5.convert": 4, "rvc.convert": 1, "bundle.pull": 1, **EXCHANGE}
    assert rig.jobs.capacity().free == free
    tasks = [rig.begin(task)[1] for task in (text("a"), text("b"), CONVERT)]
    await settle()
    assert rig.jobs.capacity().free == {**free, "f5.item": 6, "rvc.convert": 0}
    assert rig.jobs.capacity().default_bundle == "f5-small-random"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert rig.jobs.capacity().free["rvc.convert"] == 1


async def test_a_job_of_another_worker_is_refused(tmp_path: Path) -> None:
    rig = await Rig.up(tmp_path)
    with pytest.raises(VoxfleetError) as caught:
        await rig.begin(TrainTask(team="blue", voice="v", audios=()))[1]
    assert caught.value.reason is Reason.INTERNAL


async def test_a_conversion_that_lacked_memory_works_on_less_at_a_time(tmp_path: Path) -> None:
    rig = await Rig.up(tmp_path)
    attempt, task = rig.begin(CONVERT, batch_scale=0.25)
    await settle()
    assert rig.converter.calls[0].request.share == 0.25
    attempt.tell_stop(StopKind.CANCEL)
    await asyncio.gather(task, return_exceptions=True)


async def test_jobs_are_given_back_unharmed_where_trainings_have_the_gpus(tmp_path: Path) -> None:
    rig = await Rig.up(tmp_path)
    for pool in (rig.f5, rig.rvc):
        pool.plan = PoolPlan(pool.plan.role, gpus_each=0.5)
    running, waiting = rig.begin(text("a"))[1], [rig.begin(text("b"))[1]]
    converting = rig.begin(CONVERT)[1]
    await settle()
    waiting.append(rig.begin(CONVERT)[1])
    await settle()
    rig.jobs.obey(FleetOrders(grants={"f5": 0.0, "rvc": 0.0, "trainer": 1.0}))
    free = rig.jobs.capacity().free
    assert (free["f5.item"], free["rvc.convert"]) == (0, 0)
    for task in [*waiting, rig.begin(text("c"))[1]]:
        assert isinstance(await task, Released)
    assert not running.done()
    assert not converting.done()
    rig.speaker.calls[0].send(made(), None)
    rig.converter.calls[0].send(made(), None)
    assert isinstance(await running, Succeeded)
    assert isinstance(await converting, Succeeded)
    await settle()
    rig.f5.step()
    rig.rvc.step()
    assert [pool.held_gpus for pool in rig.jobs.capacity().gpus.pools] == [0.0, 0.0]
    rig.jobs.obey(FleetOrders(grants={"f5": 0.5, "rvc": 0.0}))
    assert rig.executor.engines[-1].spec.role is Role.F5
    rig.executor.engines[-1].loaded.set_result(facts())
    await settle()
    after = rig.begin(text("d"))[1]
    await settle()
    rig.executor.engines[-1].calls[0].send(made(), None)
    assert isinstance(await after, Succeeded), "the pool goes on as if nothing had been"


async def test_a_drained_node_is_shown_as_such(tmp_path: Path) -> None:
    rig = await Rig.up(tmp_path)
    rig.jobs.nodes = (NodeFacts("n", "alive", 1, 0, 8, True), NodeFacts("other", "alive", 1, 1, 8, True))

    def states() -> list[str]:
        return [node.state for node in rig.jobs.capacity().nodes]

    assert states() == ["alive", "alive"]
    task = rig.begin(CONVERT)[1]
    await settle()
    rig.jobs.obey(FleetOrders(frozenset({"n"})))
    assert states() == ["draining", "alive"]
    rig.converter.calls[0].send(made(), None)
    await task
    await settle()
    rig.rvc.step()
    assert states() == ["drained", "alive"]


async def test_a_conversion_goes_elsewhere_than_where_it_failed(tmp_path: Path) -> None:
    rig = await Rig.up(tmp_path)
    rig.rvc.plan = PoolPlan(Role.RVC, least=2, most=2)
    rig.rvc.step()
    rig.executor.engines[-1].loaded.set_result(facts(Role.RVC, node="other"))
    await settle()
    attempt, task = rig.begin(CONVERT, avoid_nodes=("n",))
    await settle()
    assert (len(rig.converter.calls), len(rig.executor.engines[-1].calls)) == (0, 1)
    attempt.tell_stop(StopKind.CANCEL)
    await asyncio.gather(task, return_exceptions=True)
