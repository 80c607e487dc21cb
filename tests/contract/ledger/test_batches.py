"""Batches: counted from their items, ended with the last, cancelled in parts, retried item by item."""

import asyncio

import pytest

from services.common.errors import FailureClass, Reason, VoxfleetError
from services.common.jobs.model import Released, StopKind
from services.metadata.app import jobs as jobs_app
from services.metadata.app.batches import roll_up
from services.metadata.model.jobs import FINAL_STATES, JobState
from services.metadata.model.page import Page
from tests.contract.ledger.desk import broken_off
from tests.contract.ledger.test_events import check_history


async def counts(desk, batch_id):
    found = (await desk.jobs.get("alpha", batch_id))[0].counts
    return {key: value for key, value in found.items() if value}


async def ended_in(desk, batch_id, items):
    """A batch's state; where it has ended, so have its items, and its counts are theirs."""
    batch = await desk.job(batch_id)
    states = await desk.states(items)
    if batch.state in FINAL_STATES:
        assert set(states) <= FINAL_STATES
        for state in FINAL_STATES:
            assert batch.counts[state.value.lower()] == states.count(state)
    check_history(await desk.events(batch_id), batch=True)
    return batch.state


@pytest.mark.parametrize("size", [3, 150])
async def test_a_batch_runs_with_its_first_item_and_ends_with_its_last(desk, size):
    batch_id, items = await desk.batch(size, gpus=0.1)
    await desk.count()
    assert (await desk.job(batch_id)).state is JobState.QUEUED
    assert await counts(desk, batch_id) == {"total": size, "queued": size}
    first = await desk.pick(count=2)
    await desk.count()
    assert (await desk.job(batch_id)).state is JobState.RUNNING
    assert await counts(desk, batch_id) == {
        key: count for key, count in {"total": size, "running": 2, "queued": size - 2}.items() if count
    }
    for claimed in [*first, *await desk.pick(count=size)]:
        assert await ended_in(desk, batch_id, items) is JobState.RUNNING
        await desk.succeed(claimed.fence)
    await desk.count()
    assert await ended_in(desk, batch_id, items) is JobState.SUCCEEDED
    batch = await desk.job(batch_id)
    assert (batch.progress["percent"], batch.result["metrics"]["succeeded"]) == (100.0, size)
    assert [event.state.value for event in await desk.events(batch_id)] == ["QUEUED", "RUNNING", "SUCCEEDED"]


async def test_large_and_small_batches_are_made_alike(desk):
    kinds = []
    for size in (99, 100):
        batch_id, items = await desk.batch(size, bad=[3], gpus=0.2, size=7.0, priority=5, max_attempts=2)
        jobs = await desk.jobs.page("alpha", Page(200), batch=batch_id)
        assert [job.id for job in jobs] == items
        assert [job.item_index for job in jobs] == list(range(size))
        assert jobs[3].error == {"reason": "TEXT_EMPTY"}
        kinds.append(
            {
                (
                    *(job.state, round(job.gpus, 6), job.size, job.priority, job.max_attempts, job.blockers),
                    *(job.event_seq, job.ended_at is None, job.task["kind"]),
                    job.created_at == job.updated_at,
                )
                for job in jobs
            }
        )
        assert len(await desk.events(items[-1])) == 1
    assert kinds[0] == kinds[1]


async def test_one_bad_item_costs_no_other(desk):
    batch_id, items = await desk.batch(3, bad=[1])
    for claimed in await desk.pick():
        await desk.succeed(claimed.fence)
    await desk.count()
    assert await ended_in(desk, batch_id, items) is JobState.SUCCEEDED
    assert await counts(desk, batch_id) == {"total": 3, "succeeded": 2, "failed": 1}


async def test_items_may_end_before_anyone_looked_at_their_batch(desk):
    batch_id, items = await desk.batch(2)
    for claimed in await desk.pick():
        await desk.succeed(claimed.fence)
    await desk.count()
    assert await ended_in(desk, batch_id, items) is JobState.SUCCEEDED
    assert [event.state.value for event in await desk.events(batch_id)] == ["QUEUED", "SUCCEEDED"]


@pytest.mark.parametrize("bad", [(0, 1), (0,), ()])
async def test_a_batch_fails_only_if_every_item_did(desk, bad):
    batch_id, items = await desk.batch(2, bad=bad)
    for claimed in await desk.pick():
        await desk.ruin(claimed.fence)
    await desk.count()
    assert await ended_in(desk, batch_id, items) is JobState.FAILED
    assert (await desk.job(batch_id)).error["reason"] == "BATCH_ALL_FAILED"


async def test_an_empty_batch_has_succeeded(desk):
    batch_id, items = await desk.batch(0)
    await desk.count()
    assert await ended_in(desk, batch_id, items) is JobState.SUCCEEDED


async def test_what_is_tried_again_is_not_counted_yet(desk):
    batch_id, items = await desk.batch(2)
    one, two = await desk.pick()
    await desk.fail(one.fence)
    await desk.succeed(two.fence)
    await desk.count()
    assert await counts(desk, batch_id) == {"total": 2, "succeeded": 1, "queued": 1}
    desk.clock.advance(60)
    (again,) = await desk.pick()
    await desk.succeed(again.fence)
    await desk.count()
    assert await ended_in(desk, batch_id, items) is JobState.SUCCEEDED


async def test_counting_at_once_counts_once(desk):
    batches = [await desk.batch(5) for _ in range(4)]
    for claimed in await desk.pick():
        await desk.succeed(claimed.fence)
    await asyncio.gather(*(roll_up(desk.store) for _ in range(5)))
    await desk.count()
    for batch_id, items in batches:
        assert await ended_in(desk, batch_id, items) is JobState.SUCCEEDED


async def test_a_count_that_fails_is_made_up_for(desk):
    batch_id, items = await desk.batch(2)
    for claimed in await desk.pick():
        await desk.succeed(claimed.fence)
    async with broken_off(desk.store.service()) as tx:
        assert await tx.add_ticks(100) == [batch_id]
    await desk.count()
    assert await ended_in(desk, batch_id, items) is JobState.SUCCEEDED


# -- cancel


async def test_a_cancelled_batch_ends_with_its_last_running_item(desk):
    batch_id, items = await desk.batch(5)
    running = await desk.pick(count=2)
    await desk.count()
    assert (await desk.jobs.cancel("alpha", batch_id)).state is JobState.CANCELLING
    assert await desk.pick() == []
    told = dict(await desk.work.heartbeat([(each.fence, None) for each in running]))
    assert set(told.values()) == {StopKind.CANCEL}
    await desk.work.cancelled(running[0].fence)
    await desk.count()
    assert await ended_in(desk, batch_id, items) is JobState.CANCELLING
    await desk.succeed(running[1].fence)
    await desk.count()
    assert await ended_in(desk, batch_id, items) is JobState.CANCELLED
    assert await counts(desk, batch_id) == {"total": 5, "succeeded": 1, "cancelled": 4}


@pytest.mark.parametrize("size", [1, 3, 7, 9])
async def test_a_large_batch_is_cancelled_in_parts(desk, monkeypatch, size):
    monkeypatch.setattr(jobs_app, "_ITEMS_AT_ONCE", 3)
    batch_id, items = await desk.batch(size)
    await desk.jobs.cancel("alpha", batch_id)
    assert set(await desk.states(items)) == {JobState.CANCELLED}
    await desk.count()
    assert await ended_in(desk, batch_id, items) is JobState.CANCELLED


async def test_a_cancel_that_broke_off_goes_on_when_it_is_asked_for_again(desk, monkeypatch):
    monkeypatch.setattr(jobs_app, "_ITEMS_AT_ONCE", 2)
    batch_id, items = await desk.batch(6)
    async with desk.locked(batch_id) as tx:
        batch = await tx.get_job("alpha", batch_id)
        batch = await tx.change_state(batch, JobState.RUNNING, "being cancelled")
        await tx.change_state(batch, JobState.CANCELLING, "and then the process died")
    await desk.jobs.cancel("alpha", batch_id)
    await desk.count()
    assert await ended_in(desk, batch_id, items) is JobState.CANCELLED


async def test_a_batch_whose_items_have_all_ended_is_cancelled_without_harm(desk):
    batch_id, items = await desk.batch(2)
    for claimed in await desk.pick():
        await desk.succeed(claimed.fence)
    await desk.jobs.cancel("alpha", batch_id)
    await desk.count()
    assert await ended_in(desk, batch_id, items) in (JobState.CANCELLED, JobState.SUCCEEDED)
    assert (await desk.job(batch_id)).counts["succeeded"] == 2


async def test_one_item_is_cancelled_alone(desk):
    batch_id, items = await desk.batch(2)
    await desk.jobs.cancel("alpha", items[0])
    (other,) = await desk.pick()
    await desk.succeed(other.fence)
    await desk.count()
    assert await ended_in(desk, batch_id, items) is JobState.SUCCEEDED
    assert await counts(desk, batch_id) == {"total": 2, "succeeded": 1, "cancelled": 1}


# -- retry


async def test_a_retried_batch_runs_its_bad_items_again_and_no_other(desk):
    batch_id, items = await desk.batch(4, bad=[3])
    good, bad, stopped = await desk.pick()
    await desk.succeed(good.fence)
    await desk.ruin(bad.fence)
    await desk.jobs.cancel("alpha", stopped.id)
    await desk.work.cancelled(stopped.fence)
    await desk.count()
    assert await ended_in(desk, batch_id, items) is JobState.SUCCEEDED
    retried = await desk.jobs.retry("alpha", batch_id)
    assert retried.state is JobState.QUEUED
    again = await desk.pick()
    assert sorted(each.id for each in again) == [items[1], items[2]]
    await desk.count()
    assert await counts(desk, batch_id) == {"total": 4, "succeeded": 1, "failed": 1, "running": 2}
    for each in again:
        await desk.succeed(each.fence)
    await desk.count()
    assert await ended_in(desk, batch_id, items) is JobState.SUCCEEDED
    assert await counts(desk, batch_id) == {"total": 4, "succeeded": 3, "failed": 1}


async def test_a_retried_item_takes_its_ended_batch_along(desk):
    batch_id, items = await desk.batch(2)
    good, bad = await desk.pick()
    await desk.succeed(good.fence)
    await desk.ruin(bad.fence)
    await desk.count()
    await desk.jobs.retry("alpha", items[1])
    await desk.count()
    assert await ended_in(desk, batch_id, items) is JobState.QUEUED
    assert await counts(desk, batch_id) == {"total": 2, "succeeded": 1, "queued": 1}
    (again,) = await desk.pick()
    await desk.count()
    assert await ended_in(desk, batch_id, items) is JobState.RUNNING
    await desk.succeed(again.fence)
    await desk.count()
    assert await ended_in(desk, batch_id, items) is JobState.SUCCEEDED
    assert await counts(desk, batch_id) == {"total": 2, "succeeded": 2}


async def test_what_could_not_do_better_is_not_retried(desk):
    batch_id, items = await desk.batch(2, bad=[0, 1])
    await desk.count()
    for job_id in (batch_id, items[0]):
        with pytest.raises(VoxfleetError) as caught:
            await desk.jobs.retry("alpha", job_id)
        assert caught.value.reason is Reason.JOB_STATE_CONFLICT
    assert await ended_in(desk, batch_id, items) is JobState.FAILED


async def test_items_are_not_retried_while_their_batch_is_stopped_or_goes_on(desk):
    batch_id, items = await desk.batch(3)
    bad, running, _ = await desk.pick()
    await desk.ruin(bad.fence)
    await desk.count()
    with pytest.raises(VoxfleetError):
        await desk.jobs.retry("alpha", batch_id)
    await desk.jobs.cancel("alpha", batch_id)
    with pytest.raises(VoxfleetError) as caught:
        await desk.jobs.retry("alpha", items[0])
    assert caught.value.reason is Reason.JOB_STATE_CONFLICT
    assert running.id == items[1]


async def test_a_batch_does_not_end_while_an_item_of_it_is_retried(desk):
    """The last item ends, and is being counted, while the first is brought back."""
    batch_id, items = await desk.batch(2)
    bad, good = await desk.pick()
    await desk.ruin(bad.fence)
    await desk.count()
    await desk.succeed(good.fence)
    async with desk.locked(batch_id) as tx:
        counting = asyncio.create_task(roll_up(desk.store))
        await desk.backend.blocked()
        item = await tx.get_job("alpha", items[0], lock=True)
        await tx.requeue(item, "retried by its owner", more_attempts=4)
    await counting
    assert await ended_in(desk, batch_id, items) not in FINAL_STATES
    await desk.count()
    (again,) = await desk.pick()
    await desk.succeed(again.fence)
    await desk.count()
    assert await ended_in(desk, batch_id, items) is JobState.SUCCEEDED


async def test_a_batch_does_not_end_before_what_was_taken_back_is_counted(desk):
    """Ends are added up in parts; a retry in one part and the ends before it in another change nothing."""
    batch_id, items = await desk.batch(1)
    (bad,) = await desk.pick()
    await desk.ruin(bad.fence)
    await desk.count()
    await desk.batch(3)
    for claimed in await desk.pick():
        await desk.succeed(claimed.fence)
    await desk.jobs.retry("alpha", items[0])
    async with desk.store.service() as tx:
        assert batch_id not in await tx.add_ticks(1), "it would be ended now"
    await desk.count()
    assert await ended_in(desk, batch_id, items) not in FINAL_STATES


# -- pause and priority


async def test_a_paused_batch_holds_back_what_waits_and_what_comes_back(desk):
    batch_id, items = await desk.batch(3)
    (running,) = await desk.pick(count=1)
    await desk.jobs.pause("alpha", batch_id)
    assert await desk.pick() == []
    assert await desk.work.heartbeat([(running.fence, None)]) == [(running.fence, StopKind.YIELD)]
    await desk.work.release(running.fence, Released(StopKind.YIELD.value))
    assert await desk.pick() == []
    await desk.jobs.resume("alpha", batch_id)
    assert len(await desk.pick()) == 3
    assert await desk.states(items) == [JobState.RUNNING] * 3


@pytest.mark.parametrize("how", ["fail", "cancel"])
async def test_what_ended_while_its_batch_was_paused_runs_when_that_is_retried(desk, how):
    batch_id, items = await desk.batch(1)
    (running,) = await desk.pick()
    await desk.jobs.pause("alpha", batch_id)
    if how == "fail":
        await desk.ruin(running.fence)
    else:
        await desk.jobs.cancel("alpha", batch_id)
        await desk.work.cancelled(running.fence)
    await desk.count()
    assert await ended_in(desk, batch_id, items) in FINAL_STATES
    await desk.jobs.retry("alpha", batch_id)
    assert [each.id for each in await desk.pick()] == items


async def test_a_batchs_priority_is_that_of_its_items_also_of_those_that_come_back(desk):
    batch_id, items = await desk.batch(2)
    (running,) = await desk.pick(count=1)
    await desk.jobs.update("alpha", batch_id, {"priority": 9})
    plain = await desk.submit(priority=5)
    await desk.work.release(running.fence, Released("x"))
    assert [each.id for each in await desk.pick()] == [*items, plain]


async def test_items_of_a_failing_class_go_their_own_ways(desk):
    batch_id, items = await desk.batch(3, max_attempts=2)
    for claimed, failure in zip(
        await desk.pick(node="n1"),
        (FailureClass.RESOURCE, FailureClass.NODE, FailureClass.INPUT),
        strict=True,
    ):
        await desk.fail(claimed.fence, failure)
    desk.clock.advance(2)
    assert [each.id for each in await desk.pick(node="n1")] == [items[0]]
    assert [each.id for each in await desk.pick(node="n2")] == [items[1]]
    assert (await desk.job(items[0])).batch_scale == 0.5
    await desk.count()
    assert await counts(desk, batch_id) == {"total": 3, "failed": 1, "running": 2}
