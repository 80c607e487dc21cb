"""How attempts end: retries by failure class, back-off, expiry, cancel, pause, release, retry."""

import pytest

from services.common.errors import FailureClass, Reason, VoxfleetError
from services.common.jobs.model import AudioOutput, Released, StopKind, Succeeded, VoiceOutput
from services.common.jobs.tasks import Blob
from services.metadata.model.catalog import Voice, VoiceState
from services.metadata.model.jobs import JobState
from tests.contract.ledger.desk import LEASE_S


async def run_out(desk, job_id):
    """Fails a job until it is given up; returns the delays before each further attempt."""
    delays = []
    while (await desk.job(job_id)).state is JobState.QUEUED:
        (claimed,) = await desk.pick(node=f"n{len(delays)}")
        job = (await desk.fail(claimed.fence)).job
        if job.state is JobState.QUEUED:
            delays.append((job.not_before - desk.clock.now).total_seconds())
            desk.clock.advance(delays[-1])
    return delays


@pytest.mark.parametrize("failure", [FailureClass.TRANSIENT, FailureClass.RESOURCE, FailureClass.NODE])
async def test_what_may_go_better_is_tried_again_after_a_while(desk, failure):
    job_id = await desk.submit()
    ended = (await desk.fail((await desk.claim_one(node="n1")).fence, failure)).job
    assert (ended.state, ended.waiting_reason, ended.ended_at) == (JobState.QUEUED, "BACK_OFF", None)
    assert ended.error == {"reason": "X", "message": "y"}
    assert 0.0 <= (ended.not_before - desk.clock.now).total_seconds() <= 1.0
    assert ended.avoid_nodes == (("n1",) if failure is FailureClass.NODE else ())
    assert ended.batch_scale == (0.5 if failure is FailureClass.RESOURCE else 1.0)
    (record,) = await desk.attempts(job_id)
    assert (record.outcome, record.failure_class, record.node) == ("FAILED", failure.value, "n1")
    assert record.error == {"reason": "X", "message": "y"}


async def test_what_has_no_batch_is_tried_elsewhere_where_memory_did_not_do(desk):
    await desk.submit("bundle.pull")
    ended = (
        await desk.fail((await desk.claim_one("bundle.pull", node="n1")).fence, FailureClass.RESOURCE)
    ).job
    assert (ended.state, ended.batch_scale, ended.avoid_nodes) == (JobState.QUEUED, 1.0, ("n1",))


@pytest.mark.parametrize("failure", [FailureClass.INPUT, FailureClass.PERMANENT])
async def test_what_cannot_go_better_is_not_tried_again(desk, failure):
    job_id = await desk.submit()
    ended = (await desk.fail((await desk.claim_one()).fence, failure)).job
    assert (ended.state, ended.ended_at, ended.error["reason"]) == (JobState.FAILED, desk.clock.now, "X")
    assert (await desk.attempts(job_id))[0].failure_class == failure.value
    desk.clock.advance(3600)
    assert await desk.pick() == []


async def test_the_back_off_doubles_with_jitter_up_to_a_minute(desk):
    delays = [await run_out(desk, await desk.submit(max_attempts=9)) for _ in range(6)]
    for attempt, tried in enumerate(zip(*delays, strict=True)):
        cap_s = min(60, 2**attempt)
        assert all(0 <= delay_s <= cap_s for delay_s in tried)
        assert len(set(tried)) == 6, "they do not come back together"
    assert max(max(tried) for tried in delays) > 16, "and it grows"


async def test_attempts_are_bounded_and_each_is_recorded(desk):
    job_id = await desk.submit(max_attempts=3)
    await run_out(desk, job_id)
    assert (await desk.job(job_id)).state is JobState.FAILED
    records = await desk.attempts(job_id)
    assert [(record.attempt, record.outcome) for record in records] == [(n, "FAILED") for n in (1, 2, 3)]
    assert all(record.ended_at is not None and record.started_at <= record.ended_at for record in records)


async def test_a_lack_of_memory_halves_the_batch_down_to_a_bound(desk):
    job_id = await desk.submit(max_attempts=99)
    scales = []
    while (await desk.job(job_id)).state is JobState.QUEUED:
        (claimed,) = await desk.pick()
        scales.append(claimed.batch_scale)
        await desk.fail(claimed.fence, FailureClass.RESOURCE)
        desk.clock.advance(60)
    assert scales == [2.0**-n for n in range(7)]
    assert [record.batch_scale for record in await desk.attempts(job_id)] == scales
    assert (await desk.job(job_id)).state is JobState.FAILED


async def test_an_expired_lease_gives_the_job_back_elsewhere(desk):
    job_id = await desk.submit()
    await desk.claim_one(node="n1", worker="lost")
    desk.clock.advance(LEASE_S + 0.001)
    assert await desk.work.expire() == 1
    job = await desk.job(job_id)
    assert (job.state, job.waiting_reason, job.avoid_nodes) == (JobState.QUEUED, "BACK_OFF", ("n1",))
    (record,) = await desk.attempts(job_id)
    assert (record.outcome, record.worker, record.error["reason"]) == ("EXPIRED", "lost", "WORKER_LOST")
    desk.clock.advance(1)
    assert (await desk.claim_one(node="n2")).fence.attempt == 2


async def test_a_lease_that_has_run_out_but_was_not_taken_back_can_still_be_extended(desk):
    await desk.submit()
    fence = (await desk.claim_one()).fence
    desk.clock.advance(LEASE_S + 1)
    assert await desk.work.heartbeat([(fence, None)]) == []
    assert await desk.work.expire() == 0


async def test_a_job_whose_workers_all_vanish_is_given_up(desk):
    job_id = await desk.submit(max_attempts=2)
    for node in ("n1", "n2"):
        await desk.claim_one(node=node)
        desk.clock.advance(LEASE_S + 1)
        await desk.work.expire()
        desk.clock.advance(60)
    assert (await desk.job(job_id)).state is JobState.FAILED


async def test_a_release_costs_no_attempt(desk):
    job_id = await desk.submit(max_attempts=1)
    for attempt in (1, 2, 3):
        claimed = await desk.claim_one()
        assert claimed.fence.attempt == attempt
        ended = (await desk.work.release(claimed.fence, Released("shutdown"))).job
        assert (ended.state, ended.waiting_reason, ended.not_before) == (JobState.QUEUED, "", desk.clock.now)
    assert [record.outcome for record in await desk.attempts(job_id)] == ["RELEASED"] * 3
    await desk.fail((await desk.claim_one()).fence)
    assert (await desk.job(job_id)).state is JobState.FAILED


async def test_a_release_that_was_asked_for_says_so(desk):
    job_id = await desk.submit()
    fence = (await desk.claim_one()).fence
    async with desk.store.service() as tx:
        await tx.ask_to_yield([job_id])
    assert await desk.work.heartbeat([(fence, None)]) == [(fence, StopKind.YIELD)]
    ended = (await desk.work.release(fence, Released(StopKind.YIELD.value))).job
    assert (ended.waiting_reason, ended.yield_asked) == ("PREEMPTED", False)


async def test_success_keeps_the_result_and_clears_what_went_wrong_before(desk):
    job_id = await desk.submit()
    await desk.fail((await desk.claim_one()).fence)
    desk.clock.advance(60)
    fence = (await desk.claim_one()).fence
    await desk.work.succeed(fence, Succeeded(metrics={"loss": 0.5, "nan": float("nan")}, weights="w"))
    job = await desk.job(job_id)
    assert (job.state, job.error, job.waiting_reason, job.lease_token) == (JobState.SUCCEEDED, None, "", "")
    assert (job.result["weights"], job.result["metrics"]) == ("w", {"loss": 0.5})
    assert [record.outcome for record in await desk.attempts(job_id)] == ["FAILED", "SUCCEEDED"]


async def test_what_a_job_made_is_visible_once_and_only_if_it_succeeded(desk):
    job_id = await desk.submit()
    stale = (await desk.claim_one()).fence
    desk.clock.advance(LEASE_S + 1)
    await desk.work.expire()
    desk.clock.advance(60)
    fence = (await desk.claim_one()).fence
    made = AudioOutput(
        Blob(key="k", sha256="ab" * 32, size_bytes=7), 1.0, 48000, 1, "flac", "", "f5", "w", True, "", 1, ""
    )
    outcome = Succeeded(audios=(made,))
    with pytest.raises(VoxfleetError):
        await desk.work.succeed(stale, outcome)
    ended = await desk.work.succeed(fence, outcome)
    with pytest.raises(VoxfleetError):
        await desk.work.succeed(fence, outcome)
    async with desk.store.tenant("alpha") as tx:
        assert await tx.audios_of_job(job_id) == list(ended.audios)
    assert (await desk.job(job_id)).result["audios"] == list(ended.audios)


async def test_a_trained_voice_is_published_with_the_end_of_its_job(desk):
    job_id = await desk.submit("rvc.train")
    voice = Voice("alpha", f"v-{job_id}", "V", "rvc", VoiceState.TRAINING, job_id=job_id)
    async with desk.store.tenant("alpha") as tx:
        assert await tx.add_voice(voice)
        assert not await tx.add_voice(voice)
    await desk.ruin((await desk.claim_one("rvc.train")).fence)
    assert (await find_voice(desk, voice)).state is VoiceState.FAILED
    await desk.jobs.retry("alpha", job_id)
    assert (await find_voice(desk, voice)).state is VoiceState.TRAINING
    made = VoiceOutput(Blob(key="p", sha256="cd" * 32, size_bytes=9), "whisper", 40000, {"loss": 1.5})
    await desk.work.succeed((await desk.claim_one("rvc.train")).fence, Succeeded(voice=made))
    found = await find_voice(desk, voice)
    assert (found.state, found.package.sha256, found.rate_hz) == (VoiceState.READY, "cd" * 32, 40000)


async def find_voice(desk, voice):
    async with desk.store.tenant("alpha") as tx:
        return await tx.get_voice("alpha", voice.id)


# -- cancel


async def test_a_waiting_job_is_cancelled_at_once(desk):
    job_id = await desk.submit()
    cancelled = await desk.jobs.cancel("alpha", job_id)
    assert (cancelled.state, cancelled.ended_at, cancelled.attempt) == (JobState.CANCELLED, desk.clock.now, 0)
    assert await desk.pick() == []
    assert await desk.attempts(job_id) == []


async def test_a_job_in_back_off_or_paused_is_cancelled_at_once(desk):
    paused = await desk.submit()
    await desk.jobs.pause("alpha", paused)
    delayed = await desk.submit()
    await desk.fail((await desk.claim_one()).fence)
    for job_id in (paused, delayed):
        assert (await desk.jobs.cancel("alpha", job_id)).state is JobState.CANCELLED
    desk.clock.advance(3600)
    assert await desk.pick() == []


async def test_a_running_job_is_told_to_stop_and_then_cancelled(desk):
    job_id = await desk.submit()
    fence = (await desk.claim_one()).fence
    assert (await desk.jobs.cancel("alpha", job_id)).state is JobState.CANCELLING
    assert await desk.work.heartbeat([(fence, None)]) == [(fence, StopKind.CANCEL)]
    assert (await desk.work.cancelled(fence)).job.state is JobState.CANCELLED
    assert [record.outcome for record in await desk.attempts(job_id)] == ["CANCELLED"]


@pytest.mark.parametrize("how", ["release", "fail", "expire", "succeed"])
async def test_a_job_being_cancelled_is_never_queued_again(desk, how):
    job_id = await desk.submit()
    fence = (await desk.claim_one()).fence
    await desk.jobs.cancel("alpha", job_id)
    if how == "release":
        await desk.work.release(fence, Released("yield"))
    elif how == "fail":
        await desk.fail(fence)
    elif how == "expire":
        desk.clock.advance(LEASE_S + 1)
        assert await desk.work.expire() == 1
    else:
        await desk.succeed(fence)
    done = JobState.SUCCEEDED if how == "succeed" else JobState.CANCELLED
    assert (await desk.job(job_id)).state is done


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED])
async def test_what_has_ended_is_not_cancelled(desk, state):
    job_id = await ended_as(desk, state)
    before = await desk.events(job_id)
    assert (await desk.jobs.cancel("alpha", job_id)).state is state
    assert await desk.events(job_id) == before


async def test_cancelling_twice_is_cancelling_once(desk):
    job_id = await desk.submit()
    await desk.claim_one()
    await desk.jobs.cancel("alpha", job_id)
    before = await desk.events(job_id)
    assert (await desk.jobs.cancel("alpha", job_id)).state is JobState.CANCELLING
    assert await desk.events(job_id) == before


async def test_only_who_was_told_to_stop_can_say_that_it_did(desk):
    await desk.submit()
    fence = (await desk.claim_one()).fence
    with pytest.raises(VoxfleetError) as caught:
        await desk.work.cancelled(fence)
    assert caught.value.reason is Reason.LEASE_LOST
    assert await desk.work.heartbeat([(fence, None)]) == []


# -- pause, resume, retry


async def test_a_paused_job_gives_back_and_waits_for_its_owner(desk):
    job_id = await desk.submit()
    fence = (await desk.claim_one()).fence
    assert (await desk.jobs.pause("alpha", job_id)).state is JobState.RUNNING
    assert await desk.work.heartbeat([(fence, None)]) == [(fence, StopKind.YIELD)]
    ended = (await desk.work.release(fence, Released(StopKind.YIELD.value))).job
    assert (ended.state, ended.paused, ended.waiting_reason) == (JobState.QUEUED, True, "PAUSED")
    assert await desk.claim() == []
    resumed = await desk.jobs.resume("alpha", job_id)
    assert not resumed.paused
    assert (await desk.job(job_id)).waiting_reason == ""
    assert (await desk.claim_one()).fence.attempt == 2


async def test_resumed_before_it_heard_of_the_pause_it_goes_on(desk):
    job_id = await desk.submit()
    fence = (await desk.claim_one()).fence
    await desk.jobs.pause("alpha", job_id)
    await desk.jobs.resume("alpha", job_id)
    assert await desk.work.heartbeat([(fence, None)]) == []


@pytest.mark.parametrize("state", [JobState.CANCELLING, JobState.SUCCEEDED, JobState.FAILED])
@pytest.mark.parametrize("verb", ["pause", "resume"])
async def test_only_what_waits_or_runs_can_be_paused(desk, verb, state):
    job_id = await ended_as(desk, state)
    with pytest.raises(VoxfleetError) as caught:
        await getattr(desk.jobs, verb)("alpha", job_id)
    assert caught.value.reason is Reason.JOB_STATE_CONFLICT


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED])
async def test_a_job_that_ended_badly_is_queued_anew_as_if_fresh(desk, state):
    job_id = await ended_as(desk, state, max_attempts=1)
    retried = await desk.jobs.retry("alpha", job_id)
    assert (retried.state, retried.error, retried.ended_at) == (JobState.QUEUED, None, None)
    assert (retried.batch_scale, retried.avoid_nodes, retried.paused) == (1.0, (), False)
    assert retried.max_attempts == retried.attempt + 4
    assert (await desk.claim_one()).job.id == job_id


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.CANCELLING])
async def test_what_did_not_end_badly_is_not_retried(desk, state):
    job_id = await ended_as(desk, state)
    with pytest.raises(VoxfleetError) as caught:
        await desk.jobs.retry("alpha", job_id)
    assert caught.value.reason is Reason.JOB_STATE_CONFLICT
    assert (await desk.job(job_id)).state is state


async def ended_as(desk, state, **changes):
    """A job that has come to a state."""
    job_id = await desk.submit(**changes)
    fence = (await desk.claim_one()).fence
    if state is JobState.SUCCEEDED:
        await desk.succeed(fence)
    elif state is JobState.FAILED:
        await desk.ruin(fence)
    else:
        await desk.jobs.cancel("alpha", job_id)
        if state is JobState.CANCELLED:
            await desk.work.cancelled(fence)
    assert (await desk.job(job_id)).state is state
    return job_id
