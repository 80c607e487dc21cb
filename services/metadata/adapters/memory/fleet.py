"""Queues, workers, quotas, and what the scheduler learns, in memory."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from services.metadata.adapters.memory.database import statement
from services.metadata.adapters.memory.leases import MemoryLeases
from services.metadata.adapters.memory.rows import AttemptRow, JobRow, MadeAudio, as_json, quota_or_none
from services.metadata.model.fleet import (
    AttemptSample,
    LaneDepth,
    QueueDepth,
    Quota,
    RunningJob,
    Usage,
    WorkerRow,
)
from services.metadata.model.jobs import FINAL_STATES, Job, JobState, PriorityClass
from services.metadata.scheduling.lanes import LaneKey

USAGE_LAG_S = 10.0
"""Attempts are added up so long after they ended, as in Postgres, where one may commit late."""

LIVE_S = 60.0
"""A worker that was not heard of for so long is gone."""
_FARTHEST_PLACE = 100_000
_OUTCOMES = frozenset(state.value for state in FINAL_STATES)


class MemoryFleet(MemoryLeases):
    """The ledger's statements on the fleet."""

    @statement
    async def lane_depths(self) -> list[LaneDepth]:
        """How deep and old each lane is."""
        lanes: dict[LaneKey, list[JobRow]] = {}
        for row in self._waiting():
            lanes.setdefault(LaneKey(row.kind, row.priority_class, row.team), []).append(row)
        return [
            LaneDepth(
                *lane,
                len(rows),
                sum(row.size for row in rows),
                sum(row.gpus for row in rows),
                self._oldest_s(rows),
            )
            for lane, rows in lanes.items()
        ]

    @statement
    async def running_jobs(self) -> list[RunningJob]:
        """What workers have now."""
        return [
            RunningJob(
                id=row.id,
                kind=row.kind,
                priority_class=row.priority_class,
                priority=row.priority,
                team=row.team,
                gpus=row.gpus,
                size=row.size,
                node=row.node,
                elapsed_s=(self._s.now - (row.started_at or self._s.now)).total_seconds(),
                yield_asked=row.yield_asked,
            )
            for row in self._leased_rows()
        ]

    @statement
    async def queue_depths(self) -> list[QueueDepth]:
        """How many jobs wait and run, by kind and class."""
        queued: dict[tuple[str, PriorityClass], list[JobRow]] = {}
        running: dict[tuple[str, PriorityClass], int] = {}
        for row in self._waiting():
            queued.setdefault((row.kind, row.priority_class), []).append(row)
        for row in self._leased_rows():
            key = (row.kind, row.priority_class)
            running[key] = running.get(key, 0) + 1
        return [
            QueueDepth(
                *key, len(queued.get(key, [])), running.get(key, 0), self._oldest_s(queued.get(key, []))
            )
            for key in sorted(queued.keys() | running.keys())
        ]

    @statement
    async def queue_place(self, job: Job) -> int:
        """How many jobs of its own lane are before it, counted up to 100,000."""
        lane = (job.kind, job.priority_class, job.team)
        before = sum(
            (row.kind, row.priority_class, row.team) == lane and row.queue_key < job.queue_key
            for row in self._waiting()
        )
        return min(before, _FARTHEST_PLACE)

    def _waiting(self) -> list[JobRow]:
        rows = (row for _, row in self._s.scan(self._db.jobs))
        return [row for row in rows if row.claimable and row.kind != "batch"]

    def _oldest_s(self, rows: Sequence[JobRow]) -> float:
        return max(((self._s.now - row.created_at).total_seconds() for row in rows), default=0.0)

    @statement
    async def put_worker(self, row: WorkerRow) -> None:
        """Keeps what a worker said of itself."""
        await self._s.lock(self._db.workers, row.worker)
        kept = replace(
            row, free=as_json(row.free), nodes=tuple(map(as_json, row.nodes)), last_seen=self._s.now
        )
        self._s.put(self._db.workers, row.worker, kept)

    @statement
    async def drop_worker(self, worker: str) -> None:
        """Forgets a worker."""
        await self._s.lock(self._db.workers, worker)
        self._s.put(self._db.workers, worker, None)
        await self._s.lock(self._db.worker_gpus, worker)
        self._s.put(self._db.worker_gpus, worker, None)

    @statement
    async def live_workers(self) -> list[WorkerRow]:
        """Workers heard of within a minute."""
        since = self._s.now - dt.timedelta(seconds=LIVE_S)
        leases = [row.worker for row in self._leased_rows()]
        rows = [row for _, row in self._s.scan(self._db.workers) if row.last_seen > since]
        rows.sort(key=lambda row: (row.queue, row.worker))
        return [replace(row, running=leases.count(row.worker)) for row in rows]

    @statement
    async def get_quota(self, team: str) -> Quota:
        """A team's quota."""
        seen = self._s.team in ("", team)
        return quota_or_none(team, self._s.get(self._db.quotas, team) if seen else None)

    @statement
    async def put_quota(self, quota: Quota) -> None:
        """Sets a team's quota."""
        await self._s.lock(self._db.quotas, quota.team)
        self._s.put(self._db.quotas, quota.team, quota)

    @statement
    async def usage(self, team: str, start: dt.datetime, end: dt.datetime) -> Usage:
        """What a team used in a span of time: GPU-seconds held within it, jobs that ended in it."""
        attempts = [row for _, row in self._s.scan(self._db.attempts) if row.team == team]
        made = [row for _, row in self._s.scan(self._db.made) if row.team == team]
        stored = [row.blob for _, row in self._s.scan(self._db.artifacts) if row.team == team]
        return Usage(
            gpu_seconds=self._gpu_seconds(team, start, end),
            audio_s=sum(row.audio_s for row in made if start <= row.at < end),
            jobs=sum(row.record.outcome in _OUTCOMES and start <= row.ended_at < end for row in attempts),
            stored_bytes=sum(blob.size_bytes for blob in stored),
        )

    @statement
    async def add_up_usage(self, limit: int) -> list[AttemptSample]:
        """Keeps what audio was made since the last look; returns some of the attempts that ended since."""
        if not self._s.try_lock(self._db.watermarks, "usage"):
            return []
        attempts = [row for _, row in self._s.scan(self._db.attempts)]
        since = self._s.get(self._db.watermarks, "usage")
        if since is None:
            first = min((row.ended_at for row in attempts), default=self._s.now - dt.timedelta(seconds=1))
            since = first - dt.timedelta(microseconds=1)
        until = min(self._s.now - dt.timedelta(seconds=USAGE_LAG_S), since + dt.timedelta(hours=1))
        self._s.put(self._db.watermarks, "usage", max(since, until))
        recent = [row for row in attempts if since < row.ended_at <= until]
        recent.sort(key=lambda row: row.ended_at)
        for row in recent:
            audio_s = self._made(row)
            if audio_s is not None:
                made = MadeAudio(row.team, audio_s, row.ended_at)
                await self._s.insert(self._db.made, self._db.number(), made)
        return [self._sample(row) for row in recent[:limit]]

    def _made(self, row: AttemptRow) -> float | None:
        """How much audio an attempt made, in seconds."""
        job = self._job(row.job_id)
        if (
            job is None
            or row.record.outcome != JobState.SUCCEEDED
            or row.kind not in ("rvc.convert", "f5.item", "f5.convert")
        ):
            return None
        audio_s = job.result.get("metrics", {}).get("audio_s")
        return float(audio_s) if isinstance(audio_s, int | float) else None

    def _sample(self, row: AttemptRow) -> AttemptSample:
        job = self._job(row.job_id)
        return AttemptSample(
            kind=row.kind,
            priority_class=job.priority_class if job is not None else PriorityClass.BATCH,
            size=row.size,
            duration_s=(row.ended_at - row.record.started_at).total_seconds(),
            succeeded=row.record.outcome == JobState.SUCCEEDED,
            waited_s=row.waited_s,
            attempt=row.record.attempt,
            expected=row.expected,
        )

    @statement
    async def drained_nodes(self) -> frozenset[str]:
        """Nodes that take no new work."""
        return frozenset(node for node, _ in self._s.scan(self._db.drained))

    @statement
    async def drain_node(self, node: str, *, drained: bool) -> None:
        """Takes a node out of service, or back."""
        await self._s.lock(self._db.drained, node)
        self._s.put(self._db.drained, node, self._s.now if drained else None)

    @statement
    async def grants(self) -> dict[str, float]:
        """How many GPUs belong to whom."""
        return dict(self._s.scan(self._db.grants))

    @statement
    async def put_grants(self, grants: Mapping[str, float]) -> None:
        """Says how many GPUs belong to whom."""
        for pool in sorted(grants):
            await self._s.lock(self._db.grants, pool)
            self._s.put(self._db.grants, pool, grants[pool])

    @statement
    async def ask_to_yield(self, jobs: Sequence[str]) -> None:
        """Asks running jobs to save and give back."""
        for job in sorted(jobs):
            await self._s.lock(self._db.jobs, job)
            row = self._job(job)
            if row is not None and row.state is JobState.RUNNING and not row.yield_asked:
                self._put(row, yield_asked=True, updated_at=self._s.now)

    @statement
    async def load_estimates(self, name: str) -> Mapping[str, Any] | None:
        """What was learned, by name."""
        return self._s.get(self._db.estimates, name)

    @statement
    async def save_estimates(self, name: str, state: Mapping[str, Any]) -> None:
        """Keeps what was learned."""
        await self._s.lock(self._db.estimates, name)
        self._s.put(self._db.estimates, name, as_json(state))
