"""Audios that are there: their measures, their bytes, an address to get them from."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic

from services.audio import metrics
from services.audio.app.finishing import scratch_file
from services.audio.grade import assess
from services.audio.model import Limits, Purpose
from services.audio.ports import Catalog, Examiner, Objects
from services.audio.records import AudioT
from services.common.errors import Kind, Reason, VoxfleetError, invalid
from services.common.jobs.tasks import Blob
from services.common.media import refusals

MAX_OUTLINE_POINTS: Final = 4096
DEFAULT_URL_TTL_S: Final = 3600
MAX_URL_TTL_S: Final = 7 * 86_400
_MAX_CHANNELS: Final = 2


@dataclass(frozen=True, slots=True)
class Download:
    """What a download will send: ``size_bytes`` from ``offset`` on."""

    blob: Blob
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Audios(Generic[AudioT]):
    """The use cases of audios."""

    catalog: Catalog[AudioT]
    objects: Objects
    examiner: Examiner
    limits: Limits
    scratch_dir: Path
    now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC)

    async def analyze(self, name: str, points: int) -> tuple[AudioT, tuple[float, ...]]:
        """An audio with its measures, and ``points`` peaks to draw it by (none where 0).

        Errors: AUDIO_NOT_FOUND, INVALID_ARGUMENT, those of the store and the examiner.
        """
        if not 0 <= points <= MAX_OUTLINE_POINTS:
            raise invalid(
                Reason.INVALID_ARGUMENT,
                f"waveform_points is 0 to {MAX_OUTLINE_POINTS}, not {points}",
                field="waveform_points",
            )
        found = await self.catalog.resolve_audio(name)
        if found.purpose is Purpose.VOICE_FILE:
            raise refusals.invalid_format("it is a voice's file, not audio")
        if found.is_measured and not points:
            return found.audio, ()
        audio = found.audio
        outline: tuple[float, ...] = ()
        with scratch_file(self.scratch_dir) as path:
            await self.objects.fetch(found.blob, path)
            if not found.is_measured:
                examined = await self.examiner.examine(
                    path, max_duration_s=self.limits.conversion.max_duration_s, max_channels=_MAX_CHANNELS
                )
                verdict = assess(examined.measures, found.purpose, limits=self.limits)
                audio = await self.catalog.store_measures(name, examined.measures, verdict)
            if points:
                outline = await self.examiner.outline(path, points)
        return audio, outline

    async def open_download(self, name: str, offset: int, limit: int) -> Download:
        """What to send of an audio for a range; ``limit`` 0 means to the end.

        Errors: AUDIO_NOT_FOUND, RANGE_NOT_SATISFIABLE (``size_bytes``).
        """
        blob = (await self.catalog.resolve_audio(name)).blob
        if offset < 0 or limit < 0 or offset >= max(1, blob.size_bytes):
            raise VoxfleetError(
                Reason.RANGE_NOT_SATISFIABLE,
                f"the audio has {blob.size_bytes} bytes: no range begins at {offset} with {limit}",
                kind=Kind.OUT_OF_RANGE,
                metadata={"size_bytes": blob.size_bytes, "offset": offset},
            )
        rest = blob.size_bytes - offset
        return Download(blob, offset, min(limit, rest) if limit else rest)

    async def read(self, download: Download) -> AsyncGenerator[bytes, None]:
        """The bytes of a download, in blocks of the store's choice.

        Errors: ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT where some are missing or, of a whole file, wrong.
        """
        blob = download.blob
        sent = 0
        is_whole = download.size_bytes == blob.size_bytes
        digest = hashlib.sha256()
        async for block in self.objects.read(blob.key, download.offset, download.size_bytes):
            sent += len(block)
            if is_whole:
                digest.update(block)
            metrics.DOWNLOAD_BYTES.inc(len(block))
            yield block
        if sent != download.size_bytes or (is_whole and digest.hexdigest() != blob.sha256):
            raise VoxfleetError(
                Reason.ARTIFACT_CORRUPT,
                f"the store gave {sent} of {download.size_bytes} bytes, or not those that were stored",
                kind=Kind.DATA_LOSS,
                metadata={"sha256": blob.sha256},
            )

    async def url(self, name: str, ttl_s: int | None) -> tuple[str, dt.datetime]:
        """An address to get an audio from, and when it ceases to work.

        Errors: AUDIO_NOT_FOUND, INVALID_ARGUMENT.
        """
        chosen_s = DEFAULT_URL_TTL_S if ttl_s is None else ttl_s
        if not 1 <= chosen_s <= MAX_URL_TTL_S:
            raise invalid(
                Reason.INVALID_ARGUMENT,
                f"ttl is 1 s to 7 days ({MAX_URL_TTL_S} s), not {chosen_s} s",
                field="ttl",
            )
        blob = (await self.catalog.resolve_audio(name)).blob
        # Taken before the signature: the address works at least so long.
        expires_at = self.now() + dt.timedelta(seconds=chosen_s)
        return await self.objects.presign(blob.key, chosen_s), expires_at
