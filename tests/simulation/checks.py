"""What must hold after every commit, and what must hold when all is over."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

from services.common.jobs.model import Fence
from services.metadata.adapters.memory import Change, MemoryDatabase
from services.metadata.adapters.memory.rows import JobRow
from services.metadata.model.fleet import Quota
from services.metadata.model.jobs import BATCH_TRANSITIONS, FINAL_STATES, TRANSITIONS, JobEvent, JobState

LATE_S = 5.0
"""A lease that has run out is taken back within so long."""

SECONDS_LATE_S = 5.0
"""A quota of GPU-seconds is looked at that often at the least."""

_KNOWN = ("the lease of attempt", "a fault of the simulation", "deadlock over")


class ViolationError(Exception):
    """Something that the ledger promises did not hold."""


class Watchdog(logging.Handler):
    """Sees every commit and every warning; remembers the first thing that was wrong.

    Args:
        database: what it watches.
        quotas: those that teams begin with.
        clock: seconds.
        lease_s: of every lease.
        midnight_s: when the day ends, by that clock.
    """

    def __init__(
        self,
        database: MemoryDatabase,
        quotas: Iterable[Quota],
        clock: Callable[[], float],
        *,
        lease_s: float,
        midnight_s: float,
    ) -> None:
        super().__init__(logging.WARNING)
        self._db = database
        self._clock = clock
        self._lease_s = lease_s
        self._midnight_s = midnight_s
        self._digest = hashlib.sha256()
        self._up: dict[str, bool] = {}
        self._outage_s = 0.0
        self._down_since_s = 0.0
        self._held: dict[str, dict[str, tuple[float, float]]] = {}
        self._used: dict[str, list[tuple[float, float, float]]] = {}
        self._expiries: dict[str, tuple[float, float]] = {}
        self._acked: dict[str, str] = {}
        self._refused: set[str] = set()
        self.quotas = {quota.team: quota for quota in quotas}
        self.violation: str = ""
        self.history: deque[str] = deque(maxlen=400)
        self.needs: dict[str, tuple[str, ...]] = {}
        self.succeeded: set[str] = set()
        self.ends: dict[tuple[str, int], tuple[str, str]] = {}
        self.waits: dict[str, float] = {}
        self.order: list[tuple[float, JobRow]] = []
        self.counted: Counter[str] = Counter()

    @property
    def digest(self) -> str:
        """Of everything that was committed, in its order."""
        return self._digest.hexdigest()

    def check(self, holds: object, message: str) -> None:
        """Remembers the first thing that does not hold."""
        if not holds and not self.violation:
            self.violation = f"{self._clock():.3f} s: {message}"

    def failed(self, error: BaseException) -> None:
        """An actor or a loop of a process has failed."""
        self.check(False, f"{type(error).__name__}: {error}")

    def emit(self, record: logging.LogRecord) -> None:
        """A warning of the product: an error that it swallowed is none of the faults that were planned."""
        message = record.getMessage()
        error = record.exc_info[1] if record.exc_info else ""
        self.check(any(known in message for known in _KNOWN), f"it says: {message} {error!r}")

    # -- processes

    def up(self, process: str) -> None:
        """A process has come up."""
        if not any(self._up.values()):
            self._outage_s += self._clock() - self._down_since_s
        self._up[process] = True

    def down(self, process: str) -> None:
        """A process is gone."""
        was = any(self._up.values())
        self._up[process] = False
        if was and not any(self._up.values()):
            self._down_since_s = self._clock()

    def _outages_s(self) -> float:
        """For how long nobody was there so far."""
        return self._outage_s + (0.0 if any(self._up.values()) else self._clock() - self._down_since_s)

    # -- what clients are told

    def acknowledged(self, request: str, job: str) -> None:
        """A client was told that its request made this job."""
        first = self._acked.setdefault(request, job)
        self.check(first == job, f"request {request} made {first} and {job}")
        self.check(job in self._db.jobs.rows, f"{job} was acknowledged and is not there")

    def refused(self, request: str) -> None:
        """A client was told that its request made nothing."""
        self._refused.add(request)

    def accepted(self, fence: Fence, outcomes: Iterable[str]) -> None:
        """A worker was told that its end of an attempt counts."""
        self.counted["ends"] += 1
        found = self.ends.get((fence.job_id, fence.attempt))
        self.check(
            found is not None and found[0] == fence.lease_token and found[1] in outcomes,
            f"{fence} was told that it ended as {'/'.join(outcomes)}; it ended as {found}",
        )

    # -- commits

    def see(self, changes: Sequence[Change]) -> None:
        """Every commit."""
        events: dict[str, list[JobEvent]] = {}
        outcomes: dict[tuple[str, int], str] = {}
        for change in changes:
            if change.table == "job_events":
                self.check(change.before is None, f"event {change.key} was written twice")
                events.setdefault(change.key[0], []).append(change.after)
            elif change.table == "job_attempts":
                self.check(change.before is None, f"attempt {change.key} ended twice")
                outcomes[change.key] = change.after.record.outcome
            elif change.table == "team_quotas":
                self.quotas[change.key] = change.after
        for change in changes:
            if change.table == "jobs":
                self._see_job(change.before, change.after, events.pop(change.key, []), outcomes)
        self.check(not events, f"events of jobs that did not change: {events}")
        self._see_quotas([change.after for change in changes if change.table == "jobs"])

    def _see_job(
        self,
        before: JobRow | None,
        after: JobRow | None,
        events: list[JobEvent],
        outcomes: dict[tuple[str, int], str],
    ) -> None:
        if after is None:
            self.check(False, f"{before.id if before else ''} was deleted")
            return
        self._note(before, after)
        was = before.event_seq if before is not None else 0
        seqs = sorted(event.seq for event in events)
        gapless = seqs == list(range(was + 1, after.event_seq + 1))
        self.check(gapless, f"{after.id}: events {seqs} after {was}")
        if events:
            last = max(events, key=lambda event: event.seq)
            told = (last.state, last.attempt) == (after.state, after.attempt)
            self.check(told, f"{after.id} is {after.state}, told as {last}")
        if before is None:
            self._expiries.pop(after.id, None)
            return
        if before.state is not after.state:
            self.check(events, f"{after.id} became {after.state} without an event")
        legal = BATCH_TRANSITIONS if after.kind == "batch" else TRANSITIONS
        path = [before.state, *(event.state for event in sorted(events, key=lambda event: event.seq))]
        for step in itertools.pairwise(path):
            self.check(step[0] is step[1] or step in legal, f"{after.id}: {step[0]} -> {step[1]}")
        if before.state is JobState.SUCCEEDED and after.kind != "batch":
            same = (after.state, after.result) == (before.state, before.result)
            self.check(same, f"{after.id} had succeeded and was changed")
        if after.state is JobState.SUCCEEDED:
            self.succeeded.add(after.id)
        self._see_lease(before, after, outcomes)

    def _see_lease(self, before: JobRow, after: JobRow, outcomes: dict[tuple[str, int], str]) -> None:
        job = after.id
        if before.lease_token == after.lease_token:
            self.check(before.attempt == after.attempt, f"{job}: attempt {after.attempt} without a lease")
        elif before.lease_token and after.lease_token:
            self.check(False, f"{job} was leased to {after.worker} while {before.worker} has it")
        elif after.lease_token:
            self.check(after.attempt == before.attempt + 1, f"{job}: attempt {after.attempt}")
            self.check(not before.paused and before.blockers == 0, f"{job} was leased though it must wait")
            missing = [name for name in self.needs.get(job, ()) if name not in self.succeeded]
            self.check(not missing, f"{job} began before {missing}")
            self._held.setdefault(after.team, {})[job] = (after.gpus, self._clock())
            self.waits.setdefault(job, self._clock())
            self.order.append((self._clock(), after))
        else:
            outcome = outcomes.get((job, before.attempt))
            self.check(outcome, f"{job}: attempt {before.attempt} ended without a record")
            self.ends[job, before.attempt] = (before.lease_token, outcome or "")
            gpus, since_s = self._held.get(after.team, {}).pop(job, (0.0, 0.0))
            self._used.setdefault(after.team, []).append((gpus, since_s, self._clock()))
            if outcome == "EXPIRED":
                self.counted["expiries"] += 1
                self.check_lateness(before)
        if after.lease_token and after.lease_expires_at != before.lease_expires_at:
            self._expiries[job] = (self._outages_s(), self._clock() + self._lease_s)

    def check_lateness(self, row: JobRow) -> None:
        """A lease is taken back in time, unless nobody was there who could."""
        outage_s, expires_s = self._expiries.get(row.id, (0.0, self._clock()))
        late_s = self._clock() - expires_s - (self._outages_s() - outage_s)
        self.check(late_s <= LATE_S, f"the lease of {row.id} ran out {late_s:.1f} s ago")

    def check_leases(self) -> None:
        """No lease is overdue."""
        for row in self._db.jobs.rows.values():
            if row.lease_token:
                self.check_lateness(row)

    def _see_quotas(self, rows: Sequence[JobRow | None]) -> None:
        """Of teams of which something began, or was submitted, in this commit."""
        began = {row.team: row for row in rows if row is not None and row.lease_token and self._is_new(row)}
        for team in began:
            quota = self.quotas.get(team)
            held = sum(gpus for gpus, _ in self._held.get(team, {}).values())
            if quota is not None and quota.max_gpus:
                self.check(
                    held <= quota.max_gpus + 0.001, f"{team} holds {held:.3f} GPUs of {quota.max_gpus}"
                )
            if quota is not None and quota.max_gpu_seconds_per_day:
                used_s = self._used_s(team, self._clock() - SECONDS_LATE_S)
                most_s = quota.max_gpu_seconds_per_day
                self.check(used_s < most_s, f"{team} began more after {used_s:.1f} of {most_s} GPU-seconds")
        for team in {row.team for row in rows if row is not None and row.event_seq == 1}:
            most = self.quotas[team].max_queued_jobs if team in self.quotas else 0
            waiting = sum(
                (row.team, row.event_seq, row.state) == (team, 1, JobState.QUEUED) and row.kind != "batch"
                for row in self._db.jobs.rows.values()
            )
            self.check(not most or waiting <= most, f"{team} has {waiting} jobs waiting of {most}")

    def _is_new(self, row: JobRow) -> bool:
        return self._held.get(row.team, {}).get(row.id, (0.0, -1.0))[1] == self._clock()

    def _used_s(self, team: str, until_s: float) -> float:
        """GPU-seconds of a team by then, of the day that it is now."""
        midnight_s = self._midnight_s if self._clock() >= self._midnight_s else 0.0
        held = [(gpus, since, until_s) for gpus, since in self._held.get(team, {}).values()]
        return sum(
            gpus * max(0.0, min(end, until_s) - max(since, midnight_s))
            for gpus, since, end in (*self._used.get(team, ()), *held)
        )

    def _note(self, before: JobRow | None, after: JobRow) -> None:
        was = before.state if before is not None else "-"
        worker = after.worker if after.lease_token else ""
        line = (
            f"{self._clock():9.3f} {after.id} {after.kind} {was} -> {after.state} "
            f"#{after.attempt} {worker} {after.waiting_reason}"
        )
        self._digest.update(line.encode())
        self.history.append(line)
        self.counted["commits"] += 1

    # -- when all is over

    def at_rest(self) -> None:
        """Nothing is lost, nothing is double, and all has come to its end."""
        rows = self._db.jobs.rows
        for row in rows.values():
            self.check(row.state in FINAL_STATES, f"{row.id} never ended: {row.state} {row.waiting_reason}")
            (self._check_batch if row.kind == "batch" else self._check_attempts)(row)
        made = Counter(row.labels["request"] for row in rows.values() if "request" in row.labels)
        for request, count in made.items():
            self.check(count == 1, f"request {request} made {count} jobs")
            self.check(request not in self._refused, f"request {request} was refused and made a job")
        for request, job in self._acked.items():
            self.check(job in rows and rows[job].labels["request"] == request, f"{job} of {request} is lost")
        self.check(not self._db.ticks.rows, f"ends that were never counted: {self._db.ticks.rows}")
        open_ones = [row for row in self._db.dependencies.rows.values() if not row.settled]
        self.check(not open_ones, f"dependencies that were never settled: {open_ones}")
        visible = Counter(row.job_id for row in self._db.audios.rows.values())
        for job, row in rows.items():
            listed = len(row.result.get("audios", ()))
            self.check(visible[job] == listed <= 1, f"{job} has {visible[job]} audios, its result {listed}")

    def _check_attempts(self, row: JobRow) -> None:
        found = [self._db.attempts.rows.get((row.id, number)) for number in range(1, row.attempt + 1)]
        outcomes = [each.record.outcome for each in found if each is not None]
        self.check(
            len(outcomes) == row.attempt, f"{row.id}: {len(outcomes)} records of {row.attempt} attempts"
        )
        wins = outcomes.count("SUCCEEDED")
        self.check(wins == (row.state is JobState.SUCCEEDED), f"{row.id} is {row.state} and won {wins} times")
        self.check(bool(row.result) == (wins == 1), f"{row.id}: a result without success, or none with it")
        reason = (row.error or {}).get("reason")
        if row.state is JobState.FAILED:
            self.check(reason, f"{row.id} failed, and nothing says why")
        if reason == "DEPENDENCY_FAILED":
            culprit = str(row.error["metadata"]["job"]).rpartition("/")[2] if row.error else ""
            self.check(culprit in self.needs.get(row.id, ()), f"{row.id} was failed by {culprit}")

    def _check_batch(self, batch: JobRow) -> None:
        items = [row.state for row in self._db.jobs.rows.values() if row.parent_id == batch.id]
        self.check(len(items) == batch.items_total, f"{batch.id}: {len(items)} of {batch.items_total} items")
        counts = (batch.items_succeeded, batch.items_failed, batch.items_cancelled)
        true = (
            items.count(JobState.SUCCEEDED),
            items.count(JobState.FAILED),
            items.count(JobState.CANCELLED),
        )
        self.check(counts == true, f"{batch.id} counts {counts}, its items are {true}")
        if batch.state is JobState.FAILED:
            self.check(not true[0], f"{batch.id} failed though items of it did not")
