"""Dependencies: nothing begins before what it waits for has succeeded, and nothing waits for ever."""

import asyncio

import pytest

from services.common.errors import Reason, VoxfleetError
from services.metadata.app.endings import settle_dependencies
from services.metadata.model.jobs import JobState
from tests.contract.ledger.desk import broken_off, new_job
from tests.contract.ledger.test_batches import ended_in


async def run(desk, job_id, *, well=True):
    """Runs one job to its end, which must be the next that is claimed."""
    (claimed,) = await desk.pick(count=1)
    assert claimed.id == job_id
    await (desk.succeed if well else desk.ruin)(claimed.fence)
    await desk.count()


async def test_a_job_waits_for_those_that_it_depends_on(desk):
    first, second = await desk.submit(), await desk.submit()
    third = await desk.submit(depends_on=(first, second))
    assert (await desk.job(third)).blockers == 2
    assert (await desk.job(first)).has_dependents
    async with desk.store.tenant("alpha") as tx:
        assert [job.id for job in await tx.dependencies(third)] == [first, second]
    await run(desk, first)
    assert (await desk.job(third)).blockers == 1
    await run(desk, second)
    assert (await desk.job(third)).blockers == 0
    await run(desk, third)
    assert (await desk.job(third)).state is JobState.SUCCEEDED


async def test_what_has_succeeded_before_is_not_waited_for_and_not_counted(desk):
    done = await desk.submit()
    await run(desk, done)
    waiting = await desk.submit(priority=-1)
    job_id = await desk.submit(depends_on=(done, waiting))
    free = await desk.submit(depends_on=(done,), priority=1)
    assert (await desk.job(job_id)).blockers == 1
    await desk.count()
    assert (await desk.job(job_id)).blockers == 1, "one of the two has not succeeded"
    await run(desk, free)
    await run(desk, waiting)
    await run(desk, job_id)


@pytest.mark.parametrize("end", ["fail", "cancel"])
async def test_what_depends_on_a_job_that_ended_badly_fails_and_so_on_down_the_chain(desk, end):
    first = await desk.submit()
    second = await desk.submit(depends_on=(first,))
    third = await desk.submit(depends_on=(second,))
    bystander = await desk.submit(priority=-1)
    if end == "fail":
        await run(desk, first, well=False)
    else:
        await desk.jobs.cancel("alpha", first)
        await desk.count()
    assert await desk.states([second, third]) == [JobState.FAILED] * 2
    job = await desk.job(second)
    assert (job.error["reason"], job.attempt) == ("DEPENDENCY_FAILED", 0)
    assert job.error["metadata"]["job"] == f"teams/alpha/jobs/{first}"
    assert (await desk.job(third)).error["metadata"]["job"] == f"teams/alpha/jobs/{second}"
    await run(desk, bystander)


async def test_a_job_that_cannot_be_depended_on_is_refused_and_nothing_is_made(desk):
    failed = await desk.submit()
    await run(desk, failed, well=False)
    foreign = await desk.submit(team="beta")
    for name, reason in [
        (failed, Reason.DEPENDENCY_FAILED),
        (foreign, Reason.JOB_NOT_FOUND),
        ("no-such-job", Reason.JOB_NOT_FOUND),
    ]:
        with pytest.raises(VoxfleetError) as caught:
            await desk.submit(depends_on=(name,), request_id="r")
        assert caught.value.reason is reason
    assert await desk.pick() == []


async def test_a_chain_runs_in_its_order(desk):
    ids = [await desk.submit()]
    for _ in range(6):
        ids.append(await desk.submit(depends_on=(ids[-1],), priority=len(ids)))
    for job_id in ids:
        await run(desk, job_id)
    assert set(await desk.states(ids)) == {JobState.SUCCEEDED}


async def test_a_diamond_is_let_go_by_the_last_of_those_it_waits_for(desk):
    top = await desk.submit()
    sides = [await desk.submit(depends_on=(top,)) for _ in range(3)]
    bottom = await desk.submit(depends_on=(top, *sides), priority=99)
    await run(desk, top)
    for side in sides:
        assert (await desk.job(bottom)).blockers > 0
        await run(desk, side)
    await run(desk, bottom)


async def test_a_cancelled_dependent_stays_cancelled(desk):
    first = await desk.submit()
    second = await desk.submit(depends_on=(first,))
    await desk.jobs.cancel("alpha", second)
    await run(desk, first)
    assert (await desk.job(second)).state is JobState.CANCELLED
    assert await desk.pick() == []


async def test_a_paused_dependent_waits_for_both(desk):
    first = await desk.submit()
    second = await desk.submit(depends_on=(first,))
    await desk.jobs.pause("alpha", second)
    await run(desk, first)
    assert await desk.pick() == []
    await desk.jobs.resume("alpha", second)
    await run(desk, second)


async def test_each_dependency_is_settled_once_whoever_settles(desk):
    first = await desk.submit()
    others = [await desk.submit(priority=-1) for _ in range(2)]
    waiting = [await desk.submit(depends_on=(first, *others)) for _ in range(20)]
    (claimed,) = await desk.pick(count=1)
    await desk.succeed(claimed.fence)
    await asyncio.gather(*(settle_dependencies(desk.store) for _ in range(4)))
    await desk.count()
    assert {job.blockers for job in await desk.all(waiting)} == {2}


async def test_a_settlement_that_fails_is_made_up_for(desk):
    first = await desk.submit()
    second = await desk.submit(depends_on=(first,))
    (claimed,) = await desk.pick()
    await desk.succeed(claimed.fence)
    async with broken_off(desk.store.service()) as tx:
        assert await tx.take_settled([first], 10) == [("alpha", second, first, JobState.SUCCEEDED)]
    await desk.count()
    await run(desk, second)


async def test_a_submit_that_depends_and_an_end_meet_without_loss(desk):
    """The dependency ends while the submit that names it is under way."""
    first = await desk.submit()
    (claimed,) = await desk.pick()
    async with desk.store.tenant("alpha") as tx:
        await tx.add_jobs("alpha", [new_job("dependent", depends_on=(first,))])
        ending = asyncio.create_task(desk.succeed(claimed.fence))
        await desk.backend.blocked()
        assert not ending.done(), "it must not end between the look at it and what waits for it"
    await ending
    await desk.count()
    await run(desk, "dependent")


# -- tried again


async def test_after_the_retry_of_what_failed_the_dependent_waits_for_it_again(desk):
    first = await desk.submit()
    second = await desk.submit(depends_on=(first,))
    await run(desk, first, well=False)
    assert (await desk.job(second)).state is JobState.FAILED
    await desk.jobs.retry("alpha", first)
    await desk.jobs.retry("alpha", second)
    await run(desk, first)
    await run(desk, second)
    assert (await desk.job(second)).state is JobState.SUCCEEDED


async def test_a_dependent_that_is_retried_before_what_failed_fails_again(desk):
    first = await desk.submit()
    second = await desk.submit(depends_on=(first,))
    await run(desk, first, well=False)
    await desk.jobs.retry("alpha", second)
    await desk.count()
    job = await desk.job(second)
    assert (job.state, job.error["reason"]) == (JobState.FAILED, "DEPENDENCY_FAILED")


async def test_a_dependent_cancelled_before_and_retried_after_the_end_can_run(desk):
    first = await desk.submit()
    second = await desk.submit(depends_on=(first,))
    await desk.jobs.cancel("alpha", second)
    await run(desk, first)
    await desk.jobs.retry("alpha", second)
    await desk.count()
    await run(desk, second)


async def test_a_dependent_cancelled_and_retried_while_it_waits_still_waits(desk):
    first = await desk.submit(priority=-1)
    second = await desk.submit(depends_on=(first,))
    await desk.jobs.cancel("alpha", second)
    await desk.jobs.retry("alpha", second)
    await desk.count()
    await run(desk, first)
    await run(desk, second)


async def test_an_end_that_was_not_dealt_with_counts_once_for_a_dependent_that_is_retried(desk):
    done, other = await desk.submit(priority=1), await desk.submit(priority=-1)
    job_id = await desk.submit(depends_on=(done, other))
    (claimed,) = await desk.pick(count=1)
    await desk.jobs.cancel("alpha", job_id)
    await desk.succeed(claimed.fence)
    # Nobody has looked at what waited for it yet.
    await desk.jobs.retry("alpha", job_id)
    await desk.count()
    assert (await desk.job(job_id)).blockers == 1, "the other has not succeeded"
    await run(desk, other)
    await run(desk, job_id)


# -- batches


async def test_a_batch_waits_with_all_its_items(desk):
    for size in (2, 120):
        first = await desk.submit()
        batch_id, items = await desk.batch(size, depends_on=(first,), bad=[0])
        assert {job.blockers for job in await desk.all(items[1:])} == {1}
        await run(desk, first)
        assert {job.blockers for job in await desk.all(items)} == {0}
        for claimed in await desk.pick(count=size):
            await desk.succeed(claimed.fence)
        await desk.count()
        assert await ended_in(desk, batch_id, items) is JobState.SUCCEEDED


async def test_a_batch_that_depends_on_what_failed_fails_with_its_items_cancelled(desk):
    first = await desk.submit()
    batch_id, items = await desk.batch(3, depends_on=(first,), bad=[0])
    last = await desk.submit(depends_on=(batch_id,))
    await run(desk, first, well=False)
    assert await ended_in(desk, batch_id, items) is JobState.FAILED
    assert await desk.states(items) == [JobState.FAILED, JobState.CANCELLED, JobState.CANCELLED]
    assert (await desk.job(last)).state is JobState.FAILED
    # And all of it can be tried again.
    await desk.jobs.retry("alpha", first)
    await desk.jobs.retry("alpha", batch_id)
    await desk.jobs.retry("alpha", last)
    await desk.count()
    await run(desk, first)
    for claimed in await desk.pick():
        assert claimed.id in items[1:]
        await desk.succeed(claimed.fence)
    await desk.count()
    assert await ended_in(desk, batch_id, items) is JobState.SUCCEEDED
    await run(desk, last)


async def test_an_item_stopped_while_its_batch_waited_runs_when_it_is_retried(desk):
    first = await desk.submit()
    _, items = await desk.batch(2, depends_on=(first,))
    await desk.jobs.cancel("alpha", items[0])
    await run(desk, first)
    await desk.jobs.retry("alpha", items[0])
    assert sorted(each.id for each in await desk.pick()) == items


async def test_an_item_that_is_retried_waits_with_its_batch(desk):
    first = await desk.submit(priority=-1)
    _, items = await desk.batch(2, depends_on=(first,))
    await desk.jobs.cancel("alpha", items[0])
    await desk.jobs.retry("alpha", items[0])
    await run(desk, first)
    assert sorted(each.id for each in await desk.pick()) == items


async def test_what_depends_on_a_batch_waits_for_its_end(desk):
    batch_id, items = await desk.batch(2)
    last = await desk.submit(depends_on=(batch_id,), priority=99)
    one, two = await desk.pick()
    await desk.succeed(one.fence)
    await desk.count()
    assert await desk.pick() == []
    await desk.ruin(two.fence)
    await desk.count()
    assert await ended_in(desk, batch_id, items) is JobState.SUCCEEDED
    await run(desk, last)


async def test_a_chain_of_batches_is_settled_by_one_sweep(desk):
    first, _ = await desk.batch(1)
    second, _ = await desk.batch(1, depends_on=(first,))
    last = await desk.submit(depends_on=(second,))
    (claimed,) = await desk.pick()
    await desk.ruin(claimed.fence)
    await desk.count()
    assert await desk.states([first, second, last]) == [JobState.FAILED] * 3


async def test_a_batch_cancelled_while_it_waits_ends_cancelled(desk):
    first = await desk.submit()
    batch_id, items = await desk.batch(2, depends_on=(first,))
    await desk.jobs.cancel("alpha", batch_id)
    await desk.count()
    assert await ended_in(desk, batch_id, items) is JobState.CANCELLED
    await run(desk, first)
    await desk.jobs.retry("alpha", batch_id)
    await desk.count()
    assert sorted(each.id for each in await desk.pick()) == items
