"""What a run left behind, and what must be true of it.

The rules are written out here anew, and take nothing from the product but the names of its columns: a
mistake in the product's own table of transitions must not hide itself.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

Row = Mapping[str, Any]

FINAL = frozenset({"SUCCEEDED", "FAILED", "CANCELLED"})
_LEGAL = frozenset(
    {
        ("QUEUED", "RUNNING"),
        ("QUEUED", "CANCELLED"),
        ("QUEUED", "FAILED"),
        ("RUNNING", "QUEUED"),
        ("RUNNING", "CANCELLING"),
        ("RUNNING", "SUCCEEDED"),
        ("RUNNING", "FAILED"),
        ("CANCELLING", "CANCELLED"),
        ("CANCELLING", "SUCCEEDED"),
        ("CANCELLING", "FAILED"),
        ("FAILED", "QUEUED"),
        ("CANCELLED", "QUEUED"),
    }
)
_LEGAL_OF_BATCH = _LEGAL | {("QUEUED", "SUCCEEDED"), ("SUCCEEDED", "QUEUED")}
# In which state an attempt of each outcome leaves its job.
_LEAVES = {
    "SUCCEEDED": {"SUCCEEDED"},
    "FAILED": {"QUEUED", "FAILED"},
    "EXPIRED": {"QUEUED", "FAILED"},
    "RELEASED": {"QUEUED"},
    "CANCELLED": {"CANCELLED"},
}
_EXAMPLES = 5


@dataclass(frozen=True)
class History:
    """The rows of a run, and what workers and clients noted of it.

    Args:
        jobs: every row of jobs.
        events: of job_events, by job and sequence.
        attempts: of job_attempts.
        audios: outputs: id, job_id, key, sha256.
        ticks: what no batch has counted yet.
        journal: what workers noted, in the order of each.
        acknowledged: the job's name that each request id was answered with.
        watched: of each watched job's name the events that came: (sequence, state).
        missing_bytes: keys of artefacts whose bytes are not in the store, or are others.
        label: under which a job carries its request id.
    """

    jobs: Sequence[Row]
    events: Sequence[Row]
    attempts: Sequence[Row]
    audios: Sequence[Row]
    ticks: int = 0
    journal: Sequence[Row] = ()
    acknowledged: Mapping[str, str] = field(default_factory=dict)
    watched: Mapping[str, Sequence[tuple[int, str]]] = field(default_factory=dict)
    missing_bytes: Sequence[str] = ()
    label: str = "chaos"


RULES = (
    "lost",
    "duplicated",
    "illegal_transitions",
    "event_gaps",
    "watch_gaps",
    "stale_commits",
    "attempt_gaps",
    "batch_miscounts",
    "dependency_violations",
)
"""What must not be; each is counted."""


def audit(history: History) -> dict[str, list[str]]:
    """What is wrong with a history, in words, by rule; a list for every one of :data:`RULES`."""
    wrong: dict[str, list[str]] = {rule: [] for rule in RULES}
    events: dict[str, list[Row]] = defaultdict(list)
    attempts: dict[str, list[Row]] = defaultdict(list)
    audios: dict[str, list[Row]] = defaultdict(list)
    for rows, by_job in ((history.events, events), (history.attempts, attempts), (history.audios, audios)):
        for row in rows:
            by_job[row["job_id"]].append(row)
    jobs = {job["id"]: job for job in history.jobs}
    for job in history.jobs:
        found = sorted(events[job["id"]], key=lambda event: int(event["seq"]))
        wrong["event_gaps"] += _event_gaps(job, found)
        wrong["illegal_transitions"] += _transitions(job, found)
        wrong["attempt_gaps"] += _attempt_gaps(job, found, attempts[job["id"]])
        wrong["lost"] += _unfinished(job)
        if job["kind"] != "batch":
            lost, twice = _artefacts(job, attempts[job["id"]], audios[job["id"]])
            wrong["lost"] += lost
            wrong["duplicated"] += twice
    for job_id in (events.keys() | attempts.keys() | audios.keys()) - jobs.keys():
        wrong["lost"].append(f"{job_id}: the history names a job that is gone")
    wrong["lost"] += [f"{key}: its bytes are not in the store" for key in history.missing_bytes]
    wrong["batch_miscounts"] += _batches(history)
    wrong["dependency_violations"] += _dependencies(jobs, events)
    _requests(history, jobs, wrong)
    _journal(history, attempts, wrong)
    wrong["watch_gaps"] += _watched(history, events)
    return wrong


def _event_gaps(job: Row, events: Sequence[Row]) -> Iterator[str]:
    numbers = [event["seq"] for event in events]
    if numbers != list(range(1, job["event_seq"] + 1)):
        yield f"{job['id']}: {job['event_seq']} events by its row, but {numbers}"
    if events and events[-1]["state"] != job["state"]:
        yield f"{job['id']}: {job['state']}, but its last event says {events[-1]['state']}"


def _transitions(job: Row, events: Sequence[Row]) -> Iterator[str]:
    legal = _LEGAL_OF_BATCH if job["kind"] == "batch" else _LEGAL
    if events and events[0]["state"] not in ("QUEUED", "FAILED"):
        yield f"{job['id']}: born {events[0]['state']}"
    for before, after in itertools.pairwise(events):
        change = (before["state"], after["state"])
        if change[0] == change[1]:
            # A phase within an attempt is the only event that is no change of state.
            phase = change[0] in ("RUNNING", "CANCELLING") and before["attempt"] == after["attempt"]
            if not phase:
                yield f"{job['id']}: {change[0]} twice (event {after['seq']}, attempt {after['attempt']})"
        elif change not in legal:
            yield f"{job['id']}: {change[0]} -> {change[1]} (event {after['seq']})"


def _attempt_gaps(job: Row, events: Sequence[Row], attempts: Sequence[Row]) -> Iterator[str]:
    """Every attempt was begun once, in order, and ended once, in the state that its outcome leaves."""
    states = [event["state"] for event in events]
    begun = [
        event["attempt"]
        for before, event in zip([None, *states], events, strict=False)
        if event["state"] == "RUNNING" and before == "QUEUED" and job["kind"] != "batch"
    ]
    numbers = sorted(attempt["attempt"] for attempt in attempts)
    ended = job["state"] in FINAL
    expected = list(range(1, job["attempt"] + 1))
    if begun != expected or (ended and numbers != expected):
        yield f"{job['id']}: attempt {job['attempt']}, begun {begun}, ended {numbers}"
    after = {
        event["attempt"]: event["state"]
        for before, event in itertools.pairwise(events)
        if before["state"] in ("RUNNING", "CANCELLING") and event["state"] not in ("RUNNING", "CANCELLING")
    }
    for attempt in attempts:
        left = after.get(attempt["attempt"])
        if left not in _LEAVES.get(attempt["outcome"], set()):
            yield f"{job['id']}: attempt {attempt['attempt']} ended {attempt['outcome']}, the job {left}"


def _unfinished(job: Row) -> Iterator[str]:
    if job["state"] not in FINAL:
        yield (
            f"{job['id']}: {job['kind']} is {job['state']} still (attempt {job['attempt']}, "
            f"paused {job['paused']}, blockers {job['blockers']}, waits for {job['waiting_reason']!r})"
        )


def _artefacts(job: Row, attempts: Sequence[Row], audios: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Exactly one visible artefact of what succeeded, by one attempt; none of anything else."""
    lost, twice = [], []
    names = [f"teams/{job['team']}/audios/{audio['id']}" for audio in audios]
    successes = sum(attempt["outcome"] == "SUCCEEDED" for attempt in attempts)
    if job["state"] == "SUCCEEDED":
        if not audios:
            lost.append(f"{job['id']}: succeeded, and there is nothing of it")
        if (job["result"] or {}).get("audios", []) != names[:1]:
            lost.append(f"{job['id']}: its result names {job['result']}, there is {names}")
    elif audios:
        twice.append(f"{job['id']}: is {job['state']}, and {names} can be seen")
    if len(audios) > 1:
        twice.append(f"{job['id']}: {len(audios)} artefacts")
    if successes > 1:
        twice.append(f"{job['id']}: {successes} attempts succeeded")
    return lost, twice


def _batches(history: History) -> Iterator[str]:
    items: dict[str, Counter[str]] = defaultdict(Counter)
    for job in history.jobs:
        if job["parent_id"]:
            items[job["parent_id"]][job["state"]] += 1
    if history.ticks:
        yield f"{history.ticks} ends of items were never counted"
    for batch in (job for job in history.jobs if job["kind"] == "batch"):
        found = items[batch["id"]]
        counted = {state: batch[f"items_{state.lower()}"] for state in FINAL}
        actual = {state: found[state] for state in FINAL}
        if counted != actual or batch["items_total"] != found.total():
            yield f"{batch['id']}: counts {counted} of {batch['items_total']}, there are {dict(found)}"
        if batch["state"] == "FAILED" and found["SUCCEEDED"]:
            yield f"{batch['id']}: FAILED with {found['SUCCEEDED']} good items"
        if batch["state"] == "SUCCEEDED" and not found["SUCCEEDED"]:
            yield f"{batch['id']}: SUCCEEDED without a good item"


def _dependencies(jobs: Mapping[str, Row], events: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """What waits for a job begins after that has succeeded (a batch by its items: it is never leased)."""
    items: dict[str, list[str]] = defaultdict(list)
    for job in jobs.values():
        if job["parent_id"]:
            items[job["parent_id"]].append(job["id"])
    for job in jobs.values():
        for name in (job["spec"] or {}).get("depends_on", []):
            on_id = name.rpartition("/")[2]
            done = [event["at"] for event in events[on_id] if event["state"] == "SUCCEEDED"]
            for job_id in items[job["id"]] if job["kind"] == "batch" else [job["id"]]:
                starts = [event["at"] for event in events[job_id] if event["state"] == "RUNNING"]
                if starts and (not done or min(starts) < min(done)):
                    yield f"{job_id}: began before {on_id}, on which it depends, had succeeded"


def _requests(history: History, jobs: Mapping[str, Row], wrong: Mapping[str, list[str]]) -> None:
    """A request that was answered has its one job; none has two."""
    made: dict[str, list[str]] = defaultdict(list)
    for job in history.jobs:
        if request_id := (job["labels"] or {}).get(history.label):
            made[request_id].append(job["id"])
    for request_id, found in made.items():
        if len(found) > 1:
            wrong["duplicated"].append(f"request {request_id} made {found}")
    for request_id, name in history.acknowledged.items():
        if name.rpartition("/")[2] not in jobs:
            wrong["lost"].append(f"request {request_id} was answered with {name}, which is gone")


def _journal(history: History, attempts: Mapping[str, Sequence[Row]], wrong: Mapping[str, list[str]]) -> None:
    """The ledger kept what it told workers: what was committed is, what was refused is not."""
    outcomes = {(row["job_id"], row["attempt"]): row["outcome"] for rows in attempts.values() for row in rows}
    begun: dict[tuple[str, int], set[str]] = defaultdict(set)
    for line in history.journal:
        key = (line["job"], line["attempt"])
        if line["what"] == "begun":
            begun[key].add(line["worker"])
        elif line["what"] == "stale accepted":
            wrong["stale_commits"].append(f"{key}: ended a second time, and that was accepted")
        elif line["what"] == "ended" and key not in outcomes:
            wrong["lost"].append(f"{key}: its end was accepted, and there is no record of it")
        elif line["what"] == "ended" and line["how"] == "succeeded" and outcomes[key] != "SUCCEEDED":
            wrong["lost"].append(f"{key}: its commit was accepted, and it is on record as {outcomes[key]}")
    for key, workers in begun.items():
        if len(workers) > 1:
            wrong["duplicated"].append(f"{key}: handed out to {sorted(workers)}")


def _watched(history: History, events: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """A watcher saw every event once and in order, as far as it came."""
    for name, seen in history.watched.items():
        rows = sorted(events[name.rpartition("/")[2]], key=lambda event: int(event["seq"]))
        expected = [(event["seq"], event["state"]) for event in rows]
        if list(seen) != expected[: len(seen)]:
            yield f"{name}: a watcher saw {list(seen)}, the events are {expected}"


def load(url: str) -> History:
    """Reads the rows of a database."""
    with psycopg.connect(url, row_factory=dict_row) as connection:

        def rows(query: str) -> list[Row]:
            return list(connection.execute(query.encode()))

        return History(
            jobs=rows("SELECT * FROM jobs ORDER BY seq"),
            events=rows("SELECT job_id, seq, state, phase, attempt, at FROM job_events"),
            attempts=rows("SELECT job_id, attempt, worker, outcome FROM job_attempts"),
            audios=rows(
                "SELECT a.id, a.job_id, f.key, f.sha256 FROM audios AS a JOIN artifacts AS f"
                " ON (f.team, f.sha256) = (a.team, a.sha256) WHERE a.job_id <> '' ORDER BY a.created_at"
            ),
            ticks=int(rows("SELECT count(*) AS n FROM batch_ticks")[0]["n"]),
        )


def read_journals(paths: Iterable[Path]) -> list[Row]:
    """What workers noted; the last line of one that was killed may be cut."""
    found: list[Row] = []
    for path in paths:
        for line in path.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found


def examples(wrong: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """A few of each kind, for people."""
    for rule, found in wrong.items():
        for text in found[:_EXAMPLES]:
            yield f"{rule}: {text}"
        if len(found) > _EXAMPLES:
            yield f"{rule}: and {len(found) - _EXAMPLES} more"
