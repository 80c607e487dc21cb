"""Queues, workers, quotas, and what the scheduler learns."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from psycopg.types.json import Jsonb

from services.metadata.adapters.ledger.rows import quota_of
from services.metadata.adapters.statements import Statements
from services.metadata.model.fleet import (
    AttemptSample,
    LaneDepth,
    QueueDepth,
    Quota,
    RunningJob,
    Usage,
    WorkerRow,
)
from services.metadata.model.jobs import Job, PriorityClass

USAGE_LAG_S = 10.0
"""Attempts are added up so long after they ended: by then the transaction that ended them has."""


class FleetQueries(Statements):
    """The ledger's statements on the fleet."""

    usage_lag_s = USAGE_LAG_S

    async def lane_depths(self) -> list[LaneDepth]:
        """How deep and old each lane is."""
        return [
            LaneDepth(
                r["kind"],
                PriorityClass(r["priority_class"]),
                r["team"],
                r["queued"],
                r["size"],
                r["gpus"],
                r["oldest_wait_s"],
            )
            for r in await self._rows("lane_depths")
        ]

    async def running_jobs(self) -> list[RunningJob]:
        """What workers have now."""
        return [
            RunningJob(
                id=r["id"],
                kind=r["kind"],
                priority_class=PriorityClass(r["priority_class"]),
                priority=r["priority"],
                team=r["team"],
                gpus=r["gpus"],
                size=r["size"],
                node=r["node"],
                elapsed_s=r["elapsed_s"],
                yield_asked=r["yield_asked"],
            )
            for r in await self._rows("running_jobs")
        ]

    async def queue_depths(self) -> list[QueueDepth]:
        """How many jobs wait and run, by kind and class."""
        return [
            QueueDepth(
                r["kind"], PriorityClass(r["priority_class"]), r["queued"], r["running"], r["oldest_wait_s"]
            )
            for r in await self._rows("queue_depths")
        ]

    async def queue_place(self, job: Job) -> int:
        """How many jobs of its own lane are before it, counted up to 100,000."""
        row = await self._row(
            "queue_place",
            kind=job.kind,
            priority_class=int(job.priority_class),
            team=job.team,
            queue_key=job.queue_key,
        )
        return int(row["place"]) if row else 0

    async def put_worker(self, row: WorkerRow) -> None:
        """Keeps what a worker said of itself."""
        await self._run(
            "upsert_worker",
            worker=row.worker,
            queue=row.queue,
            node=row.node,
            version=row.version,
            free=Jsonb(dict(row.free)),
            nodes=Jsonb([dict(node) for node in row.nodes]),
            default_bundle=row.default_bundle,
        )

    async def drop_worker(self, worker: str) -> None:
        """Forgets a worker."""
        await self._run("delete_worker", worker=worker)

    async def live_workers(self) -> list[WorkerRow]:
        """Workers heard of within a minute."""
        return [
            WorkerRow(
                worker=r["worker"],
                queue=r["queue"],
                node=r["node"],
                version=r["version"],
                free=r["free"],
                nodes=tuple(r["nodes"]),
                default_bundle=r["default_bundle"],
                running=r["running"],
                last_seen=r["last_seen"],
            )
            for r in await self._rows("live_workers")
        ]

    async def get_quota(self, team: str) -> Quota:
        """A team's quota."""
        return quota_of(await self._row("get_quota", team=team), team)

    async def put_quota(self, quota: Quota) -> None:
        """Sets a team's quota."""
        await self._run(
            "put_quota",
            team=quota.team,
            max_gpus=quota.max_gpus,
            max_queued_jobs=quota.max_queued_jobs,
            max_gpu_seconds_per_day=quota.max_gpu_seconds_per_day,
            weight=quota.weight,
        )

    async def usage(self, team: str, start: dt.datetime, end: dt.datetime) -> Usage:
        """What a team used in a span of time: GPU-seconds held within it, jobs that ended in it."""
        row = await self._row("usage", team=team, start=start, end=end)
        assert row is not None
        return Usage(row["gpu_seconds"], row["audio_s"], row["jobs"], row["stored_bytes"])

    async def add_up_usage(self, limit: int) -> list[AttemptSample]:
        """Adds what attempts used since the last look to their teams' days; returns some of those."""
        await self._run("make_watermark", name="usage")
        rows = await self._rows("add_up_usage", limit=limit, lag_s=self.usage_lag_s)
        return [
            AttemptSample(
                kind=r["kind"],
                priority_class=PriorityClass(r["priority_class"]),
                size=r["size"],
                duration_s=r["duration_s"],
                succeeded=r["outcome"] == "SUCCEEDED",
                waited_s=r["waited_s"],
                attempt=r["attempt"],
                expected=r["expected"],
            )
            for r in rows
        ]

    async def drained_nodes(self) -> frozenset[str]:
        """Nodes that take no new work."""
        return frozenset(row["node"] for row in await self._rows("drained_nodes"))

    async def drain_node(self, node: str, *, drained: bool) -> None:
        """Takes a node out of service, or back."""
        await self._run("drain_node" if drained else "undrain_node", node=node)

    async def grants(self) -> dict[str, float]:
        """How many GPUs belong to whom."""
        return {row["pool"]: row["gpus"] for row in await self._rows("grants")}

    async def put_grants(self, grants: Mapping[str, float]) -> None:
        """Says how many GPUs belong to whom."""
        await self._run("put_grants", pools=list(grants), gpus=list(grants.values()))

    async def ask_to_yield(self, jobs: Sequence[str]) -> None:
        """Asks running jobs to save and give back."""
        await self._run("ask_to_yield", jobs=list(jobs))

    async def load_estimates(self, name: str) -> Mapping[str, Any] | None:
        """What was learned, by name."""
        row = await self._row("load_estimates", name=name)
        return row["state"] if row else None

    async def save_estimates(self, name: str, state: Mapping[str, Any]) -> None:
        """Keeps what was learned."""
        await self._run("save_estimates", name=name, state=Jsonb(dict(state)))
