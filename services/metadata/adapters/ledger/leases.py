"""The workers' side of the ledger."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from psycopg.types.json import Jsonb

from services.common.jobs.model import Checkpoint, Fence, Progress
from services.metadata.adapters.ledger.rows import (
    array,
    beat_row,
    checkpoint_of,
    end_row,
    job_of,
    leased_of,
    quota_of,
)
from services.metadata.adapters.statements import Statements
from services.metadata.adapters.storable import storable
from services.metadata.model.fleet import QuotaUse
from services.metadata.model.jobs import CheckpointRow, DoneJob, End, Job, JobState, LeasedJob, PriorityClass
from services.metadata.scheduling.lanes import LaneKey, Turn


class LeaseQueries(Statements):
    """Claims, heartbeats, ends. Each method is one statement and may stand alone."""

    async def lanes(self) -> list[LaneKey]:
        """The lanes that have something queued."""
        return [
            LaneKey(r["kind"], PriorityClass(r["priority_class"]), r["team"])
            for r in await self._rows("lanes")
        ]

    async def quota_uses(self) -> list[QuotaUse]:
        """Every team that has a quota or a weight of its own, with what it uses."""
        return [
            QuotaUse(quota_of(r, r["team"]), r["gpus"], r["gpu_seconds"])
            for r in await self._rows("quota_uses")
        ]

    async def claim(
        self, turns: Sequence[Turn], lease_s: float, *, gpu_types: Sequence[str], max_gpus: float
    ) -> list[LeasedJob]:
        """Leases what the turns name, each lane once, within each team's quota of GPUs."""
        picks = [turn.pick for turn in turns]
        rows = await self._tuples(
            "claim",
            workers=array([turn.worker for turn in turns]),
            nodes=array([turn.node for turn in turns]),
            kinds=array([pick.lane.kind for pick in picks]),
            classes=array([str(int(pick.lane.priority_class)) for pick in picks]),
            teams=array([pick.lane.team for pick in picks]),
            counts=array([str(pick.count) for pick in picks]),
            after=array([str(pick.after) for pick in picks]),
            lease_s=lease_s,
            gpu_types=list(gpu_types),
            max_gpus=max_gpus,
        )
        return [leased_of(row) for row in rows]

    async def heartbeat(
        self, beats: Sequence[tuple[Fence, Progress | None]], lease_s: float
    ) -> list[tuple[Fence, JobState, bool]]:
        """Extends leases; returns those that still hold: (fence, state, asked to give back)."""
        rows = await self._rows(
            "heartbeat", beats=Jsonb([beat_row(*beat) for beat in beats]), lease_s=lease_s
        )
        return [
            (Fence(r["id"], r["attempt"], r["lease_token"]), JobState(r["state"]), r["give_back"])
            for r in rows
        ]

    async def lock_leases(self, fences: Sequence[Fence]) -> list[Job]:
        """The jobs under those fences that still hold, locked."""
        rows = await self._rows(
            "lock_leases",
            jobs=[fence.job_id for fence in fences],
            attempts=[fence.attempt for fence in fences],
            tokens=[fence.lease_token for fence in fences],
        )
        return [job_of(row) for row in rows]

    async def finish(self, ends: Sequence[End]) -> list[Job]:
        """Ends the attempts whose fences still hold; returns their jobs."""
        return [job_of(row) for row in await self._rows("finish", ends=Jsonb([end_row(end) for end in ends]))]

    async def succeed(self, results: Mapping[Fence, Mapping[str, Any] | None]) -> dict[Fence, DoneJob]:
        """Ends attempts well that made no rows; returns the jobs whose fence still held, by fence."""
        fences = list(results)
        rows = await self._tuples(
            "succeed",
            jobs=array([fence.job_id for fence in fences]),
            attempts=array([str(fence.attempt) for fence in fences]),
            tokens=array([fence.lease_token for fence in fences]),
            results=array(
                [None if each is None else json.dumps(storable(each)) for each in results.values()]
            ),
        )
        return {fences[place - 1]: DoneJob(*values) for place, *values in rows}

    async def expired(self, limit: int) -> list[Job]:
        """Jobs whose lease has expired, locked."""
        return [job_of(row) for row in await self._rows("expired", limit=limit)]

    async def add_checkpoint(self, job: Job, fence: Fence, checkpoint: Checkpoint, *, keep: int) -> list[str]:
        """Makes a checkpoint's row and drops old ones; returns the keys of those."""
        await self._run(
            "insert_checkpoint",
            job_id=job.id,
            step=checkpoint.step,
            attempt=fence.attempt,
            team=job.team,
            epoch=checkpoint.epoch,
            key=checkpoint.blob.key,
            sha256=checkpoint.blob.sha256,
            size_bytes=checkpoint.blob.size_bytes,
        )
        return [row["key"] for row in await self._rows("drop_old_checkpoints", job_id=job.id, keep=keep)]

    async def checkpoints_of(self, jobs: Sequence[str]) -> dict[str, list[CheckpointRow]]:
        """The checkpoints of several jobs, newest first."""
        found: dict[str, list[CheckpointRow]] = {}
        for row in await self._rows("checkpoints", jobs=list(jobs)):
            found.setdefault(row["job_id"], []).append(checkpoint_of(row))
        return found
