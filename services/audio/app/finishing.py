"""From durable parts to an audio: verify, measure, grade, commit; or refuse and leave nothing."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Generic

from services.audio import metrics
from services.audio.grade import assess, check_file
from services.audio.model import Judged, Limits, Purpose
from services.audio.ports import Catalog, Examiner, Objects
from services.audio.records import AudioT, UploadRecord
from services.common import names
from services.common.artifacts.model import (
    DEFAULT_MEDIA_TYPE,
    content_key,
    staging_key,
    staging_prefix,
)
from services.common.errors import Reason, VoxfleetError, invalid, precondition
from services.common.jobs.tasks import Blob
from services.common.telemetry import span

log = logging.getLogger(__name__)

REFUSALS: Final = frozenset(
    {
        Reason.AUDIO_EMPTY,
        Reason.AUDIO_SILENT,
        Reason.AUDIO_TOO_LONG,
        Reason.AUDIO_TOO_SHORT,
        Reason.CHECKSUM_MISMATCH,
        Reason.FILE_TOO_LARGE,
        Reason.INVALID_FORMAT,
    }
)
"""What no repeat with the same bytes mends: such an upload is dropped whole."""


@contextmanager
def scratch_file(directory: Path) -> Iterator[Path]:
    """An empty file that is gone afterwards."""
    handle, name = tempfile.mkstemp(dir=directory, prefix="voxfleet-audio-")
    os.close(handle)
    path = Path(name)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Finisher(Generic[AudioT]):
    """Ends uploads whose bytes are all durable.

    ``slots`` bounds how many files lie in ``scratch_dir`` at once.
    """

    catalog: Catalog[AudioT]
    objects: Objects
    examiner: Examiner
    limits: Limits
    scratch_dir: Path
    slots: asyncio.Semaphore

    async def finish(self, record: UploadRecord, size_bytes: int) -> AudioT:
        """Makes the upload an audio.

        Args:
            record: the upload.
            size_bytes: how many bytes of it are durable.

        Raises:
            VoxfleetError: UPLOAD_INCOMPLETE (the upload stays), CHECKSUM_MISMATCH, INVALID_FORMAT,
                AUDIO_EMPTY, AUDIO_TOO_SHORT, AUDIO_TOO_LONG, and those of the catalogue and the store.
        """
        spec = record.spec
        if size_bytes < spec.size_bytes:
            raise precondition(
                Reason.UPLOAD_INCOMPLETE,
                f"{spec.size_bytes} bytes were announced and {size_bytes} came: resume at {size_bytes}",
                durable_offset=size_bytes,
                size_bytes=spec.size_bytes,
            )
        if size_bytes == 0:
            raise invalid(Reason.AUDIO_EMPTY, "the upload has no bytes")
        name = names.parse(record.name, "uploads")
        async with self.slots:
            with scratch_file(self.scratch_dir) as path:
                return await self._commit(record, name, size_bytes, path)

    async def _commit(self, record: UploadRecord, name: names.Name, size_bytes: int, path: Path) -> AudioT:
        spec = record.spec
        with span("audio.assemble", size_bytes=size_bytes):
            sha256 = await self._assemble(name, size_bytes, path)
        if spec.sha256 and spec.sha256 != sha256:
            raise invalid(
                Reason.CHECKSUM_MISMATCH,
                f"the bytes that came have the SHA-256 {sha256}, not the announced {spec.sha256}: "
                "upload the file again",
                expected_sha256=spec.sha256,
                actual_sha256=sha256,
            )
        media_type, judged = await self._judge(spec.purpose, size_bytes, path)
        blob = Blob(
            key=content_key(name.team, sha256), sha256=sha256, size_bytes=size_bytes, media_type=media_type
        )
        await self.objects.put_file(path, blob)
        # What no row names in the end, metadata's sweeper collects: it alone can tell.
        try:
            audio = await self.catalog.commit_audio(record.name, blob, judged)
        except VoxfleetError as error:
            if error.reason is not Reason.ARTIFACT_NOT_FOUND:
                raise
            # The sweeper deleted the same content between the two; it is done with that now.
            await self.objects.put_file(path, blob)
            audio = await self.catalog.commit_audio(record.name, blob, judged)
        await self._clear_staging(name)
        return audio

    async def _judge(self, purpose: Purpose, size_bytes: int, path: Path) -> tuple[str, Judged | None]:
        """What the file is, by its content, and how good; a voice's file is opened by no one here."""
        if purpose is Purpose.VOICE_FILE:
            return DEFAULT_MEDIA_TYPE, None
        bounds = self.limits.of(purpose)
        with span("audio.examine", size_bytes=size_bytes):
            found = await self.examiner.examine(
                path, max_duration_s=bounds.max_duration_s, max_channels=bounds.max_channels
            )
        measures = found.measures
        check_file(purpose, size_bytes=size_bytes, duration_s=measures.duration_s, limits=self.limits)
        return found.media_type, Judged(measures, assess(measures, purpose, limits=self.limits))

    async def _assemble(self, name: names.Name, size_bytes: int, path: Path) -> str:
        try:
            return await self.objects.assemble(partial(staging_key, name.team, name.id), size_bytes, path)
        except VoxfleetError as error:
            if error.reason is not Reason.ARTIFACT_NOT_FOUND:
                raise
        log.error("upload %s lost a part in the store", name)
        await self.discard(str(name))
        raise precondition(
            Reason.UPLOAD_INCOMPLETE,
            "a part of the upload is gone from the store: open a new upload and send the file again",
            durable_offset=0,
            size_bytes=size_bytes,
        )

    async def _clear_staging(self, name: names.Name) -> None:
        prefix = staging_prefix(name.team, name.id)
        try:
            await self.objects.delete_prefix(prefix)
        except VoxfleetError as error:
            # The upload's row outlives the commit: the sweeper deletes both once that has expired.
            log.warning("staging of %s stays until the upload expires: %s", name, error.message)
        else:
            metrics.note_unstaged(prefix)

    async def discard(self, upload: str) -> None:
        """Leaves neither row nor bytes of an upload that was refused.

        The bytes go first: while the row is there, the sweeper deletes them when it expires.
        """
        name = names.parse(upload, "uploads")
        prefix = staging_prefix(name.team, name.id)
        try:
            await self.objects.delete_prefix(prefix)
            metrics.note_unstaged(prefix)
            await self.catalog.drop_upload(upload)
        except VoxfleetError as error:
            log.warning("refused upload %s stays until it expires: %s", upload, error.message)
