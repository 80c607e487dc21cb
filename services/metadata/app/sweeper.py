"""The sweeper of artefacts: what expired and is used by nobody, and what no row names.

Nothing is lost by one look. An audio is condemned, which hides it, and deleted only by a second look some
minutes later, when every transaction that had seen it has committed; that condemns its content, and a further
look claims it before its bytes go. Whoever commits the same content meanwhile revives it or is told to wait
(``put_artifact``).
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Sequence

from services.common.artifacts.model import Listed, content_key, staging_prefix
from services.common.errors import VoxfleetError
from services.metadata.model.retention import (
    Category,
    Condemned,
    Doomed,
    Due,
    ExpiredUpload,
    Mark,
    RetentionSettings,
    Stray,
    Tally,
    stray_of,
)
from services.metadata.ports.retention import RetentionStore, StoredBytes

log = logging.getLogger(__name__)

_PAGE = 500
_LISTED = 1000
_MOST_LISTED = 500_000


class Sweeper:
    """The steps of a run that have to do with bytes; each may be run dry, and then only counts.

    Args:
        store: the database.
        stored: the artefact store.
        settings: how long what is kept.
    """

    def __init__(self, store: RetentionStore, stored: StoredBytes, settings: RetentionSettings) -> None:
        self._store = store
        self._stored = stored
        self._settings = settings
        self._due = Due(settings.second_look_s, 4 * settings.delete_s)

    async def sweep_bytes(self, tally: Tally, *, dry: bool) -> None:
        """Deletes the bytes of condemned content that nobody uses."""
        mark = Mark()
        while not (dry and tally.is_full(Category.BYTES)):
            async with self._store.service() as tx:
                page = await tx.due_artifacts(self._due, mark, _PAGE)
            going = await self._unused(page) if dry else await self._sweep(page)
            tally.add(Doomed(Category.BYTES, each.object_key, each.size_bytes) for each in going)
            if len(page) < _PAGE:
                return
            mark = Mark(page[-1].team, page[-1].sha256, page[-1].condemned_at)

    async def expire_audios(self, tally: Tally, *, dry: bool) -> None:
        """Condemns audios that have expired and that nobody uses; deletes those condemned a while ago."""
        if not dry:
            await self._delete_condemned()
        mark = Mark()
        while not (dry and tally.is_full(Category.INPUTS, Category.OUTPUTS)):
            async with self._store.service() as tx:
                page = await tx.expired_audios(mark, _PAGE)
                used = await tx.used_audios(page)
                going = [audio for audio in page if audio.key not in used]
                if not dry and going:
                    await tx.condemn_audios(going)
            tally.add(audio.doomed for audio in going)
            if len(page) < _PAGE:
                return
            mark = Mark(page[-1].team, page[-1].id, page[-1].expires_at)

    async def expire_uploads(self, tally: Tally, *, dry: bool) -> None:
        """Deletes uploads that have expired: first their parts, then their rows."""
        mark = Mark()
        while not (dry and tally.is_full(Category.UPLOADS)):
            async with self._store.service() as tx:
                page = await tx.due_uploads(self._due, mark, _PAGE)
            going = page if dry else await self._drop(page)
            tally.add(
                Doomed(Category.UPLOADS, f"teams/{each.team}/uploads/{each.id}", each.size_bytes)
                for each in going
            )
            if len(page) < _PAGE:
                return
            mark = Mark(page[-1].team, page[-1].id, page[-1].expires_at)

    async def collect_orphans(self, tally: Tally, *, dry: bool) -> None:
        """Deletes objects of teams that are old enough and that no row names."""
        async with self._store.service() as tx:
            oldest = await tx.clock() - dt.timedelta(seconds=self._settings.orphan_grace_s)
        listed = 0
        async for page in self._stored.pages("teams/", _LISTED):
            strays = await self._strays(page, oldest, dry=dry)
            tally.add(Doomed(Category.ORPHANS, each.key, each.size_bytes) for each in strays)
            listed += len(page)
            if dry and listed >= _MOST_LISTED:
                tally.complete = False
                return
        while not dry:
            async with self._store.service() as tx:
                if await tx.forget_gone(self._settings.orphan_grace_s, _PAGE) < _PAGE:
                    return

    async def _unused(self, page: Sequence[Condemned]) -> list[Condemned]:
        async with self._store.service() as tx:
            used = await tx.used_artifacts(page)
        return [each for each in page if each.key not in used]

    async def _sweep(self, page: Sequence[Condemned]) -> list[Condemned]:
        """Takes the decision on each, and deletes the bytes; returns those that are gone."""
        if not page:
            return []
        async with self._store.service() as tx:
            locked = await tx.lock_artifacts(self._due, page)
            used = await tx.used_artifacts([each for each in locked if not each.swept])
            if used:
                await tx.restore_artifacts([each for each in locked if each.key in used])
            going = [each for each in locked if each.key not in used]
            claim = await tx.sweep_artifacts(going) if going else None
        if claim is None:
            return []
        return going if await self._delete_content(going, claim) else []

    async def _delete_content(self, artifacts: Sequence[Condemned], claim: dt.datetime) -> bool:
        """Deletes the bytes of swept artefacts; False where some stay for a later run."""
        keys = []
        for each in artifacts:
            if each.object_key == content_key(each.team, each.sha256):
                keys.append(each.object_key)
            else:
                # No worker of ours stores content under another name: what stands there may be another's.
                log.error("%s is no key of content: it is left alone", each.object_key)
        if not await self._delete(keys):
            return False
        async with self._store.service() as tx:
            await tx.note_gone(artifacts, claim)
        return True

    async def _delete_condemned(self) -> None:
        while True:
            async with self._store.service() as tx:
                locked = await tx.lock_condemned_audios(self._settings.second_look_s, _PAGE)
                used = await tx.used_audios(locked)
                if used:
                    log.info("%d audios are used again", len(used))
                    await tx.restore_audios([audio for audio in locked if audio.key in used])
                await tx.delete_audios([audio for audio in locked if audio.key not in used])
            if len(locked) < _PAGE:
                return

    async def _drop(self, page: Sequence[ExpiredUpload]) -> list[ExpiredUpload]:
        """Closes uploads, so that no part is added, deletes their parts and then their rows."""
        if not page:
            return []
        async with self._store.service() as tx:
            closed, claim = await tx.condemn_uploads(self._due, page)
        if claim is None:
            return []
        try:
            async with asyncio.timeout(self._settings.delete_s):
                for each in closed:
                    await self._stored.delete_prefix(staging_prefix(each.team, each.id))
        except (VoxfleetError, TimeoutError) as error:
            log.warning("parts of uploads stay for a later run: %s", error)
            return []
        async with self._store.service() as tx:
            await tx.delete_uploads(closed, claim)
        return closed

    async def _strays(self, page: Sequence[Listed], oldest: dt.datetime, *, dry: bool) -> list[Stray]:
        """Of a page of objects those that no row names; gone, unless it is dry."""
        old = [
            stray
            for listed in page
            if listed.modified_at <= oldest and (stray := stray_of(listed.key, listed.size_bytes)) is not None
        ]
        if not old:
            return []
        adopted: list[Condemned] = []
        claim = None
        async with self._store.service() as tx:
            strays = await tx.strays(old)
            if not dry:
                content = [each for each in strays if each.area == "sha256"]
                if content:
                    adopted, claim = await tx.adopt_strays(content)
                await tx.condemn_unnamed([each for each in old if each.area == "sha256"])
        if dry:
            return strays
        gone: set[str] = set()
        if claim is not None and await self._delete_content(adopted, claim):
            gone.update(each.object_key for each in adopted)
        files = [each.key for each in strays if each.area != "sha256"]
        if await self._delete(files):
            gone.update(files)
        return [each for each in strays if each.key in gone]

    async def _delete(self, keys: Sequence[str]) -> bool:
        """Deletes objects; False where some may be left."""
        if not keys:
            return True
        try:
            async with asyncio.timeout(self._settings.delete_s):
                await self._stored.delete(keys)
        except (VoxfleetError, TimeoutError) as error:
            log.warning("%d objects stay for a later run: %s", len(keys), error)
            return False
        return True
