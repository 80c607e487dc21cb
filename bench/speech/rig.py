"""A pool of real F5 replicas on a Ray of its own, without gateway or ledger; and the same with no engine."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray

from services.common.artifacts.memory_store import MemoryArtifactStore
from services.common.artifacts.model import content_key
from services.common.artifacts.ports import ArtifactStore
from services.common.jobs.tasks import Blob, F5Voice, SpeakingParameters
from services.inference.adapters.ray_pool import ActorPlan, ActorSettings, RayExecutor
from services.inference.app.pool import Pool
from services.inference.calls import (
    EngineFacts,
    EngineSpec,
    Event,
    Pcm,
    Request,
    Speaking,
    StreamSpeech,
    Weights,
)
from services.inference.engine.running import Emit, Stopped
from services.inference.model import PoolPlan, Rank, Role
from services.inference.ports import Executor

_READY_S = 180.0
_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class Clip:
    """A reference: its bytes, and what is said in it."""

    data: bytes
    text: str


@dataclass(frozen=True, slots=True)
class Spoken:
    """What came of a stream.

    Args:
        seconds: of audio.
        first_s: from the request to the first samples.
        total_s: from the request to the end.
    """

    seconds: float
    first_s: float
    total_s: float


@asynccontextmanager
async def running_pool(executor: Executor, role: Role = Role.F5) -> AsyncIterator[Pool]:
    """A pool with one replica that is ready."""
    plan = PoolPlan(role, least=1, most=1, queue_limit=100_000, queue_wait_s=600.0)
    pool = Pool(plan, executor)
    pool.use(EngineSpec(role))
    running = asyncio.create_task(pool.run())
    try:
        async with asyncio.timeout(_READY_S):
            while pool.facts is None:
                if pool.broken is not None:
                    raise pool.broken
                await asyncio.sleep(_LOOK_S)
        yield pool
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def own_ray(folder: Path, *, cpus: int = 2) -> AsyncIterator[None]:
    """A Ray of this process's own, gone at the end."""
    init = functools.partial(
        cast("Any", ray).init,
        address="local",
        num_cpus=cpus,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=str(folder),
    )
    await asyncio.to_thread(init)
    try:
        yield
    finally:
        await asyncio.to_thread(cast("Any", ray).shutdown)


def f5_executor(clip: Clip, cache_dir: Path, *, slots: int = 0, threads: int = 1) -> tuple[Executor, F5Voice]:
    """Replicas of the small bundle, whose store holds one clip; and the voice of that clip."""
    store = functools.partial(_store_with, clip.data)
    settings = ActorSettings(store, str(cache_dir), log_level="WARNING")
    plans = {Role.F5: ActorPlan(gpus=0.0, slots=slots, threads=threads)}
    voice = F5Voice(
        name="teams/bench/voices/v",
        reference=_put(MemoryArtifactStore(), clip.data),
        reference_text=clip.text,
        languages=("en",),
    )
    return RayExecutor(plans, settings), voice


async def speak(pool: Pool, voice: F5Voice, text: str, *, steps: int, seed: int = 1) -> Spoken:
    """One text through the pool, as a stream."""
    request = StreamSpeech(text, voice, SpeakingParameters(steps=steps, seed=seed))
    began_s = time.perf_counter()
    first_s = rate_hz = 0.0
    samples = 0
    async with (
        pool.call(lambda _: request, Rank.INTERACTIVE) as running,
        aclosing(running.events()) as events,
    ):
        async for event in events:
            if isinstance(event, Pcm):
                first_s = first_s or time.perf_counter() - began_s
                samples += event.samples
            rate_hz = getattr(event, "rate_hz", rate_hz)
    return Spoken(samples / rate_hz, first_s, time.perf_counter() - began_s)


async def speak_all(pool: Pool, voice: F5Voice, texts: Sequence[str], *, steps: int, in_flight: int) -> float:
    """So many at a time; seconds of audio that came."""
    left = iter(enumerate(texts, start=1))
    seconds = 0.0

    async def work() -> None:
        nonlocal seconds
        for seed, text in left:
            spoken = await speak(pool, voice, text, steps=steps, seed=seed)
            seconds += spoken.seconds

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(work())
    return seconds


# ---- no engine


class NoEngine:
    """Answers at once with the bytes it was made with."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        weights = Weights("none", trained=False, licence="")
        self.facts = EngineFacts(Role.F5, weights, "cpu", 8, "n", os.getpid(), (Speaking(weights),))

    def run(self, request: Request, emit: Emit, stopped: Stopped) -> None:
        """See :class:`services.inference.engine.running.Body`."""
        emit(Pcm(self._data, len(self._data) // 2, 0.0))


class BareActor:
    """What Ray alone costs."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def bare(self) -> bytes:
        """The same bytes."""
        return self._data


def bare_actor(data: bytes) -> Any:
    """An actor whose ``bare`` returns these bytes."""
    return cast("Any", ray.remote)(BareActor).options(num_cpus=0, max_concurrency=16).remote(data)


def no_engine_executor(data: bytes, cache_dir: Path) -> Executor:
    """Real replicas, but for the engine in them."""
    settings = ActorSettings(MemoryArtifactStore, str(cache_dir), log_level="WARNING")
    plans = {Role.F5: ActorPlan(gpus=0.0)}
    return RayExecutor(plans, settings, functools.partial(_no_engine, data))


def _no_engine(data: bytes, *_: object) -> NoEngine:
    return NoEngine(data)


async def through_pool(pool: Pool, voice: F5Voice) -> list[Event]:
    """One request that asks for nothing."""
    request = StreamSpeech("x", voice, SpeakingParameters(seed=1))
    async with (
        pool.call(lambda _: request, Rank.INTERACTIVE) as running,
        aclosing(running.events()) as events,
    ):
        return [event async for event in events]


def _store_with(data: bytes) -> ArtifactStore:
    store = MemoryArtifactStore()
    _put(store, data)
    return store


def _put(store: MemoryArtifactStore, data: bytes) -> Blob:
    sha256 = hashlib.sha256(data).hexdigest()
    kept = store.put_bytes(content_key("bench", sha256), data)
    return Blob(key=kept.key, sha256=sha256, size_bytes=len(data))
