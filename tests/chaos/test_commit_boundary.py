"""Processes die around a commit, before and after each of its steps: one artefact becomes visible, never two.

A worker stores its bytes (the PUT), then asks metadata to commit (one transaction), then hears the answer.
Either side is killed at each place: the worker by its own hand, metadata while a lock of the test's own holds
its transaction there.
"""

import contextlib
import signal
from collections.abc import Iterator

import grpc
import psycopg
import pytest

from services.common.names import new_id
from tests.chaos.arena import SECOND_METADATA, Arena, ArenaSettings, running_arena
from tests.chaos.clients import Seen
from tests.chaos.history import FINAL, read_journals
from tests.chaos.ledger import judge
from tests.chaos.looks import outcomes, visible
from tests.polling import until
from voxfleet.v1 import synthesis_pb2, synthesis_pb2_grpc
from voxfleet.v1.job_pb2 import Job

LEASE_S = 2.0
LOCK = 4714
HELD = """
CREATE FUNCTION hold_commit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_advisory_xact_lock_shared(4714); RETURN NULL; END $$;
"""
IN_THE_TRANSACTION = "CREATE TRIGGER hold AFTER INSERT ON audios FOR EACH ROW EXECUTE FUNCTION hold_commit()"
AT_THE_COMMIT = (
    "CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON audios DEFERRABLE INITIALLY DEFERRED"
    " FOR EACH ROW EXECUTE FUNCTION hold_commit()"
)


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    settings = ArenaSettings(workers=2, lease_s=LEASE_S, pace_s=0.1)
    with running_arena(tmp_path_factory.mktemp("boundary") / "home", settings) as found:
        yield found


def submit(arena: Arena) -> str:
    """A conversion, repeated until it is answered; returns its job's id."""
    request = synthesis_pb2.ConvertAudioRequest(
        parent="teams/alpha",
        audios=[arena.things.audio],
        voice=arena.things.converting_voice,
        request_id=new_id(),
    )
    with grpc.insecure_channel(arena.stack.endpoint) as channel:
        stub = synthesis_pb2_grpc.SynthesisServiceStub(channel)
        answers: list[Job] = []

        def is_answered() -> bool:
            try:
                answers.append(stub.ConvertAudio(request, timeout=5, metadata=arena.headers))
            except grpc.RpcError as error:
                # The test before may have left metadata on its way up.
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
            return bool(answers)

        until(is_answered, timeout_s=60.0)
    return answers[0].name.rpartition("/")[2]


def state(arena: Arena, job_id: str) -> str:
    with psycopg.connect(arena.url) as connection:
        row = connection.execute("SELECT state FROM jobs WHERE id = %s", [job_id]).fetchone()
    assert row is not None
    return str(row[0])


def ends(arena: Arena, job_id: str) -> list[str]:
    """How its attempts ended, in order."""
    return [how for (job, _), how in sorted(outcomes(arena.url).items()) if job == job_id]


def stored(arena: Arena) -> set[str]:
    """Keys of what is in the object store."""
    return {blob.key for blob in arena.store.list_prefix("teams/alpha/")}


def is_as_if_nothing_had_happened(arena: Arena, job_id: str) -> None:
    """The job comes to its end with one visible artefact, whose bytes are there; the history is sound."""
    until(lambda: state(arena, job_id) in FINAL, timeout_s=60.0)
    assert state(arena, job_id) == "SUCCEEDED"
    assert len(visible(arena.url)[job_id]) == 1
    wrong, _ = judge(arena, Seen())
    assert {rule: found for rule, found in wrong.items() if found} == {}


@pytest.mark.parametrize(
    ("point", "expected", "bytes_left"),
    [
        ("before-put", [["EXPIRED", "SUCCEEDED"]], 1),
        # The first attempt's bytes lie there, and no row names them.
        ("after-put", [["EXPIRED", "SUCCEEDED"]], 2),
        ("in-commit", [["EXPIRED", "SUCCEEDED"], ["SUCCEEDED"]], None),
        ("after-commit", [["SUCCEEDED"]], 1),
    ],
)
def test_a_worker_dies(arena, point, expected, bytes_left):
    before = stored(arena)
    deaths = sum(arena.child(worker.name).restarts for worker in arena.workers)
    for worker in arena.workers:
        worker.fuse.write_text(point)
    job_id = submit(arena)
    until(lambda: not all(worker.fuse.exists() for worker in arena.workers), timeout_s=60.0)
    # Well before the lease is over: who takes the job next is to live.
    for worker in arena.workers:
        worker.fuse.unlink(missing_ok=True)
    until(lambda: sum(arena.child(worker.name).restarts for worker in arena.workers) == deaths + 1)
    is_as_if_nothing_had_happened(arena, job_id)
    assert ends(arena, job_id) in expected
    assert bytes_left in (None, len(stored(arena) - before))


@contextlib.contextmanager
def held_commit(arena: Arena, where: str) -> Iterator[psycopg.Connection[tuple[int]]]:
    """Holds whoever makes an artefact visible at a place, until the lock is let go."""
    with psycopg.connect(arena.url, autocommit=True) as connection:
        connection.execute(HELD)
        connection.execute(where)
        connection.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        try:
            yield connection
        finally:
            connection.execute("SELECT pg_advisory_unlock_all()")
            connection.execute("DROP FUNCTION hold_commit CASCADE")


def waiting(connection: psycopg.Connection[tuple[int]]) -> list[int]:
    """The backends that stand before the lock."""
    found = connection.execute(
        "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = %s", [LOCK]
    )
    return [pid for (pid,) in found.fetchall()]


def signal_metadata(arena: Arena, number: signal.Signals) -> None:
    for name in ("metadata", SECOND_METADATA):
        arena.child(name).kill(number)


def test_metadata_dies_before_its_transaction_has_committed(arena):
    with held_commit(arena, IN_THE_TRANSACTION) as connection:
        job_id = submit(arena)
        until(lambda: bool(waiting(connection)))
        (backend,) = waiting(connection)
        signal_metadata(arena, signal.SIGKILL)
        connection.execute("SELECT pg_advisory_unlock_all()")
        gone = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
        until(lambda: connection.execute(gone, [backend]).fetchone() == (0,))
    # What the dead process had written is not there; the worker asks again, or another attempt does.
    is_as_if_nothing_had_happened(arena, job_id)
    assert ends(arena, job_id) in (["SUCCEEDED"], ["EXPIRED", "SUCCEEDED"])


def test_metadata_dies_after_its_transaction_and_before_its_answer(arena):
    with held_commit(arena, AT_THE_COMMIT) as connection:
        job_id = submit(arena)
        until(lambda: bool(waiting(connection)))
        # It has sent its COMMIT, and will never read that it was done.
        signal_metadata(arena, signal.SIGSTOP)
        assert job_id not in visible(arena.url)
        connection.execute("SELECT pg_advisory_unlock_all()")
        until(lambda: job_id in visible(arena.url))
        signal_metadata(arena, signal.SIGKILL)
    is_as_if_nothing_had_happened(arena, job_id)
    assert ends(arena, job_id) == ["SUCCEEDED"]
    # The worker, which was not told, asks again, and hears that its lease is gone.
    until(lambda: refusals(arena, job_id)[-1:] == ["LEASE_LOST"])


def refusals(arena: Arena, job_id: str) -> list[str]:
    """Why the job's workers were refused, or not answered."""
    return [
        str(line["reason"])
        for line in read_journals(arena.journals())
        if (line["job"], line["what"]) == (job_id, "refused")
    ]
