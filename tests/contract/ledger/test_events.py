"""Events: gapless for each job, told once and in order; and no change of state that is not in the table."""

import asyncio
import itertools
from contextlib import asynccontextmanager

import pytest

from services.common.jobs.model import Progress, Released
from services.metadata.model.jobs import BATCH_TRANSITIONS, FINAL_STATES, TRANSITIONS, JobState
from tests.contract.ledger.desk import LEASE_S, broken_off


def check_history(events, *, batch=False):
    """No gap, no repeat, and every change one that is legal."""
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    for before, after in itertools.pairwise(events):
        assert before.at <= after.at
        legal = BATCH_TRANSITIONS if batch else TRANSITIONS
        assert before.state is after.state or (before.state, after.state) in legal


async def test_a_long_life_leaves_no_gap(desk):
    job_id = await desk.submit(max_attempts=9)
    fence = (await desk.claim_one()).fence
    await desk.work.heartbeat([(fence, Progress("load"))])
    await desk.work.release(fence, Released("x"))
    fence = (await desk.claim_one()).fence
    await desk.work.heartbeat([(fence, Progress("load"))])
    desk.clock.advance(LEASE_S + 1)
    await desk.work.expire()
    desk.clock.advance(60)
    fence = (await desk.claim_one()).fence
    await desk.jobs.cancel("alpha", job_id)
    await desk.work.cancelled(fence)
    await desk.jobs.retry("alpha", job_id)
    await desk.ruin((await desk.claim_one()).fence)
    await desk.jobs.retry("alpha", job_id)
    await desk.succeed((await desk.claim_one()).fence)
    events = await desk.events(job_id)
    check_history(events)
    assert len(events) == (await desk.job(job_id)).event_seq
    assert "".join(event.state[0] if event.state is not JobState.CANCELLED else "X" for event in events) == (
        "QRRQRRQRCXQRFQRS"
    )
    assert [event.attempt for event in events] == [0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 5, 5]


async def test_a_change_that_is_rolled_back_leaves_no_event(desk):
    job_id = await desk.submit()
    async with broken_off(desk.locked(job_id)) as tx:
        job = await tx.get_job("alpha", job_id)
        await tx.change_state(job, JobState.CANCELLED, "never")
    assert [event.state for event in await desk.events(job_id)] == [JobState.QUEUED]
    assert (await desk.job(job_id)).state is JobState.QUEUED


async def test_what_is_not_committed_is_seen_by_nobody_else(desk):
    job_id = await desk.submit()
    async with desk.locked(job_id) as tx:
        job = await tx.get_job("alpha", job_id)
        await tx.change_state(job, JobState.CANCELLED, "soon")
        assert (await tx.get_job("alpha", job_id)).state is JobState.CANCELLED
        assert (await desk.job(job_id)).state is JobState.QUEUED
        assert len(await desk.events(job_id)) == 1
    assert len(await desk.events(job_id)) == 2


async def test_events_come_after_a_cursor_and_in_parts(desk):
    job_id = await desk.submit()
    fence = (await desk.claim_one()).fence
    for number in range(600):
        await desk.work.heartbeat([(fence, Progress(f"p{number}"))])
    async with desk.store.service() as tx:
        first = (await tx.events_after({job_id: 0}))[job_id]
        rest = (await tx.events_after({job_id: first[-1].seq}))[job_id]
        assert await tx.events_after({job_id: 602, "no-such-job": 0}) == {job_id: [], "no-such-job": []}
    assert len(first) == 500
    check_history([*first, *rest])
    assert rest[-1].phase == "p599"


@asynccontextmanager
async def feeding(desk):
    task = asyncio.create_task(desk.ledger.feed.run())
    try:
        async with asyncio.timeout(30):
            yield
    finally:
        task.cancel()


async def follow(desk, job_id, cursor=0):
    return [seen.event async for seen in desk.jobs.watch("alpha", job_id, cursor) if seen and seen.event]


async def test_a_watch_tells_everything_once_from_any_cursor(desk):
    job_id = await desk.submit(max_attempts=9)
    async with feeding(desk):
        watchers = [asyncio.create_task(follow(desk, job_id)) for _ in range(3)]
        for number in range(4):
            fence = (await desk.claim_one()).fence
            await desk.work.heartbeat([(fence, Progress(f"p{number}"))])
            if number < 3:
                await desk.work.release(fence, Released("x"))
        await desk.succeed(fence)
        whole = await desk.events(job_id)
        for watcher in watchers:
            assert await watcher == whole
        for cursor in range(len(whole) + 1):
            assert await follow(desk, job_id, cursor) == whole[cursor:]


async def test_a_watch_that_is_broken_off_goes_on_at_its_cursor(desk):
    job_id = await desk.submit(max_attempts=99)
    told = []

    async def follow_in_parts():
        while not told or told[-1].state not in FINAL_STATES:
            # Each time another process, as after a restart of the gateway.
            async for seen in desk.jobs.watch("alpha", job_id, told[-1].seq if told else 0):
                if seen and seen.event:
                    told.append(seen.event)
                    if len(told) % 3 == 0:
                        break

    async with feeding(desk):
        watcher = asyncio.create_task(follow_in_parts())
        for _ in range(12):
            await desk.work.release((await desk.claim_one()).fence, Released("x"))
        await desk.succeed((await desk.claim_one()).fence)
        await watcher
    assert told == await desk.events(job_id)
    check_history(told)


async def test_a_watch_ends_although_its_reader_is_slow_and_the_job_ended_between_two_looks(desk):
    """The job is read, then it ends, then its events are read: the end is told with what it was before."""
    job_id = await desk.submit()
    fence = (await desk.claim_one()).fence
    feed = desk.ledger.feed
    async with desk.store.tenant("alpha") as tx:
        job = await tx.get_job("alpha", job_id)
    stream = feed.watch(job, 0)
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)

    real = desk.store.service

    @asynccontextmanager
    async def ends_in_between():
        async with real() as tx:
            read = tx.jobs_now

            async def then_it_ends(jobs):
                found = await read(jobs)
                await desk.succeed(fence)
                return found

            tx.jobs_now = then_it_ends
            yield tx

    desk.store.service = ends_in_between
    await feed.look()
    desk.store.service = real
    # Its reader has not taken anything yet when the feed looks again, and again.
    await feed.look()
    await feed.look()
    async with asyncio.timeout(10):
        events = [(await first).event] + [seen.event async for seen in stream if seen]
    assert [event.state for event in events if event] == [
        JobState.QUEUED,
        JobState.RUNNING,
        JobState.SUCCEEDED,
    ]


@pytest.mark.parametrize("batch", [False, True])
async def test_every_illegal_transition_is_refused(desk, batch):
    """Every pair of states, from jobs that have come there by themselves."""
    legal = BATCH_TRANSITIONS if batch else TRANSITIONS
    tried = 0
    for before, after in itertools.product(JobState, JobState):
        if before is after or (before, after) in legal:
            continue
        job_id = await (batch_in if batch else job_in)(desk, before)
        events = await desk.events(job_id)
        with pytest.raises(Exception, match=f"illegal job transition {before} -> {after}"):
            async with desk.locked(job_id) as tx:
                await tx.change_state(await tx.get_job("alpha", job_id), after, "no")
        assert (await desk.job(job_id)).state is before
        assert await desk.events(job_id) == events
        tried += 1
    assert tried == 30 - len(legal)


async def job_in(desk, state):
    job_id = await desk.submit()
    if state is JobState.QUEUED:
        await desk.jobs.update("alpha", job_id, {"priority": -100})
        return job_id
    (claimed,) = await desk.pick(count=1)
    job_id = claimed.id
    if state is JobState.SUCCEEDED:
        await desk.succeed(claimed.fence)
    elif state is JobState.FAILED:
        await desk.ruin(claimed.fence)
    elif state is not JobState.RUNNING:
        await desk.jobs.cancel("alpha", job_id)
        if state is JobState.CANCELLED:
            await desk.work.cancelled(claimed.fence)
    return job_id


async def batch_in(desk, state):
    batch_id, _ = await desk.batch(1)
    path = {
        JobState.QUEUED: [],
        JobState.RUNNING: [JobState.RUNNING],
        JobState.CANCELLING: [JobState.RUNNING, JobState.CANCELLING],
        JobState.SUCCEEDED: [JobState.SUCCEEDED],
        JobState.FAILED: [JobState.FAILED],
        JobState.CANCELLED: [JobState.CANCELLED],
    }[state]
    for step in path:
        async with desk.locked(batch_id) as tx:
            await tx.change_state(await tx.get_job("alpha", batch_id), step, "on its way")
    return batch_id


async def test_a_lease_is_held_exactly_while_an_attempt_runs(desk):
    """No statement can take a running job out of its state and leave the lease, or the other way round."""
    job_id = await desk.submit()
    await desk.claim_one()
    with pytest.raises(Exception, match=r"lease|jobs_check"):
        async with desk.locked(job_id) as tx:
            await tx.change_state(await tx.get_job("alpha", job_id), JobState.FAILED, "no")
    waiting = await desk.submit()
    with pytest.raises(Exception, match=r"lease|jobs_check"):
        async with desk.locked(waiting) as tx:
            await tx.change_state(await tx.get_job("alpha", waiting), JobState.RUNNING, "no")
