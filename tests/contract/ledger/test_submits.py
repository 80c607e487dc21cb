"""Submits: one job however often it is asked for, and never more than a team may have waiting."""

import asyncio

import pytest

from services.common.errors import Reason, VoxfleetError
from services.metadata.model.fleet import Quota
from services.metadata.model.jobs import JobState, PriorityClass
from services.metadata.model.page import Page
from services.metadata.scheduling.lanes import LaneKey
from tests.contract.ledger.desk import broken_off, new_job


async def test_a_submitted_job_stands_as_it_was_asked_for(desk):
    job_id = await desk.submit(
        "rvc.convert",
        priority=7,
        gpus=0.5,
        gpu_type="t4",
        size=12.5,
        max_attempts=9,
        labels={"film": "x"},
        display_name="a name",
        spec={"deep": [1, {"er": None}]},
        traceparent="00-1",
    )
    job = await desk.job(job_id)
    assert (job.state, job.attempt, job.event_seq, job.blockers) == (JobState.QUEUED, 0, 1, 0)
    assert (job.priority, job.priority_class) == (7, PriorityClass.CONVERSION)
    assert (job.gpus, job.gpu_type) == (0.5, "t4")
    assert (job.size, job.max_attempts) == (12.5, 9)
    assert (job.labels, job.display_name) == ({"film": "x"}, "a name")
    assert (job.spec, job.traceparent, job.task["kind"]) == (
        {"deep": [1, {"er": None}]},
        "00-1",
        "rvc.convert",
    )
    assert job.created_at == job.updated_at == job.not_before == desk.clock.now
    assert (job.started_at, job.ended_at, job.lease_token, job.error) == (None, None, "", None)


async def test_a_repeated_request_finds_the_first_job(desk):
    first = await desk.submit(request_id="r-1")
    assert await desk.submit(request_id="r-1") == first
    assert await desk.submit(request_id="r-2") != first
    # A request id is a team's own.
    assert await desk.submit(request_id="r-1", team="beta") != first
    assert len(await desk.jobs.page("alpha", Page(50))) == 2


async def test_another_body_under_the_same_request_id_is_refused_and_makes_nothing(desk):
    await desk.submit(request_id="r-1")
    with pytest.raises(VoxfleetError) as caught:
        async with desk.store.tenant("alpha") as tx:
            await desk.add(tx, new_job("other"), request_id="r-1", fingerprint="another")
    assert caught.value.reason is Reason.REQUEST_ID_REUSED
    assert len(await desk.jobs.page("alpha", Page(50))) == 1


async def test_concurrent_identical_submits_make_one_job(desk):
    found = await asyncio.gather(*(desk.submit(request_id="same") for _ in range(50)))
    assert len(set(found)) == 1
    assert len(await desk.jobs.page("alpha", Page(100))) == 1


async def test_a_repeat_waits_for_the_first_and_takes_its_place_where_that_fails(desk):
    async with broken_off(desk.store.tenant("alpha")) as tx:
        await desk.add(tx, new_job("first"), request_id="r")
        second = asyncio.create_task(desk.submit(request_id="r"))
        await desk.backend.blocked()
        assert not second.done(), "it cannot know yet which of the two there will be"
    assert await second != "first"
    async with desk.store.service() as tx:
        assert await tx.jobs_now(["first"]) == []


async def test_a_submit_that_fails_leaves_nothing(desk):
    async with broken_off(desk.store.tenant("alpha")) as tx:
        await desk.add(tx, new_job("gone"), request_id="r")
    assert await desk.jobs.page("alpha", Page(10)) == []
    assert await desk.pick() == []
    async with desk.store.leases() as rows:
        assert await rows.lanes() == []


async def test_the_bound_on_waiting_jobs_holds_under_concurrent_submits(desk):
    await desk.set_quota(max_queued_jobs=5)

    async def submit(number: int) -> bool:
        async with desk.store.tenant("alpha") as tx:
            bound = (await tx.get_quota("alpha")).max_queued_jobs
            await tx.lock_submits("alpha")
            if await tx.count_queued("alpha", bound + 1) >= bound:
                return False
            await tx.add_jobs("alpha", [new_job(f"job-{number}")])
            return True

    assert sum(await asyncio.gather(*(submit(number) for number in range(12)))) == 5


async def test_what_waits_is_counted_however_it_waits_and_no_further_than_asked(desk):
    first = await desk.submit()
    await desk.jobs.pause("alpha", first)
    await desk.submit(depends_on=(first,))
    await desk.batch(3)
    await desk.submit(team="beta")
    await desk.submit("rvc.convert")
    await desk.claim_one("rvc.convert")
    async with desk.store.tenant("alpha") as tx:
        assert await tx.count_queued("alpha", 100) == 5, "a batch is no job that waits, its items are"
        assert await tx.count_queued("alpha", 2) == 2


async def test_the_same_id_is_not_made_twice(desk):
    async with desk.store.tenant("alpha") as tx:
        await tx.add_jobs("alpha", [new_job("twice")])
    with pytest.raises(Exception, match=r"twice|jobs_pkey"):
        async with desk.store.tenant("alpha") as tx:
            await tx.add_jobs("alpha", [new_job("twice")])


async def test_a_transaction_of_one_team_sees_no_other(desk):
    job_id = await desk.submit(team="beta")
    await desk.set_quota("beta", max_gpus=1)
    async with desk.store.tenant("alpha") as tx:
        assert await tx.get_job("beta", job_id) is None
        assert await tx.get_job("beta", job_id, lock=True) is None
        assert await tx.jobs_now([job_id]) == []
        assert await tx.job_marks([job_id]) == {}
        assert await tx.list_jobs("beta", Page(10)) == []
        assert await tx.events_after({job_id: 0}) == {job_id: []}
        assert await tx.attempts(job_id) == []
        assert await tx.get_quota("beta") == Quota("beta")
    with pytest.raises(VoxfleetError) as caught:
        await desk.jobs.cancel("alpha", job_id)
    assert caught.value.reason is Reason.JOB_NOT_FOUND


async def test_pages_of_jobs_and_of_items(desk):
    ids = [await desk.submit(labels={"n": str(n)}, display_name=f"Job {n}") for n in range(5)]
    batch_id, items = await desk.batch(4, bad=[1])
    newest = await desk.jobs.page("alpha", Page(3))
    assert [job.id for job in newest] == [batch_id, ids[4], ids[3]]
    older = await desk.jobs.page("alpha", Page(10, after=ids[3]))
    assert [job.id for job in older] == [ids[2], ids[1], ids[0]]
    upwards = await desk.jobs.page("alpha", Page(2, ascending=True, after=ids[0]))
    assert [job.id for job in upwards] == [ids[1], ids[2]]
    assert [job.id for job in await desk.jobs.page("alpha", Page(9, filters={"labels.n": "2"}))] == [ids[2]]
    assert [job.id for job in await desk.jobs.page("alpha", Page(9, filters={"kind": "batch"}))] == [batch_id]
    assert [job.id for job in await desk.jobs.page("alpha", Page(9, query="job 4"))] == [ids[4]]
    assert [job.id for job in await desk.jobs.page("alpha", Page(9), batch=batch_id)] == items
    bad = await desk.jobs.page("alpha", Page(9, filters={"state": "FAILED"}), batch=batch_id)
    assert [job.id for job in bad] == [items[1]]
    rest = await desk.jobs.page("alpha", Page(9, after="1"), batch=batch_id)
    assert [job.item_index for job in rest] == [2, 3]
    with pytest.raises(VoxfleetError) as caught:
        await desk.jobs.page("alpha", Page(9, filters={"nonsense": "x"}))
    assert caught.value.reason is Reason.INVALID_ARGUMENT


async def test_lanes_are_what_has_something_claimable(desk):
    await desk.submit("rvc.convert", team="beta")
    await desk.submit()
    await desk.submit(priority_class=PriorityClass.INTERACTIVE)
    paused = await desk.submit("bundle.pull")
    await desk.jobs.pause("alpha", paused)
    await desk.submit("rvc.train", depends_on=(paused,))
    async with desk.store.leases() as rows:
        assert await rows.lanes() == [
            LaneKey("f5.item", PriorityClass.INTERACTIVE, "alpha"),
            LaneKey("f5.item", PriorityClass.BATCH, "alpha"),
            LaneKey("rvc.convert", PriorityClass.CONVERSION, "beta"),
        ]


async def test_what_is_committed_wakes_whoever_waits_for_its_lane(desk):
    heard: list[LaneKey | None] = []
    listener = await desk.backend.hear()
    desk.backend.wakeups.subscribe(heard.append)
    async with broken_off(desk.store.tenant("beta")) as tx:
        await desk.add(tx, new_job("never", team="beta"))
    await desk.submit("rvc.convert")
    async with asyncio.timeout(10):
        while not heard:
            await asyncio.sleep(0.01)
    assert heard == [LaneKey("rvc.convert", PriorityClass.CONVERSION, "alpha")]
    listener.cancel()
