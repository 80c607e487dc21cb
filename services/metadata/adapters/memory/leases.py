"""The workers' side of the ledger in memory: each write checks the fence."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from services.common.jobs.model import Checkpoint, Fence, Progress
from services.metadata.adapters.memory.database import statement
from services.metadata.adapters.memory.jobs import JobWrites
from services.metadata.adapters.memory.rows import (
    AttemptRow,
    JobRow,
    as_json,
    job_of,
    leased_of,
    progress_of,
    quota_or_none,
)
from services.metadata.adapters.storable import storable
from services.metadata.model.fleet import QuotaUse
from services.metadata.model.jobs import (
    FINAL_STATES,
    AttemptOutcome,
    AttemptRecord,
    CheckpointRow,
    DoneJob,
    End,
    Job,
    JobState,
    LeasedJob,
)
from services.metadata.scheduling.lanes import LaneKey, Pick, Turn

AVOIDED_S = 30.0
"""For so long after its back-off a job passes over the nodes where it failed; then any will do."""

# Thirds and fifths of GPUs, many of them added up; in Postgres they are of single precision.
_ROUNDING = 1e-3
_MOST_AVOIDED = 3


class MemoryLeases(JobWrites):
    """Claims, heartbeats, ends. Each method is one statement and may stand alone."""

    @statement
    async def lanes(self) -> list[LaneKey]:
        """The lanes that have something queued."""
        return sorted(lane for lane in self._db.lanes.values() if lane.kind != "batch")

    @statement
    async def quota_uses(self) -> list[QuotaUse]:
        """Every team that has a quota or a weight of its own, with what it uses."""
        now = self._s.now
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        return [
            QuotaUse(quota, self._gpus_held(team), self._gpu_seconds(team, midnight, now))
            for team, quota in self._s.scan(self._db.quotas)
        ]

    @statement
    async def claim(
        self, turns: Sequence[Turn], lease_s: float, *, gpu_types: Sequence[str], max_gpus: float
    ) -> list[LeasedJob]:
        """Leases what the turns name, each lane once, within each team's quota of GPUs.

        Rows that others have locked are passed over; of a team whose quota another is measuring, nothing is
        claimed.
        """
        picked: dict[str, list[tuple[JobRow, Turn]]] = {}
        for turn in turns:
            count = turn.pick.count
            for row in self._claimable(turn.pick, turn.node, gpu_types, max_gpus):
                if count == 0:
                    break
                if self._s.try_lock(self._db.jobs, row.id):
                    picked.setdefault(row.team, []).append((row, turn))
                    count -= 1
        fitting: list[tuple[JobRow, Turn]] = []
        for team, rows in picked.items():
            room = self._room(team)
            for row, turn in sorted(rows, key=lambda found: found[0].queue_key):
                room -= row.gpus
                if room < -_ROUNDING:
                    break
                fitting.append((row, turn))
        claimed = [await self._lease(row, turn.worker, turn.node, lease_s) for row, turn in fitting]
        return [
            leased_of(row) for row in sorted(claimed, key=lambda row: (row.priority_class, row.queue_key))
        ]

    def _claimable(
        self, pick: Pick, node: str, gpu_types: Sequence[str], max_gpus: float
    ) -> Iterable[JobRow]:
        """What of a lane this worker may have now, in the lane's order."""
        now = self._s.now
        free_again = now - dt.timedelta(seconds=AVOIDED_S)
        rows = [
            row
            for _, row in self._s.look(self._db.jobs, self._db.lanes, pick.lane)
            if row.claimable
            and LaneKey(row.kind, row.priority_class, row.team) == pick.lane
            and row.queue_key > pick.after
            and row.not_before is not None
            and row.not_before <= now
            and row.gpus <= max_gpus
            and row.gpu_type in ("", *gpu_types)
            and (node not in row.avoid_nodes or row.not_before <= free_again)
        ]
        return sorted(rows, key=lambda row: row.queue_key)

    def _room(self, team: str) -> float:
        """How many more GPUs a team may hold; none where another has its quota locked."""
        quota = quota_or_none(team, self._s.get(self._db.quotas, team))
        if not quota.max_gpus:
            return float("inf")
        if not self._s.try_lock(self._db.quotas, team):
            return 0.0
        return quota.max_gpus - self._gpus_held(team)

    def _gpus_held(self, team: str) -> float:
        return sum(row.gpus for row in self._leased_rows() if row.team == team)

    def _leased_rows(self) -> list[JobRow]:
        found = self._s.look(self._db.jobs, self._db.leased, True)
        return [row for _, row in found if row.lease_token]

    async def _lease(self, row: JobRow, worker: str, node: str, lease_s: float) -> JobRow:
        now = self._s.now
        row = self._put(
            row,
            state=JobState.RUNNING,
            waiting_reason="",
            attempt=row.attempt + 1,
            lease_token=self._db.token(),
            lease_expires_at=now + dt.timedelta(seconds=lease_s),
            worker=worker,
            node=node,
            started_at=now,
            updated_at=now,
            phase="",
            yield_asked=False,
            event_seq=row.event_seq + 1,
        )
        await self._event(row, f"started by {worker}")
        return row

    @statement
    async def heartbeat(
        self, beats: Sequence[tuple[Fence, Progress | None]], lease_s: float
    ) -> list[tuple[Fence, JobState, bool]]:
        """Extends leases; returns those that still hold: (fence, state, asked to give back)."""
        news = dict(beats)
        kept = []
        for fence, row in await self._held(news):
            progress = news[fence]
            phase = row.phase if progress is None else str(storable(progress.phase))
            after = self._put(
                row,
                lease_expires_at=self._s.now + dt.timedelta(seconds=lease_s),
                updated_at=self._s.now,
                progress=row.progress if progress is None else progress_of(progress),
                phase=phase,
                event_seq=row.event_seq + (phase != row.phase),
            )
            if phase != row.phase:
                await self._event(after, f"phase {phase}")
            kept.append((fence, row.state, row.paused or row.yield_asked))
        return kept

    @statement
    async def lock_leases(self, fences: Sequence[Fence]) -> list[Job]:
        """The jobs under those fences that still hold, locked."""
        return [job_of(row) for _, row in await self._held(fences)]

    @statement
    async def finish(self, ends: Sequence[End]) -> list[Job]:
        """Ends the attempts whose fences still hold; returns their jobs."""
        by_fence = {end.fence: end for end in reversed(ends)}
        held = await self._held(by_fence)
        return [job_of(await self._end(row, by_fence[fence])) for fence, row in held]

    @statement
    async def succeed(self, results: Mapping[Fence, Mapping[str, Any] | None]) -> dict[Fence, DoneJob]:
        """Ends attempts well that made no rows, where the fence still holds."""
        done = {}
        for fence, row in await self._held(results):
            end = End(fence, JobState.SUCCEEDED, AttemptOutcome.SUCCEEDED, "done", result=results[fence])
            after = await self._end(row, end)
            done[fence] = DoneJob(after.team, after.id, after.kind, after.parent_id, after.has_dependents)
        return done

    async def _held(self, fences: Iterable[Fence]) -> list[tuple[Fence, JobRow]]:
        """Those fences that still hold and their rows, locked in the order of their ids."""
        wanted = sorted(dict.fromkeys(fences), key=lambda fence: fence.job_id)
        found = []
        for fence in wanted:
            if not self._is_held(self._job(fence.job_id), fence):
                continue
            await self._s.lock(self._db.jobs, fence.job_id)
            row = self._job(fence.job_id)
            if row is not None and self._is_held(row, fence):
                found.append((fence, row))
        return found

    @staticmethod
    def _is_held(row: JobRow | None, fence: Fence) -> bool:
        return (
            row is not None
            and bool(row.lease_token)
            and (row.attempt, row.lease_token) == (fence.attempt, fence.lease_token)
        )

    async def _end(self, row: JobRow, end: End) -> JobRow:
        now = self._s.now
        final = end.state in FINAL_STATES
        error = None if end.error is None else as_json(end.error)
        await self._keep_attempt(row, end)
        avoided = row.avoid_nodes
        if end.avoid_node:
            avoided = (end.avoid_node, *(node for node in avoided if node != end.avoid_node))
        after = self._put(
            row,
            state=end.state,
            lease_token="",
            lease_expires_at=None,
            yield_asked=False,
            updated_at=now,
            ended_at=now if final else None,
            waiting_reason=end.waiting_reason,
            not_before=now + dt.timedelta(seconds=end.delay_s),
            result=row.result if end.result is None else as_json(end.result),
            error=error if final or end.waiting_reason == "BACK_OFF" else None,
            max_attempts=row.max_attempts + end.more_attempts,
            batch_scale=row.batch_scale if end.batch_scale is None else end.batch_scale,
            avoid_nodes=avoided[:_MOST_AVOIDED],
            event_seq=row.event_seq + 1,
        )
        await self._event(after, end.message)
        if after.parent_id and final:
            await self._tick(after.parent_id, [after.state])
        return after

    async def _keep_attempt(self, row: JobRow, end: End) -> None:
        assert row.started_at is not None
        record = AttemptRecord(
            attempt=row.attempt,
            worker=row.worker,
            started_at=row.started_at,
            ended_at=self._s.now,
            error=None if end.error is None else as_json(end.error),
            outcome=end.outcome.value,
            failure_class=end.failure_class,
            node=row.node,
            batch_scale=row.batch_scale,
        )
        kept = AttemptRow(
            record=record,
            job_id=row.id,
            team=row.team,
            kind=row.kind,
            gpus=row.gpus,
            size=row.size,
            waited_s=(row.started_at - row.created_at).total_seconds(),
            expected=row.foretold if row.attempt == 1 else None,
            ended_at=self._s.now,
        )
        await self._s.insert(self._db.attempts, (row.id, row.attempt), kept)

    @statement
    async def expired(self, limit: int) -> list[Job]:
        """Jobs whose lease has expired, locked; those that others have locked are passed over."""
        rows = [
            row
            for row in self._leased_rows()
            if row.lease_expires_at is not None and row.lease_expires_at < self._s.now
        ]
        found: list[Job] = []
        for row in sorted(rows, key=lambda row: row.id):
            if len(found) < limit and self._s.try_lock(self._db.jobs, row.id):
                found.append(job_of(row))
        return found

    @statement
    async def add_checkpoint(self, job: Job, fence: Fence, checkpoint: Checkpoint, *, keep: int) -> list[str]:
        """Makes a checkpoint's row and drops old ones; returns the keys of those."""
        row = CheckpointRow(checkpoint.blob, checkpoint.epoch, checkpoint.step, fence.attempt, self._s.now)
        await self._s.insert(self._db.checkpoints, (job.id, checkpoint.step, fence.attempt), row)
        dropped = []
        for old in self._checkpoints(job.id)[keep:]:
            key = (job.id, old.step, old.attempt)
            await self._s.lock(self._db.checkpoints, key)
            self._s.put(self._db.checkpoints, key, None)
            dropped.append(old.blob.key)
        return dropped

    @statement
    async def checkpoints_of(self, jobs: Sequence[str]) -> dict[str, list[CheckpointRow]]:
        """The checkpoints of several jobs, newest first."""
        found = {job: self._checkpoints(job) for job in jobs}
        return {job: rows for job, rows in found.items() if rows}

    def _checkpoints(self, job: str) -> list[CheckpointRow]:
        found = [row for key, row in self._s.scan(self._db.checkpoints) if key[0] == job]
        return sorted(found, key=lambda row: (-row.attempt, -row.step))

    def _gpu_seconds(self, team: str, start: dt.datetime, end: dt.datetime) -> float:
        """GPU-seconds that a team held within a span, by attempts that ended and by those that run."""
        held = [
            (row.gpus, row.record.started_at, row.ended_at)
            for _, row in self._s.scan(self._db.attempts)
            if row.team == team
        ]
        held += [
            (row.gpus, row.started_at, self._s.now)
            for row in self._leased_rows()
            if row.team == team and row.started_at is not None
        ]
        return sum(
            gpus * max(0.0, (min(until, end) - max(since, start)).total_seconds())
            for gpus, since, until in held
        )
