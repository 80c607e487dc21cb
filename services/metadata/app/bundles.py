"""Bundles of weights in the store, and what streamed syntheses used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.metadata.model.catalog import StoredBundle
from services.metadata.ports.store import Store


class Bundles:
    """The use cases of bundles and usage."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def page(self) -> list[StoredBundle]:
        """Bundles whose files are in the store."""
        async with self._store.service() as tx:
            return await tx.list_bundles()

    async def store(self, name: str, manifest: Mapping[str, Any], accepted_by: str) -> StoredBundle:
        """Records a bundle whose files are in the store already."""
        async with self._store.service() as tx:
            return await tx.put_bundle(name, manifest, accepted_by)

    async def record_usage(
        self, team: str, voice: str, audio_s: float, work_s: float, characters: int
    ) -> None:
        """Records what a streamed synthesis used."""
        async with self._store.tenant(team) as tx:
            await tx.add_usage(team, voice, audio_s, work_s, characters)
