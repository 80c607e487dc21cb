"""A worker's channel on real Postgres: who is woken, and by what."""

import asyncio
import datetime as dt

from services.common.errors import Kind, Reason
from services.common.jobs.wire import fence_to_proto
from services.common.rpc.status import from_status
from services.metadata.app.channel import WorkSession
from services.metadata.model.fleet import WorkerRow
from services.metadata.servicers.work import WorkServicer
from tests.integration.metadata.test_order import batch_of
from voxfleet.internal.v1 import work_pb2
from voxfleet.v1 import job_pb2


def row(**free: int) -> WorkerRow:
    kinds = {kind.replace("_", "."): count for kind, count in free.items()}
    return WorkerRow("w1", "inference", "n1", "1", kinds, (), "", 0, dt.datetime.now(dt.UTC))


async def test_an_offer_of_other_kinds_is_heard_while_it_waits(metadata):
    session = WorkSession(metadata.work, metadata.ledger.dispatcher, row())
    await session.offer(row(rvc_convert=1), 0)
    leases = session.leases()
    waiting = asyncio.create_task(anext(leases))
    await batch_of(metadata, 2)
    await metadata.ledger.dispatcher.refresh()
    assert not waiting.done()
    await session.offer(row(rvc_convert=1, f5_item=5), 0)
    async with asyncio.timeout(10):
        assert len(await waiting) == 2
    # An offer from before these leases arrived promises nothing.
    await session.offer(row(f5_item=5), 1)
    waiting = asyncio.create_task(anext(leases))
    await batch_of(metadata, 1)
    await metadata.ledger.dispatcher.refresh()
    await session.offer(row(f5_item=5), 2)
    async with asyncio.timeout(10):
        assert len(await waiting) == 1
    waiting.cancel()


async def test_a_wake_up_brings_work_at_once(metadata):
    listening = [
        asyncio.create_task(metadata.wakeups.run()),
        asyncio.create_task(metadata.ledger.dispatcher.run()),
    ]
    session = WorkSession(metadata.work, metadata.ledger.dispatcher, row())
    await session.offer(row(f5_item=5), 0)
    waiting = asyncio.create_task(anext(session.leases()))
    await batch_of(metadata, 2)
    async with asyncio.timeout(10):
        assert len(await waiting) == 2
    for task in listening:
        task.cancel()
    await asyncio.gather(*listening, return_exceptions=True)


async def test_a_channel_that_drains_hands_out_nothing_more(metadata):
    session = WorkSession(metadata.work, metadata.ledger.dispatcher, row())
    await session.offer(row(f5_item=5), 0)
    waiting = asyncio.create_task(anext(session.leases()))
    session.drain()
    await batch_of(metadata, 2)
    await metadata.ledger.dispatcher.refresh()
    await session.offer(row(f5_item=5), 0)
    done, _ = await asyncio.wait([waiting], timeout=0.5)
    assert not done
    waiting.cancel()


async def test_each_of_many_ends_is_judged_by_itself(metadata):
    await batch_of(metadata, 6)
    claimed = await metadata.claim("w1", {"f5.item": 6})
    fences = [fence_to_proto(each.fence) for each in claimed]
    stale = fence_to_proto(claimed[0].fence)
    stale.lease_token = "00000000-0000-0000-0000-000000000000"
    failed = work_pb2.AttemptFailed(error={"reason": "TEXT_EMPTY", "message": "m"}, failure_class="input")
    audio = work_pb2.OutputAudio(blob={"key": "k", "sha256": "ab" * 32, "size_bytes": 1}, codec="flac")
    ends = [
        work_pb2.AttemptEnd(fence=fences[0], succeeded=work_pb2.AttemptSucceeded(weights="w")),
        work_pb2.AttemptEnd(fence=fences[1], failed=failed),
        work_pb2.AttemptEnd(fence=stale, succeeded=work_pb2.AttemptSucceeded()),
        work_pb2.AttemptEnd(fence=fences[2], succeeded=work_pb2.AttemptSucceeded(audios=[audio])),
        work_pb2.AttemptEnd(fence=fences[3]),
        work_pb2.AttemptEnd(fence=fences[4], succeeded=work_pb2.AttemptSucceeded()),
        work_pb2.AttemptEnd(fence=fences[5], released=work_pb2.AttemptReleased(message="later")),
    ]
    servicer = WorkServicer(metadata.work, metadata.ledger.dispatcher, metadata.ledger.orders)
    ended = (await servicer.EndAttempts(work_pb2.EndAttemptsRequest(ends=ends), None)).ended
    states = {
        place: job_pb2.JobState.Name(each.state).removeprefix("JOB_STATE_")
        for place, each in enumerate(ended)
        if not each.status
    }
    assert states == {0: "SUCCEEDED", 1: "FAILED", 3: "SUCCEEDED", 5: "SUCCEEDED", 6: "QUEUED"}
    assert [len(each.audios) for each in ended] == [0, 0, 0, 1, 0, 0, 0]
    refused = {place: from_status(each.status) for place, each in enumerate(ended) if each.status}
    assert {place: (error.reason, error.kind) for place, error in refused.items()} == {
        2: (Reason.LEASE_LOST, Kind.ABORTED),
        4: (Reason.INVALID_ARGUMENT, Kind.INVALID),
    }
    for each, place in zip(claimed, (0, 1, 3, None, 5, 6), strict=True):
        job, _ = await metadata.ledger.jobs.get("alpha", each.job.id)
        assert job.state.value == ("RUNNING" if place is None else states[place])
