"""What retention needs of a database and of the artefact store."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from services.common.artifacts.model import Listed
from services.metadata.model.retention import (
    Condemned,
    Due,
    ExpiredAudio,
    ExpiredUpload,
    Finished,
    Mark,
    OldRequest,
    RetiredBatch,
    Stray,
)


class RetentionRows(Protocol):
    """Rows that go after a time. Lists begin after a mark: the last of the list before."""

    async def clock(self) -> dt.datetime:
        """The ledger's time."""

    async def take_turn(self, name: str, every_s: float) -> bool:
        """Whether it is this process that does a thing in this period."""

    async def expired_audios(self, after: Mark, limit: int) -> list[ExpiredAudio]: ...
    async def used_audios(self, audios: Sequence[ExpiredAudio]) -> set[tuple[str, str]]:
        """(team, id) of those that a voice or a job which has not ended uses."""

    async def condemn_audios(self, audios: Sequence[ExpiredAudio]) -> None:
        """Hides audios from everybody until the second look."""

    async def lock_condemned_audios(self, second_look_s: float, limit: int) -> list[ExpiredAudio]: ...
    async def restore_audios(self, audios: Sequence[ExpiredAudio]) -> None: ...
    async def delete_audios(self, audios: Sequence[ExpiredAudio]) -> None:
        """Deletes their rows, which condemns their artefacts."""

    async def due_artifacts(self, due: Due, after: Mark, limit: int) -> list[Condemned]: ...
    async def lock_artifacts(self, due: Due, artifacts: Sequence[Condemned]) -> list[Condemned]:
        """Those that are still due, locked: nobody begins to use them meanwhile."""

    async def used_artifacts(self, artifacts: Sequence[Condemned]) -> set[tuple[str, str]]:
        """(team, SHA-256) of those that a row, or the task of a job which has not ended, names."""

    async def restore_artifacts(self, artifacts: Sequence[Condemned]) -> None: ...
    async def sweep_artifacts(self, artifacts: Sequence[Condemned]) -> dt.datetime:
        """Says that their bytes will be deleted now; returns the claim."""

    async def note_gone(self, artifacts: Sequence[Condemned], claim: dt.datetime) -> None:
        """Says that their bytes are gone, unless another has claimed them since."""

    async def forget_gone(self, grace_s: float, limit: int) -> int:
        """Deletes the rows of artefacts that have been gone for so long; returns how many."""

    async def strays(self, objects: Sequence[Stray]) -> list[Stray]:
        """Those of some objects that no row names."""

    async def adopt_strays(self, objects: Sequence[Stray]) -> tuple[list[Condemned], dt.datetime | None]:
        """Gives content without a row one, as being swept; returns those, and the claim."""

    async def condemn_unnamed(self, objects: Sequence[Stray]) -> None:
        """Condemns content that has a row which no other row names."""

    async def due_uploads(self, due: Due, after: Mark, limit: int) -> list[ExpiredUpload]: ...
    async def condemn_uploads(
        self, due: Due, uploads: Sequence[ExpiredUpload]
    ) -> tuple[list[ExpiredUpload], dt.datetime | None]:
        """Closes uploads whose parts will be deleted now; returns those, and the claim."""

    async def delete_uploads(self, uploads: Sequence[ExpiredUpload], claim: dt.datetime) -> None: ...
    async def old_requests(self, retain_s: float, after: Mark, limit: int) -> list[OldRequest]:
        """A page of all request ids, each with whether it is due."""

    async def delete_requests(self, retain_s: float, requests: Sequence[OldRequest]) -> None: ...
    async def due_jobs(self, retain_s: float, before_id: str, after: Mark, limit: int) -> list[Finished]: ...
    async def items_left(self, batch: str, limit: int) -> list[Finished]: ...
    async def archive_lines(self, jobs: Sequence[Finished]) -> dict[str, str]:
        """Each job with all that goes with it as one line of JSON, by its id."""

    async def delete_finished(self, jobs: Sequence[Finished]) -> set[str]:
        """Deletes those that are as they were looked at and that nothing waits for; returns their ids."""

    async def retired_batches(self, after: str, limit: int) -> list[RetiredBatch]: ...
    async def forget_batch(self, batch: str) -> None:
        """Ends the retirement of a batch that has no item left."""


class RetentionStore(Protocol):
    """The database. Every context may raise DATABASE_UNAVAILABLE."""

    def service(self) -> AbstractAsyncContextManager[RetentionRows]:
        """A transaction that sees every team."""


class StoredBytes(Protocol):
    """The artefact store. Every method may raise STORAGE_UNAVAILABLE."""

    async def put(self, key: str, data: bytes, media_type: str) -> None: ...
    async def delete(self, keys: Sequence[str]) -> None:
        """Deletes keys; no error where there is nothing. After an error some may be gone."""

    async def delete_prefix(self, prefix: str) -> None: ...
    def pages(self, prefix: str, size: int) -> AsyncIterator[Sequence[Listed]]:
        """Every object under a prefix, in the order of keys."""
