"""Fences: every write of a worker carries one, and a stale one changes nothing."""

import asyncio

import pytest

from services.common.errors import FailureClass, Reason, VoxfleetError
from services.common.jobs.model import Checkpoint, Fence, Progress, Released, StopKind, Succeeded
from services.common.jobs.tasks import Blob
from services.metadata.model.jobs import AttemptOutcome, End, JobState
from tests.contract.ledger.desk import LEASE_S

SAVED = Checkpoint(Blob(key="k1", sha256="ab" * 32, size_bytes=1), 1, 10)


def writes(work, fence):
    return {
        "succeed": lambda: work.succeed(fence, Succeeded()),
        "fail": lambda: work.fail(fence, {"reason": "X"}, FailureClass.PERMANENT),
        "release": lambda: work.release(fence, Released("x")),
        "cancelled": lambda: work.cancelled(fence),
        "checkpoint": lambda: work.record_checkpoint(fence, SAVED),
    }


async def snapshot(desk, job_id):
    return await desk.job(job_id), await desk.events(job_id), await desk.attempts(job_id)


async def release(desk, fence):
    await desk.work.release(fence, Released("x"))


async def expire(desk, _):
    desk.clock.advance(LEASE_S + 1)
    assert await desk.work.expire() == 1


async def finish(desk, fence):
    await desk.succeed(fence)


async def claim_again(desk, fence):
    await desk.work.release(fence, Released("x"))
    await desk.claim_one("rvc.train")


@pytest.mark.parametrize("lose", [release, expire, finish, claim_again])
async def test_a_stale_fence_changes_nothing(desk, lose):
    job_id = await desk.submit("rvc.train")
    stale = (await desk.claim_one("rvc.train")).fence
    await lose(desk, stale)
    before = await snapshot(desk, job_id)
    for name, write in writes(desk.work, stale).items():
        with pytest.raises(VoxfleetError) as caught:
            await write()
        assert caught.value.reason is Reason.LEASE_LOST, name
    assert await desk.work.heartbeat([(stale, Progress("train", 1, 2))]) == [(stale, StopKind.LOST)]
    async with desk.store.leases() as rows:
        assert await rows.finish([End(stale, JobState.SUCCEEDED, AttemptOutcome.SUCCEEDED, "late")]) == []
        assert await rows.checkpoints_of([job_id]) == {}
    assert await snapshot(desk, job_id) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda fence: Fence(fence.job_id, fence.attempt + 1, fence.lease_token),
        lambda fence: Fence(fence.job_id, fence.attempt, "00000000-0000-4000-8000-000000000000"),
        lambda fence: Fence("no-such-job", fence.attempt, fence.lease_token),
    ],
)
async def test_each_part_of_a_fence_counts(desk, change):
    job_id = await desk.submit()
    fence = (await desk.claim_one()).fence
    wrong = change(fence)
    before = await snapshot(desk, job_id)
    with pytest.raises(VoxfleetError):
        await desk.succeed(wrong)
    assert await desk.work.heartbeat([(wrong, None)]) == [(wrong, StopKind.LOST)]
    assert await snapshot(desk, job_id) == before
    assert (await desk.succeed(fence)).job.state is JobState.SUCCEEDED


async def test_successes_together_are_told_apart_by_their_fences(desk):
    ids = [await desk.submit(max_attempts=9) for _ in range(3)]
    stale, good, silent = await desk.claim()
    await desk.work.release(stale.fence, Released("x"))
    results = {stale.fence: {"weights": "s"}, good.fence: {"weights": "g"}, silent.fence: None}
    async with desk.store.leases() as rows:
        done = await rows.succeed(results)
    assert set(done) == {good.fence, silent.fence}
    assert (done[good.fence].id, done[good.fence].team, done[good.fence].kind) == (ids[1], "alpha", "f5.item")
    assert await desk.states(ids) == [JobState.QUEUED, JobState.SUCCEEDED, JobState.SUCCEEDED]
    assert [job.result for job in await desk.all(ids)] == [{}, {"weights": "g"}, {}]
    assert [event.message for event in await desk.events(ids[1])][-1] == "done"


async def test_a_batch_of_ends_ends_what_still_holds_and_no_more(desk):
    first, second = await desk.submit(), await desk.submit()
    one, two = await desk.claim()
    await desk.work.release(one.fence, Released("x"))
    ends = [End(each.fence, JobState.SUCCEEDED, AttemptOutcome.SUCCEEDED, "done") for each in (one, two)]
    async with desk.store.leases() as rows:
        assert [job.id for job in await rows.finish(ends)] == [second]
    assert await desk.states([first, second]) == [JobState.QUEUED, JobState.SUCCEEDED]


async def test_of_two_ends_of_one_attempt_one_counts(desk):
    job_id = await desk.submit()
    fence = (await desk.claim_one()).fence
    found = await asyncio.gather(desk.succeed(fence), desk.succeed(fence), return_exceptions=True)
    assert not all(isinstance(each, VoxfleetError) for each in found)
    assert [record.outcome for record in await desk.attempts(job_id)] == ["SUCCEEDED"]
    assert len(await desk.events(job_id)) == 3


async def test_an_end_and_an_expiry_at_once_leave_one_outcome(desk):
    for _ in range(10):
        await desk.submit(max_attempts=9)
    claimed = await desk.claim()
    desk.clock.advance(LEASE_S + 1)
    found = await asyncio.gather(
        *(desk.succeed(each.fence) for each in claimed), desk.work.expire(), return_exceptions=True
    )
    lost = [each for each in found if isinstance(each, VoxfleetError)]
    assert all(each.reason is Reason.LEASE_LOST for each in lost)
    outcomes = [record.outcome for each in claimed for record in await desk.attempts(each.job.id)]
    assert outcomes.count("EXPIRED") == len(lost) == found[-1]
    assert outcomes.count("SUCCEEDED") == 10 - len(lost)


async def test_a_heartbeat_extends_the_lease_and_tells_progress(desk):
    job_id = await desk.submit()
    fence = (await desk.claim_one()).fence
    desk.clock.advance(LEASE_S - 1)
    assert await desk.work.heartbeat([(fence, Progress("load", 1, 4, 25.0, {"loss": 0.5}, "m", 3.0))]) == []
    desk.clock.advance(LEASE_S - 1)
    assert await desk.work.expire() == 0
    job = await desk.job(job_id)
    assert (job.phase, job.event_seq) == ("load", 3)
    assert job.progress == {
        "phase": "load",
        "step": 1,
        "total_steps": 4,
        "percent": 25.0,
        "metrics": {"loss": 0.5},
        "message": "m",
        "remaining_s": 3.0,
    }
    desk.clock.advance(2)
    assert await desk.work.expire() == 1


async def test_a_phase_is_an_event_and_progress_within_it_is_not(desk):
    job_id = await desk.submit()
    fence = (await desk.claim_one()).fence
    for phase, step in [("load", 0), ("load", 1), ("train", 2), ("train", 3), ("load", 4)]:
        await desk.work.heartbeat([(fence, Progress(phase, step))])
    await desk.work.heartbeat([(fence, None)])
    phases = [event.phase for event in await desk.events(job_id) if event.message.startswith("phase")]
    assert phases == ["load", "train", "load"]
    assert (await desk.job(job_id)).progress["step"] == 4


async def test_many_heartbeats_at_once_each_for_itself(desk):
    for _ in range(5):
        await desk.submit()
    claimed = await desk.claim()
    await desk.ruin(claimed[0].fence)
    await desk.jobs.cancel("alpha", claimed[1].job.id)
    await desk.jobs.pause("alpha", claimed[2].job.id)
    async with desk.store.service() as tx:
        await tx.ask_to_yield([claimed[3].job.id])
    told = dict(await desk.work.heartbeat([(each.fence, None) for each in claimed]))
    assert [told.get(each.fence) for each in claimed] == [
        StopKind.LOST,
        StopKind.CANCEL,
        StopKind.YIELD,
        StopKind.YIELD,
        None,
    ]


async def test_whoever_holds_a_lease_in_a_transaction_holds_off_its_expiry(desk):
    job_id = await desk.submit()
    fence = (await desk.claim_one()).fence
    desk.clock.advance(LEASE_S + 1)
    async with desk.store.service() as tx:
        assert len(await tx.lock_leases([fence])) == 1
        assert await desk.work.expire() == 0, "it is passed over, not waited for"
        await tx.finish([End(fence, JobState.SUCCEEDED, AttemptOutcome.SUCCEEDED, "done")])
    assert await desk.work.expire() == 0
    assert (await desk.job(job_id)).state is JobState.SUCCEEDED


async def test_checkpoints_outlive_their_attempt_and_old_ones_go(desk):
    await desk.submit("rvc.train")
    first = await desk.claim_one("rvc.train")
    dropped = []
    for step in (10, 20, 30):
        saved = Checkpoint(Blob(key=f"k{step}", sha256="ab" * 32, size_bytes=1), step // 10, step)
        dropped += await desk.work.record_checkpoint(first.fence, saved)
    assert dropped == ["k10"]
    await desk.work.release(first.fence, Released("x"))
    second = await desk.claim_one("rvc.train")
    assert [(row.step, row.attempt, row.blob.key) for row in second.checkpoints] == [
        (30, 1, "k30"),
        (20, 1, "k20"),
    ]
    # What a later attempt saves comes first, be it of an earlier step.
    again = Checkpoint(Blob(key="k15", sha256="ab" * 32, size_bytes=1), 1, 15)
    assert await desk.work.record_checkpoint(second.fence, again) == ["k20"]
