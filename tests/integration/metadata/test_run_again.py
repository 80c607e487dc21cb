"""What is run again, or stopped in part, while it waits for others or is counted: nothing waits for ever.

Each of these was found by ``python -m tests.chaos.ledger``.
"""

import psycopg
import pytest

from services.common.jobs.model import Succeeded
from services.metadata.model.jobs import JobState
from services.metadata.model.page import Page
from tests.chaos.looks import faults
from tests.integration.metadata.test_order import batch_of


async def state(metadata, job_id: str) -> JobState:
    return (await metadata.jobs.get("alpha", job_id))[0].state


async def sweep(metadata) -> None:
    for _ in range(3):
        await metadata.ledger.housekeeping.sweep()


async def do_all_of(metadata, batch_id: str, *, most: int = 10) -> None:
    """Does every item of a batch; that nothing else is handed out meanwhile is asserted."""
    claimed = await metadata.claim("w1", {"f5.item": most})
    assert {each.job.parent_id for each in claimed} == {batch_id}
    for each in claimed:
        await metadata.work.succeed(each.fence, Succeeded())
    await sweep(metadata)


async def test_what_was_cancelled_while_it_waited_runs_when_it_is_retried(metadata):
    first = await batch_of(metadata, 1)
    second = await batch_of(metadata, 2, depends_on=(first.name,))
    await metadata.jobs.cancel("alpha", second.id)
    await do_all_of(metadata, first.id)
    await metadata.jobs.retry("alpha", second.id)
    await do_all_of(metadata, second.id)
    assert await state(metadata, second.id) is JobState.SUCCEEDED


@pytest.mark.parametrize("first_is_done_before", [True, False], ids=["after-the-other", "with-the-other"])
async def test_what_failed_for_another_is_retried_after_it_or_with_it(metadata, first_is_done_before):
    first = await batch_of(metadata, 1)
    second = await batch_of(metadata, 2, depends_on=(first.name,))
    await metadata.jobs.cancel("alpha", first.id)
    await sweep(metadata)
    assert await state(metadata, second.id) is JobState.FAILED
    await metadata.jobs.retry("alpha", first.id)
    if first_is_done_before:
        await do_all_of(metadata, first.id)
        await metadata.jobs.retry("alpha", second.id)
    else:
        await metadata.jobs.retry("alpha", second.id)
        await do_all_of(metadata, first.id)
    await do_all_of(metadata, second.id)
    assert await state(metadata, second.id) is JobState.SUCCEEDED


async def test_what_is_retried_alone_fails_again_for_the_same_reason(metadata):
    first = await batch_of(metadata, 1)
    second = await batch_of(metadata, 2, depends_on=(first.name,))
    await metadata.jobs.cancel("alpha", first.id)
    await sweep(metadata)
    await metadata.jobs.retry("alpha", second.id)
    assert await metadata.claim("w1", {"f5.item": 10}) == []
    await sweep(metadata)
    job, _ = await metadata.jobs.get("alpha", second.id)
    assert (job.state, job.error["reason"]) == (JobState.FAILED, "DEPENDENCY_FAILED")


@pytest.mark.parametrize("ends_well", [True, False], ids=["succeeds", "is-cancelled"])
async def test_an_item_cancelled_while_its_batch_waits_is_not_the_batchs_beginning(metadata, ends_well):
    first = await batch_of(metadata, 1)
    second = await batch_of(metadata, 3, depends_on=(first.name,))
    items = await metadata.jobs.page("alpha", Page(10), batch=second.id)
    await metadata.jobs.cancel("alpha", items[0].id)
    await metadata.count()
    assert await state(metadata, second.id) is JobState.QUEUED
    if ends_well:
        await do_all_of(metadata, first.id)
        await do_all_of(metadata, second.id)
    else:
        await metadata.jobs.cancel("alpha", first.id)
        await sweep(metadata)
    expected = JobState.SUCCEEDED if ends_well else JobState.FAILED
    assert await state(metadata, second.id) is expected


async def test_a_batch_does_not_end_by_a_count_that_its_retry_has_made_stale(metadata):
    batch = await batch_of(metadata, 2)
    await metadata.jobs.cancel("alpha", batch.id)
    await metadata.count()
    assert await state(metadata, batch.id) is JobState.CANCELLED
    await metadata.jobs.retry("alpha", batch.id)
    with psycopg.connect(metadata.url) as connection:
        # Whoever counts now comes upon the retried batch, and not yet upon what the retry takes off.
        connection.execute("SELECT FROM batch_ticks FOR UPDATE")
        await metadata.count()
        assert await state(metadata, batch.id) is JobState.QUEUED
    await do_all_of(metadata, batch.id)
    job, _ = await metadata.jobs.get("alpha", batch.id)
    assert (job.state, job.counts["succeeded"]) == (JobState.SUCCEEDED, 2)
    assert {rule for rule in faults(metadata.url) if rule != "lost"} == set()


async def test_what_waits_for_one_that_has_succeeded_and_one_that_has_not_waits_for_that(metadata):
    done, waiting = await batch_of(metadata, 1), await batch_of(metadata, 1, priority=-1)
    await do_all_of(metadata, done.id, most=1)
    second = await batch_of(metadata, 2, depends_on=(done.name, waiting.name))
    await sweep(metadata)
    await do_all_of(metadata, waiting.id)
    await do_all_of(metadata, second.id)
