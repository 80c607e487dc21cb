"""What is said to whoever asks how long a job will wait, and why, on real Postgres."""

from __future__ import annotations

import datetime as dt

import psycopg
import pytest

from services.common.errors import FailureClass, Reason, unavailable
from services.common.jobs import tasks
from services.common.jobs.model import Progress, Released, Succeeded
from services.common.rpc.caller import Caller, set_caller
from services.metadata.adapters.ledger.fleet import FleetQueries
from services.metadata.app.fleet import Fleet
from services.metadata.model.fleet import Quota, WorkerRow
from services.metadata.model.jobs import JobState
from services.metadata.servicers.jobs import JobServicer
from tests.integration.metadata.test_ledger import add_audio, claim_one, request, train
from tests.integration.metadata.test_order import batch_of, others_job, put_quota
from voxfleet.v1 import job_pb2

NODE = {"name": "nodes/a", "state": "alive", "gpus": 2.0, "gpu_type": "H200"}


async def worker(metadata, free, *nodes, name="w1") -> None:
    """A worker that says what it could take."""
    row = WorkerRow(name, "q", "node", "1", free, nodes, "", 0, dt.datetime.now(dt.UTC))
    await metadata.work.put_worker(row)


async def look(metadata) -> None:
    await metadata.ledger.dispatcher.refresh()
    metadata.ledger.planner._rest_until_s = 0.0
    await metadata.ledger.planner.refresh()


async def why(metadata, job) -> job_pb2.ExplainJobResponse:
    await look(metadata)
    set_caller(Caller(team="alpha"))
    return await JobServicer(metadata.jobs).ExplainJob(job_pb2.ExplainJobRequest(name=job.name), None)


async def code(metadata, job) -> str:
    found = await why(metadata, job)
    assert found.explanation
    return job_pb2.WaitingReason.Name(found.waiting_reason).removeprefix("WAITING_REASON_")


async def test_each_cause_is_told_apart(metadata):
    job = await train(metadata)
    assert await code(metadata, job) == "NO_WORKER"
    await worker(metadata, {"rvc.train": 1, "f5.item": 0}, NODE)
    assert await code(metadata, job) == "UNSPECIFIED", "a place is free"
    await worker(metadata, {"rvc.train": 0, "f5.item": 0}, NODE)
    assert await code(metadata, job) == "GPU_BUSY"

    await metadata.jobs.pause("alpha", job.id)
    assert await code(metadata, job) == "PAUSED"
    await metadata.jobs.resume("alpha", job.id)

    await put_quota(metadata, Quota("alpha", max_gpus=0.5))
    assert await code(metadata, job) == "QUOTA"
    await put_quota(metadata, Quota("alpha"))

    fleet = Fleet(metadata.store)
    await fleet.drain("nodes/a")
    assert await code(metadata, job) == "DRAINING"
    await fleet.resume("nodes/a")

    await worker(metadata, {"rvc.train": 0, "f5.item": 0}, {**NODE, "gpus": 0.0})
    assert await code(metadata, job) == "NO_SUCH_GPU"
    await worker(metadata, {"rvc.train": 0, "f5.item": 0}, NODE)

    after = await metadata.submit.convert(
        request(depends_on=(job.name,)),
        [await add_audio(metadata)],
        "teams/alpha/voices/v-anna",
        tasks.ConversionParameters(),
        tasks.Output(),
    )
    found = await why(metadata, after)
    assert found.waiting_reason == job_pb2.WAITING_REASON_DEPENDENCY
    assert list(found.depends_on) == [job.name]
    assert job.name in found.explanation

    claimed = await claim_one(metadata)
    assert await code(metadata, job) == "UNSPECIFIED", "it runs"
    await metadata.work.release(claimed.fence, Released("yield: saved at step 5"))
    assert await code(metadata, job) == "PREEMPTED"
    claimed = await claim_one(metadata)
    lost = unavailable(Reason.WORKER_LOST, "gone").to_dict()
    await metadata.work.fail(claimed.fence, lost, FailureClass.NODE)
    found = await why(metadata, job)
    assert found.waiting_reason == job_pb2.WAITING_REASON_BACK_OFF
    assert "WORKER_LOST" in found.explanation


async def test_a_team_that_had_its_share_waits_for_the_others(metadata):
    batch = await batch_of(metadata, 30)
    await worker(metadata, {"rvc.train": 0, "f5.item": 0}, NODE)
    assert await code(metadata, batch) == "GPU_BUSY"
    others_job(metadata, count=5)
    # Beta begins where alpha is now; then alpha is served, and is ahead of it.
    await metadata.ledger.dispatcher.refresh()
    first = await metadata.claim("w1", {"f5.item": 1})
    while first[0].job.team == "beta":
        first = await metadata.claim("w1", {"f5.item": 1})
    assert await code(metadata, batch) == "FAIR_SHARE"


async def test_what_does_not_wait_says_so(metadata):
    job = await train(metadata)
    claimed = await claim_one(metadata)
    await metadata.work.heartbeat([(claimed.fence, Progress("preparing"))])
    found = await why(metadata, job)
    assert (found.waiting_reason, found.explanation) == (0, "it does not wait: it is RUNNING (preparing)")
    await metadata.work.succeed(claimed.fence, Succeeded())
    assert "SUCCEEDED" in (await why(metadata, job)).explanation


async def test_where_no_end_is_in_sight_no_time_is_stated(metadata):
    job = await train(metadata)
    await worker(metadata, {"rvc.train": 0}, NODE)
    await look(metadata)
    found, _ = await metadata.jobs.get("alpha", job.id)
    assert (found.position, found.expected) == (0, None)


async def test_a_job_is_told_its_position_and_when_it_begins_and_ends(metadata):
    jobs = [await train(metadata, voice=f"v-{number}") for number in range(4)]
    await claim_one(metadata)
    await worker(metadata, {"rvc.train": 0}, NODE)
    await look(metadata)
    seen = [(await metadata.jobs.get("alpha", job.id))[0] for job in jobs]
    assert [job.position for job in seen] == [0, 0, 1, 2]
    starts = [job.expected.start for job in seen[1:]]
    assert starts == sorted(starts)
    for job in seen[1:]:
        assert job.expected.earliest <= job.expected.start <= job.expected.latest
        assert job.expected.end > job.expected.start
    assert seen[0].expected.end > dt.datetime.now(dt.UTC), "it runs, and will end"
    # What waits behind all of it ends last.
    assert seen[3].expected.end > seen[1].expected.end


async def test_a_batch_ends_with_its_last_item(metadata):
    small, large = await batch_of(metadata, 10), await batch_of(metadata, 1000)
    await worker(metadata, {"f5.item": 2}, NODE)
    await metadata.claim("w1", {"f5.item": 2})
    await look(metadata)
    first, _ = await metadata.jobs.get("alpha", small.id)
    second, _ = await metadata.jobs.get("alpha", large.id)
    assert first.expected.end < second.expected.start + dt.timedelta(seconds=1)
    assert second.expected.end - second.expected.start > 10 * (first.expected.end - first.expected.start)


async def test_it_learns_from_what_happened(metadata, monkeypatch):
    monkeypatch.setattr(FleetQueries, "usage_lag_s", 0.0)
    await worker(metadata, {"rvc.train": 1}, NODE)
    await look(metadata)
    job = await train(metadata)
    with psycopg.connect(metadata.url) as connection:
        (foretold,) = connection.execute("SELECT expected FROM jobs WHERE id = %s", [job.id]).fetchone()
    assert foretold["key"][0] == "rvc.train"
    assert foretold["start_in_s"] == 0.0, "a place was free"
    experience = metadata.ledger.experience
    before = experience.times.mean_s("rvc.train", 60.0)
    claimed = await claim_one(metadata)
    await metadata.work.succeed(claimed.fence, Succeeded())
    with psycopg.connect(metadata.url) as connection:
        # It took ten times what was believed.
        connection.execute(
            "UPDATE job_attempts SET started_at = ended_at - %s * interval '1 second'", [10 * before]
        )
    assert await experience.learn() == 1
    assert experience.times.mean_s("rvc.train", 60.0) > 1.2 * before
    assert experience.calibration.to_json()["histograms"], "the wait was held against what was foretold"
    # Another process reads what this one learned; nothing is learned twice.
    other = type(experience)(metadata.store)
    assert await other.learn() == 0
    assert other.times.mean_s("rvc.train", 60.0) == pytest.approx(experience.times.mean_s("rvc.train", 60.0))


@pytest.mark.parametrize("count", [3, 150])
async def test_of_a_batch_the_first_item_is_foretold(metadata, count):
    await worker(metadata, {"f5.item": 1}, NODE)
    await look(metadata)
    batch = await batch_of(metadata, count)
    with psycopg.connect(metadata.url) as connection:
        kept = connection.execute(
            "SELECT item_index FROM jobs WHERE parent_id = %s AND expected IS NOT NULL", [batch.id]
        ).fetchall()
    assert kept == [(0,)]
    (first,) = await metadata.claim("w1", {"f5.item": 1})
    assert first.job.item_id == "l0"


async def test_what_its_owner_held_back_is_not_held_against_the_forecast(metadata):
    await worker(metadata, {"rvc.train": 1}, NODE)
    await look(metadata)
    paused, moved, waiting = [await train(metadata, voice=f"v-{number}") for number in range(3)]
    await metadata.jobs.pause("alpha", paused.id)
    await metadata.jobs.update("alpha", moved.id, {"priority": -5})
    await metadata.jobs.update("alpha", waiting.id, {"display_name": "x"})
    with psycopg.connect(metadata.url) as connection:
        kept = connection.execute("SELECT id FROM jobs WHERE expected IS NOT NULL").fetchall()
    assert kept == [(waiting.id,)]
    assert (await metadata.jobs.get("alpha", waiting.id))[0].state is JobState.QUEUED
