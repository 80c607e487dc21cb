"""What the ledger promises, over plain dicts: the model that the state machine holds the adapters against.

Nothing of the product is used here but names of states and failure classes. One dict a job; each method is
what one request does to it, written as its reference says it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import Any

from services.common.errors import FailureClass
from services.common.jobs.model import Fence, StopKind
from services.metadata.model.jobs import JobState

Job = dict[str, Any]

LEASED = (JobState.RUNNING, JobState.CANCELLING)
ENDED = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)
AVOIDED_S = 30
CAPS_S = {FailureClass.RESOURCE: 1, FailureClass.NODE: 5, FailureClass.TRANSIENT: 60}


class Model:
    """Every job, every request id, and for how long each lease holds."""

    def __init__(self, lease_s: float) -> None:
        self.lease_s = lease_s
        self.jobs: dict[str, Job] = {}
        self.requests: dict[tuple[str, str], tuple[str, str]] = {}
        self.quotas: dict[str, float] = {}
        self.touched: set[str] = set()

    # -- what is true of it

    def holds(self, fence: Fence) -> bool:
        """Whether this is the one fence under which its job may be written."""
        return fence.job_id in self.jobs and self.jobs[fence.job_id]["holder"] == fence

    def claimable(self, kind: str, team: str, node: str, now: dt.datetime) -> list[Job]:
        """What a worker on a node may have of a lane, in its order."""
        found = [
            job
            for job in self.jobs.values()
            if (job["kind"], job["team"], job["state"]) == (kind, team, JobState.QUEUED)
            and not job["paused"]
            and self.blockers(job) == 0
            and job["not_before"] <= now
            and (node not in job["avoid"] or job["not_before"] <= now - dt.timedelta(seconds=AVOIDED_S))
        ]
        return sorted(found, key=lambda job: (-job["priority"], job["number"]))

    def blockers(self, job: Job) -> int:
        """How many jobs it still waits for."""
        return list(job["waits_for"].values()).count(False)

    def gpus_of(self, team: str) -> float:
        """What a team holds."""
        return sum(job["gpus"] for job in self.jobs.values() if job["team"] == team and job["holder"])

    def expired(self, now: dt.datetime) -> list[Job]:
        """The jobs whose lease has run out."""
        return [job for job in self.jobs.values() if job["holder"] and job["expires"] < now]

    # -- what requests do to it

    def submit(self, job_id: str, now: dt.datetime, depends_on: Iterable[str], **given: Any) -> None:
        waits_for = {name: False for name in depends_on if self.jobs[name]["state"] is not JobState.SUCCEEDED}
        self.jobs[job_id] = {
            **given,
            "id": job_id,
            "number": len(self.jobs),
            "state": JobState.QUEUED,
            "attempt": 0,
            "paused": False,
            "waits_for": waits_for,
            "holder": None,
            "expires": None,
            "worker": "",
            "node": "",
            "not_before": now,
            "avoid": [],
            "scale": 1.0,
            "phase": "",
            "yield_asked": False,
            "result": "",
            "history": [(JobState.QUEUED, 0)],
            "outcomes": [],
        }
        self.touched.add(job_id)

    def claim(self, fence: Fence, worker: str, node: str, now: dt.datetime) -> None:
        job = self.jobs[fence.job_id]
        job.update(attempt=job["attempt"] + 1, holder=fence, worker=worker, node=node, phase="")
        job.update(yield_asked=False, expires=now + dt.timedelta(seconds=self.lease_s))
        self._become(job, JobState.RUNNING)

    def heartbeat(self, fence: Fence, phase: str | None, now: dt.datetime) -> StopKind | None:
        """What the worker is told."""
        if not self.holds(fence):
            return StopKind.LOST
        job = self.jobs[fence.job_id]
        job["expires"] = now + dt.timedelta(seconds=self.lease_s)
        if phase is not None and phase != job["phase"]:
            job["phase"] = phase
            self._become(job, job["state"])
        if job["state"] is JobState.CANCELLING:
            return StopKind.CANCEL
        return StopKind.YIELD if job["paused"] or job["yield_asked"] else None

    def succeed(self, fence: Fence, result: str) -> None:
        job = self.jobs[fence.job_id]
        assert not job["result"], "one job has two results"
        job["result"] = result
        self._end(job, JobState.SUCCEEDED, "SUCCEEDED")

    def cancelled(self, fence: Fence) -> None:
        self._end(self.jobs[fence.job_id], JobState.CANCELLED, "CANCELLED")

    def release(self, fence: Fence, now: dt.datetime) -> None:
        job = self.jobs[fence.job_id]
        if job["state"] is JobState.CANCELLING:
            self._end(job, JobState.CANCELLED, "CANCELLED")
            return
        job["max_attempts"] += 1
        job["not_before"] = now
        self._end(job, JobState.QUEUED, "RELEASED")

    def fail(self, job: Job, failure: FailureClass, outcome: str, node: str) -> float | None:
        """Ends an attempt badly; returns the longest back-off, None where it is not tried again."""
        if job["state"] is JobState.CANCELLING:
            self._end(job, JobState.CANCELLED, "CANCELLED")
            return None
        out_of_memory = failure is FailureClass.RESOURCE
        if (
            failure in (FailureClass.INPUT, FailureClass.PERMANENT)
            or job["attempt"] >= job["max_attempts"]
            or (out_of_memory and job["scale"] <= 1 / 64)
        ):
            self._end(job, JobState.FAILED, outcome)
            return None
        if out_of_memory:
            job["scale"] /= 2
        if failure is FailureClass.NODE:
            job["avoid"] = [node, *(each for each in job["avoid"] if each != node)][:3]
        self._end(job, JobState.QUEUED, outcome)
        return float(min(CAPS_S[failure], 2 ** (job["attempt"] - 1)))

    def cancel(self, job: Job) -> None:
        if job["state"] is JobState.QUEUED:
            self._become(job, JobState.CANCELLED)
        elif job["state"] is JobState.RUNNING:
            self._become(job, JobState.CANCELLING)

    def retry(self, job: Job, now: dt.datetime) -> None:
        job.update(paused=False, scale=1.0, avoid=[], not_before=now, max_attempts=job["attempt"] + 4)
        for name in job["waits_for"]:
            job["waits_for"][name] = self.jobs[name]["state"] is JobState.SUCCEEDED
        self._become(job, JobState.QUEUED)

    def settle(self, now: dt.datetime) -> None:
        """Lets go, or fails, what waits for jobs that have ended, and what waits for those in turn."""
        while todo := self._unsettled():
            for job, name in todo:
                job["waits_for"][name] = True
                self.touched.add(job["id"])
                if job["state"] is not JobState.QUEUED:
                    continue
                if self.jobs[name]["state"] is JobState.SUCCEEDED:
                    job["not_before"] = now
                else:
                    # It waits for the others too: they say nothing any more.
                    job["failed_by"] = name
                    self._become(job, JobState.FAILED)

    def _unsettled(self) -> Sequence[tuple[Job, str]]:
        return [
            (job, name)
            for job in self.jobs.values()
            for name, settled in job["waits_for"].items()
            if not settled and self.jobs[name]["state"] in ENDED
        ]

    def _end(self, job: Job, state: JobState, outcome: str) -> None:
        job.update(holder=None, expires=None, yield_asked=False)
        job["outcomes"].append(outcome)
        self._become(job, state)

    def _become(self, job: Job, state: JobState) -> None:
        job["state"] = state
        job["history"].append((state, job["attempt"]))
        self.touched.add(job["id"])
