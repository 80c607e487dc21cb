"""What inference needs of the world."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.common.jobs.model import NodeFacts
from services.common.jobs.tasks import Blob, F5Voice, Pronunciation, RvcVoice
from services.engines.bundles.manifest import Manifest
from services.inference.calls import EngineFacts, EngineSpec, Event, Request
from services.inference.health import Vitals


class Call(Protocol):
    """A call that runs on a replica."""

    def events(self) -> AsyncIterator[Event]:
        """What it sends; ends when it has ended.

        Errors: whatever the engine raised; WORKER_LOST where the replica died.
        """

    async def feed(self, data: bytes) -> None:
        """Gives it the next of what it is to work on; an empty piece is the end. Errors: WORKER_LOST."""

    async def stop(self) -> None:
        """Asks it to end early; harmless where it has ended."""

    async def ended(self) -> None:
        """Waits until it has ended, in whatever way."""


class Engine(Protocol):
    """A replica: one resident process with an engine in it."""

    async def ready(self) -> EngineFacts:
        """Waits until its weights are loaded and warm. Errors: the loading's own, or WORKER_LOST."""

    async def check(self) -> Vitals:
        """What it says of itself, if it is alive. Errors: WORKER_LOST."""

    def call(self, request: Request) -> Call:
        """Begins a call."""

    def end(self) -> None:
        """Ends the process at once, whatever it does."""


class Executor(Protocol):
    """Where replicas run."""

    def start(self, spec: EngineSpec, avoid: frozenset[str] = frozenset()) -> Engine:
        """Begins a replica on any node but those named; returns before it is placed."""

    async def nodes(self) -> tuple[NodeFacts, ...]:
        """The machines it sees."""


@dataclass(frozen=True, slots=True)
class ResolvedVoice:
    """A voice with what an engine needs to use it.

    Args:
        name: its own.
        engine: ``f5`` or ``rvc``.
        f5: what it speaks from; of a trained voice a recording without a text, None where none is left.
        allowed_licences: of the weights that its team may use; any where there are none.
        rvc: the trained voice, where it is one.
        licence: of that; empty where nobody stated one.
    """

    name: str
    engine: str
    f5: F5Voice | None
    allowed_licences: tuple[str, ...] = ()
    rvc: RvcVoice | None = None
    licence: str = ""


@dataclass(frozen=True, slots=True)
class ResolvedAudio:
    """A recording with where its bytes are, and what the record says of how it came to be."""

    blob: Blob
    duration_s: float
    generated: bool = False
    job: str = ""


@dataclass(frozen=True, slots=True)
class Traces:
    """What a stored audio itself tells of how it came to be.

    Args:
        tags: of its file, keys in lower case.
        mark_present: whether its sound carries the inaudible mark.
        mark_confidence: 0 to 1, one half where that turns.
    """

    tags: Mapping[str, str]
    mark_present: bool
    mark_confidence: float


@dataclass(frozen=True, slots=True)
class Usage:
    """What a streamed synthesis used."""

    team: str
    voice: str
    audio_s: float
    work_s: float
    characters: int


class Catalog(Protocol):
    """The record, as inference asks it."""

    async def resolve_voice(self, name: str, style: str) -> ResolvedVoice:
        """A voice of the caller. Errors: VOICE_NOT_FOUND, VOICE_NOT_READY."""

    async def pronunciations(
        self, team: str, lexicons: Sequence[str], text: str
    ) -> tuple[Pronunciation, ...]:
        """What a team's lexicons, by name, say of a text's words. Errors: LEXICON_NOT_FOUND."""

    async def resolve_audio(self, name: str) -> ResolvedAudio:
        """A recording of the caller. Errors: AUDIO_NOT_FOUND."""

    async def allowed_licences(self, team: str) -> tuple[str, ...]:
        """Licences of weights that a team may use; any where there are none. ``team`` is an id."""

    async def stored_bundles(self) -> Sequence[Manifest]:
        """The bundles that the store has."""

    async def store_bundle(self, manifest: Manifest, accepted_by: str) -> None:
        """Records a bundle whose files are in the store; ``accepted_by`` is a team's id."""

    async def record_usage(self, usage: Usage) -> None:
        """Records what was used."""


class Examiner(Protocol):
    """Who reads stored audio for its traces."""

    async def examine(self, blob: Blob) -> Traces:
        """What it tells. Errors: AUDIO_NOT_FOUND, ARTIFACT_CORRUPT, INVALID_FORMAT."""
