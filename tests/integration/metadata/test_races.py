"""Races on the ledger: leases that expire, identical submits, cut connections, quotas, what others lock.

Where a race has to be won by one side, it is held at its critical point by a lock of the test's own, so that
the outcome does not hang on luck.
"""

import asyncio
import itertools
import logging
import random
from collections.abc import AsyncIterator

import psycopg
import pytest

from services.common.errors import Reason, VoxfleetError
from services.common.jobs import tasks
from services.common.jobs.model import Progress, StopKind, Succeeded
from services.metadata.adapters.postgres import PostgresStore
from services.metadata.app.dispatch import Offer
from services.metadata.app.ledger import Ledger, LedgerSettings
from services.metadata.app.submit import Submitter
from services.metadata.app.work import Work
from services.metadata.model.catalog import Voice, VoiceState
from services.metadata.model.fleet import Quota
from services.metadata.model.jobs import AttemptOutcome, End, JobState
from services.metadata.model.page import Page
from services.metadata.scheduling.lanes import Pick, Turn
from tests.chaos.looks import (
    faults,
    let_expire,
    made,
    outcomes,
    stalled,
    states,
    visible,
    with_artefact,
)
from tests.chaos.racing import (
    ITEMS,
    Barrier,
    claim_all,
    insist,
    processes,
    submit_alike,
    until_waiting,
)
from tests.integration.metadata.test_ledger import add_audio, blob, make_voice, request
from tests.integration.metadata.test_order import batch_of, put_quota

LEASES = 500
SUBMITS = 1000
PROCESSES = 4


async def accepted(work: Work, fence, barrier: asyncio.Event) -> bool:
    """Whether a commit was taken: that it was not is said as a lost lease, once the database answers."""
    await barrier.wait()
    return await insist(lambda: work.succeed(fence, made(fence))) is not None


@pytest.fixture
async def other_ledger(metadata) -> AsyncIterator[Ledger]:
    """That of a second metadata process."""
    store = PostgresStore(metadata.url, pool_size=4)
    yield Ledger(store, metadata.wakeups, LedgerSettings())
    await store.close()


@pytest.fixture
def other(other_ledger) -> Work:
    """Its workers' side."""
    return other_ledger.work


async def make_rvc_voice(metadata) -> str:
    """A voice that converts, as its training would have left it."""
    voice = Voice("alpha", "singer", "Singer", "rvc", VoiceState.READY)
    async with metadata.store.tenant("alpha") as tx:
        await tx.put_artifact("alpha", blob("cd" * 32))
        await tx.add_voice(voice)
        await tx.update_voice("alpha", "singer", {"package_sha256": "cd" * 32})
    return voice.name


async def test_500_expired_leases_commit_nothing_beside_those_that_followed_them(metadata, other):
    await batch_of(metadata, LEASES)
    stale = [each.fence for each in await metadata.claim("w1", {"f5.item": LEASES})]
    assert len(stale) == LEASES
    let_expire(metadata.url)
    assert await metadata.work.expire() == LEASES
    with psycopg.connect(metadata.url) as connection:
        connection.execute("UPDATE jobs SET not_before = now() - interval '1 minute'")
    fresh = [each.fence for each in await metadata.claim("w2", {"f5.item": LEASES})]
    assert {fence.job_id for fence in fresh} == {fence.job_id for fence in stale}

    barrier = asyncio.Event()
    pairs = list(itertools.chain.from_iterable(zip(stale, fresh, strict=True)))
    commits = [
        asyncio.create_task(accepted(random.choice((metadata.work, other)), fence, barrier))
        for fence in pairs
    ]
    beats = asyncio.create_task(metadata.work.heartbeat([(fence, None) for fence in stale]))
    barrier.set()
    taken = {fence for fence, task in zip(pairs, commits, strict=True) if await task}
    assert {kind for _, kind in await beats} == {StopKind.LOST}
    assert taken == set(fresh), "every fresh fence commits, no stale one does"
    assert set(states(metadata.url).values()) == {"SUCCEEDED"}
    assert visible(metadata.url) == {
        fence.job_id: [output.blob.sha256 for output in made(fence).audios]
        for fence in fresh
        if made(fence).audios
    }
    record = outcomes(metadata.url)
    assert {record[fence.job_id, fence.attempt] for fence in stale} == {AttemptOutcome.EXPIRED}


async def test_500_leases_that_expire_while_they_commit_end_once(metadata, other):
    await batch_of(metadata, LEASES)
    fences = [each.fence for each in await metadata.claim("w1", {"f5.item": LEASES})]
    assert len(fences) == LEASES
    let_expire(metadata.url)
    barrier = asyncio.Event()

    async def sweep(work: Work) -> int:
        await barrier.wait()
        return await work.expire()

    # Not all at once before the sweeps, nor all after: a pool of connections takes them in this order.
    commits = {fence: asyncio.create_task(accepted(other, fence, barrier)) for fence in fences[:250]}
    sweeps = [asyncio.create_task(sweep(work)) for work in (metadata.work, other)]
    commits |= {fence: asyncio.create_task(accepted(metadata.work, fence, barrier)) for fence in fences[250:]}
    barrier.set()
    swept = sum([await task for task in sweeps])
    taken = {fence for fence, task in commits.items() if await task}
    swept += await metadata.work.expire()
    assert swept + len(taken) == LEASES
    record, now, seen = outcomes(metadata.url), states(metadata.url), visible(metadata.url)
    for fence in fences:
        how = (record[fence.job_id, 1], now[fence.job_id], len(seen.get(fence.job_id, ())))
        if fence in taken:
            assert how == ("SUCCEEDED", "SUCCEEDED", len(made(fence).audios))
        else:
            assert how == ("EXPIRED", "QUEUED", 0)


async def test_a_live_lease_does_not_expire_and_a_heartbeat_keeps_it(metadata):
    await batch_of(metadata, 2)
    kept, dropped = [each.fence for each in await metadata.claim("w1", {"f5.item": 2})]
    assert await metadata.work.expire() == 0
    let_expire(metadata.url)
    assert await metadata.work.heartbeat([(kept, None)]) == []
    assert await metadata.work.expire() == 1
    assert outcomes(metadata.url) == {(dropped.job_id, 1): "EXPIRED"}
    assert (await metadata.work.succeed(kept, Succeeded())).job.state is JobState.SUCCEEDED


async def test_a_stale_fence_extends_reports_and_ends_nothing_of_the_attempt_that_followed(metadata):
    await batch_of(metadata, 1)
    (stale,) = await metadata.claim("w1", {"f5.item": 1})
    let_expire(metadata.url)
    assert await metadata.work.expire() == 1
    with psycopg.connect(metadata.url, autocommit=True) as connection:
        connection.execute("UPDATE jobs SET not_before = now() - interval '1 minute'")
        (fresh,) = await metadata.claim("w2", {"f5.item": 1})
        look = "SELECT to_jsonb(jobs) FROM jobs WHERE id = %s"
        before = connection.execute(look, [fresh.job.id]).fetchone()
        beats = [(stale.fence, Progress("stale", 1, 2))]
        assert await metadata.work.heartbeat(beats) == [(stale.fence, StopKind.LOST)]
        # What the database says by itself: the use cases would not even ask it.
        async with metadata.store.leases() as rows:
            assert (
                await rows.finish([End(stale.fence, JobState.FAILED, AttemptOutcome.FAILED, "stale")]) == []
            )
        assert connection.execute(look, [fresh.job.id]).fetchone() == before


async def test_1000_identical_submits_from_several_processes_make_one_job(metadata):
    voice = await make_voice(metadata)
    barrier = Barrier(metadata.url)
    with processes(PROCESSES) as submit:
        share = SUBMITS // PROCESSES
        racing = [submit(submit_alike, metadata.url, voice, "r-1", share, 3) for _ in range(PROCESSES)]
        await asyncio.to_thread(barrier.lift, PROCESSES)
        answers = [await asyncio.wrap_future(future) for future in racing]
    (job_id,) = set.union(*answers)
    assert [job.id for job in await metadata.jobs.page("alpha", Page(50))] == [job_id]
    assert len(await metadata.jobs.page("alpha", Page(50), batch=job_id)) == 3
    with psycopg.connect(metadata.url) as connection:
        (events,) = connection.execute("SELECT count(*) FROM job_events").fetchone()
    assert events == 4, "one of each job: no other submit left a trace"


async def test_several_processes_claim_each_job_once_and_keep_the_quota(metadata):
    await batch_of(metadata, 300)
    await put_quota(metadata, Quota("alpha", max_gpus=1.0))
    most, looks = 0.0, 0
    barrier = Barrier(metadata.url)
    with processes(PROCESSES) as submit:
        racing = [submit(claim_all, metadata.url, f"w{number}", 4) for number in range(PROCESSES)]
        await asyncio.to_thread(barrier.lift, PROCESSES)
        async with await psycopg.AsyncConnection.connect(metadata.url, autocommit=True) as connection:
            while not all(future.done() for future in racing):
                cursor = await connection.execute(
                    "SELECT coalesce(sum(gpus), 0)::float8 FROM jobs WHERE lease_token IS NOT NULL"
                )
                (held,) = await cursor.fetchone()
                most, looks = max(most, held), looks + 1
    claims = [claim for future in racing for claim in future.result()]
    assert len(claims) == len(set(claims)) == 300
    assert {attempt for _, attempt in claims} == {1}
    assert looks > 10
    assert 0.0 < most <= 1.0 + 1e-6
    assert set(states(metadata.url).values()) == {"SUCCEEDED"}


IN_THE_UPDATE = """
CREATE FUNCTION stall_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM stall(); RETURN NEW; END $$;
CREATE TRIGGER stall BEFORE UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION stall_row();
"""
BEFORE_THE_QUOTA = """
CREATE POLICY stall ON team_quotas AS RESTRICTIVE FOR SELECT TO voxfleet_worker USING (stall())
"""


@pytest.mark.parametrize(
    ("where", "slow_gets", "fast_gets"),
    [
        # The one that counted first has not committed: its claims cannot be seen, so nobody else may count.
        pytest.param(IN_THE_UPDATE, 5, 0, id="while-another-holds-the-quota"),
        # The one that began first counts last: it must see what was committed since it began.
        pytest.param(BEFORE_THE_QUOTA, 0, 5, id="after-another-has-committed"),
    ],
)
async def test_two_processes_do_not_share_out_a_quota_twice(metadata, where, slow_gets, fast_gets):
    await batch_of(metadata, 20)
    await put_quota(metadata, Quota("alpha", max_gpus=1.0))
    slow = PostgresStore(f"{metadata.url}?application_name=slow", pool_size=2)

    async def claim(store: PostgresStore, worker: str) -> int:
        async with store.leases() as rows:
            picks = [Pick(ITEMS, 10, 0)]
            return len(
                await rows.claim(
                    [Turn(worker, worker, pick) for pick in picks], 60.0, gpu_types=(), max_gpus=1e9
                )
            )

    with stalled(metadata.url, where) as connection:
        first = asyncio.create_task(claim(slow, "w-slow"))
        await asyncio.to_thread(until_waiting, connection, 1)
        async with asyncio.timeout(20):
            fast = await claim(metadata.store, "w-fast")
        assert not first.done()
        connection.execute("SELECT pg_advisory_unlock_all()")
        assert (await first, fast) == (slow_gets, fast_gets)
        (held,) = connection.execute("SELECT gpus_held('alpha')").fetchone()
    await slow.close()
    assert held == pytest.approx(1.0)


IN_THE_INSERT = """
CREATE FUNCTION stall_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM stall(); RETURN NEW; END $$;
CREATE TRIGGER stall BEFORE INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION stall_row();
"""


async def test_two_submits_at_once_do_not_both_take_the_last_place_in_a_queue(metadata):
    audio, voice = await add_audio(metadata), await make_rvc_voice(metadata)
    await put_quota(metadata, Quota("alpha", max_queued_jobs=1))
    slow = PostgresStore(f"{metadata.url}?application_name=slow", pool_size=2)

    async def convert(store: PostgresStore) -> JobState | Reason:
        submitter = Submitter(store, max_attempts=3)
        try:
            settings = (tasks.ConversionParameters(), tasks.Output())
            return (await submitter.convert(request(), [audio], voice, *settings)).state
        except VoxfleetError as error:
            return error.reason

    with stalled(metadata.url, IN_THE_INSERT) as connection:
        first = asyncio.create_task(convert(slow))
        await asyncio.to_thread(until_waiting, connection, 1)
        second = asyncio.create_task(convert(metadata.store))
        # It has counted no job of the first, which is not committed; so it must wait for that.
        waits = asyncio.create_task(asyncio.to_thread(until_waiting, connection, 2))
        await asyncio.wait((second, waits), return_when=asyncio.FIRST_COMPLETED)
        overtook = second.done()
        connection.execute("SELECT pg_advisory_unlock_all()")
        assert (await first, await second) == (JobState.QUEUED, Reason.QUEUE_FULL)
        assert not overtook
        await waits
    await slow.close()


async def test_what_waits_for_another_job_is_not_claimed_whoever_asks(metadata):
    first = await batch_of(metadata, 3)
    await batch_of(metadata, 3, depends_on=(first.name,))
    async with metadata.store.leases() as rows:
        # Not the dispatcher, which would not even look: this is what the database itself says.
        turn = Turn("w1", "n1", Pick(ITEMS, 10, 0))
        claimed = await rows.claim([turn], 60.0, gpu_types=(), max_gpus=1e9)
    assert {job.parent_id for job in claimed} == {first.id}


async def test_ends_of_items_are_counted_once_however_many_count(metadata, other_ledger):
    batch = await batch_of(metadata, 40)
    for done in (10, 20, 40):
        for each in await metadata.claim("w1", {"f5.item": done - batch.counts["succeeded"]}):
            await metadata.work.succeed(each.fence, with_artefact(each.fence))
        sweeps = [ledger.housekeeping.count() for ledger in (metadata.ledger, other_ledger) * 3]
        await asyncio.gather(*sweeps)
        await metadata.count()
        batch, _ = await metadata.jobs.get("alpha", batch.id)
        assert (batch.counts["succeeded"], batch.counts["failed"]) == (done, 0)
    assert batch.state is JobState.SUCCEEDED
    assert faults(metadata.url) == {}


async def test_what_another_session_has_locked_is_passed_over_not_waited_for(metadata):
    await batch_of(metadata, 10)
    with psycopg.connect(metadata.url) as connection:
        (locked,) = connection.execute(
            "SELECT id FROM jobs WHERE kind = 'f5.item' ORDER BY queue_key LIMIT 1 FOR UPDATE"
        ).fetchone()
        async with asyncio.timeout(20):
            claimed = await metadata.claim("w1", {"f5.item": 10})
        assert len(claimed) == 9
        assert locked not in {each.job.id for each in claimed}
        # Neither does the sweep wait, where one of the expired is locked.
        connection.rollback()
        (last,) = await metadata.claim("w1", {"f5.item": 10})
        let_expire(metadata.url)
        connection.execute("SELECT FROM jobs WHERE id = %s FOR UPDATE", (last.job.id,))
        async with asyncio.timeout(20):
            assert await metadata.work.expire() == 9
    assert await metadata.work.expire() == 1


async def test_an_idle_transaction_elsewhere_stops_nothing(metadata):
    await batch_of(metadata, 400)
    with psycopg.connect(metadata.url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        # Every row that dies from here on must stay where it is, for this session could yet ask for it.
        connection.execute("SELECT count(*) FROM jobs")
        done = 0
        async with asyncio.timeout(90):
            while done < 400:
                claimed = await metadata.claim("w1", {"f5.item": 50})
                ends = [metadata.work.succeed(each.fence, with_artefact(each.fence)) for each in claimed]
                done += len(await asyncio.gather(*ends))
            await metadata.count()
        (seen,) = connection.execute("SELECT count(*) FROM jobs WHERE state = 'QUEUED'").fetchone()
        assert seen == 401, "the idle transaction was there all the while"
    assert faults(metadata.url) == {}


async def claim_and_end(ledger: Ledger, name: str) -> None:
    """A worker without a process of its own, until cancelled."""
    while True:
        for job in await insist(lambda: ledger.dispatcher.claim(Offer(name, name, {"f5.item": 4}))):
            await insist(lambda fence=job.fence: ledger.work.succeed(fence, with_artefact(fence)))
        await asyncio.sleep(0.01)


async def cut_until_all_has_ended(url: str) -> int:
    """Ends connections at random until no job is open; how many."""
    cuts = 0
    async with (
        asyncio.timeout(150),
        await psycopg.AsyncConnection.connect(url, autocommit=True) as connection,
    ):
        while True:
            cursor = await connection.execute(
                "SELECT (SELECT count(*) FROM jobs WHERE state IN ('QUEUED', 'RUNNING', 'CANCELLING')),"
                " (SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity WHERE"
                " datname = current_database() AND pid <> pg_backend_pid() ORDER BY random() LIMIT 2) AS p)"
            )
            left, cut = await cursor.fetchone()
            if left == 0:
                return cuts
            cuts += cut
            await asyncio.sleep(0.1)


async def test_cut_connections_lose_nothing_and_nothing_unforeseen_is_logged(metadata, caplog):
    await batch_of(metadata, 200)
    settings = LedgerSettings(lease_s=1.0, sweep_s=0.1, refresh_s=0.1, look_s=0.05)
    ledgers = [Ledger(PostgresStore(metadata.url, pool_size=4), metadata.wakeups, settings) for _ in range(2)]
    tasks_ = [asyncio.create_task(ledger.run()) for ledger in ledgers]
    tasks_.append(asyncio.create_task(metadata.wakeups.run()))
    tasks_ += [asyncio.create_task(claim_and_end(ledger, f"w{n}")) for n, ledger in enumerate(ledgers * 2)]
    try:
        cuts = await cut_until_all_has_ended(metadata.url)
    finally:
        for task in tasks_:
            task.cancel()
        ends = await asyncio.gather(*tasks_, return_exceptions=True)
        for ledger in ledgers:
            await ledger.store.close()
    assert cuts > 5
    assert [end for end in ends if not isinstance(end, asyncio.CancelledError)] == []
    await metadata.count()
    assert faults(metadata.url) == {}
    assert "SUCCEEDED" in states(metadata.url).values()
    unforeseen = [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.ERROR and record.name.startswith("services.")
    ]
    assert unforeseen == []
