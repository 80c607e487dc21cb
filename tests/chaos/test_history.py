"""The audit finds what is wrong: a sound history is damaged in every way that it is to notice."""

import copy
import datetime as dt
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.history import RULES, History, audit, read_journals

Rows = list[dict[str, Any]]
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def job(name: str, states: str, **facts: Any) -> tuple[dict[str, Any], Rows]:
    """A row and its events, from words such as ``QUEUED RUNNING/1``: state and attempt."""
    events: Rows = []
    for seq, word in enumerate(states.split(), 1):
        state, _, attempt = word.partition("/")
        at = NOW + dt.timedelta(seconds=facts.get("began_s", 0) + seq)
        number = int(attempt or (events[-1]["attempt"] if events else 0))
        events.append({"job_id": name, "seq": seq, "state": state, "attempt": number, "at": at})
    row = {
        "id": name,
        "team": "alpha",
        "kind": "f5.item",
        "state": events[-1]["state"],
        "attempt": events[-1]["attempt"],
        "event_seq": len(events),
        "paused": False,
        "blockers": 0,
        "waiting_reason": "",
        "parent_id": None,
        "labels": {},
        "spec": {},
        "result": {},
    }
    return row | facts, events


def attempt(job_id: str, number: int, outcome: str) -> dict[str, Any]:
    return {"job_id": job_id, "attempt": number, "worker": "w1", "outcome": outcome}


def noted(what: str, job_id: str, number: int, worker: str = "w1", **facts: str) -> dict[str, Any]:
    return {"what": what, "job": job_id, "attempt": number, "worker": worker, **facts}


def sound() -> History:
    """A batch whose first item came through at its second attempt, and a job that waited for the batch."""
    made = [
        job(
            "b1",
            "QUEUED RUNNING SUCCEEDED",
            kind="batch",
            labels={"chaos": "r1"},
            items_total=2,
            items_succeeded=1,
            items_failed=0,
            items_cancelled=1,
        ),
        job(
            "i1",
            "QUEUED RUNNING/1 RUNNING QUEUED RUNNING/2 SUCCEEDED",
            parent_id="b1",
            result={"audios": ["teams/alpha/audios/a1"]},
        ),
        job("i2", "QUEUED CANCELLED", parent_id="b1"),
        job(
            "j3",
            "QUEUED RUNNING/1 SUCCEEDED",
            began_s=60,
            labels={"chaos": "r3"},
            spec={"depends_on": ["teams/alpha/jobs/b1"]},
            result={"audios": ["teams/alpha/audios/a3"]},
        ),
    ]
    return History(
        jobs=[row for row, _ in made],
        events=[event for _, events in made for event in events],
        attempts=[attempt("i1", 1, "EXPIRED"), attempt("i1", 2, "SUCCEEDED"), attempt("j3", 1, "SUCCEEDED")],
        audios=[
            {"id": f"a{n}", "job_id": of, "key": f"k{n}", "sha256": ""} for n, of in ((1, "i1"), (3, "j3"))
        ],
        journal=[
            noted("begun", "i1", 1),
            noted("begun", "i1", 2),
            noted("ended", "i1", 2, how="succeeded"),
            noted("stale refused", "i1", 1),
        ],
        acknowledged={"r1": "teams/alpha/jobs/b1", "r3": "teams/alpha/jobs/j3"},
        watched={"teams/alpha/jobs/j3": [(1, "QUEUED"), (2, "RUNNING")]},
    )


def rows(found: History, kind: str) -> Rows:
    return getattr(found, kind)  # type: ignore[no-any-return]


def of(found: History, kind: str, **facts: Any) -> dict[str, Any]:
    """The one row that has these facts."""
    (row,) = (row for row in rows(found, kind) if facts.items() <= row.items())
    return row


def change(kind: str, which: dict[str, Any], **facts: Any) -> Callable[[History], None]:
    return lambda found: of(found, kind, **which).update(facts)


def remove(kind: str, **which: Any) -> Callable[[History], None]:
    return lambda found: rows(found, kind).remove(of(found, kind, **which))


def add(kind: str, row: dict[str, Any]) -> Callable[[History], None]:
    return lambda found: rows(found, kind).append(row)


def reorder_watch(found: History) -> None:
    found.watched["teams/alpha/jobs/j3"][:] = [(2, "RUNNING"), (1, "QUEUED")]  # type: ignore[index]


def miss_an_event(found: History) -> None:
    found.watched["teams/alpha/jobs/j3"][:] = [(2, "RUNNING")]  # type: ignore[index]


DAMAGES = {
    "a job that never ended": (change("jobs", {"id": "i2"}, state="QUEUED"), "lost"),
    "a job that is gone": (remove("jobs", id="j3"), "lost"),
    "a success without an artefact": (remove("audios", id="a1"), "lost"),
    "an answered end without record": (add("journal", noted("ended", "i2", 1, how="failed")), "lost"),
    "an answered commit that was undone": (
        change("journal", {"what": "ended"}, attempt=1),
        "lost",
    ),
    "two artefacts of one job": (
        add("audios", {"id": "a4", "job_id": "j3", "key": "k4", "sha256": ""}),
        "duplicated",
    ),
    "an artefact of a cancelled job": (
        add("audios", {"id": "a4", "job_id": "i2", "key": "k4", "sha256": ""}),
        "duplicated",
    ),
    "two attempts that succeeded": (
        change("attempts", {"outcome": "EXPIRED"}, outcome="SUCCEEDED"),
        "duplicated",
    ),
    "a request that made two jobs": (change("jobs", {"id": "i2"}, labels={"chaos": "r3"}), "duplicated"),
    "an attempt that two workers were given": (
        add("journal", noted("begun", "i1", 2, worker="w2")),
        "duplicated",
    ),
    "a final state that was left": (
        change("events", {"job_id": "i1", "seq": 4}, state="SUCCEEDED"),
        "illegal_transitions",
    ),
    "a state twice": (change("events", {"job_id": "i1", "seq": 3}, attempt=2), "illegal_transitions"),
    "born in the middle": (
        change("events", {"job_id": "i2", "seq": 1}, state="RUNNING"),
        "illegal_transitions",
    ),
    "an event that is missing": (remove("events", job_id="i1", seq=3), "event_gaps"),
    "a change without an event": (change("jobs", {"id": "i1"}, event_seq=7), "event_gaps"),
    "an attempt that is not on record": (remove("attempts", job_id="i1", attempt=1), "attempt_gaps"),
    "an outcome that fits no change": (
        change("attempts", {"outcome": "EXPIRED"}, outcome="CANCELLED"),
        "attempt_gaps",
    ),
    "a count that is off": (change("jobs", {"id": "b1"}, items_succeeded=2), "batch_miscounts"),
    "a batch that failed with a good item": (change("jobs", {"id": "b1"}, state="FAILED"), "batch_miscounts"),
    "a start before what it waited for": (
        change("events", {"job_id": "j3", "seq": 2}, at=NOW),
        "dependency_violations",
    ),
    "a stale commit that was taken": (
        change("journal", {"what": "stale refused"}, what="stale accepted"),
        "stale_commits",
    ),
    "events out of order": (reorder_watch, "watch_gaps"),
    "an event that a watcher missed": (miss_an_event, "watch_gaps"),
}


def test_a_sound_history_is_found_sound():
    assert audit(sound()) == {rule: [] for rule in RULES}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found(name):
    damage, rule = DAMAGES[name]
    found = copy.deepcopy(sound())
    damage(found)
    assert audit(found)[rule], name


def test_what_is_counted_apart_from_rows_is_found():
    assert audit(replace(sound(), ticks=3))["batch_miscounts"]
    assert audit(replace(sound(), missing_bytes=["k1"]))["lost"]


def test_every_rule_can_be_broken():
    assert {rule for _, rule in DAMAGES.values()} == set(RULES)


def test_the_last_line_of_a_killed_worker_may_be_cut(tmp_path):
    path = tmp_path / "journal-w0.jsonl"
    path.write_text('{"what": "begun"}\n{"what": "en')
    assert read_journals([path]) == [{"what": "begun"}]
