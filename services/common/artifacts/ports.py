"""What the artefact store can do, whatever stands behind it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from services.common.artifacts.model import DEFAULT_MEDIA_TYPE, Blob, Listed

CHUNK_BYTES = 256 * 2**10


class ArtifactStore(Protocol):
    """Bytes under keys (:mod:`services.common.artifacts.model`).

    Every method blocks: call it in a thread from asyncio. Every method raises STORAGE_UNAVAILABLE
    (transient) where the store cannot be reached. Methods are safe to call from several threads.
    """

    def ensure_bucket(self) -> None:
        """Make the bucket where it does not exist."""
        ...

    def put_file(
        self,
        key: str,
        path: Path,
        *,
        media_type: str = DEFAULT_MEDIA_TYPE,
        sha256: str = "",
        verify_content: bool = False,
    ) -> Blob:
        """Store a file; nothing is sent where the key holds the same bytes already.

        Args:
            key: where.
            path: the file.
            media_type: what it is, for whoever fetches it by a URL.
            sha256: what the caller believes the file's hash to be; a key of committed content
                implies it.
            verify_content: read it back from the store and hash that as well.

        Raises:
            VoxfleetError: ARTIFACT_CORRUPT where the file is not what ``sha256`` or the key says, or
                what arrived is not what was sent (it is deleted again).
        """
        ...

    def put_bytes(
        self, key: str, data: bytes, *, media_type: str = DEFAULT_MEDIA_TYPE, sha256: str = ""
    ) -> Blob:
        """Store bytes, as :meth:`put_file`."""
        ...

    def get_file(self, key: str, path: Path, *, sha256: str = "") -> Blob:
        """Fetch into a file, which appears at ``path`` whole and verified, or not at all.

        Args:
            key: of what.
            path: where to; its folder exists.
            sha256: what it must be; where empty, what the key or the store's record says.

        Raises:
            VoxfleetError: ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT.
        """
        ...

    def get_bytes(self, key: str, *, sha256: str = "") -> bytes:
        """Fetch something small whole, verified as :meth:`get_file` does."""
        ...

    def open_range(self, key: str, offset_bytes: int = 0, length_bytes: int | None = None) -> Iterator[bytes]:
        """The bytes from ``offset_bytes`` on, in chunks; to the end where no length is given, or too long.

        The request is made at once; the chunks come as they are asked for, and closing the
        iterator ends the transfer.

        Raises:
            VoxfleetError: ARTIFACT_NOT_FOUND; RANGE_NOT_SATISFIABLE where ``offset_bytes`` is negative
                or past the end (the end itself is an empty range).
        """
        ...

    def stat(self, key: str) -> Blob:
        """What is stored under a key; ARTIFACT_NOT_FOUND where nothing is."""
        ...

    def exists(self, key: str) -> bool:
        """Whether something is stored under a key."""
        ...

    def copy(self, source: str, target: str) -> Blob:
        """Copy inside the store; no byte passes through here. ARTIFACT_NOT_FOUND where there is no source."""
        ...

    def delete(self, key: str) -> None:
        """Delete a key; no error where there is none."""
        ...

    def delete_prefix(self, prefix: str) -> int:
        """Delete every key under a prefix of a team or a bundle, and say how many there were."""
        ...

    def list_prefix(self, prefix: str) -> Iterator[Listed]:
        """Every key under a prefix, in the order of the keys."""
        ...

    def presign_get(self, key: str, expires_s: int, *, file_name: str = "") -> str:
        """A URL that fetches the key without credentials, saved as ``file_name`` by a browser."""
        ...

    def presign_put(self, key: str, expires_s: int) -> str:
        """A URL that stores under the key without credentials."""
        ...
