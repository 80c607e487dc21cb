"""What clients, the catalogue and the examiner tell the use cases: uploads, audios, their bytes."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from services.audio.model import Measures, Purpose
from services.common.jobs.tasks import Blob

AudioT = TypeVar("AudioT")
"""An audio's row as the catalogue gives it: the use cases hand it on unread."""


@dataclass(frozen=True, slots=True)
class AudioSpec:
    """What an upload announces of itself; ``size_bytes`` 0 and ``sha256`` "" where it does not say."""

    display_name: str = ""
    purpose: Purpose = Purpose.CONVERSION
    size_bytes: int = 0
    sha256: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """An upload's row. ``committed_audio`` is the name of the audio it became, or empty."""

    name: str
    spec: AudioSpec
    durable_offset: int
    committed_audio: str
    expires_at: dt.datetime | None


@dataclass(frozen=True, slots=True)
class ResolvedAudio(Generic[AudioT]):
    """An audio with where its bytes are."""

    audio: AudioT
    blob: Blob
    purpose: Purpose
    is_measured: bool


@dataclass(frozen=True, slots=True)
class Examined:
    """What decoding and measuring a file found."""

    measures: Measures
    media_type: str


@dataclass(frozen=True, slots=True)
class OpenStep:
    """The first message of a new upload."""

    team: str
    upload_id: str
    spec: AudioSpec


@dataclass(frozen=True, slots=True)
class ResumeStep:
    """The first message that goes on with an upload; ``offset`` is where its bytes begin."""

    name: str
    offset: int


Step = OpenStep | ResumeStep | bytes
"""One message of an upload's stream; bytes are the next of the file."""
