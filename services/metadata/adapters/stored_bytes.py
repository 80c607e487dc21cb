"""The artefact store's blocking client, in threads, as far as retention needs it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence

from services.common.artifacts.model import Listed
from services.common.artifacts.ports import ArtifactStore
from services.common.artifacts.threads import ThreadedStore


class ThreadedBytes(ThreadedStore):
    """The port ``StoredBytes`` on an :class:`ArtifactStore`.

    Args:
        store: any artefact store; its methods block.
        threads: how many of its requests run at once; further ones wait.
    """

    def __init__(self, store: ArtifactStore, *, threads: int = 8) -> None:
        super().__init__(store, threads=threads, name="bytes")

    async def put(self, key: str, data: bytes, media_type: str) -> None:
        """See the port."""
        await self._call(self._store.put_bytes, key, data, media_type=media_type)

    async def exists(self, key: str) -> bool:
        """Whether something is stored under a key."""
        return await self._call(self._store.exists, key)

    async def delete(self, keys: Sequence[str]) -> None:
        """See the port."""
        await asyncio.gather(*(self._call(self._store.delete, key) for key in keys))

    async def pages(self, prefix: str, size: int) -> AsyncIterator[Sequence[Listed]]:
        """See the port."""
        listing = await self._call(self._store.list_prefix, prefix)
        while page := await self._call(lambda: list(itertools.islice(listing, size))):
            yield page
