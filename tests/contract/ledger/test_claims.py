"""Claims: the order within and between lanes, what a worker can take, and what others hold."""

import asyncio
import json
from collections import Counter
from contextlib import asynccontextmanager

import pytest

from services.common.errors import FailureClass
from services.common.jobs.model import Released
from services.metadata.app.dispatch import Offer
from services.metadata.model.jobs import JobState, PriorityClass
from services.metadata.scheduling.lanes import LaneKey, Pick, Turn
from tests.contract.ledger.desk import ITEM_LANE, LEASE_S


def ids(leased):
    return [each.id for each in leased]


async def test_a_claim_says_all_that_a_worker_must_know(desk):
    job_id = await desk.submit("rvc.convert", gpus=0.25, size=3.0, item_id="i", traceparent="00-1")
    lane = LaneKey("rvc.convert", PriorityClass.CONVERSION, "alpha")
    (claimed,) = await desk.pick(lane, worker="w", node="n")
    job = await desk.job(job_id)
    assert (job.state, job.attempt, job.worker, job.node) == (JobState.RUNNING, 1, "w", "n")
    assert (job.started_at, job.phase, job.lease_token) == (desk.clock.now, "", claimed.lease_token)
    assert (claimed.id, claimed.team, claimed.kind, claimed.attempt) == (job_id, "alpha", "rvc.convert", 1)
    assert (claimed.gpus, claimed.size, claimed.batch_scale, claimed.avoid_nodes) == (0.25, 3.0, 1.0, ())
    assert (claimed.item_id, claimed.traceparent, json.loads(claimed.task)["kind"]) == (
        "i",
        "00-1",
        "rvc.convert",
    )
    assert claimed.queue_key == job.queue_key
    assert [event.message for event in await desk.events(job_id)] == ["", "started by w"]


async def test_several_workers_claim_at_once_each_its_own_lanes(desk):
    conversions = LaneKey("rvc.convert", PriorityClass.CONVERSION, "alpha")
    items = [await desk.submit() for _ in range(2)]
    conversion = await desk.submit("rvc.convert")
    turns = [Turn("w1", "n1", Pick(ITEM_LANE, 2, 0)), Turn("w2", "n2", Pick(conversions, 2, 0))]
    async with desk.store.leases() as rows:
        leased = await rows.claim(turns, LEASE_S, gpu_types=(), max_gpus=1.0)
    assert sorted(ids(leased)) == sorted([*items, conversion])
    for job_id, where in [*((item, ("w1", "n1")) for item in items), (conversion, ("w2", "n2"))]:
        job = await desk.job(job_id)
        assert (job.worker, job.node) == where
        assert (await desk.events(job_id))[-1].message == f"started by {where[0]}"


async def test_each_worker_passes_over_what_failed_on_its_own_node(desk):
    conversions = LaneKey("rvc.convert", PriorityClass.CONVERSION, "alpha")
    for kind in ("f5.item", "rvc.convert"):
        await desk.submit(kind)
    for claimed in await desk.claim(node="n1"):
        await desk.fail(claimed.fence, FailureClass.NODE)
    desk.clock.advance(10.0)
    turns = [Turn("w1", "n1", Pick(ITEM_LANE, 1, 0)), Turn("w2", "n2", Pick(conversions, 1, 0))]
    async with desk.store.leases() as rows:
        leased = await rows.claim(turns, LEASE_S, gpu_types=(), max_gpus=1.0)
    assert [each.kind for each in leased] == ["rvc.convert"]


async def test_what_was_leased_for_a_worker_that_has_gone_is_given_back(desk, monkeypatch):
    job_id = await desk.submit(max_attempts=1)
    await desk.dispatcher.refresh()
    leases = desk.store.leases

    @asynccontextmanager
    async def leases_until_it_goes():
        async with leases() as rows:
            yield rows
            asked.cancel()  # the statement has leased it; nobody was told yet

    monkeypatch.setattr(desk.store, "leases", leases_until_it_goes)
    asked = asyncio.create_task(desk.dispatcher.claim(Offer("w1", "n1", {"f5.item": 1})))
    with pytest.raises(asyncio.CancelledError):
        await asked
    monkeypatch.setattr(desk.store, "leases", leases)
    async with asyncio.timeout(10):
        while (await desk.job(job_id)).state is not JobState.QUEUED:
            await asyncio.sleep(0.001)
    assert [event.message for event in await desk.events(job_id)][1:] == [
        "started by w1",
        "given back: the worker went before it was told",
    ]
    (claimed,) = await desk.claim({"f5.item": 1})
    await desk.succeed(claimed.fence)
    assert (await desk.job(job_id)).state is JobState.SUCCEEDED


async def test_a_lane_goes_by_priority_then_by_age(desk):
    plain = [await desk.submit() for _ in range(3)]
    high = await desk.submit(priority=50)
    low = await desk.submit(priority=-50)
    higher = await desk.submit(priority=51)
    assert ids(await desk.pick(count=4)) == [higher, high, plain[0], plain[1]]
    assert ids(await desk.pick(count=4)) == [plain[2], low]


async def test_a_changed_priority_counts_from_then_on(desk):
    first, second, third = [await desk.submit() for _ in range(3)]
    await desk.jobs.update("alpha", third, {"priority": 1})
    await desk.jobs.update("alpha", first, {"priority": -1})
    assert ids(await desk.pick()) == [third, second, first]


async def test_a_claim_begins_after_a_queue_key(desk):
    submitted = [await desk.submit() for _ in range(4)]
    (first,) = await desk.pick(count=1)
    assert ids(await desk.pick(after=first.queue_key, count=1)) == [submitted[1]]
    assert ids(await desk.pick(after=(await desk.job(submitted[2])).queue_key)) == [submitted[3]]
    assert ids(await desk.pick()) == [submitted[2]]


async def test_each_lane_gives_no_more_than_was_asked_of_it(desk):
    speech = [await desk.submit() for _ in range(3)]
    conversions = [await desk.submit("rvc.convert") for _ in range(3)]
    foreign = [await desk.submit(team="beta") for _ in range(3)]
    picks = [
        Pick(ITEM_LANE, 2, 0),
        Pick(LaneKey("rvc.convert", PriorityClass.CONVERSION, "alpha"), 1, 0),
        Pick(ITEM_LANE._replace(team="beta"), 0, 0),
    ]
    assert ids(await desk.pick_all(picks)) == [conversions[0], *speech[:2]]
    assert await desk.states(foreign) == [JobState.QUEUED] * 3


async def test_higher_classes_are_handed_out_first(desk):
    order = [PriorityClass.TRAINING, PriorityClass.INTERACTIVE, PriorityClass.BATCH, PriorityClass.CONVERSION]
    for priority_class in order:
        await desk.submit(priority_class=priority_class, priority=-int(priority_class))
    handed = [(await desk.claim_one()).job.priority_class for _ in order]
    assert handed == sorted(order)


async def test_teams_take_turns_whoever_came_first_and_with_however_much(desk):
    for _ in range(40):
        await desk.submit(team="alpha", gpus=1, size=1)
    for _ in range(5):
        await desk.submit(team="beta", gpus=1, size=1)
    handed = [(await desk.claim_one()).job.team for _ in range(10)]
    assert Counter(handed) == {"alpha": 5, "beta": 5}


async def test_weights_share_out_the_turns(desk):
    await desk.set_quota("beta", weight=3)
    for _ in range(30):
        await desk.submit(team="alpha", gpus=1, size=1)
        await desk.submit(team="beta", gpus=1, size=1)
    handed = Counter([(await desk.claim_one()).job.team for _ in range(20)])
    assert 14 <= handed["beta"] <= 16


async def test_a_worker_is_handed_only_the_kinds_that_it_has_room_for(desk):
    await desk.submit("rvc.convert")
    training = await desk.submit("rvc.train")
    assert await desk.claim({"f5.item": 5}) == []
    (claimed,) = await desk.claim({"rvc.train": 2, "f5.item": 1})
    assert claimed.job.id == training


async def test_gpus_and_their_type_must_be_there(desk):
    big = await desk.submit("rvc.train", gpus=4)
    typed = await desk.submit("rvc.train", gpus=1, gpu_type="a100")
    lane = LaneKey("rvc.train", PriorityClass.TRAINING, "alpha")
    assert await desk.pick(lane, gpu_types=("t4",), max_gpus=2) == []
    assert ids(await desk.pick(lane, gpu_types=("t4", "a100"), max_gpus=2)) == [typed]
    assert ids(await desk.pick(lane, max_gpus=4)) == [big]


@pytest.mark.parametrize("paused", [True, False])
async def test_paused_and_delayed_jobs_are_passed_over(desk, paused):
    first, second = await desk.submit(), await desk.submit()
    if paused:
        await desk.jobs.pause("alpha", first)
    else:
        await desk.fail((await desk.claim_one()).fence)
    assert ids(await desk.pick()) == [second]
    if paused:
        await desk.jobs.resume("alpha", first)
    else:
        desk.clock.advance(1)
    assert ids(await desk.pick()) == [first]


async def test_a_claim_passes_over_what_another_transaction_holds(desk):
    first, second = await desk.submit(), await desk.submit()
    async with desk.locked(first):
        async with asyncio.timeout(10):
            assert ids(await desk.pick()) == [second]
    assert ids(await desk.pick()) == [first]


async def test_concurrent_claims_share_out_the_jobs(desk):
    submitted = [await desk.submit() for _ in range(40)]
    found = await asyncio.gather(*(desk.pick(count=7, worker=f"w{n}") for n in range(8)))
    claimed = [each.id for leased in found for each in leased]
    assert len(claimed) == len(set(claimed)), "one job was handed out twice"
    rest = await desk.pick()
    assert sorted(claimed + ids(rest)) == submitted


async def test_a_node_that_failed_is_avoided_for_a_while_then_taken_rather_than_none(desk):
    job_id = await desk.submit()
    await desk.fail((await desk.claim_one(node="bad")).fence, FailureClass.NODE)
    assert (await desk.job(job_id)).avoid_nodes == ("bad",)
    desk.clock.advance(2)
    assert await desk.pick(node="bad") == []
    (elsewhere,) = await desk.pick(node="good")
    assert elsewhere.avoid_nodes == ("bad",)
    await desk.work.release(elsewhere.fence, Released("x"))
    desk.clock.advance(31)
    assert ids(await desk.pick(node="bad")) == [job_id]


async def test_the_newest_three_bad_nodes_are_avoided_the_latest_first(desk):
    job_id = await desk.submit(max_attempts=99)
    for node in ("a", "b", "c", "a", "d"):
        (claimed,) = await desk.pick(node="any")
        await desk.fail(claimed.fence, FailureClass.NODE, node=node)
        desk.clock.advance(60)
    assert (await desk.job(job_id)).avoid_nodes == ("d", "a", "c")


async def test_every_claim_has_a_fence_of_its_own(desk):
    await desk.submit()
    fences = []
    for _ in range(3):
        claimed = await desk.claim_one()
        fences.append(claimed.fence)
        await desk.work.release(claimed.fence, Released("x"))
    assert [fence.attempt for fence in fences] == [1, 2, 3]
    assert len({fence.lease_token for fence in fences}) == 3


async def test_a_claimed_job_is_nobody_elses_until_its_lease_expires(desk):
    job_id = await desk.submit()
    await desk.pick()
    desk.clock.advance(LEASE_S - 1)
    assert await desk.work.expire() == 0
    assert await desk.pick() == []
    desk.clock.advance(2)
    assert await desk.work.expire() == 1
    desk.clock.advance(60)
    assert ids(await desk.pick()) == [job_id]
