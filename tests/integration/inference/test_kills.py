"""Replicas are killed again and again: each is replaced, what it ran is answered elsewhere, nothing is left.

The first part kills actors without an engine, many times; the second a real F5 replica in mid-batch.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import inspect
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import ray

from services.common.artifacts.memory_store import MemoryArtifactStore
from services.common.artifacts.model import content_key
from services.common.errors import Reason, VoxfleetError
from services.common.jail.running import run_jailed
from services.common.jail.work import JailLimits
from services.common.jobs.model import Fence, Lease, Outcome, Succeeded
from services.common.jobs.tasks import Blob, F5Voice, SpeakingParameters, SpeakTask
from services.common.jobs.worker import Attempt
from services.inference.adapters.ray_pool import (
    ActorPlan,
    ActorSettings,
    BuildBody,
    RayExecutor,
    build_body,
)
from services.inference.app.bundles import Bundles
from services.inference.app.exchange import Exchange
from services.inference.app.jobs import Jobs
from services.inference.app.licences import TeamLicences
from services.inference.app.pool import Pool
from services.inference.app.speakers import Speakers
from services.inference.calls import EngineSpec, Pcm, StreamSpeech
from services.inference.health import HealthPlan
from services.inference.model import PoolPlan, Rank, ReplicaState, Role
from services.stack.home import Home
from tests.integration.inference.conftest import F5_NAME, REFERENCE_TEXT, SPEECH
from tests.integration.inference.light_body import build_light, store_with
from tests.unit.inference.fakes import FakeCatalog

KILLS = int(os.environ.get("POOL_KILLS", "20"))
REPLICAS = 4
CLIENTS = 6
MIB = 1 << 20
CLIP = (SPEECH / "clip_en_1.flac").read_bytes()
SHA256 = hashlib.sha256(CLIP).hexdigest()
VOICE = F5Voice(
    name=F5_NAME,
    reference=Blob(key=content_key("blue", SHA256), sha256=SHA256, size_bytes=len(CLIP)),
    reference_text=REFERENCE_TEXT,
    languages=("en",),
)
QUICK = HealthPlan(check_s=0.3, check_limit_s=60.0, probe_s=5.0, probe_limit_s=120.0, hang_floor_s=600.0)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Ray of this process's own, with one GPU that is pretended."""
    home = Home(tmp_path_factory.mktemp("kills"))
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=1,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * MIB,
        _temp_dir=str(home.runtime_dir() / "ray"),
    )
    try:
        yield
    finally:
        ray.shutdown()
        home.remove_runtime_dir()


def executor(tmp_path: Path, *, gpus: float = 0.0, build: BuildBody = build_light) -> RayExecutor:
    make_store = functools.partial(store_with, VOICE.reference.key, CLIP)
    settings = ActorSettings(make_store, str(tmp_path), log_level="WARNING")
    return RayExecutor({Role.F5: ActorPlan(gpus=gpus, slots=4)}, settings, build)


@asynccontextmanager
async def running(pool: Pool, replicas: int) -> AsyncIterator[None]:
    """The pool at work, with so many replicas ready."""
    pool.use(EngineSpec(Role.F5))
    keeper = asyncio.create_task(pool.run())
    try:
        await until(lambda: len(ready(pool)) >= replicas)
        yield
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)


async def until(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    """:func:`tests.polling.until` for what happens on this event loop; a failure tells what was awaited."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{inspect.getsource(condition).strip()}; actors: {actors()}"
        await asyncio.sleep(0.02)


def ready(pool: Pool) -> dict[int, int]:
    """Pids of the replicas that are ready, by number."""
    return {
        member.number: member.facts.pid
        for member in pool._replicas
        if member.state is ReplicaState.READY and member.facts is not None
    }


def actors() -> dict[int, str]:
    """Engine actors that live, under this process's Ray and no other stack's, by pid: what each is."""
    raylets = [one for one in psutil.Process().children(recursive=True) if _is_ours(one)]
    found = {}
    for process in (child for raylet in raylets for child in raylet.children()):
        with suppress(psutil.NoSuchProcess):
            name = " ".join(process.cmdline()).strip()
            if process.status() != psutil.STATUS_ZOMBIE and "EngineActor" in name:
                found[process.pid] = f"{name}, {process.status()}"
    return found


def _is_ours(process: psutil.Process) -> bool:
    session = ray.get_runtime_context().get_session_name()
    with suppress(psutil.NoSuchProcess):
        return process.name() == "raylet" and any(session in part for part in process.cmdline())
    return False


@dataclass
class Client:
    """Asks for one text after the other, and for a lost one once more, as jobs and streams do."""

    pool: Pool
    text: str
    answered: int = 0
    retried: int = 0
    lost_twice: int = 0
    failed: list[BaseException] = field(default_factory=list)

    async def ask(self) -> None:
        for last in (False, True):
            try:
                said = b""
                async with self.pool.call(lambda _: self._request, Rank.BATCH) as call:
                    async for event in call.events():
                        said += event.data if isinstance(event, Pcm) else b""
            except VoxfleetError as error:
                if error.reason is not Reason.WORKER_LOST:
                    raise
                self.retried += not last
                self.lost_twice += last
            else:
                assert said == self.text.encode()
                self.answered += 1
                return

    @property
    def _request(self) -> StreamSpeech:
        return StreamSpeech(self.text, VOICE, SpeakingParameters(seed=1))

    async def go_on(self) -> None:
        while True:
            try:
                await self.ask()
            except (VoxfleetError, AssertionError) as error:
                self.failed.append(error)


@pytest.mark.timeout(900)
async def test_kills_leave_nothing_behind(cluster: None, tmp_path: Path) -> None:
    plan = PoolPlan(Role.F5, REPLICAS, REPLICAS, health=QUICK)
    pool = Pool(plan, executor(tmp_path))
    chance = random.Random(200)
    killed: list[int] = []
    before_mib = 0.0
    async with running(pool, REPLICAS):
        clients = [Client(pool, "some text"[: 3 + number]) for number in range(CLIENTS)]
        asking = [asyncio.create_task(client.go_on()) for client in clients]
        for count in range(KILLS):
            # Two at least stay, so that what was lost has somewhere to go while the others come back.
            await until(lambda: len(ready(pool).keys() - set(killed)) > REPLICAS // 2)
            number = chance.choice(sorted(ready(pool).keys() - set(killed)))
            os.kill(ready(pool)[number], signal.SIGKILL)
            killed.append(number)
            if count == KILLS // 10:
                before_mib = psutil.Process().memory_info().rss / MIB
        await until(lambda: len(ready(pool).keys() - set(killed)) == REPLICAS)
        after_mib = psutil.Process().memory_info().rss / MIB
        answered = sum(client.answered for client in clients)
        await until(lambda: sum(client.answered for client in clients) >= answered + 2 * CLIENTS)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        numbers = [replica.number for replica in pool.replicas]
        # Each that was killed has one successor, no more.
        assert max(numbers) == REPLICAS + KILLS, numbers
        await until(lambda: len(actors()) == REPLICAS)
        assert actors().keys() == set(ready(pool).values())
    assert [client.failed for client in clients] == [[]] * CLIENTS
    assert sum(client.retried for client in clients) > 0
    await until(lambda: not actors())
    assert after_mib - before_mib < 64, f"{before_mib:.0f} MiB, then {after_mib:.0f} MiB"


# ---- shares of a GPU


@pytest.mark.parametrize(("gpus", "fitting"), [(0.5, 2), (1.0, 1)])
async def test_a_gpu_holds_two_halves_or_one_whole(
    cluster: None, tmp_path: Path, gpus: float, fitting: int
) -> None:
    pool = Pool(PoolPlan(Role.F5, 2, 2, gpus_each=gpus, health=QUICK), executor(tmp_path, gpus=gpus))
    async with running(pool, fitting):
        if fitting == 1:
            # The other finds no place, and what is granted says so.
            await until(lambda: ray.available_resources().get("GPU", 0.0) == 0.0)
            assert len(ready(pool)) == 1
            pool.obey(frozenset(), 1.0)
            assert len(pool.replicas) == 1
        assert pool.state.held_gpus == 1.0
    await until(lambda: not actors())
    await until(lambda: ray.available_resources().get("GPU") == 1.0)


# ---- a real engine


KILLS_OF_F5 = int(os.environ.get("POOL_F5_KILLS", "2"))
TEXTS = [f"This is sentence number {number}, and it is one of those that go together." for number in range(6)]


def lease(jobs: Jobs, number: int, text: str) -> asyncio.Task[Outcome]:
    task = SpeakTask(team="blue", text=text, voice=VOICE, parameters=SpeakingParameters(steps=16, seed=1))
    attempt = Attempt(Lease(Fence(str(number), 1, "t"), f"teams/blue/jobs/{number}", task, 30.0), None)
    return asyncio.create_task(jobs(attempt))


@pytest.mark.timeout(1200)
async def test_a_real_replica_is_killed_in_mid_batch(cluster: None, tmp_path: Path) -> None:
    plan = PoolPlan(Role.F5, 2, 2, health=QUICK)
    pool = Pool(plan, executor(tmp_path, build=build_body))
    unused = Pool(PoolPlan(Role.RVC, 0), executor(tmp_path))
    catalog = FakeCatalog()
    bundles = Bundles(catalog, MemoryArtifactStore(), tmp_path)
    exchange = Exchange(MemoryArtifactStore(), tmp_path, run_jailed, JailLimits())
    jobs = Jobs(
        pool,
        unused,
        bundles,
        speakers=Speakers(pool),
        licences=TeamLicences(catalog),
        exchange=exchange,
    )
    chance = random.Random(10)
    number = 0
    used_mib: list[float] = []
    async with running(pool, 2):
        for count in range(KILLS_OF_F5):
            await until(lambda: len(ready(pool)) == 2, 300.0)
            begun = pool.state.begun
            batch = []
            for text in TEXTS:
                number += 1
                batch.append(lease(jobs, number, text))
            # Both replicas are in the midst of it, and have not yet ended any.
            await until(lambda: all(replica.busy == 3 for replica in pool.replicas))
            await until(lambda: min(call.work_s for one in pool._replicas for call in one.calls) > 0)
            victim = pool._replicas[chance.choice(sorted(ready(pool)))]
            lost = len(victim.calls)
            os.kill(ready(pool)[victim.number], signal.SIGKILL)
            outcomes = await asyncio.gather(*batch)
            assert all(isinstance(outcome, Succeeded) for outcome in outcomes)
            # What was lost was begun once more, and nothing else was.
            assert pool.state.begun - begun == len(TEXTS) + lost, f"kill {count}"
            assert lost > 0
            used_mib.append(psutil.Process().memory_info().rss / MIB)
        await until(lambda: len(ready(pool)) == 2, 300.0)
        await until(lambda: len(actors()) == 2)
    await until(lambda: not actors())
    assert used_mib[-1] - used_mib[0] < 64, used_mib
