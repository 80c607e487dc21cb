"""Engines, calls and a record in memory, driven by the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from services.common.errors import FailureClass, Kind, Reason, VoxfleetError, not_found
from services.common.jobs.model import NodeFacts
from services.common.jobs.tasks import Blob, F5Voice, Pronunciation
from services.common.pronouncing import Pronouncer
from services.engines.bundles.manifest import Manifest
from services.inference.calls import EngineFacts, EngineSpec, Event, Made, Request, Speaking, Weights
from services.inference.health import Vitals
from services.inference.model import Role
from services.inference.ports import ResolvedAudio, ResolvedVoice, Usage

BLOB = Blob(key="teams/blue/sha256/aa/aa", sha256="a" * 64, size_bytes=3)
VOICE = F5Voice(name="teams/blue/voices/speaker", reference=BLOB, reference_text="Hello.", languages=("en",))


def lost() -> VoxfleetError:
    return VoxfleetError(
        Reason.WORKER_LOST, "it died", kind=Kind.UNAVAILABLE, failure=FailureClass.NODE, retry_after_s=1.0
    )


def facts(role: Role = Role.F5, *, slots: int = 1, name: str = "small", node: str = "n") -> EngineFacts:
    weights = Weights(name, trained=False, licence="MIT")
    return EngineFacts(role, weights, "cpu", slots, node, 1, (Speaking(weights, ("en", "zh")),))


def made(*, duration_s: float = 2.0) -> Made:
    weights = Weights("small", trained=False, licence="MIT")
    return Made(BLOB, duration_s, 24_000, 1, "flac", 7, weights, 0.5)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class FakeCall:
    """A call whose events the test feeds in; None ends it."""

    def __init__(self, engine: FakeEngine, request: Request) -> None:
        self.engine = engine
        self.request = request
        self.stops = 0
        self.fed: list[bytes] = []
        self._events: asyncio.Queue[Event | Exception | None] = asyncio.Queue()
        self._over = asyncio.Event()

    def send(self, *events: Event | Exception | None) -> None:
        for event in events:
            self._events.put_nowait(event)
            if event is None or isinstance(event, Exception):
                self._over.set()

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    async def events(self) -> AsyncIterator[Event]:
        while (event := await self._events.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event

    async def feed(self, data: bytes) -> None:
        self.fed.append(data)

    async def stop(self) -> None:
        self.stops += 1
        if not self.engine.stubborn:
            self._over.set()

    async def ended(self) -> None:
        await self._over.wait()


@dataclass(eq=False)
class FakeEngine:
    """A replica that is ready when the test says so."""

    spec: EngineSpec
    avoid: frozenset[str] = frozenset()
    calls: list[FakeCall] = field(default_factory=list)
    has_ended: bool = False
    stubborn: bool = False
    health: Exception | None = None
    vitals: Vitals = field(default_factory=Vitals)
    mute: bool = False

    def __post_init__(self) -> None:
        self.loaded: asyncio.Future[EngineFacts] = asyncio.get_running_loop().create_future()

    async def ready(self) -> EngineFacts:
        return await self.loaded

    async def check(self) -> Vitals:
        if self.mute:
            await asyncio.Event().wait()
        if self.health is not None:
            raise self.health
        return self.vitals

    def call(self, request: Request) -> FakeCall:
        self.calls.append(FakeCall(self, request))
        return self.calls[-1]

    def end(self) -> None:
        self.has_ended = True

    def die(self) -> None:
        for call in self.calls:
            call.send(lost())


class FakeExecutor:
    """Keeps what it started."""

    def __init__(self) -> None:
        self.engines: list[FakeEngine] = []

    def start(self, spec: EngineSpec, avoid: frozenset[str] = frozenset()) -> FakeEngine:
        self.engines.append(FakeEngine(spec, avoid))
        return self.engines[-1]

    async def nodes(self) -> tuple[NodeFacts, ...]:
        return ()


@dataclass
class FakeCatalog:
    """The record."""

    voices: dict[str, ResolvedVoice] = field(default_factory=dict)
    audios: dict[str, ResolvedAudio] = field(default_factory=dict)
    bundles: dict[str, Manifest] = field(default_factory=dict)
    accepted: dict[str, str] = field(default_factory=dict)
    usage: list[Usage] = field(default_factory=list)
    licences: dict[str, tuple[str, ...]] = field(default_factory=dict)
    licences_asked: list[str] = field(default_factory=list)
    lexicons: dict[str, tuple[Pronunciation, ...]] = field(default_factory=dict)
    down: bool = False

    async def resolve_voice(self, name: str, style: str) -> ResolvedVoice:
        return self.voices[name]

    async def resolve_audio(self, name: str) -> ResolvedAudio:
        if name not in self.audios:
            raise not_found(Reason.AUDIO_NOT_FOUND, name)
        return self.audios[name]

    async def allowed_licences(self, team: str) -> tuple[str, ...]:
        self.licences_asked.append(team)
        return self.licences.get(team, ())

    async def pronunciations(
        self, team: str, lexicons: Sequence[str], text: str
    ) -> tuple[Pronunciation, ...]:
        entries = [entry for name in lexicons for entry in self.lexicons[name]]
        return Pronouncer(entries).needed(text)

    async def stored_bundles(self) -> Sequence[Manifest]:
        return list(self.bundles.values())

    async def store_bundle(self, manifest: Manifest, accepted_by: str) -> None:
        self.bundles[manifest.name], self.accepted[manifest.name] = manifest, accepted_by

    async def record_usage(self, usage: Usage) -> None:
        if self.down:
            raise VoxfleetError(Reason.SERVICE_UNAVAILABLE, "down", kind=Kind.UNAVAILABLE)
        self.usage.append(usage)


async def settle() -> None:
    """Lets every task run as far as it can without time passing."""
    for _ in range(20):
        await asyncio.sleep(0)
