"""What races are made with, and looks at what they left: on the database itself, past the product."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from services.common.jobs import tasks
from services.common.jobs.model import AudioOutput, Fence, Succeeded
from tests.chaos.history import audit, load


def made(fence: Fence) -> Succeeded:
    """What an attempt brings: of every other job nothing but its end, which takes another way in."""
    if int(hashlib.sha256(fence.job_id.encode()).hexdigest(), 16) % 2:
        return Succeeded()
    return with_artefact(fence)


def with_artefact(fence: Fence) -> Succeeded:
    """An attempt's end with an artefact of its own."""
    sha = hashlib.sha256(f"{fence}".encode()).hexdigest()
    blob = tasks.Blob(key=f"teams/alpha/sha256/{sha[:2]}/{sha}", sha256=sha, size_bytes=1)
    output = AudioOutput(blob, 1.0, 24_000, 1, "flac", "made", "f5", "w", False, "", 1, "v")
    return Succeeded(audios=(output,))


def visible(url: str) -> dict[str, list[str]]:
    """The hashes of what can be seen of each job."""
    found: dict[str, list[str]] = {}
    with psycopg.connect(url) as connection:
        for job, sha in connection.execute("SELECT job_id, sha256 FROM audios WHERE job_id <> ''"):
            found.setdefault(job, []).append(sha)
    return found


def outcomes(url: str) -> dict[tuple[str, int], str]:
    """How each attempt is on record."""
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT job_id, attempt, outcome FROM job_attempts").fetchall()
    return {(job, attempt): outcome for job, attempt, outcome in rows}


def states(url: str) -> dict[str, str]:
    """The state of every job that is no batch."""
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT id, state FROM jobs WHERE kind <> 'batch'").fetchall()
    return dict(rows)


def let_expire(url: str) -> None:
    """Makes every lease one that was not extended in time."""
    with psycopg.connect(url) as connection:
        connection.execute(
            "UPDATE jobs SET lease_expires_at = now() - interval '1 second' WHERE lease_token IS NOT NULL"
        )


@contextmanager
def stalled(url: str, statement: str) -> Iterator[psycopg.Connection[Any]]:
    """Makes a store whose URL names the application ``slow`` stop where ``statement`` asks it to.

    The connection that is yielded holds it there until ``pg_advisory_unlock_all``.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(4712)")
        connection.execute(
            "CREATE FUNCTION stall() RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$ BEGIN"
            " IF current_setting('application_name') = 'slow' THEN"
            " PERFORM pg_advisory_xact_lock_shared(4712); END IF; RETURN true; END $$"
        )
        connection.execute(statement.encode())
        yield connection


def faults(url: str) -> dict[str, list[str]]:
    """What the history shows that must not be."""
    return {rule: found for rule, found in audit(load(url)).items() if found}
