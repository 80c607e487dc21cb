"""Uploads, audios, voices and bundles, as plain data."""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from services.common.jobs.tasks import Blob, TimedWord


class VoiceState(enum.StrEnum):
    """Where a voice stands; see ``voxfleet.v1.VoiceState``."""

    TRAINING = "TRAINING"
    READY = "READY"
    FAILED = "FAILED"
    DELETED = "DELETED"


VOICE_FILE = "AUDIO_PURPOSE_VOICE_FILE"
"""The purpose of what is no audio: a file of a voice."""


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload that is not yet an audio. ``spec`` is the announced ``AudioSpec`` as JSON data."""

    team: str
    id: str
    spec: Mapping[str, Any]
    durable_offset: int
    audio_id: str
    expires_at: dt.datetime


@dataclass(frozen=True, slots=True)
class Audio:
    """One recording or output. ``measures`` and the like are JSON data of the public messages."""

    team: str
    id: str
    display_name: str
    purpose: str
    blob: Blob
    measures: Mapping[str, Any]
    assessment: Mapping[str, Any]
    labels: Mapping[str, str]
    provenance: Mapping[str, Any]
    source_audio: str
    created_at: dt.datetime
    expires_at: dt.datetime | None

    @property
    def name(self) -> str:
        """``teams/{team}/audios/{id}``."""
        return f"teams/{self.team}/audios/{self.id}"

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return float(self.measures.get("duration_s", 0.0))


@dataclass(frozen=True, slots=True)
class Reference:
    """A clip that a zero-shot voice speaks from: what is said in it, and when, where that is known."""

    audio: str
    text: str
    style: str = ""
    words: tuple[TimedWord, ...] = ()


@dataclass(frozen=True, slots=True)
class Voice:
    """One voice of a team."""

    team: str
    id: str
    display_name: str
    engine: str
    state: VoiceState
    languages: tuple[str, ...] = ()
    references: tuple[Reference, ...] = ()
    training_audios: tuple[str, ...] = ()
    job_id: str = ""
    bundle: str = ""
    content_encoder: str = ""
    rate_hz: int = 0
    weights_licence: str = ""
    weights_trained: bool = False
    consent: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    package: Blob | None = None
    created_at: dt.datetime | None = None
    deleted_at: dt.datetime | None = None

    @property
    def name(self) -> str:
        """``teams/{team}/voices/{id}``."""
        return f"teams/{self.team}/voices/{self.id}"


@dataclass(frozen=True, slots=True)
class StoredBundle:
    """A set of weights whose files are in the store."""

    name: str
    manifest: Mapping[str, Any]
    created_at: dt.datetime
