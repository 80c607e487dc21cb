"""Says where a waiting job stands: its position, when it is expected to begin, and why it waits."""

from __future__ import annotations

from dataclasses import replace

from services.metadata.model.jobs import Job, JobState
from services.metadata.ports.store import Store
from services.metadata.scheduling.lanes import LaneKey


class Planner:
    """Places waiting jobs against what it last saw of the fleet."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._depths: dict[LaneKey, int] = {}

    async def refresh(self) -> None:
        """One look at the queues."""
        async with self._store.service() as tx:
            depths = await tx.lane_depths()
        self._depths = {LaneKey(d.kind, d.priority_class, d.team): d.queued for d in depths}

    async def placed(self, job: Job) -> Job:
        """The job with its position among the jobs of every team."""
        if job.state is not JobState.QUEUED or job.kind == "batch" or job.paused or job.blockers:
            return job
        async with self._store.service() as tx:
            place = await tx.queue_place(job)
        before = place
        for lane, queued in self._depths.items():
            if lane.kind != job.kind or (lane.team == job.team and lane.priority_class == job.priority_class):
                continue
            if lane.priority_class < job.priority_class:
                before += queued
            elif lane.priority_class == job.priority_class:
                # Turn by turn: of another team's jobs, no more go before it than of its own.
                before += min(queued, place + 1)
        return replace(job, position=before)
