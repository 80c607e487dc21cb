"""The process in which files are decoded and measured: it may crash, hang or be killed.

It runs no gRPC, holds no credentials and reads one file a task. Heavy imports happen here, not in the
service.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from services.audio.records import Examined
from services.common.errors import VoxfleetError, internal
from services.common.media import refusals
from services.common.media.decode import Audio, decode, probe
from services.common.media.formats import Container

log = logging.getLogger(__name__)

READY: Final = "ready"
NICENESS: Final = 5
MAX_MEASURE_RATE_HZ: Final = 48_000
"""Above it a file is measured resampled: 384 kHz would take eight times the memory for no audible gain."""

MEDIA_TYPES: Final[dict[Container, str]] = {
    Container.WAV: "audio/wav",
    Container.MP3: "audio/mpeg",
    Container.FLAC: "audio/flac",
    Container.OGG: "audio/ogg",
    Container.WEBM: "audio/webm",
    Container.M4A: "audio/mp4",
}


@dataclass(frozen=True, slots=True)
class ExamineTask:
    """Decode and measure a file."""

    path: Path
    max_duration_s: float
    max_channels: int
    name: str = "examine"


@dataclass(frozen=True, slots=True)
class OutlineTask:
    """Decode a file and draw its outline."""

    path: Path
    points: int
    name: str = "outline"


Task = ExamineTask | OutlineTask
Answer = Examined | tuple[float, ...] | VoxfleetError


def serve(connection: Connection, memory_bytes: int) -> None:
    """Answers (task, seconds it may take) until the service closes the connection.

    Args:
        connection: to the service.
        memory_bytes: bound of the address space; 0 for none.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the service's to handle
    os.nice(NICENESS)
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Imported now, so that the first file does not wait for it.
    import services.audio.measure.whole  # noqa: F401

    connection.send(READY)
    while True:
        try:
            task, limit_s = connection.recv()
        except EOFError:
            return
        # The service kills a process that hangs; where the service itself is gone, this does.
        signal.setitimer(signal.ITIMER_REAL, limit_s + 5.0)
        answer = _answer(task)
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send(answer)


def _answer(task: Task) -> Answer:
    try:
        return _examine(task) if isinstance(task, ExamineTask) else _outline(task)
    except VoxfleetError as error:
        return error
    except MemoryError:
        return refusals.invalid_format("decoding it takes more memory than is allowed")
    except Exception:
        log.exception("a file could not be examined")
        return internal("the audio could not be measured; quote the trace id to an operator")


def _examine(task: ExamineTask) -> Examined:
    from services.audio.measure.whole import measure

    audio = _decoded(task.path, max_duration_s=task.max_duration_s, max_channels=task.max_channels)
    return Examined(measure(audio), MEDIA_TYPES[audio.info.container])


def _decoded(path: Path, *, max_duration_s: float, max_channels: int) -> Audio:
    is_fast = probe(path).rate_hz > MAX_MEASURE_RATE_HZ
    return decode(
        path,
        rate_hz=MAX_MEASURE_RATE_HZ if is_fast else None,
        mono=False,
        max_duration_s=max_duration_s,
        max_channels=max_channels,
    )


def _outline(task: OutlineTask) -> tuple[float, ...]:
    import numpy as np

    from services.common.media.levels import wave_peaks

    extremes = wave_peaks(decode(task.path, mono=True).samples, task.points)
    return tuple(np.clip(np.abs(extremes).max(axis=1), 0.0, 1.0).tolist())
