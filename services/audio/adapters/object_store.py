"""The store's blocking client, in threads."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from services.common.artifacts.failures import missing
from services.common.artifacts.ports import ArtifactStore
from services.common.artifacts.threads import ThreadedStore
from services.common.jobs.tasks import Blob

READ_AHEAD_BYTES: Final = 1024 * 1024
"""What one visit to a thread reads of a download."""


class ThreadedObjects(ThreadedStore):
    """The port ``Objects`` on an :class:`ArtifactStore`.

    Args:
        store: any artefact store; its methods block.
        threads: how many of its requests run at once; further ones wait.
    """

    def __init__(self, store: ArtifactStore, *, threads: int) -> None:
        super().__init__(store, threads=threads, name="objects")

    async def check(self) -> None:
        """Returns where the store answers. Errors: STORAGE_UNAVAILABLE."""
        await self._call(self._store.exists, "health")

    async def put_part(self, key: str, data: bytes) -> None:
        """See the port."""
        await self._call(self._store.put_bytes, key, data)

    async def put_file(self, path: Path, blob: Blob) -> None:
        """See the port."""
        await self._call(self._store.put_file, blob.key, path, media_type=blob.media_type, sha256=blob.sha256)

    async def assemble(self, key_at: Callable[[int], str], size_bytes: int, path: Path) -> str:
        """See the port."""
        return await self._call(_assemble, self._store, key_at, size_bytes, path)

    async def fetch(self, blob: Blob, path: Path) -> None:
        """See the port."""
        await self._call(self._store.get_file, blob.key, path, sha256=blob.sha256)

    async def read(self, key: str, offset: int, size_bytes: int) -> AsyncIterator[bytes]:
        """See the port. A block has about a mebibyte."""
        chunks = await self._call(self._store.open_range, key, offset, size_bytes)
        try:
            while block := await self._call(_take, chunks, READ_AHEAD_BYTES):
                yield block
        finally:
            await self._call(_close, chunks)

    async def presign(self, key: str, ttl_s: int) -> str:
        """See the port."""
        return await self._call(self._store.presign_get, key, ttl_s)


def _assemble(store: ArtifactStore, key_at: Callable[[int], str], size_bytes: int, path: Path) -> str:
    digest = hashlib.sha256()
    offset = 0
    with path.open("wb") as file:
        while offset < size_bytes:
            key = key_at(offset)
            copied = _copy(store.open_range(key), file, digest.update, size_bytes - offset)
            if copied == 0:
                raise missing(key)
            offset += copied
    return digest.hexdigest()


def _copy(
    chunks: Iterator[bytes], file: BinaryIO, update: Callable[[bytes], object], at_most_bytes: int
) -> int:
    copied = 0
    for chunk in chunks:
        piece = chunk[: at_most_bytes - copied]
        file.write(piece)
        update(piece)
        copied += len(piece)
        if copied == at_most_bytes:
            break
    _close(chunks)
    return copied


def _take(chunks: Iterator[bytes], size_bytes: int) -> bytes:
    """The next chunks, joined, of at least so many bytes; fewer at the end, none after it."""
    found: list[bytes] = []
    size = 0
    while size < size_bytes and (chunk := next(chunks, b"")):
        found.append(chunk)
        size += len(chunk)
    return b"".join(found)


def _close(chunks: Iterator[bytes]) -> None:
    # A generator that is not closed keeps its connection until it is collected.
    close = getattr(chunks, "close", None)
    if close is not None:
        close()
