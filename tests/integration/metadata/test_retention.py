"""Finished jobs go by policy: when, with what, in which steps, and what is never lost on the way."""

import asyncio
import datetime as dt
import gzip
import json
import uuid
from contextlib import asynccontextmanager

import pytest

from services.common.artifacts.minio_store import MinioArtifactStore
from services.common.errors import Reason, VoxfleetError, unavailable
from services.common.jobs.model import Succeeded
from services.metadata.adapters.statements import SQL
from services.metadata.app.feed import JobFeed
from services.metadata.app.jobs import Jobs
from services.metadata.model.jobs import JobState
from services.metadata.model.retention import Category, RetentionSettings, first_id_at
from tests.integration.metadata.keeping import CountedStore, Keeping

JOB_TABLES = ("jobs", "job_attempts", "job_events", "job_checkpoints", "job_dependencies", "retired_batches")


@pytest.fixture
async def keeping(fresh_database, template_database, s3_settings):
    # A bucket of its own: a sweep looks at all there is.
    artifacts = MinioArtifactStore(s3_settings.model_copy(update={"bucket": f"t-{uuid.uuid4().hex[:16]}"}))
    artifacts.ensure_bucket()
    found = Keeping(fresh_database(template_database), artifacts)
    await found.begin()
    yield found
    await found.close()


def archived(keeping, team="alpha"):
    """Every archived line, by the id of its job."""
    lines = {}
    for key in keeping.stored(f"teams/{team}/archive/jobs/"):
        for line in gzip.decompress(keeping.artifacts.get_bytes(key)).decode().splitlines():
            found = json.loads(line)
            lines.setdefault(found["job"]["id"], []).append(found)
    return lines


async def test_a_finished_job_goes_after_its_time_and_not_a_second_before(keeping):
    job = await keeping.finished("rvc.train", checkpoint=b"weights")
    other = await keeping.finished(team="beta")
    keeping.clock.move(days=30, s=-1)
    report = await keeping.retention.sweep()
    assert report.names(Category.JOBS) == ()
    assert keeping.count("jobs") == 2

    keeping.clock.move(s=1)
    report = await keeping.retention.sweep()
    assert set(report.names(Category.JOBS)) == {f"teams/alpha/jobs/{job}", f"teams/beta/jobs/{other}"}
    assert [keeping.count(table) for table in JOB_TABLES] == [0] * len(JOB_TABLES)
    assert not keeping.stored("teams/alpha/work/")

    (line,) = archived(keeping)[job]
    assert (line["job"]["state"], line["job"]["team"], line["job"]["spec"]) == (
        "SUCCEEDED",
        "alpha",
        {"a": "b"},
    )
    assert [attempt["outcome"] for attempt in line["attempts"]] == ["SUCCEEDED"]
    assert [event["state"] for event in line["events"]] == ["QUEUED", "RUNNING", "SUCCEEDED"]
    assert line["checkpoints"][0]["size_bytes"] == len(b"weights")
    assert "lease_token" not in line["job"]
    # Of each team under its own prefix, by the day on which the job ended.
    (key,) = keeping.stored("teams/beta/archive/")
    assert key.startswith(f"teams/beta/archive/jobs/{keeping.clock.start.date().isoformat()}/")
    assert archived(keeping, "beta").keys() == {other}


async def test_the_policy_says_what_becomes_of_them(keeping):
    await keeping.finished()
    keeping.clock.move(days=400)
    kept = keeping.make(settings=RetentionSettings(policy="keep"))
    assert (await kept.plan()).names(Category.JOBS) == (await kept.sweep()).names(Category.JOBS) == ()
    deleting = keeping.make(settings=RetentionSettings(policy="delete"))
    assert len((await deleting.sweep()).names(Category.JOBS)) == 1
    assert keeping.count("jobs") == 0
    assert not archived(keeping)


async def test_what_has_not_ended_is_waited_for_or_not_added_up_stays(keeping):
    waiting = await keeping.add()
    waited_for = await keeping.add(kind="rvc.train")
    dependent = await keeping.add(kind="rvc.train", depends_on=(waited_for,))
    await keeping.work.succeed((await keeping.start("rvc.train")), Succeeded())
    keeping.clock.move(days=60)
    running = await keeping.start()
    assert (await keeping.retention.plan()).names(Category.JOBS) == ()
    await keeping.retention.sweep()
    assert {row[0] for row in keeping.sql("SELECT id FROM jobs")} == {waiting, waited_for, dependent}
    assert running.job_id == waiting

    keeping.sql("DELETE FROM job_dependencies")  # as the ledger does when it lets the dependent go
    keeping.sql("UPDATE watermarks SET at = %s WHERE name = 'usage'", keeping.clock.start)
    keeping.sql("UPDATE jobs SET ended_at = ended_at + interval '1 second' WHERE id = %s", waited_for)
    assert (await keeping.retention.sweep()).names(Category.JOBS) == ()
    keeping.sql("UPDATE watermarks SET at = '9999-01-01' WHERE name = 'usage'")
    assert (await keeping.retention.sweep()).names(Category.JOBS) == (f"teams/alpha/jobs/{waited_for}",)


async def test_a_batch_of_5000_goes_in_small_transactions(keeping):
    batch = await keeping.batch(5000)
    other = await keeping.batch(3)
    keeping.clock.move(days=29)
    young = await keeping.batch(2)
    keeping.clock.move(days=1)
    counted = CountedStore(keeping.store)
    retention = keeping.make(store=counted, settings=RetentionSettings(rows=400))
    report = await retention.sweep()
    assert set(report.names(Category.JOBS)) == {f"teams/alpha/jobs/{name}" for name in (batch, other)}
    assert max(counted.deleted) <= 400
    assert sum(counted.deleted) >= 5000 * 5
    assert keeping.count("jobs") == 3
    assert keeping.count("retired_batches") == 0
    assert {row[0] for row in keeping.sql("SELECT coalesce(parent_id, id) FROM jobs")} == {young}
    lines = archived(keeping)
    items = [line for found in lines.values() for line in found if line["job"].get("parent_id") == batch]
    assert sorted(line["job"]["item_index"] for line in items) == list(range(5000))
    assert all(len(line["events"]) == 3 and len(line["attempts"]) == 1 for line in items)
    assert lines[batch][0]["job"]["items_total"] == 5000


class Failing:
    """A store of bytes whose calls a test can make fail, or do something first."""

    def __init__(self, stored):
        self._stored = stored
        self.before = {}

    def __getattr__(self, name):
        inner = getattr(self._stored, name)
        if name not in self.before:
            return inner

        async def call(*args):
            await self.before[name](*args)
            return await inner(*args)

        return call


class CrashError(Exception):
    """The process dies here."""


class Crashing:
    """The store for a process that dies instead of deleting jobs, once it did so ``left`` times."""

    def __init__(self, store):
        self._store = store
        self.left = 0

    @asynccontextmanager
    async def service(self):
        async with self._store.service() as tx:
            delete = tx.delete_finished

            async def delete_or_die(part):
                if not self.left:
                    raise CrashError
                self.left -= 1
                return await delete(part)

            tx.delete_finished = delete_or_die
            yield tx


async def test_a_crash_between_archive_and_delete_repeats_harmlessly(keeping):
    jobs = {await keeping.finished() for _ in range(5)}
    batch = await keeping.batch(40)
    keeping.clock.move(days=31)

    crashing = Crashing(keeping.store)
    retention = keeping.make(store=crashing, settings=RetentionSettings(rows=60))
    with pytest.raises(CrashError):
        await retention.sweep()
    assert keeping.count("jobs") == 46  # nothing is gone, and the first part is written
    before = keeping.stored("teams/alpha/archive/")
    assert before
    crashing.left = 2  # the jobs, the batch's own row with them; then one part of its items
    with pytest.raises(CrashError):
        await retention.sweep()
    assert 0 < keeping.count("jobs") < 40
    assert keeping.sql("SELECT id FROM retired_batches") == [(batch,)]
    assert (await keeping.retention.plan()).names(Category.JOBS) == (f"teams/alpha/jobs/{batch}",)

    crashing.left = 1000
    assert (await retention.sweep()).names(Category.JOBS) == (f"teams/alpha/jobs/{batch}",)
    assert [keeping.count(table) for table in JOB_TABLES] == [0] * len(JOB_TABLES)
    lines = archived(keeping)
    assert len(lines) == 46
    assert jobs | {batch} <= lines.keys()
    # What was written twice has the same name twice: there is one of each.
    assert all(len(found) == 1 for found in lines.values())
    assert before <= keeping.stored("teams/alpha/archive/")


async def test_a_store_that_is_down_keeps_the_rows(keeping):
    await keeping.finished()
    keeping.clock.move(days=31)
    failing = Failing(keeping.bytes)

    async def down(*_):
        raise unavailable(Reason.STORAGE_UNAVAILABLE, "down")

    failing.before["put"] = down
    report = await keeping.make(stored=failing).sweep()
    assert (report.complete, keeping.count("jobs")) == (False, 1)
    del failing.before["put"]
    assert (await keeping.make(stored=failing).sweep()).complete
    assert keeping.count("jobs") == 0


async def test_a_job_that_its_owner_retries_meanwhile_stays(keeping):
    job = await keeping.add()
    jobs = Jobs(keeping.store, JobFeed(keeping.store), None, lambda ended: None)
    await jobs.cancel("alpha", job)
    relabelled = await keeping.finished()
    keeping.clock.move(days=31)
    failing = Failing(keeping.bytes)

    async def retried(*_):
        # After it was read and written, before it is deleted.
        if (await get(keeping, job)).state is JobState.CANCELLED:
            await jobs.retry("alpha", job)
            async with keeping.store.tenant("alpha") as tx:
                await tx.update_job(relabelled, {"labels": {"keep": "me"}})

    failing.before["put"] = retried
    report = await keeping.make(stored=failing).sweep()
    assert report.names(Category.JOBS) == ()
    assert (await get(keeping, job)).state is JobState.QUEUED
    assert (await get(keeping, relabelled)).labels == {"keep": "me"}
    # It was written and did not go: it is written again, as it is, when it goes.
    assert (await keeping.make(stored=failing).sweep()).names(Category.JOBS) == (
        f"teams/alpha/jobs/{relabelled}",
    )
    assert {line["job"]["updated_at"] for line in archived(keeping)[relabelled]} != set()
    assert any(line["job"]["labels"] == {"keep": "me"} for line in archived(keeping)[relabelled])


async def get(keeping, job):
    async with keeping.store.tenant("alpha") as tx:
        return await tx.get_job("alpha", job)


async def test_a_retired_batch_is_gone_at_once_for_its_owner(keeping):
    batch = await keeping.batch(30)
    item = keeping.sql("SELECT id FROM jobs WHERE parent_id = %s LIMIT 1", batch)[0][0]
    keeping.sql("UPDATE jobs SET state = 'QUEUED' WHERE id = %s", batch)
    keeping.sql("UPDATE jobs SET state = 'FAILED' WHERE id = %s", batch)
    keeping.clock.move(days=31)
    jobs = Jobs(keeping.store, JobFeed(keeping.store), None, lambda ended: None)
    failing = Failing(keeping.bytes)
    seen = []

    async def look(*_):
        if keeping.count("retired_batches"):
            for call in (jobs.retry("alpha", batch), jobs.retry("alpha", item), jobs.get("alpha", batch)):
                with pytest.raises(VoxfleetError) as caught:
                    await call
                seen.append(caught.value.reason)

    failing.before["put"] = look
    await keeping.make(stored=failing, settings=RetentionSettings(rows=50)).sweep()
    assert set(seen) == {Reason.JOB_NOT_FOUND}
    assert keeping.count("jobs") == 0


async def test_request_ids_are_forgotten_once_their_job_is_gone(keeping):
    await keeping.finished(request_id="done")
    await keeping.add(request_id="waits")
    keeping.clock.move(days=31)
    assert (await keeping.retention.sweep()).names(Category.REQUESTS) == ()
    assert (await keeping.retention.sweep()).names(Category.REQUESTS) == ("teams/alpha/requests/done",)
    assert keeping.sql("SELECT request_id FROM requests") == [("waits",)]


async def test_two_runs_at_once_remove_everything_once(keeping):
    jobs = {await keeping.finished() for _ in range(12)}
    batch = await keeping.batch(200)
    keeping.clock.move(days=31)
    settings = RetentionSettings(rows=60)
    reports = await asyncio.gather(*(keeping.make(settings=settings).sweep() for _ in range(3)))
    found = [name for report in reports for name in report.names(Category.JOBS)]
    expected = {f"teams/alpha/jobs/{job}" for job in jobs | {batch}}
    assert expected == set(found)
    # A batch may be named by each that had a hand in it; nothing else is.
    assert len([name for name in found if not name.endswith(batch)]) == len(jobs)
    await keeping.retention.sweep()
    assert [keeping.count(table) for table in JOB_TABLES] == [0] * len(JOB_TABLES)
    assert len(archived(keeping)) == 213


async def test_one_process_among_several_has_the_turn(keeping):
    async def turn():
        async with keeping.store.service() as tx:
            return await tx.take_turn("retention", 60)

    assert sorted(await asyncio.gather(*(turn() for _ in range(4)))) == [False, False, False, True]
    keeping.clock.move(s=59)
    assert not await turn()
    keeping.clock.move(s=1)
    assert await turn()


async def test_the_look_for_due_jobs_reads_few_pages_however_many_there_are(keeping):
    """The claim of migration 0004: no index on the time of the end is needed."""
    keeping.sql(
        "INSERT INTO jobs (id, team, kind, state, priority_class, task, ended_at, event_seq) "
        "SELECT uuidv7()::text, 'alpha', 'rvc.convert', 'SUCCEEDED', 2, '{}', now(), 2 "
        "FROM generate_series(1, 20000) AS n"
    )
    keeping.sql(
        "INSERT INTO jobs (id, team, kind, state, priority_class, task, parent_id, event_seq) "
        "SELECT uuidv7(interval '-40 days')::text, 'beta', 'f5.item', 'QUEUED', 3, '{}', 'open', 2 "
        "FROM generate_series(1, 10000) AS n"
    )
    keeping.sql("ANALYZE jobs")
    async with keeping.store.service() as tx:
        parameters = {
            "retain_s": 30 * 86_400.0,
            "before_id": first_id_at(keeping.clock.now() - dt.timedelta(days=30)),
            "after_team": "",
            "after_id": "",
            "limit": 200,
        }
        rows = await tx._fetch("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + SQL["due_jobs"], parameters)
    plan = rows[0]["QUERY PLAN"][0]["Plan"]
    assert "jobs_of_team" in json.dumps(plan)
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 100  # of two thousand
