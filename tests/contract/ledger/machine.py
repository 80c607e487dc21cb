"""The machine whose random histories are held against the model: see ``test_machine``."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from services.common.errors import FailureClass, Reason, VoxfleetError
from services.common.jobs.model import Fence, Progress, Released, Succeeded
from services.metadata.app.dispatch import Offer
from services.metadata.app.endings import settle_dependencies
from services.metadata.model.fleet import Quota
from services.metadata.model.jobs import TRANSITIONS, JobState
from services.metadata.ports.store import Store
from tests.contract.ledger.backends import MemoryBackend, PostgresBackend
from tests.contract.ledger.desk import LEASE_S, Desk, new_job
from tests.contract.ledger.model import ENDED, LEASED, Model

T = TypeVar("T")

TEAMS = ("alpha", "beta")
KINDS = {"rvc.convert": 0.25, "f5.item": 0.0, "rvc.train": 1.0}
PROCESS_SKEWS_S = (0.0, 4.0)
WORKERS = {"w1": "n1", "w2": "n1", "w3": "n2", "w4": "n3"}
# Seconds of a worker's clock for each that passes: one runs well, one fast, one slowly, and one stands still.
WORKER_RATES = {"w1": 1.0, "w2": 2.0, "w3": 0.3, "w4": 0.0}

processes = st.sampled_from(range(len(PROCESS_SKEWS_S)))


@dataclass(frozen=True)
class Held:
    """A lease as a worker knows it, and since when."""

    fence: Fence
    worker: str
    since: dt.datetime

    def __repr__(self) -> str:
        return f"<{self.fence.job_id}#{self.fence.attempt} of {self.worker}>"


class Surroundings:
    """A database, the loop that it lives in, and the stores of the processes: shared by all histories."""

    def __init__(self, backend: MemoryBackend | PostgresBackend, loop: asyncio.AbstractEventLoop) -> None:
        self.backend = backend
        self.loop = loop
        self.stores: list[Store] = [backend.store(skew_s=skew_s) for skew_s in PROCESS_SKEWS_S]

    def run(self, work: Awaitable[T]) -> T:
        """Does something to its end."""
        return self.loop.run_until_complete(work)

    def begin(self) -> list[Desk]:
        """An empty database and processes that know nothing."""
        if isinstance(self.backend, PostgresBackend):
            self.run(self.backend.empty())
        else:
            self.backend = MemoryBackend()
            self.stores = [self.backend.store(skew_s=skew_s) for skew_s in PROCESS_SKEWS_S]
        return [Desk(self.backend, store=store) for store in self.stores]


class LedgerMachine(RuleBasedStateMachine):
    """The rules, and what holds after each."""

    surroundings: Surroundings
    jobs = Bundle("jobs")
    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.around = self.surroundings
        self.run = self.around.run
        self.model = Model(LEASE_S)
        self.numbers = itertools.count(1)
        self.held: list[Held] = []
        self.events_seen: dict[str, int] = {}

    @initialize(target=jobs, kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=3))
    def begin(self, kinds: list[str]) -> Any:
        self.desks = self.around.begin()
        self.clock = self.desks[0].clock
        return multiple(*(self._made(kind, "alpha") for kind in kinds))

    def _made(self, kind: str, team: str) -> str:
        given = {"priority": 0, "max_attempts": 4, "gpus": KINDS[kind]}
        job_id = f"job-{next(self.numbers):03d}"
        self.run(self._submit(0, new_job(job_id, kind, team, **given), request="", body="f"))
        self.model.submit(job_id, self.now(0), (), team=team, kind=kind, **given)
        return job_id

    def now(self, process: int) -> dt.datetime:
        return self.clock.now + dt.timedelta(seconds=PROCESS_SKEWS_S[process])

    def refused(self, reason: Reason, work: Awaitable[Any]) -> None:
        """Does something that must be refused."""
        with pytest.raises(VoxfleetError) as caught:
            self.run(work)
        assert caught.value.reason is reason

    def write(self, held: Held, work: Awaitable[T], then: Callable[[], None]) -> T | None:
        """A worker's write: done where its fence holds, refused and without effect where it does not."""
        if not self.model.holds(held.fence):
            self.refused(Reason.LEASE_LOST, work)
            return None
        then()
        return self.run(work)

    # -- owners

    @rule(
        target=jobs,
        process=processes,
        team=st.sampled_from(TEAMS),
        kind=st.sampled_from(sorted(KINDS)),
        priority=st.sampled_from((0, 0, 0, 5, -5)),
        max_attempts=st.integers(1, 4),
        request=st.sampled_from(("", "", "", "r1", "r2")),
        body=st.sampled_from(("f", "f", "g")),
        depends_on=st.lists(jobs, max_size=2),
    )
    def submit(  # noqa: PLR0917 - hypothesis names them
        self,
        process: int,
        team: str,
        kind: str,
        priority: int,
        max_attempts: int,
        request: str,
        body: str,
        depends_on: list[str],
    ) -> Any:
        names = tuple(dict.fromkeys(job for job in depends_on if self.model.jobs[job]["team"] == team))
        given = {"priority": priority, "max_attempts": max_attempts, "gpus": KINDS[kind]}
        job_id = f"job-{next(self.numbers):03d}"
        work = self._submit(
            process, new_job(job_id, kind, team, depends_on=names, **given), request=request, body=body
        )
        first = self.model.requests.get((team, request)) if request else None
        if first is not None and first[0] != body:
            self.refused(Reason.REQUEST_ID_REUSED, work)
            return multiple()
        if first is not None:
            assert self.run(work) == first[1], "a repeat made another job"
            return multiple()
        if any(self.model.jobs[name]["state"] in (JobState.FAILED, JobState.CANCELLED) for name in names):
            self.refused(Reason.DEPENDENCY_FAILED, work)
            return multiple()
        assert self.run(work) == job_id
        if request:
            self.model.requests[team, request] = (body, job_id)
        self.model.submit(job_id, self.now(process), names, team=team, kind=kind, **given)
        return job_id

    async def _submit(self, process: int, job: Any, *, request: str, body: str) -> str:
        async with self.desks[process].store.tenant(job.team) as tx:
            return await self.desks[process].add(tx, job, request_id=request, fingerprint=body)

    @rule(process=processes, job_id=jobs)
    def cancel(self, process: int, job_id: str) -> None:
        job = self.model.jobs[job_id]
        self.model.cancel(job)
        found = self.run(self.desks[process].jobs.cancel(job["team"], job_id))
        assert found.state is job["state"]

    @rule(process=processes, job_id=jobs)
    def retry(self, process: int, job_id: str) -> None:
        job = self.model.jobs[job_id]
        work = self.desks[process].jobs.retry(job["team"], job_id)
        if job["state"] not in (JobState.FAILED, JobState.CANCELLED):
            self.refused(Reason.JOB_STATE_CONFLICT, work)
            return
        self.model.retry(job, self.now(process))
        assert self.run(work).state is JobState.QUEUED

    @rule(process=processes, job_id=jobs, paused=st.booleans())
    def pause_or_resume(self, process: int, job_id: str, paused: bool) -> None:
        job = self.model.jobs[job_id]
        jobs = self.desks[process].jobs
        work = (jobs.pause if paused else jobs.resume)(job["team"], job_id)
        if job["state"] not in (JobState.QUEUED, JobState.RUNNING):
            self.refused(Reason.JOB_STATE_CONFLICT, work)
            return
        job["paused"] = paused
        self.run(work)

    @rule(process=processes, job_id=jobs, priority=st.sampled_from((-100, -5, 0, 5, 100)))
    def update_priority(self, process: int, job_id: str, priority: int) -> None:
        job = self.model.jobs[job_id]
        job["priority"] = priority
        self.run(self.desks[process].jobs.update(job["team"], job_id, {"priority": priority}))

    @rule(team=st.sampled_from(TEAMS), gpus=st.sampled_from((0.0, 0.25, 1.0, 2.0)))
    def set_quota(self, team: str, gpus: float) -> None:
        self.model.quotas[team] = gpus
        self.run(self._set_quota(Quota(team, max_gpus=gpus)))

    async def _set_quota(self, quota: Quota) -> None:
        async with self.desks[0].store.service() as tx:
            await tx.put_quota(quota)

    # -- workers

    @rule(
        target=leases,
        process=processes,
        worker=st.sampled_from(sorted(WORKERS)),
        places=st.sampled_from((dict.fromkeys(KINDS, 3), dict.fromkeys(KINDS, 1), {"f5.item": 1})),
    )
    def claim(self, process: int, worker: str, places: dict[str, int]) -> Any:
        now, node = self.now(process), WORKERS[worker]
        held_before = {team: self.model.gpus_of(team) for team in TEAMS}
        may = {
            (kind, team): [job["id"] for job in self.model.claimable(kind, team, node, now)]
            for kind in places
            for team in TEAMS
        }
        leased = self.run(self._claim(process, Offer(worker, node, places)))
        for (kind, team), ids in may.items():
            got = [job.id for job in leased if (job.kind, job.team) == (kind, team)]
            assert got == ids[: len(got)], f"{kind} of {team}: {got} of {ids}"
            room = places[kind] - sum(job.kind == kind for job in leased)
            if room and not self.model.quotas.get(team):
                assert len(got) == len(ids), f"{kind} of {team}: {ids[len(got) :]} were passed over"
        assert sum(places.values()) >= len(leased) == len({job.id for job in leased})
        for job in leased:
            self.model.claim(job.fence, worker, node, now)
            assert job.attempt == self.model.jobs[job.id]["attempt"]
            assert job.batch_scale == self.model.jobs[job.id]["scale"]
        for team in TEAMS:
            most = max(self.model.quotas.get(team, 0.0), held_before[team])
            assert not self.model.quotas.get(team) or self.model.gpus_of(team) <= most
        self.held += [Held(job.fence, worker, self.clock.now) for job in leased]
        return multiple(*self.held[len(self.held) - len(leased) :])

    def deceived(self) -> list[Held]:
        """Leases whose job another attempt runs, while by its own clock their worker has them still."""
        return [
            held
            for held in self.held
            if self.model.jobs[held.fence.job_id]["holder"]
            and not self.model.holds(held.fence)
            and (self.clock.now - held.since).total_seconds() * WORKER_RATES[held.worker] < LEASE_S
        ]

    async def _claim(self, process: int, offer: Offer) -> list[Any]:
        await self.desks[process].dispatcher.refresh()
        return await self.desks[process].dispatcher.claim(offer)

    @rule(
        process=processes,
        held=st.lists(leases, min_size=1, max_size=4),
        phase=st.sampled_from((None, "load", "work")),
    )
    def heartbeat(self, process: int, held: list[Held], phase: str | None) -> None:
        now = self.now(process)
        fences = list(dict.fromkeys(each.fence for each in held))
        expected = {fence: self.model.heartbeat(fence, phase, now) for fence in fences}
        progress = None if phase is None else Progress(phase)
        told = dict(self.run(self.desks[process].work.heartbeat([(fence, progress) for fence in fences])))
        assert told == {fence: stop for fence, stop in expected.items() if stop is not None}

    @rule(process=processes, held=leases)
    def succeed(self, process: int, held: Held) -> None:
        result = f"{held!r} {next(self.numbers)}"
        work = self.desks[process].work.succeed(held.fence, Succeeded(weights=result))
        self.write(held, work, lambda: self.model.succeed(held.fence, result))

    @rule(process=processes, held=leases, failure=st.sampled_from(FailureClass))
    def fail(self, process: int, held: Held, failure: FailureClass) -> None:
        job = self.model.jobs[held.fence.job_id]
        delays: list[float | None] = []

        def then() -> None:
            delays.append(self.model.fail(job, failure, "FAILED", job["node"]))

        work = self.desks[process].work.fail(held.fence, {"reason": "X", "message": "y"}, failure)
        if self.write(held, work, then) is not None:
            self._check_delay(job, delays[0], self.now(process))

    @rule(process=processes, held=leases)
    def release(self, process: int, held: Held) -> None:
        work = self.desks[process].work.release(held.fence, Released("x"))
        self.write(held, work, lambda: self.model.release(held.fence, self.now(process)))

    @rule(process=processes, held=leases)
    def cancelled(self, process: int, held: Held) -> None:
        work = self.desks[process].work.cancelled(held.fence)
        if self.model.jobs[held.fence.job_id]["state"] is not JobState.CANCELLING:
            self.refused(Reason.LEASE_LOST, work)
        else:
            self.write(held, work, lambda: self.model.cancelled(held.fence))

    @precondition(lambda self: self.deceived())
    @rule(process=processes, late=st.sampled_from(("succeed", "fail", "release", "beat")), data=st.data())
    def write_by_a_wrong_clock(self, process: int, late: str, data: st.DataObject) -> None:
        """A worker's clock is slow, or stands still: it believes that its lease holds."""
        held = data.draw(st.sampled_from(self.deceived()))
        work = self.desks[process].work
        if late == "beat":
            assert len(self.run(work.heartbeat([(held.fence, Progress("late"))]))) == 1
        elif late == "succeed":
            self.refused(Reason.LEASE_LOST, work.succeed(held.fence, Succeeded(weights="late")))
        elif late == "fail":
            self.refused(Reason.LEASE_LOST, work.fail(held.fence, {}, FailureClass.PERMANENT))
        else:
            self.refused(Reason.LEASE_LOST, work.release(held.fence, Released("late")))

    # -- time, and what nobody asks for

    @rule(seconds=st.sampled_from((0.5, 1.0, 5.0, LEASE_S - 1, LEASE_S + 1, 61.0)))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: any(job["holder"] for job in self.model.jobs.values()))
    @rule(process=processes)
    def all_workers_hang(self, process: int) -> None:
        """Nobody is heard of until every lease has expired and every back-off after that has passed."""
        self.clock.advance(LEASE_S + max(PROCESS_SKEWS_S) + 1)
        self.expire(process)
        self.clock.advance(6)

    @rule(process=processes)
    def expire(self, process: int) -> None:
        now = self.now(process)
        lost = sorted(self.model.expired(now), key=lambda job: str(job["id"]))
        delays = [self.model.fail(job, FailureClass.NODE, "EXPIRED", job["node"]) for job in lost]
        assert self.run(self.desks[process].work.expire()) == len(lost)
        for job, delay_s in zip(lost, delays, strict=True):
            self._check_delay(job, delay_s, now)

    @rule(job_id=jobs)
    def ask_to_yield(self, job_id: str) -> None:
        job = self.model.jobs[job_id]
        job["yield_asked"] = job["yield_asked"] or job["state"] is JobState.RUNNING
        self.run(self._ask_to_yield(job_id))

    async def _ask_to_yield(self, job_id: str) -> None:
        async with self.desks[0].store.service() as tx:
            await tx.ask_to_yield([job_id])

    @rule(process=processes)
    def settle(self, process: int) -> None:
        self.model.settle(self.now(process))
        while self.run(settle_dependencies(self.desks[process].store)):
            pass

    @rule()
    def restart(self) -> None:
        """What a process knew but had not written is gone."""
        self.desks = [Desk(self.around.backend, store=store) for store in self.around.stores]

    def _check_delay(self, job: dict[str, Any], most_s: float | None, now: dt.datetime) -> None:
        """The jitter is the ledger's own; its bounds are not."""
        if most_s is not None:
            not_before = self.run(self.desks[0].job(job["id"])).not_before
            assert not_before is not None
            assert now <= not_before <= now + dt.timedelta(seconds=most_s)
            job["not_before"] = not_before

    # -- what holds

    @invariant()
    def every_job_is_as_the_model_says(self) -> None:
        ids = sorted(self.model.jobs)
        if ids:
            self.run(self._compare(ids))

    async def _compare(self, ids: list[str]) -> None:
        async with self.desks[0].store.service() as tx:
            jobs = {job.id: job for job in await tx.jobs_now(ids)}
            events = await tx.events_after({job_id: self.events_seen.get(job_id, 0) for job_id in ids})
            running = {(job.id, job.node) for job in await tx.running_jobs()}
            tries = {job_id: await tx.attempts(job_id) for job_id in sorted(self.model.touched)}
        self.model.touched.clear()
        assert sorted(jobs) == ids, "a job is lost"
        for job_id, expected in self.model.jobs.items():
            job = jobs[job_id]
            for name in ("state", "attempt", "max_attempts", "priority", "paused", "phase", "yield_asked"):
                assert getattr(job, name) == expected[name], (job_id, name)
            assert (job.lease_token or None) == (expected["holder"] and expected["holder"].lease_token)
            assert (job.state in LEASED, job.state in ENDED) == (bool(job.lease_token), bool(job.ended_at))
            assert job.result.get("weights", "") == expected["result"], job_id
            if job.state is JobState.QUEUED:
                assert job.blockers == self.model.blockers(expected), job_id
                assert (job.not_before, list(job.avoid_nodes), job.batch_scale) == (
                    expected["not_before"],
                    expected["avoid"],
                    expected["scale"],
                )
            assert job.event_seq == len(expected["history"]), job_id
            self._check_events(job_id, events[job_id])
        for job_id, records in tries.items():
            outcomes = [record.outcome for record in records if record.ended_at is not None]
            assert outcomes == self.model.jobs[job_id]["outcomes"]
            assert [record.attempt for record in records] == list(range(1, len(records) + 1))
            assert len(records) == self.model.jobs[job_id]["attempt"]
            assert outcomes.count("SUCCEEDED") == bool(self.model.jobs[job_id]["result"])
        holders = {(job["id"], job["node"]) for job in self.model.jobs.values() if job["holder"]}
        assert running == holders

    def _check_events(self, job_id: str, events: list[Any]) -> None:
        """Those that are new: no gap, and each change of state a legal one."""
        history = self.model.jobs[job_id]["history"]
        seen = self.events_seen.get(job_id, 0)
        assert [event.seq for event in events] == list(range(seen + 1, len(history) + 1)), job_id
        for event in events:
            assert (event.state, event.attempt) == history[event.seq - 1]
            before = history[event.seq - 2][0] if event.seq > 1 else event.state
            assert before is event.state or (before, event.state) in TRANSITIONS
        self.events_seen[job_id] = len(history)
