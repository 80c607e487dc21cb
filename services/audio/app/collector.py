"""Deletes from the store what no row names any more."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from services.audio import metrics
from services.audio.app.keys import KeyGuard
from services.audio.ports import Catalog, Objects
from services.common.errors import VoxfleetError

log = logging.getLogger(__name__)

_BATCH = 500


class Collector:
    """The garbage loop. What could not be deleted is tried again in the next round."""

    def __init__(self, catalog: Catalog[Any], objects: Objects, keys: KeyGuard) -> None:
        self._catalog = catalog
        self._objects = objects
        self._keys = keys
        # Metadata tells each key once: these are remembered until they are gone.
        self._left_keys: dict[str, int] = {}
        self._left_prefixes: set[str] = set()

    async def run(self, interval_s: float) -> None:
        """Collects for ever, every ``interval_s`` and at once where there is more."""
        while True:
            try:
                found = await self.collect()
            except VoxfleetError as error:
                log.warning("garbage was not collected, to be tried again: %s", error.message)
                found = 0
            if found < _BATCH:
                await asyncio.sleep(interval_s)

    async def collect(self) -> int:
        """One round; returns how many keys and prefixes are gone.

        Errors: those of the catalogue and the store; nothing that was to go is forgotten.
        """
        mark = self._keys.now()
        garbage = await self._catalog.take_garbage(_BATCH)
        self._left_keys.update(dict.fromkeys(garbage.keys, mark))
        self._left_prefixes.update(garbage.prefixes)
        done = 0
        for prefix in sorted(self._left_prefixes):
            await self._objects.delete_prefix(prefix)
            self._left_prefixes.discard(prefix)
            metrics.note_unstaged(prefix)
            metrics.COLLECTED.labels("prefix").inc()
            done += 1
        for key, taken in sorted(self._left_keys.items()):
            async with self._keys.hold(key):
                if not self._keys.committed_since(key, taken):
                    await self._objects.delete([key])
                    metrics.COLLECTED.labels("key").inc()
                del self._left_keys[key]
            done += 1
        self._keys.forget_commits()
        if done:
            log.info("collected %d keys and prefixes", done)
        return done
