"""The files of a job's attempts in the artefact store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from services.common.artifacts.model import work_prefix
from services.common.artifacts.ports import ArtifactStore
from services.common.errors import Reason, VoxfleetError

log = logging.getLogger(__name__)


class StoredWorkFiles:
    """See :class:`services.trainer.ports.WorkFiles`.

    Args:
        store: where they are.
    """

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store

    async def find(self, team: str, job_id: str, name: str) -> bytes | None:
        """See the port."""
        return await asyncio.to_thread(self._find, team, job_id, name)

    async def delete(self, keys: Sequence[str]) -> None:
        """See the port."""
        await asyncio.to_thread(self._delete, keys)

    def _find(self, team: str, job_id: str, name: str) -> bytes | None:
        prefix = work_prefix(team, job_id)
        found: list[tuple[int, str]] = []
        for listed in self._store.list_prefix(prefix):
            attempt, _, rest = listed.key.removeprefix(prefix).partition("/")
            if rest == name and attempt.isdigit():
                found.append((int(attempt), listed.key))
        for _, key in sorted(found, reverse=True):
            try:
                return self._store.get_bytes(key)
            except VoxfleetError as error:
                if error.reason not in (Reason.ARTIFACT_NOT_FOUND, Reason.ARTIFACT_CORRUPT):
                    raise
                log.warning("%s cannot be used: %s", key, error.message)
        return None

    def _delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            try:
                self._store.delete(key)
            except VoxfleetError as error:
                # What stays is garbage, and collected as such.
                log.warning("%s could not be deleted: %s", key, error.message)
