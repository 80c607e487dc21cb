"""A worker's channel on real Postgres: who is woken, and by what."""

import asyncio
import datetime as dt

from services.metadata.app.channel import WorkSession
from services.metadata.model.fleet import WorkerRow
from tests.integration.metadata.test_order import batch_of


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
