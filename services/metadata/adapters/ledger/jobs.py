"""Jobs as their owners see them."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from psycopg.types.json import Jsonb

from services.common.errors import Reason, invalid, not_found
from services.metadata.adapters.ledger.rows import checkpoint_of, job_of, jsonb, new_row
from services.metadata.adapters.statements import SQL, Row, Statements
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

_COPIED_FROM = 100
_FILTERS = ("state", "kind", "priority_class")
_CHANGEABLE = frozenset({"priority", "labels", "display_name", "paused", "waiting_reason", "expected"})


class JobQueries(Statements):
    """The ledger's statements on jobs."""

    async def add_jobs(self, team: str, jobs: Sequence[NewJob]) -> None:
        """Makes jobs and their first events: a job, or a batch followed by its items.

        Errors: JOB_NOT_FOUND where it depends on one that there is not.
        """
        open_ones = {job.id: await self._depend(team, job) for job in jobs if job.depends_on}
        blockers = {job: len(names) for job, names in open_ones.items()}
        # The first item of a batch may have a forecast, which the others, being copied, have not.
        by_row = len(jobs) if len(jobs) < _COPIED_FROM else 2
        head, items = jobs[:by_row], jobs[by_row:]
        parent = head[0]
        rows = [{**new_row(job), "blockers": _blockers(job, blockers, parent)} for job in head]
        await self._run("insert_jobs", team=team, jobs=Jsonb(rows))
        await self._run("insert_first_events", team=team, jobs=Jsonb(rows))
        if items:
            await self._copy_items(team, parent, items, blockers.get(parent.id, 0))
        waits = [(job, name) for job, names in open_ones.items() for name in names]
        if waits:
            await self._run(
                "insert_dependencies",
                team=team,
                jobs=[job for job, _ in waits],
                depends_on=[name for _, name in waits],
            )

    async def _depend(self, team: str, job: NewJob) -> list[str]:
        """Which of the jobs that it depends on have not succeeded; they learn that it waits for them."""
        rows = await self._rows("lock_dependencies", team=team, jobs=list(job.depends_on))
        states = {row["id"]: JobState(row["state"]) for row in rows}
        for name in job.depends_on:
            if name not in states:
                raise not_found(Reason.JOB_NOT_FOUND, f"teams/{team}/jobs/{name}")
            if states[name] in (JobState.FAILED, JobState.CANCELLED):
                raise invalid(
                    Reason.DEPENDENCY_FAILED,
                    f"teams/{team}/jobs/{name} is {states[name]}: what depends on it can never begin",
                    field="depends_on",
                )
        open_ones = [name for name, state in states.items() if state not in FINAL_STATES]
        if open_ones:
            await self._run("mark_dependents", jobs=open_ones)
        return open_ones

    async def _copy_items(self, team: str, batch: NewJob, items: Sequence[NewJob], blockers: int) -> None:
        """Many items of one batch, alike in everything but what COPY carries."""
        first = items[0]
        await self._run("make_staging")
        async with self._driver.cursor() as cursor, cursor.copy(SQL["copy_staging"]) as copy:
            for chunk in _chunks(items, 500):
                await copy.write("".join(map(_copy_line, chunk)))
        await self._run(
            "insert_staged",
            team=team,
            kind=first.kind,
            priority_class=int(first.priority_class),
            priority=first.priority,
            parent_id=batch.id,
            gpus=first.gpus,
            gpu_type=first.gpu_type,
            max_attempts=first.max_attempts,
            traceparent=first.traceparent,
            blockers=blockers,
        )
        await self._run("insert_staged_events", team=team)

    async def get_job(self, team: str, job: str, *, lock: bool = False) -> Job | None:
        """A job."""
        row = await self._row("lock_job" if lock else "get_job", job_id=job, team=team)
        return job_of(row) if row else None

    async def list_jobs(self, team: str, page: Page, *, batch: str = "") -> list[Job]:
        """A team's jobs by age, or a batch's items in their order."""
        conditions, parameters = _conditions(page)
        parameters |= {"team": team, "batch": batch, "limit": page.size, "after": page.after}
        if batch:
            conditions.append("parent_id = %(batch)s")
            order = "item_index"
            if page.after:
                conditions.append("item_index > %(after)s::integer")
        else:
            conditions.append("parent_id IS NULL")
            order = "id" if page.ascending else "id DESC"
            if page.after:
                conditions.append("id > %(after)s" if page.ascending else "id < %(after)s")
        where = " AND ".join(["team = %(team)s", *conditions])
        query = f"SELECT * FROM jobs WHERE {where} ORDER BY {order} LIMIT %(limit)s"  # noqa: S608
        return [job_of(row) for row in await self._fetch(query, parameters)]

    async def events_after(self, cursors: Mapping[str, int]) -> dict[str, list[JobEvent]]:
        """Of each job the events after its cursor, in order; at most 500 each."""
        rows = await self._rows("events_after", jobs=list(cursors), cursors=list(cursors.values()))
        found: dict[str, list[JobEvent]] = {job: [] for job in cursors}
        for r in rows:
            event = JobEvent(r["seq"], JobState(r["state"]), r["phase"], r["attempt"], r["message"], r["at"])
            found[r["job_id"]].append(event)
        return found

    async def job_marks(self, jobs: Sequence[str]) -> dict[str, tuple[int, dt.datetime]]:
        """Of each of these jobs what moves when anything of it does."""
        rows = await self._rows("job_marks", jobs=list(jobs))
        return {row["id"]: (row["event_seq"], row["updated_at"]) for row in rows}

    async def jobs_now(self, jobs: Sequence[str]) -> list[Job]:
        """These jobs as they stand."""
        return [job_of(row) for row in await self._rows("jobs_now", jobs=list(jobs))]

    async def attempts(self, job: str) -> list[AttemptRecord]:
        """Every try at a job, the one that runs included."""
        return [
            AttemptRecord(
                attempt=r["attempt"],
                worker=r["worker"],
                started_at=r["started_at"],
                ended_at=r["ended_at"],
                error=r["error"],
                outcome=r["outcome"],
                failure_class=r["failure_class"],
                node=r["node"],
                batch_scale=r["batch_scale"],
            )
            for r in await self._rows("attempts", job_id=job)
        ]

    async def checkpoints(self, job: str) -> list[CheckpointRow]:
        """A job's checkpoints, newest first."""
        return [checkpoint_of(row) for row in await self._rows("checkpoints", jobs=[job])]

    async def change_state(
        self, job: Job, state: JobState, message: str, *, error: Mapping[str, Any] | None = None
    ) -> Job:
        """Changes a job's state and writes the event."""
        row = await self._row(
            "change_state",
            job_id=job.id,
            state=state.value,
            final=state in FINAL_STATES,
            error=jsonb(error),
        )
        if job.parent_id and state in FINAL_STATES:
            await self._run("count_item", job_id=job.id)
        return await self._with_event(row, message)

    async def requeue(self, job: Job, message: str, *, more_attempts: int) -> Job:
        """Queues an ended job anew; what it depends on must have succeeded by the time that it begins."""
        if job.parent_id:
            await self._run("uncount_item", parent_id=job.parent_id, state=job.state.value)
            waits = await self._row("blockers_of", job_id=job.parent_id)
        else:
            waits = await self._row("depend_again", job_id=job.id)
        blockers = int(waits["blockers"]) if waits else 0
        row = await self._row("requeue", job_id=job.id, more_attempts=more_attempts, blockers=blockers)
        if job.kind == "batch":
            await self._run("unblock_items", job_id=job.id, blockers=blockers)
        return await self._with_event(row, message)

    async def update_job(self, job: str, changes: Mapping[str, Any]) -> None:
        """Changes columns of a job that are no state: priority, labels, display_name, paused, expected."""
        assert changes.keys() <= _CHANGEABLE
        sets = ", ".join(f"{key} = %({key})s" for key in changes)
        values = {key: Jsonb(value) if key == "labels" else value for key, value in changes.items()}
        query = f"UPDATE jobs SET {sets}, updated_at = voxfleet_now() WHERE id = %(job_id)s"  # noqa: S608
        await self._driver.execute(query, {**values, "job_id": job})

    async def dependencies(self, job: str) -> list[Job]:
        """The jobs that it waits for."""
        return [job_of(row) for row in await self._rows("dependencies", job_id=job)]

    async def take_settled(
        self, jobs: Sequence[str] | None, limit: int
    ) -> list[tuple[str, str, str, JobState]]:
        """Takes dependencies on jobs that have ended: (team, waiting job, the job that ended, how)."""
        rows = await self._rows(
            "settled_dependencies", jobs=None if jobs is None else list(jobs), limit=limit
        )
        return [(r["team"], r["job_id"], r["depends_on"], JobState(r["state"])) for r in rows]

    async def unblock(self, job: str, task: Mapping[str, Any] | None = None) -> Job:
        """One thing fewer that it waits for; of a batch, its items too."""
        row = await self._row("unblock", job_id=job, task=jsonb(task))
        assert row is not None
        found = job_of(row)
        if found.kind == "batch":
            await self._run("unblock_items", job_id=job, blockers=found.blockers)
        return found

    async def lock_submits(self, team: str) -> None:
        """Lets one submit of a team go on at a time, until the transaction ends."""
        await self._run("lock_submits", team=team)

    async def count_queued(self, team: str, limit: int) -> int:
        """How many jobs of a team wait, counted up to ``limit``."""
        row = await self._row("count_queued", team=team, limit=limit)
        return int(row["queued"]) if row else 0

    async def _with_event(self, row: Row | None, message: str) -> Job:
        assert row is not None
        await self._run(
            "insert_event",
            job_id=row["id"],
            seq=row["event_seq"],
            team=row["team"],
            state=row["state"],
            phase=row["phase"],
            attempt=row["attempt"],
            message=storable(message),
        )
        return job_of(row)


def _blockers(job: NewJob, blockers: Mapping[str, int], parent: NewJob) -> int:
    """What a job waits for; the items of a batch wait with it."""
    if job.state is not JobState.QUEUED:
        return 0
    return blockers.get(parent.id if job.parent_id == parent.id else job.id, 0)


def _chunks(items: Sequence[NewJob], size: int) -> Iterable[Sequence[NewJob]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _copy_line(item: NewJob) -> str:
    """One line of COPY's text format: columns parted by tabs, with its own escapes."""
    values = (
        item.id,
        str(item.item_index),
        item.item_id,
        item.state.value,
        item.display_name,
        repr(item.size),
        item.task,
        json.dumps(dict(item.spec)),
        None if item.error is None else json.dumps(dict(item.error)),
    )
    return "\t".join("\\N" if value is None else value.translate(_ESCAPES) for value in values) + "\n"


_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def _conditions(page: Page) -> tuple[list[str], dict[str, Any]]:
    conditions: list[str] = []
    parameters: dict[str, Any] = {}
    for number, (key, value) in enumerate(page.filters.items()):
        if key.startswith("labels."):
            conditions.append(f"labels->>%(key{number})s = %(value{number})s")
            parameters[f"key{number}"] = key.removeprefix("labels.")
        elif key in _FILTERS:
            conditions.append(f"{key}::text = %(value{number})s")
        else:
            raise invalid(
                Reason.INVALID_ARGUMENT,
                f"cannot filter by {key!r}: use {', '.join((*_FILTERS, 'labels.KEY'))}",
                field="filter",
            )
        parameters[f"value{number}"] = value
    if page.query:
        conditions.append("position(lower(%(query)s) in lower(display_name)) > 0")
        parameters["query"] = page.query
    return conditions, parameters
