"""The artefact store's blocking client, in threads, as far as retention needs it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from services.common.artifacts.model import Listed
from services.common.artifacts.ports import ArtifactStore

P = ParamSpec("P")
T = TypeVar("T")


class ThreadedBytes:
    """The port ``StoredBytes`` on an :class:`ArtifactStore`.

    Args:
        store: any artefact store; its methods block.
        threads: how many of its requests run at once; further ones wait.
    """

    def __init__(self, store: ArtifactStore, *, threads: int = 8) -> None:
        self._store = store
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="bytes")

    def close(self) -> None:
        """Takes no more requests; those in progress end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def put(self, key: str, data: bytes, media_type: str) -> None:
        """See the port."""
        await self._call(self._store.put_bytes, key, data, media_type=media_type)

    async def exists(self, key: str) -> bool:
        """Whether something is stored under a key."""
        return await self._call(self._store.exists, key)

    async def delete(self, keys: Sequence[str]) -> None:
        """See the port."""
        await asyncio.gather(*(self._call(self._store.delete, key) for key in keys))

    async def delete_prefix(self, prefix: str) -> None:
        """See the port."""
        await self._call(self._store.delete_prefix, prefix)

    async def pages(self, prefix: str, size: int) -> AsyncIterator[Sequence[Listed]]:
        """See the port."""
        listing = await self._call(self._store.list_prefix, prefix)
        while page := await self._call(lambda: list(itertools.islice(listing, size))):
            yield page

    async def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: function(*args, **kwargs)
        )
