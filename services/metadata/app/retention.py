"""Retention: finished jobs archived or deleted by policy, and the sweep of artefacts, by one loop.

Every step reads what is due in pages and takes its decisions in small transactions. A run that dies anywhere
is gone on with by the next; several processes may run beside one another.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from prometheus_client import Counter

from services.common.artifacts.model import work_prefix
from services.common.errors import VoxfleetError
from services.metadata.app.sweeper import Sweeper
from services.metadata.model.retention import (
    MAX_NAMES,
    Category,
    Doomed,
    Finished,
    Mark,
    Report,
    RetentionSettings,
    RetiredBatch,
    Tally,
    archive_object,
    first_id_at,
    parts_of,
)
from services.metadata.ports.retention import RetentionStore, StoredBytes

log = logging.getLogger(__name__)

REMOVED = Counter("voxfleet_retention_removed_total", "What retention removed.", ["category"])
REMOVED_BYTES = Counter(
    "voxfleet_retention_removed_bytes_total",
    "Bytes in the object store of what retention removed.",
    ["category"],
)

_PAGE: Final = 200
_ITEMS: Final = 1000
_REQUESTS: Final = 2000
_GZIP: Final = "application/gzip"


class Retention:
    """The use cases of retention.

    Args:
        store: the database.
        stored: the artefact store; where there is None only jobs and request ids go, and none is archived.
        settings: how long what is kept.
    """

    def __init__(
        self, store: RetentionStore, stored: StoredBytes | None, settings: RetentionSettings
    ) -> None:
        self._store = store
        self._stored = stored
        self._settings = settings
        self._sweeper = Sweeper(store, stored, settings) if stored is not None else None

    async def run(self) -> None:
        """Runs for ever, one process among all in each period."""
        if self._stored is None:
            log.warning("no object store is configured here: no artefact is swept, no job archived")
        while True:
            # First of all a pause: what ended while nobody added up usage is added up by others meanwhile.
            await asyncio.sleep(self._settings.sweep_s)
            try:
                async with self._store.service() as tx:
                    turn = await tx.take_turn("retention", 0.9 * self._settings.sweep_s)
                    full = turn and await tx.take_turn("retention of orphans", self._settings.orphans_s)
                if turn:
                    await self.sweep(full=full)
            except VoxfleetError as error:
                log.warning("retention: %s", error.message)
            except Exception:
                log.exception("retention failed")

    async def sweep(self, *, full: bool = True, most_names: int = MAX_NAMES) -> Report:
        """One run: removes what is due now; a ``full`` one lists the store and prunes request ids too."""
        report = await self._walk(Tally(most_names), dry=False, full=full)
        for share in report.shares:
            if share.count:
                REMOVED.labels(share.category.lower()).inc(share.count)
                REMOVED_BYTES.labels(share.category.lower()).inc(share.size_bytes)
                log.info("retention: %d %s, %d bytes", share.count, share.category.lower(), share.size_bytes)
        return report

    async def plan(self, *, most_names: int = 100) -> Report:
        """A dry run: what a full run would remove now; changes nothing."""
        return await self._walk(Tally(most_names), dry=True, full=True)

    async def _walk(self, tally: Tally, *, dry: bool, full: bool) -> Report:
        """The steps in an order in which none makes anything due for a later one: a dry run sees the same."""
        async with self._store.service() as tx:
            now = await tx.clock()
        steps: list[Callable[[], Awaitable[None]]] = []
        if (sweeper := self._sweeper) is not None:
            steps.append(lambda: sweeper.sweep_bytes(tally, dry=dry))
            if full:
                steps.append(lambda: sweeper.collect_orphans(tally, dry=dry))
            steps.append(lambda: sweeper.expire_audios(tally, dry=dry))
            steps.append(lambda: sweeper.expire_uploads(tally, dry=dry))
        if self._settings.policy == "delete" or (
            self._settings.policy == "archive" and self._stored is not None
        ):
            if full:
                steps.append(lambda: self._requests(tally, dry=dry))
            steps.append(lambda: self._jobs(tally, now, dry=dry))
        for step in steps:
            try:
                await step()
            except VoxfleetError as error:
                if dry:
                    raise
                # What one step cannot do, because the store is down, holds up no other.
                log.warning("retention: %s", error.message)
                tally.complete = False
        return tally.report(now)

    async def _requests(self, tally: Tally, *, dry: bool) -> None:
        mark = Mark()
        while not (dry and tally.is_full(Category.REQUESTS)):
            async with self._store.service() as tx:
                page = await tx.old_requests(self._settings.retain_jobs_s, mark, _REQUESTS)
                due = [each for each in page if each.due]
                if due and not dry:
                    await tx.delete_requests(self._settings.retain_jobs_s, due)
            tally.add(Doomed(Category.REQUESTS, f"teams/{each.team}/requests/{each.id}") for each in due)
            if len(page) < _REQUESTS:
                return
            mark = Mark(page[-1].team, page[-1].id)

    async def _jobs(self, tally: Tally, now: dt.datetime, *, dry: bool) -> None:
        await self._go_on(tally, dry=dry)
        retain_s = self._settings.retain_jobs_s
        before_id = first_id_at(now - dt.timedelta(seconds=retain_s))
        mark = Mark()
        while not (dry and tally.is_full(Category.JOBS)):
            async with self._store.service() as tx:
                page = await tx.due_jobs(retain_s, before_id, mark, _PAGE)
            for part in [page] if dry else parts_of(page, self._settings.rows):
                gone = part if dry else await self._remove(part)
                tally.add(Doomed(Category.JOBS, job.name, job.size_bytes) for job in gone)
                if not dry:
                    await self._follow(gone)
            if len(page) < _PAGE:
                return
            mark = Mark(page[-1].team, page[-1].id)

    async def _go_on(self, tally: Tally, *, dry: bool) -> None:
        """With batches whose row went in a run that did not get to their last item."""
        after = ""
        while True:
            async with self._store.service() as tx:
                batches = await tx.retired_batches(after, _PAGE)
            for batch in batches:
                tally.add([Doomed(Category.JOBS, f"teams/{batch.team}/jobs/{batch.id}")])
                if not dry:
                    await self._remove_items(batch)
            if len(batches) < _PAGE:
                return
            after = batches[-1].id

    async def _follow(self, gone: Sequence[Finished]) -> None:
        """What goes after the rows of jobs: the items of batches, the files of attempts."""
        for job in gone:
            if job.kind == "batch":
                await self._remove_items(RetiredBatch(job.team, job.id, job.ended_at))
            elif job.kind == "rvc.train" and self._stored is not None:
                try:
                    await self._stored.delete_prefix(work_prefix(job.team, job.id))
                except VoxfleetError as error:
                    log.warning("files of %s stay for the collection of orphans: %s", job.name, error.message)

    async def _remove_items(self, batch: RetiredBatch) -> None:
        while True:
            async with self._store.service() as tx:
                page = await tx.items_left(batch.id, _ITEMS)
                if not page:
                    await tx.forget_batch(batch.id)
                    return
            gone = 0
            for part in parts_of(page, self._settings.rows):
                gone += len(await self._remove(part, batch.ended_at))
            if not gone:
                return  # another process is at it

    async def _remove(self, part: Sequence[Finished], ended_at: dt.datetime | None = None) -> list[Finished]:
        """Archives some jobs where that is the policy, and deletes those that did not change meanwhile.

        What is written and then not deleted, after a crash or a retry by its owner, is written again when
        it goes: of two lines of one job the one with the greater ``event_seq`` counts, or either.
        """
        if self._settings.policy == "archive":
            await self._archive(part, ended_at)
        async with self._store.service() as tx:
            gone = await tx.delete_finished(part)
        return [job for job in part if job.id in gone]

    async def _archive(self, part: Sequence[Finished], ended_at: dt.datetime | None) -> None:
        assert self._stored is not None
        async with self._store.service() as tx:
            lines = await tx.archive_lines(part)

        def folder(job: Finished) -> tuple[str, dt.date]:
            return job.team, (ended_at or job.ended_at).astimezone(dt.UTC).date()

        present = sorted((job for job in part if job.id in lines), key=lambda job: (folder(job), job.id))
        for (team, day), jobs in itertools.groupby(present, key=folder):
            key, data = archive_object(team, day, [lines[job.id] for job in jobs])
            await self._stored.put(key, data, _GZIP)
