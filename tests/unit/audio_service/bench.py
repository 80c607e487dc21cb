"""The audio service's use cases on memory: what every test of this folder stands on."""

from __future__ import annotations

import asyncio
import hashlib
import io
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile as sf

from services.audio.adapters import examine_child
from services.audio.adapters.object_store import ThreadedObjects
from services.audio.app.audios import Audios
from services.audio.app.finishing import Finisher
from services.audio.app.uploads import Uploads
from services.audio.model import Limits, Purpose
from services.audio.records import AudioSpec, OpenStep, ResumeStep, Step
from services.audio.settings import AudioSettings
from services.common.artifacts.memory_store import MemoryArtifactStore
from services.common.errors import VoxfleetError
from tests.unit.audio_service.memory_catalog import MemoryCatalog
from voxfleet.v1 import audio_pb2

SPEECH = Path(__file__).parents[2] / "fixtures" / "speech"
TEAM = "acme"
PART_BYTES = 64 * 1024
CHUNK_BYTES = 20_000


class InlineExaminer:
    """The real decoding and measuring, in this process."""

    async def examine(self, path, *, max_duration_s, max_channels):
        return self._answer(examine_child.ExamineTask(path, max_duration_s, max_channels))

    async def outline(self, path, points):
        return self._answer(examine_child.OutlineTask(path, points))

    def _answer(self, task):
        answer = examine_child._answer(task)
        if isinstance(answer, VoxfleetError):
            raise answer
        return answer


@dataclass
class Bench:
    """One service on memory."""

    scratch_dir: Path
    catalog: MemoryCatalog = field(default_factory=MemoryCatalog)
    store: MemoryArtifactStore = field(default_factory=MemoryArtifactStore)
    examiner: object = field(default_factory=InlineExaminer)
    max_streams: int = 8
    end_grace_s: float = 0.0
    limits: Limits = AudioSettings(service_token="x" * 16).limits

    def __post_init__(self) -> None:
        self.objects = ThreadedObjects(self.store, threads=4)
        limits = self.limits
        self.finisher = Finisher(
            self.catalog,
            self.objects,
            self.examiner,
            limits,
            self.scratch_dir,
            asyncio.Semaphore(2),
        )
        self.uploads: Uploads[audio_pb2.Audio] = Uploads(
            self.finisher,
            part_bytes=PART_BYTES,
            max_streams=self.max_streams,
            end_grace_s=self.end_grace_s,
            now=self.catalog.now,
        )
        self.audios = Audios(self.catalog, self.objects, self.examiner, limits, self.scratch_dir)

    def stored(self) -> list[str]:
        """Every key in the store."""
        return [found.key for found in self.store.list_prefix("")]

    def assert_nothing_left(self) -> None:
        """Neither row nor object nor temporary file is there."""
        assert self.catalog.uploads == {}
        assert self.catalog.audios == {}
        assert self.stored() == []
        assert list(self.scratch_dir.iterdir()) == []

    async def send(self, data: bytes, **spec: object) -> audio_pb2.Audio:
        """Uploads a file in one stream."""
        return await self.uploads.upload(stream(open_step(**spec), data))


def spec(**given: object) -> AudioSpec:
    return AudioSpec(**{"purpose": Purpose.CONVERSION, **given})


def open_step(upload_id: str = "", **given: object) -> OpenStep:
    return OpenStep(TEAM, upload_id, spec(**given))


def upload_name(upload_id: str) -> str:
    return f"teams/{TEAM}/uploads/{upload_id}"


async def stream(first: Step, data: bytes, chunk_bytes: int = CHUNK_BYTES) -> AsyncIterator[Step]:
    """A whole upload's messages."""
    yield first
    for start in range(0, len(data), chunk_bytes):
        yield data[start : start + chunk_bytes]


class Hanging:
    """A stream that gives what it has, and then neither ends nor goes on."""

    def __init__(self, first: Step, data: bytes) -> None:
        self._steps = stream(first, data)
        self.drained = asyncio.Event()

    async def messages(self) -> AsyncIterator[Step]:
        async for step in self._steps:
            yield step
        self.drained.set()
        await asyncio.Event().wait()


async def cut_after(bench: Bench, first: OpenStep | ResumeStep, data: bytes) -> None:
    """A stream whose client goes away once the service has taken ``data``."""
    hanging = Hanging(first, data)
    call = asyncio.create_task(bench.uploads.upload(hanging.messages()))
    await hanging.drained.wait()
    call.cancel()
    await asyncio.wait({call})
    assert call.cancelled()


def speech_file() -> bytes:
    """11 s of real speech, FLAC."""
    samples, rate_hz = sf.read(SPEECH / "target_en.flac", stop=11 * 16_000)
    return encoded(samples, rate_hz, "FLAC")


def tone(seconds: float, rate_hz: int = 16_000) -> np.ndarray:
    return (0.2 * np.sin(2 * np.pi * 220 * np.arange(int(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def encoded(samples: np.ndarray, rate_hz: int = 16_000, kind: str = "WAV") -> bytes:
    buffer = io.BytesIO()
    sf.write(buffer, samples, rate_hz, format=kind, subtype="PCM_16")
    return buffer.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what another task, thread or process does."""
    deadline = time.monotonic() + 30
    while True:
        if condition():
            return
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.002)
