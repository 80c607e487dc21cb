"""What the use cases need: the catalogue's rows, the store's bytes, an examiner of files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

from services.audio.model import Assessment, Judged, Measures
from services.audio.records import AudioSpec, AudioT, Examined, ResolvedAudio, UploadRecord
from services.common.jobs.tasks import Blob


class Catalog(Protocol[AudioT]):
    """The rows of uploads and audios, kept by metadata."""

    async def open_upload(self, team: str, upload_id: str, spec: AudioSpec) -> UploadRecord:
        """Makes an upload's row. Errors: UPLOAD_OFFSET_MISMATCH where the id is taken."""
        ...

    async def fetch_upload(self, name: str) -> UploadRecord:
        """An upload's row. Errors: UPLOAD_NOT_FOUND."""
        ...

    async def advance_upload(self, name: str, from_offset: int, to_offset: int) -> UploadRecord:
        """Moves the durable offset on. Errors: UPLOAD_NOT_FOUND, UPLOAD_OFFSET_MISMATCH."""
        ...

    async def drop_upload(self, name: str) -> None:
        """Forgets an upload; one that became an audio, or is not there, stays as it is."""
        ...

    async def commit_audio(self, upload: str, blob: Blob, judged: Judged | None) -> AudioT:
        """Turns an upload into an audio, once; a repeat gives the same audio. Errors: UPLOAD_NOT_FOUND.

        ``judged`` is None for what is not audio.
        """
        ...

    async def resolve_audio(self, name: str) -> ResolvedAudio[AudioT]:
        """An audio with where its bytes are. Errors: AUDIO_NOT_FOUND."""
        ...

    async def store_measures(self, name: str, measures: Measures, assessment: Assessment) -> AudioT:
        """Keeps the measures of an audio that had none. Errors: AUDIO_NOT_FOUND."""
        ...


class Objects(Protocol):
    """The store's bytes. Errors: STORAGE_UNAVAILABLE, ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT."""

    async def put_part(self, key: str, data: bytes) -> None:
        """Writes a small object."""
        ...

    async def put_file(self, path: Path, blob: Blob) -> None:
        """Writes a file at its key."""
        ...

    async def assemble(self, key_at: Callable[[int], str], size_bytes: int, path: Path) -> str:
        """Writes the first ``size_bytes`` of the parts at ``key_at(offset)`` to a file.

        Returns:
            The SHA-256 of the file, hexadecimal.

        Raises:
            VoxfleetError: ARTIFACT_NOT_FOUND where a part is not there.
        """
        ...

    async def fetch(self, blob: Blob, path: Path) -> None:
        """Writes an object to a file, verified."""
        ...

    def read(self, key: str, offset: int, size_bytes: int) -> AsyncIterator[bytes]:
        """A range of an object, in blocks; fewer bytes than asked for where the object ends."""
        ...

    async def delete_prefix(self, prefix: str) -> None:
        """Deletes everything under a prefix."""
        ...

    async def presign(self, key: str, ttl_s: int) -> str:
        """An address from which anyone can get the object for so long."""
        ...


class Examiner(Protocol):
    """Decodes and measures files, where a hostile one can do no harm."""

    async def examine(self, path: Path, *, max_duration_s: float, max_channels: int) -> Examined:
        """All measures of a file. Errors: INVALID_FORMAT, AUDIO_EMPTY, AUDIO_TOO_LONG."""
        ...

    async def outline(self, path: Path, points: int) -> tuple[float, ...]:
        """So many evenly spaced peaks of a file, each in 0..1. Errors: as of :meth:`examine`."""
        ...
