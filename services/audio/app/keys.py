"""Who may delete bytes that several uploads may share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class KeyGuard:
    """Keeps the collector from deleting bytes that an upload is just making a row for.

    Metadata may hand out a key as garbage while an upload of the same content stands between its PUT
    and its commit. Both hold the key's lock, and a key that was committed after the collector asked for
    garbage is spared.
    """

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}
        self._commits: dict[str, int] = {}
        self._clock = 0

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[None]:
        """Nobody else puts, commits or deletes the key meanwhile."""
        lock, holders = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = (lock, holders + 1)
        try:
            async with lock:
                yield
        finally:
            lock, holders = self._locks[key]
            if holders == 1:
                del self._locks[key]
            else:
                self._locks[key] = (lock, holders - 1)

    def now(self) -> int:
        """A mark: what is committed later is spared by a collection that took it."""
        return self._clock

    def note_commit(self, key: str) -> None:
        """A row names the key now; called with the key held."""
        self._clock += 1
        self._commits[key] = self._clock

    def committed_since(self, key: str, mark: int) -> bool:
        """Whether the key was committed after the mark was taken; called with the key held."""
        return self._commits.get(key, 0) > mark

    def forget_commits(self) -> None:
        """No key waits to be deleted: past commits need not be remembered."""
        self._commits.clear()
