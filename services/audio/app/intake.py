"""The bytes of one stream, into durable parts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from services.audio import metrics
from services.audio.grade import check_file
from services.audio.model import Limits
from services.audio.ports import Catalog, Objects
from services.audio.records import Step, UploadRecord
from services.common import names
from services.common.artifacts.model import staging_key, staging_prefix
from services.common.errors import Reason, VoxfleetError, invalid, precondition


class Intake:
    """Collects chunks to parts; a part is durable once its PUT and its AdvanceUpload are done.

    At most two parts are in memory: the one being stored, and the one being filled.

    Args:
        record: the upload, at whose durable offset the bytes go on.
        part_bytes: size of a part.
    """

    def __init__(
        self,
        catalog: Catalog[Any],
        objects: Objects,
        record: UploadRecord,
        *,
        limits: Limits,
        part_bytes: int,
    ) -> None:
        self._catalog = catalog
        self._objects = objects
        self._record = record
        self._name = names.parse(record.name, "uploads")
        self._limits = limits
        self._part_bytes = part_bytes
        self._buffer = bytearray()
        self._sent_to = record.durable_offset
        self._storing: asyncio.Task[None] | None = None
        self.durable = record.durable_offset
        """Bytes before it are durable."""

    @property
    def received(self) -> int:
        """Bytes of the file that have come so far, durable or not."""
        return self._sent_to + len(self._buffer)

    async def take(self, steps: AsyncIterator[Step]) -> None:
        """Takes a stream to its end and makes all of it durable.

        Raises:
            VoxfleetError: FILE_TOO_LARGE, UPLOAD_INCOMPLETE (more came than was announced),
                INVALID_ARGUMENT (a message that is no chunk), and those of the catalogue and the store.
        """
        announced = self._record.spec.size_bytes
        async for step in steps:
            if not isinstance(step, bytes):
                await self.flush()
                raise invalid(
                    Reason.INVALID_ARGUMENT,
                    "only the first message opens or resumes",
                    field="step",
                )
            total = self.received + len(step)
            if announced and total > announced:
                self._buffer += step[: announced - self.received]
                await self.flush()
                raise precondition(
                    Reason.UPLOAD_INCOMPLETE,
                    f"{announced} bytes were announced and more came: resume at {self.durable}, or open a "
                    "new upload with the right size",
                    durable_offset=self.durable,
                    size_bytes=announced,
                )
            check_file(self._record.spec.purpose, size_bytes=total, duration_s=None, limits=self._limits)
            self._buffer += step
            while len(self._buffer) >= self._part_bytes:
                await self._send(self._part_bytes)
        await self.flush()

    async def flush(self) -> None:
        """Makes what was received durable, a short last part included."""
        if self._buffer:
            await self._send(len(self._buffer))
        await self._settle()

    async def abandon(self) -> None:
        """Forgets what is not on its way to the store, and waits for what is."""
        self._buffer.clear()
        with suppress(VoxfleetError):
            await self._settle()

    async def _send(self, size_bytes: int) -> None:
        await self._settle()
        # No await between taking the bytes and the task that stores them: a cancelled stream loses none.
        with memoryview(self._buffer) as view:
            data = bytes(view[:size_bytes])
        del self._buffer[:size_bytes]
        offset = self._sent_to
        self._sent_to += size_bytes
        self._storing = asyncio.create_task(self._store(offset, data))

    async def _settle(self) -> None:
        """Waits for the part on its way; once one has failed, so does everything after it."""
        if self._storing is not None:
            await asyncio.shield(self._storing)

    async def _store(self, offset: int, data: bytes) -> None:
        prefix = staging_prefix(self._name.team, self._name.id)
        await self._objects.put_part(staging_key(self._name.team, self._name.id, offset), data)
        metrics.note_staged(prefix, len(data), self._record.expires_at)
        try:
            await self._catalog.advance_upload(self._record.name, offset, offset + len(data))
        except VoxfleetError as error:
            if error.reason is Reason.UPLOAD_NOT_FOUND:
                # It expired under the stream: no row names this part any more.
                await self._objects.delete_prefix(prefix)
                metrics.note_unstaged(prefix)
            # A repeat of a call whose answer was lost finds the offset moved already.
            if not _is_moved(error, offset + len(data)):
                raise
        self.durable = offset + len(data)
        metrics.UPLOAD_BYTES.inc(len(data))


def _is_moved(error: VoxfleetError, to_offset: int) -> bool:
    return error.reason is Reason.UPLOAD_OFFSET_MISMATCH and error.metadata.get("durable_offset") == str(
        to_offset
    )
