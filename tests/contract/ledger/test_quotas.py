"""Quotas of GPUs and of GPU-seconds: hard, also for those who claim at once."""

import asyncio

import pytest

from services.common.jobs.model import Released
from services.metadata.model.jobs import PriorityClass
from services.metadata.scheduling.lanes import LaneKey, Pick, Turn
from tests.contract.ledger.desk import ITEM_LANE, LEASE_S

TRAINING = LaneKey("rvc.train", PriorityClass.TRAINING, "alpha")


async def held(desk, team="alpha"):
    return (await desk.quota_use(team)).gpus


async def test_a_team_holds_no_more_gpus_than_it_may(desk):
    await desk.set_quota(max_gpus=3)
    for _ in range(5):
        await desk.submit("rvc.train", gpus=1)
    claimed = await desk.pick(TRAINING)
    assert len(claimed) == 3
    assert await desk.pick(TRAINING) == []
    assert await desk.claim() == []
    await desk.succeed(claimed[0].fence)
    assert len(await desk.pick(TRAINING)) == 1


async def test_parts_of_gpus_add_up(desk):
    await desk.set_quota(max_gpus=2)
    for _ in range(20):
        await desk.submit(gpus=1 / 5)
        await desk.submit("rvc.convert", gpus=1 / 3)
    conversions = LaneKey("rvc.convert", PriorityClass.CONVERSION, "alpha")
    assert len(await desk.pick(conversions, 3)) == 3
    assert len(await desk.pick(ITEM_LANE)) == 5
    assert await held(desk) == pytest.approx(2)


@pytest.mark.parametrize(("share", "gpus"), [(1 / 5, 60), (1 / 3, 40)])
async def test_a_large_quota_can_be_used_up_by_small_parts(desk, share, gpus):
    await desk.set_quota(max_gpus=gpus)
    places = round(gpus / share)
    await desk.batch(places + 5, gpus=share)
    claimed = 0
    while leased := await desk.pick(count=7):
        claimed += len(leased)
    assert claimed == places


async def test_a_job_that_is_too_big_holds_up_those_behind_it_only(desk):
    await desk.set_quota(max_gpus=3)
    small = await desk.submit("rvc.train", gpus=2, priority=1)
    await desk.submit("rvc.train", gpus=2)
    await desk.submit("rvc.train", gpus=1)
    assert [job.id for job in await desk.pick(TRAINING)] == [small]


async def test_other_teams_do_not_count(desk):
    await desk.set_quota(max_gpus=1)
    await desk.set_quota("beta", max_gpus=1)
    for team in ("alpha", "beta", "gamma"):
        for _ in range(3):
            await desk.submit("rvc.train", team=team, gpus=1)
    picks = [Pick(TRAINING._replace(team=team), 3, 0) for team in ("alpha", "beta", "gamma")]
    claimed = [job.team for job in await desk.pick_all(picks)]
    assert sorted(claimed) == ["alpha", "beta", "gamma", "gamma", "gamma"]


async def test_concurrent_claims_do_not_overdraw_a_quota(desk):
    await desk.set_quota(max_gpus=4)
    for _ in range(30):
        await desk.submit("rvc.train", gpus=1)
    for _ in range(5):
        found = await asyncio.gather(*(desk.pick(TRAINING, 3, worker=f"w{n}") for n in range(6)))
        assert await held(desk) <= 4
        for job in [job for jobs in found for job in jobs]:
            await desk.work.release(job.fence, Released("x"))
    assert len(await desk.pick(TRAINING)) == 4, "and it can be used up"


async def test_whose_quota_another_measures_waits_for_nobody(desk):
    await desk.set_quota(max_gpus=4)
    await desk.submit("rvc.train", gpus=1)
    await desk.submit("rvc.train", team="beta", gpus=1)
    picks = [Pick(TRAINING, 1, 0), Pick(TRAINING._replace(team="beta"), 1, 0)]
    async with desk.store.service() as tx:
        assert (
            len(await tx.claim([Turn("w0", "n", Pick(TRAINING, 1, 0))], LEASE_S, gpu_types=(), max_gpus=9))
            == 1
        )
        await desk.submit("rvc.train", gpus=1)
        async with asyncio.timeout(10):
            assert [job.team for job in await desk.pick_all(picks)] == ["beta"]
    assert [job.team for job in await desk.pick_all(picks)] == ["alpha"]


async def test_a_lowered_quota_stops_what_begins_and_nothing_that_runs(desk):
    for _ in range(4):
        await desk.submit("rvc.train", gpus=1)
    claimed = await desk.pick(TRAINING, 3)
    await desk.set_quota(max_gpus=2)
    assert await desk.pick(TRAINING) == []
    assert await desk.work.heartbeat([(job.fence, None) for job in claimed]) == []
    for job in claimed[:2]:
        await desk.succeed(job.fence)
    assert len(await desk.pick(TRAINING)) == 1


async def test_the_end_of_a_job_lets_its_teams_next_begin_without_a_look(desk):
    await desk.set_quota(max_gpus=1)
    await desk.submit("rvc.train", gpus=1)
    second = await desk.submit("rvc.train", gpus=1)
    first = await desk.claim_one("rvc.train")
    assert await desk.claim({"rvc.train": 1}) == []
    woken = asyncio.Event()
    with desk.dispatcher.waiting(["rvc.train"], woken):
        await desk.succeed(first.fence)
        assert woken.is_set()
    assert (await desk.claim_one("rvc.train")).job.id == second


async def test_gpu_seconds_of_a_day_are_a_bound_until_midnight(desk):
    await desk.set_quota(max_gpu_seconds_per_day=100)
    for _ in range(4):
        await desk.submit("rvc.train", gpus=2, max_attempts=9)
    first = await desk.claim_one("rvc.train")
    desk.clock.advance(30)
    await desk.succeed(first.fence)
    use = await desk.quota_use()
    assert (use.gpu_seconds, use.full) == (pytest.approx(60), False)
    second = await desk.claim_one("rvc.train")
    desk.clock.advance(21)
    use = await desk.quota_use()
    assert (use.gpu_seconds, use.full) == (pytest.approx(102), True), "what runs counts as it goes"
    assert await desk.claim({"rvc.train": 1}) == []
    await desk.succeed(second.fence)
    assert await desk.claim({"rvc.train": 1}) == []
    desk.clock.advance(13 * 3600)
    assert len(await desk.claim({"rvc.train": 1})) == 1


async def test_use_is_the_same_however_often_it_was_added_up(desk):
    await desk.set_quota(max_gpu_seconds_per_day=10_000)
    start = desk.clock.now
    for added in (False, True, True):
        await desk.submit("rvc.train", gpus=2)
        claimed = await desk.claim_one("rvc.train")
        desk.clock.advance(50)
        await desk.succeed(claimed.fence)
        desk.clock.advance(60)
        if added:
            async with desk.store.service() as tx:
                await tx.add_up_usage(100)
    assert (await desk.quota_use()).gpu_seconds == pytest.approx(300)
    async with desk.store.service() as tx:
        usage = await tx.usage("alpha", start, desk.clock.now)
    assert (usage.gpu_seconds, usage.jobs) == (pytest.approx(300), 3)


async def test_each_attempt_is_learned_from_once(desk):
    async with desk.store.service() as tx:
        await tx.add_up_usage(100)
    foretold = {"start_in_s": 2.5, "key": ["rvc.convert", 2]}
    await desk.submit("rvc.convert", size=4.0, expected=foretold)
    desk.clock.advance(3)
    await desk.fail((await desk.claim_one("rvc.convert")).fence)
    desk.clock.advance(60)
    claimed = await desk.claim_one("rvc.convert")
    desk.clock.advance(7)
    await desk.succeed(claimed.fence)
    samples = []
    for _ in range(5):
        desk.clock.advance(30)
        async with desk.store.service() as tx:
            samples += await tx.add_up_usage(100)
    assert [(s.kind, s.size, s.succeeded, s.duration_s, s.waited_s) for s in samples] == [
        ("rvc.convert", 4.0, False, 0.0, 3.0),
        ("rvc.convert", 4.0, True, 7.0, 63.0),
    ]
    # What was foretold at its submit says nothing of a second attempt.
    assert [(s.attempt, s.expected) for s in samples] == [(1, foretold), (2, None)]


async def test_what_was_foretold_is_forgotten_where_it_says_nothing_any_more(desk):
    job_id = await desk.submit(expected={"start_in_s": 1.0})
    async with desk.store.tenant("alpha") as tx:
        await tx.update_job(job_id, {"expected": None})
    await desk.succeed((await desk.claim_one()).fence)
    retried = await desk.submit(expected={"start_in_s": 2.0})
    await desk.jobs.cancel("alpha", retried)
    await desk.jobs.retry("alpha", retried)
    await desk.succeed((await desk.claim_one()).fence)
    desk.clock.advance(60)
    async with desk.store.service() as tx:
        assert [sample.expected for sample in await tx.add_up_usage(100)] == [None, None]
