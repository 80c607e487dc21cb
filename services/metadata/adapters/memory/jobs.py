"""Jobs as their owners see them, in memory."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from services.common.errors import Reason, invalid, not_found
from services.metadata.adapters.memory.database import Statements, statement
from services.metadata.adapters.memory.rows import (
    Dependency,
    JobRow,
    Tick,
    as_json,
    changed,
    job_of,
    new_row,
    refused,
)
from services.metadata.adapters.storable import storable
from services.metadata.model.jobs import (
    FINAL_STATES,
    AttemptRecord,
    CheckpointRow,
    Job,
    JobEvent,
    JobState,
    NewJob,
)
from services.metadata.model.page import Page

_MOST_EVENTS = 500
_FILTERS = ("state", "kind", "priority_class")
_CHANGEABLE = frozenset({"priority", "labels", "display_name", "paused", "waiting_reason", "expected"})


class JobWrites(Statements):
    """What several statements do to a row of jobs."""

    def _job(self, job: str) -> JobRow | None:
        """A job, unless it is of a team that this transaction does not see."""
        row = self._s.get(self._db.jobs, job)
        return row if row is not None and self._s.team in ("", row.team) else None

    async def _locked(self, job: str) -> JobRow:
        await self._s.lock(self._db.jobs, job)
        row = self._job(job)
        assert row is not None, f"there is no job {job}"
        return row

    def _put(self, row: JobRow, /, **changes: Any) -> JobRow:
        """Writes a row that is locked."""
        after = changed(row, **changes)
        self._s.put(self._db.jobs, row.id, after)
        return after

    async def _event(self, row: JobRow, message: str) -> None:
        """Writes the event of what a row has become."""
        event = JobEvent(
            row.event_seq, row.state, row.phase, row.attempt, str(storable(message)), self._s.now
        )
        if not await self._s.insert(self._db.events, (row.id, row.event_seq), event):
            raise refused(f"{row.id} has an event {row.event_seq} already")

    async def _tick(self, batch: str, states: Iterable[JobState]) -> None:
        """Notes how items of a batch ended."""
        ended = list(states)
        if ended:
            tick = Tick(
                batch,
                succeeded=ended.count(JobState.SUCCEEDED),
                failed=ended.count(JobState.FAILED),
                cancelled=ended.count(JobState.CANCELLED),
            )
            await self._s.insert(self._db.ticks, self._db.number(), tick)

    def _items(self, batch: str) -> list[JobRow]:
        """A batch's items in the order in which whoever locks several locks them."""
        found = self._s.look(self._db.jobs, self._db.items, batch)
        return sorted((row for _, row in found if row.parent_id == batch), key=lambda row: row.id)

    async def _uncount(self, batch: str, states: Iterable[JobState]) -> None:
        """Takes items that are queued again off what their batch counted.

        At once, not by a tick: whoever adds up must not find all of them ended in between.
        """
        back = list(states)
        row = await self._locked(batch)
        self._put(
            row,
            items_failed=row.items_failed - back.count(JobState.FAILED),
            items_cancelled=row.items_cancelled - back.count(JobState.CANCELLED),
        )


class MemoryJobs(JobWrites):
    """The ledger's statements on jobs."""

    @statement
    async def add_jobs(self, team: str, jobs: Sequence[NewJob]) -> None:
        """Makes jobs and their first events: a job, or a batch followed by its items.

        Errors: JOB_NOT_FOUND where it depends on one that there is not.
        """
        waits: dict[str, int] = {}
        for job in jobs:
            open_ones = await self._depend(team, job)
            waits[job.id] = len(open_ones)
            for name in open_ones:
                key = (job.id, name)
                await self._s.insert(self._db.dependencies, key, Dependency(team, job.id, name))
        for job in jobs:
            blockers = waits[job.parent_id if job.parent_id in waits else job.id]
            blockers = blockers if job.state is JobState.QUEUED else 0
            row = new_row(job, self._db.number(), self._s.now, blockers)
            if not await self._s.insert(self._db.jobs, job.id, row):
                raise refused(f"there is a job {job.id} already")
            await self._event(row, "")

    async def _depend(self, team: str, job: NewJob) -> list[str]:
        """Which of the jobs that it depends on have not succeeded; they learn that it waits for them."""
        open_ones = []
        for name in sorted(set(job.depends_on)):
            row = await self._s.lock(self._db.jobs, name)
            if row is None or row.team != team:
                raise not_found(Reason.JOB_NOT_FOUND, f"teams/{team}/jobs/{name}")
            if row.state in (JobState.FAILED, JobState.CANCELLED):
                raise invalid(
                    Reason.DEPENDENCY_FAILED,
                    f"teams/{team}/jobs/{name} is {row.state}: what depends on it can never begin",
                    field="depends_on",
                )
            if row.state not in FINAL_STATES:
                self._put(row, has_dependents=True)
                open_ones.append(name)
        return open_ones

    @statement
    async def get_job(self, team: str, job: str, *, lock: bool = False) -> Job | None:
        """A job."""
        row = self._job(job)
        if row is not None and lock:
            await self._s.lock(self._db.jobs, job)
            row = self._job(job)
        return job_of(row) if row is not None and row.team == team else None

    @statement
    async def list_jobs(self, team: str, page: Page, *, batch: str = "") -> list[Job]:
        """A team's jobs by age, or a batch's items in their order."""
        if unknown := [key for key in page.filters if key not in _FILTERS and not key.startswith("labels.")]:
            raise invalid(
                Reason.INVALID_ARGUMENT,
                f"cannot filter by {unknown[0]!r}: use {', '.join((*_FILTERS, 'labels.KEY'))}",
                field="filter",
            )
        if batch:
            rows = self._items(batch)
        else:
            rows = [row for _, row in self._s.scan(self._db.jobs) if not row.parent_id]
        rows = [row for row in rows if row.team == team in (self._s.team or team,) and _matches(row, page)]
        if batch:
            rows.sort(key=lambda row: row.item_index)
            rows = [row for row in rows if not page.after or row.item_index > int(page.after)]
        else:
            rows.sort(key=lambda row: row.id, reverse=not page.ascending)
            if page.after:
                rows = [
                    row for row in rows if (row.id > page.after if page.ascending else row.id < page.after)
                ]
        return [job_of(row) for row in rows[: page.size]]

    @statement
    async def events_after(self, cursors: Mapping[str, int]) -> dict[str, list[JobEvent]]:
        """Of each job the events after its cursor, in order; at most 500 each."""
        found: dict[str, list[JobEvent]] = {job: [] for job in cursors}
        for job, cursor in cursors.items():
            row = self._job(job)
            for seq in range(cursor + 1, row.event_seq + 1 if row is not None else 0):
                event = self._s.get(self._db.events, (job, seq))
                if event is not None and len(found[job]) < _MOST_EVENTS:
                    found[job].append(event)
        return found

    @statement
    async def job_marks(self, jobs: Sequence[str]) -> dict[str, tuple[int, dt.datetime]]:
        """Of each of these jobs what moves when anything of it does."""
        rows = [row for job in jobs if (row := self._job(job)) is not None]
        return {row.id: (row.event_seq, row.updated_at) for row in rows}

    @statement
    async def jobs_now(self, jobs: Sequence[str]) -> list[Job]:
        """These jobs as they stand."""
        return [job_of(row) for job in jobs if (row := self._job(job)) is not None]

    @statement
    async def attempts(self, job: str) -> list[AttemptRecord]:
        """Every try at a job, the one that runs included."""
        row = self._job(job)
        if row is None:
            return []
        keys = [(job, attempt) for attempt in range(1, row.attempt + 1)]
        ended = [self._s.get(self._db.attempts, key) for key in keys]
        found = [attempt.record for attempt in ended if attempt is not None]
        if row.lease_token:
            assert row.started_at is not None
            found.append(
                AttemptRecord(
                    attempt=row.attempt,
                    worker=row.worker,
                    started_at=row.started_at,
                    ended_at=None,
                    error=None,
                    node=row.node,
                    batch_scale=row.batch_scale,
                )
            )
        return found

    @statement
    async def checkpoints(self, job: str) -> list[CheckpointRow]:
        """A job's checkpoints, newest first."""
        return self._saved(job)

    def _saved(self, job: str) -> list[CheckpointRow]:
        found = [row for key, row in self._s.scan(self._db.checkpoints) if key[0] == job]
        return sorted(found, key=lambda row: (-row.attempt, -row.step))

    @statement
    async def change_state(
        self, job: Job, state: JobState, message: str, *, error: Mapping[str, Any] | None = None
    ) -> Job:
        """Changes a job's state and writes the event."""
        row = await self._locked(job.id)
        started_at = row.started_at
        if state is JobState.RUNNING and started_at is None:
            started_at = self._s.now
        row = self._put(
            row,
            state=state,
            updated_at=self._s.now,
            event_seq=row.event_seq + 1,
            started_at=started_at,
            ended_at=self._s.now if state in FINAL_STATES else None,
            error=None if error is None else as_json(error),
            waiting_reason="",
        )
        if row.parent_id and state in FINAL_STATES:
            await self._tick(row.parent_id, [state])
        await self._event(row, message)
        return job_of(row)

    @statement
    async def requeue(self, job: Job, message: str, *, more_attempts: int) -> Job:
        """Queues an ended job anew; what it depends on must have succeeded by the time that it begins."""
        row = await self._locked(job.id)
        if row.parent_id:
            await self._uncount(row.parent_id, [row.state])
            batch = self._job(row.parent_id)
            blockers = batch.blockers if batch is not None else 0
        else:
            blockers = await self._depend_again(job.id)
        row = self._put(
            row,
            state=JobState.QUEUED,
            updated_at=self._s.now,
            event_seq=row.event_seq + 1,
            ended_at=None,
            error=None,
            waiting_reason="",
            not_before=self._s.now,
            paused=False,
            batch_scale=1.0,
            avoid_nodes=(),
            foretold=None,
            max_attempts=row.attempt + more_attempts,
            blockers=blockers,
        )
        if row.kind == "batch":
            await self._block_items(row)
        await self._event(row, message)
        return job_of(row)

    async def _depend_again(self, job: str) -> int:
        """How many of a job's dependencies have not succeeded; those alone are to be settled anew."""
        blockers = 0
        for key, row in list(self._s.scan(self._db.dependencies)):
            if row.job_id != job:
                continue
            await self._s.lock(self._db.dependencies, key)
            on_job = self._s.get(self._db.jobs, row.depends_on)
            waits = on_job is not None and on_job.state is not JobState.SUCCEEDED
            self._s.put(
                self._db.dependencies, key, Dependency(row.team, job, row.depends_on, settled=not waits)
            )
            blockers += waits
        return blockers

    async def _block_items(self, batch: JobRow) -> None:
        """The waiting items of a batch wait for what it waits for."""
        keys = [item.id for item in self._items(batch.id) if item.state is JobState.QUEUED]
        for _, item in await self._s.lock_all(
            self._db.jobs, keys, lambda row: row.state is JobState.QUEUED and row.blockers != batch.blockers
        ):
            self._put(item, blockers=batch.blockers, not_before=self._s.now)

    @statement
    async def update_job(self, job: str, changes: Mapping[str, Any]) -> None:
        """Changes columns of a job that are no state: priority, labels, display_name, paused, expected."""
        assert changes.keys() <= _CHANGEABLE
        row = await self._locked(job)
        columns = {"foretold" if name == "expected" else name: value for name, value in changes.items()}
        self._put(row, **columns, updated_at=self._s.now)

    @statement
    async def dependencies(self, job: str) -> list[Job]:
        """The jobs that it waits for."""
        names = [row.depends_on for _, row in self._s.scan(self._db.dependencies) if row.job_id == job]
        rows = [row for name in sorted(names) if (row := self._job(name)) is not None]
        return [job_of(row) for row in rows if row.state is not JobState.SUCCEEDED]

    @statement
    async def take_settled(
        self, jobs: Sequence[str] | None, limit: int
    ) -> list[tuple[str, str, str, JobState]]:
        """Takes dependencies on jobs that have ended: (team, waiting job, the job that ended, how)."""
        names = self._db.dependents.values() if jobs is None else jobs
        waiting = [
            (key, row, on_job.state)
            for name in list(names)
            if (on_job := self._s.get(self._db.jobs, name)) is not None and on_job.state in FINAL_STATES
            for key, row in self._s.look(self._db.dependencies, self._db.dependents, name)
            if row.depends_on == name and not row.settled
        ]
        found: list[tuple[str, str, str, JobState]] = []
        for key, row, state in sorted(waiting, key=lambda each: each[0]):
            if len(found) < limit and self._s.try_lock(self._db.dependencies, key):
                self._s.put(
                    self._db.dependencies, key, Dependency(row.team, row.job_id, row.depends_on, settled=True)
                )
                found.append((row.team, row.job_id, row.depends_on, state))
        return found

    @statement
    async def unblock(self, job: str, task: Mapping[str, Any] | None = None) -> Job:
        """One thing fewer that it waits for; of a batch, its items too."""
        row = await self._locked(job)
        row = self._put(
            row,
            blockers=max(row.blockers - 1, 0),
            task=row.task if task is None else as_json(task),
            not_before=self._s.now,
            updated_at=self._s.now,
        )
        if row.kind == "batch":
            await self._block_items(row)
        return job_of(row)

    @statement
    async def lock_submits(self, team: str) -> None:
        """Lets one submit of a team go on at a time, until the transaction ends."""
        await self._s.lock(self._db.advice, f"submits of {team}")

    @statement
    async def count_queued(self, team: str, limit: int) -> int:
        """How many jobs of a team wait, counted up to ``limit``."""
        rows = (row for _, row in self._s.scan(self._db.jobs))
        waiting = sum(
            row.team == team and row.state is JobState.QUEUED and row.kind != "batch" for row in rows
        )
        return min(waiting, limit)


def _matches(row: JobRow, page: Page) -> bool:
    values = {"state": row.state.value, "kind": row.kind, "priority_class": str(int(row.priority_class))}
    for key, value in page.filters.items():
        if (row.labels.get(key.removeprefix("labels.")) if key not in values else values[key]) != value:
            return False
    return page.query.lower() in row.display_name.lower()
