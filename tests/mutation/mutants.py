"""The mutants: what is taken out, and the tests that are to notice."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_SQL = "services/metadata/sql"
_MIGRATIONS = "services/metadata/migrations/sql"
_LEDGER = "tests/integration/metadata/test_ledger.py"
_AGAIN = "tests/integration/metadata/test_run_again.py"
_RACES = "tests/integration/metadata/test_races.py"


@dataclass(frozen=True)
class Edit:
    """Every place in a file where a pattern (verbose off, dot matches newlines) stands, and what comes there.

    ``times`` is how many places there must be: a mutant that no longer applies is no proof.
    """

    path: str
    pattern: str
    by: str
    times: int = 1

    def apply(self, root: Path) -> None:
        """Changes the file under a folder. Errors: LookupError where it does not stand there so often."""
        path = root / self.path
        text, times = re.subn(self.pattern, self.by, path.read_text(), flags=re.DOTALL)
        if times != self.times:
            raise LookupError(f"{self.path}: {self.pattern!r} stands there {times} times, not {self.times}")
        path.write_text(text)


@dataclass(frozen=True)
class Mutant:
    """One guarantee less.

    Args:
        name: for ``--only``.
        without: what is gone.
        edits: how.
        tests: of which one must fail.
    """

    name: str
    without: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]


def _fence(alias: str, times: int = 1) -> Edit:
    pattern = rf"WHERE j\.attempt = ({alias})\.attempt AND j\.lease_token = \1\.lease_token"
    return Edit(f"{_SQL}/leases.sql", pattern, "WHERE true", times)


# The ends that make no rows carry their fence in the update itself.
_FENCE_OF_SUCCESSES = Edit(
    f"{_SQL}/leases.sql",
    r"(WHERE j\.id = e\.job_id) AND j\.attempt = e\.attempt AND j\.lease_token = e\.lease_token",
    r"\1",
)

_STALE = f"{_LEDGER}::test_a_stale_fence_changes_nothing"
_STALE_ROWS = f"{_RACES}::test_a_stale_fence_extends_reports_and_ends_nothing_of_the_attempt_that_followed"
_LOCKED = f"{_RACES}::test_what_another_session_has_locked_is_passed_over_not_waited_for"
_SHARED_OUT = f"{_RACES}::test_two_processes_do_not_share_out_a_quota_twice"
_IDENTICAL = f"{_LEDGER}::test_identical_concurrent_submits_make_one_job"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "fencing",
        "the fence of every write by a worker",
        (_fence("b|e|f", 3), _FENCE_OF_SUCCESSES),
        (_STALE,),
    ),
    Mutant("fence-of-heartbeats", "the fence of heartbeats", (_fence("b"),), (_STALE_ROWS,)),
    Mutant("fence-of-ends", "the fence of ends", (_fence("e"),), (_STALE_ROWS,)),
    Mutant("fence-of-successes", "the fence of ends that make no rows", (_FENCE_OF_SUCCESSES,), (_STALE,)),
    Mutant("fence-of-rows", "the fence of checkpoints and outputs", (_fence("f"),), (_STALE,)),
    Mutant(
        "skip-locked",
        "SKIP LOCKED in the claiming statement",
        (
            Edit(
                f"{_SQL}/leases.sql",
                r"(ORDER BY queue_key LIMIT lane\.count FOR UPDATE) SKIP LOCKED",
                r"\1",
            ),
        ),
        (_LOCKED,),
    ),
    Mutant(
        "skip-locked-of-sweep",
        "SKIP LOCKED in the sweep of expired leases",
        (
            Edit(
                f"{_SQL}/leases.sql",
                r"(lease_expires_at < voxfleet_now\(\)\s+ORDER BY id LIMIT \S+ FOR UPDATE) SKIP LOCKED",
                r"\1",
            ),
        ),
        (_LOCKED,),
    ),
    Mutant(
        "request-id",
        "the uniqueness of request ids",
        (
            Edit(
                f"{_MIGRATIONS}/0001_initial.sql",
                r",\s+PRIMARY KEY \(team, request_id\)",
                "",
            ),
        ),
        (_IDENTICAL,),
    ),
    Mutant(
        "request-body",
        "the comparison of a repeat's body with the first",
        (
            Edit(
                "services/metadata/adapters/catalog.py",
                r"if \(row\.method, row\.fingerprint\) != \(method, fingerprint\):",
                "if False:",
            ),
        ),
        (_IDENTICAL,),
    ),
    Mutant(
        "transition-check",
        "the trigger that refuses illegal transitions",
        (
            Edit(
                f"{_MIGRATIONS}/0002_ledger.sql",
                r"WHEN \(OLD\.state IS DISTINCT FROM NEW\.state AND NOT .*?(EXECUTE FUNCTION refuse_)",
                r"WHEN (false) \1",
            ),
        ),
        (f"{_LEDGER}::test_every_illegal_transition_is_refused_in_sql",),
    ),
    Mutant(
        "quota-lock",
        "the lock of a quota while its GPUs are counted",
        (Edit(f"{_SQL}/leases.sql", r"\n\s+FOR NO KEY UPDATE SKIP LOCKED", ""),),
        (_SHARED_OUT,),
    ),
    Mutant(
        "quota-volatile",
        "the fresh look at what was committed since the claim began",
        (
            Edit(
                f"{_MIGRATIONS}/0002_ledger.sql",
                r"(FUNCTION gpus_held_by\(teams text\[\]\) RETURNS TABLE \([^)]*\)\s+LANGUAGE sql) VOLATILE",
                r"\1 STABLE",
            ),
        ),
        (_SHARED_OUT,),
    ),
    Mutant(
        "quota-of-submits",
        "the lock under which waiting jobs are counted before more are added",
        (
            Edit(
                f"{_SQL}/jobs.sql",
                r"SELECT pg_advisory_xact_lock\(hashtextextended\('voxfleet submits of .*?0\)\)",
                "SELECT %(team)s",
            ),
        ),
        (f"{_RACES}::test_two_submits_at_once_do_not_both_take_the_last_place_in_a_queue",),
    ),
    Mutant(
        "expiry-of-live",
        "the time of expiry: the sweep takes every lease",
        (Edit(f"{_SQL}/leases.sql", r" AND lease_expires_at < voxfleet_now\(\)", ""),),
        (f"{_RACES}::test_a_live_lease_does_not_expire_and_a_heartbeat_keeps_it",),
    ),
    Mutant(
        "tick-deletion",
        "the deletion of what was counted of a batch",
        (
            Edit(
                f"{_SQL}/batches.sql",
                r"DELETE FROM batch_ticks (WHERE ctid = ANY\(ARRAY\(SELECT ctid FROM taken\)\))\s+"
                r"RETURNING (batch_id, succeeded, failed, cancelled)",
                r"SELECT \2 FROM batch_ticks \1",
            ),
        ),
        (f"{_RACES}::test_ends_of_items_are_counted_once_however_many_count",),
    ),
    Mutant(
        "stale-count",
        "the look for what is not yet counted of a batch before it ends",
        (
            Edit(
                f"{_SQL}/batches.sql",
                r" AND NOT EXISTS \(SELECT FROM batch_ticks WHERE batch_id = %\(job_id\)s\)",
                "",
            ),
        ),
        (f"{_AGAIN}::test_a_batch_does_not_end_by_a_count_that_its_retry_has_made_stale",),
    ),
    Mutant(
        "dependency-gate",
        "the condition that what waits for another job is not claimed",
        (
            Edit(
                f"{_SQL}/leases.sql",
                r"(WHERE state = 'QUEUED' AND NOT paused) AND blockers = 0(\s+AND kind = lane\.kind)",
                r"\1\2",
            ),
        ),
        (f"{_RACES}::test_what_waits_for_another_job_is_not_claimed_whoever_asks",),
    ),
    Mutant(
        "event-of-ends",
        "the event of an end that makes rows",
        (
            Edit(
                f"{_SQL}/leases.sql",
                r"(SELECT id, event_seq, team, state, phase, attempt, message, \S+ FROM changed)",
                r"\1 WHERE false",
            ),
        ),
        (f"{_RACES}::test_ends_of_items_are_counted_once_however_many_count",),
    ),
    Mutant(
        "event-of-successes",
        "the event of an end that makes no rows",
        (Edit(f"{_SQL}/leases.sql", r"(attempt, 'done', voxfleet_now\(\) FROM done)", r"\1 WHERE false"),),
        (f"{_LEDGER}::test_watching_resumes_at_a_cursor_without_gap_or_repeat",),
    ),
    Mutant(
        "row-level-security",
        "the policy that a tenant sees one team",
        (
            Edit(
                f"{_MIGRATIONS}/0001_initial.sql",
                r"(POLICY tenant ON %I TO voxfleet_tenant\s+USING) \(team = current_setting\([^)]*\)\)",
                r"\1 (true)",
            ),
        ),
        (f"{_LEDGER}::test_row_level_security_stands_behind_the_checks",),
    ),
)

SHORT = ("fencing", "skip-locked", "request-id", "transition-check")
"""The four that everything else rests on, which every run of the tests tries."""
