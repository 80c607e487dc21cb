"""The worker loop against a ledger in memory."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.common.errors import FailureClass, Kind, Reason, VoxfleetError, invalid, unavailable
from services.common.jobs.model import (
    AttemptStopped,
    Capacity,
    Fence,
    FleetOrders,
    HeartbeatAck,
    Lease,
    Progress,
    Released,
    StopKind,
    Succeeded,
    UnreadableLease,
)
from services.common.jobs.tasks import PullBundleTask
from services.common.jobs.worker import Worker


class MemoryLedger:
    """A ledger that hands out what a test puts in and notes what comes back."""

    def __init__(self):
        self.out: asyncio.Queue = asyncio.Queue()
        self.ended: list[tuple[str, object]] = []
        self.offers: list[tuple[dict, int]] = []
        self.beats: list[tuple[Fence, Progress | None]] = []
        self.connections = 0
        self.end_errors: list[VoxfleetError] = []
        self.changed = asyncio.Event()

    async def connect(self):
        self.connections += 1
        return self

    async def offer(self, capacity, *, leases_seen):
        self.offers.append((dict(capacity.free), leases_seen))
        self.changed.set()

    async def heartbeat(self, beats):
        self.beats += beats
        self.out.put_nowait(HeartbeatAck())
        self.changed.set()

    async def messages(self) -> AsyncIterator[object]:
        while (message := await self.out.get()) is not None:
            if isinstance(message, VoxfleetError):
                raise message
            yield message

    async def close(self):
        pass

    async def _end(self, what, fence):
        if self.end_errors:
            raise self.end_errors.pop(0)
        self.ended.append((what, fence))
        self.changed.set()

    async def succeed(self, fence, outcome):
        await self._end(outcome, fence)

    async def fail(self, fence, error):
        await self._end(error, fence)

    async def cancelled(self, fence):
        await self._end("cancelled", fence)

    async def record_checkpoint(self, fence, checkpoint):
        return []

    async def until(self, condition):
        async with asyncio.timeout(10):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


def lease(number: int = 1, *, lease_s: float = 30.0) -> Lease:
    task = PullBundleTask(team="alpha", bundle="b")
    return Lease(Fence(f"job-{number}", 1, "token"), f"teams/alpha/jobs/job-{number}", task, lease_s)


@pytest.fixture
async def ledger():
    return MemoryLedger()


async def running(ledger, handler, *, free: int = 4) -> tuple[Worker, asyncio.Task]:
    worker = Worker(
        ledger, handler, lambda: Capacity({"bundle.pull": free}), heartbeat_s=0.02, reconnect_s=0.01
    )
    return worker, asyncio.create_task(worker.run())


async def stop(task):
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_lease_is_worked_on_kept_alive_and_ended(ledger):
    go = asyncio.Event()

    async def handler(attempt):
        attempt.report(Progress("work", 1, 2))
        await go.wait()
        return Succeeded(weights="w")

    _, task = await running(ledger, handler)
    await ledger.out.put(lease())
    await ledger.until(lambda: any(p and p.phase == "work" for _, p in ledger.beats))
    await ledger.until(lambda: ledger.offers[-1][1] == 1)
    go.set()
    await ledger.until(lambda: ledger.ended)
    assert ledger.ended[0][0] == Succeeded(weights="w")
    await stop(task)


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (invalid(Reason.TEXT_EMPTY, "no text"), FailureClass.INPUT),
        (RuntimeError("a bug"), FailureClass.PERMANENT),
    ],
)
async def test_an_error_is_recorded_with_its_class(ledger, error, failure):
    async def handler(attempt):
        raise error

    _, task = await running(ledger, handler)
    await ledger.out.put(lease())
    await ledger.until(lambda: ledger.ended)
    found = ledger.ended[0][0]
    assert isinstance(found, VoxfleetError)
    assert found.failure is failure
    await stop(task)


@pytest.mark.parametrize(
    ("kind", "ended"),
    [(StopKind.CANCEL, "cancelled"), (StopKind.YIELD, Released("yield")), (StopKind.LOST, None)],
)
async def test_a_notice_stops_the_attempt(ledger, kind, ended):
    stopped = asyncio.Event()

    async def handler(attempt):
        assert await attempt.wait_stop() is kind
        stopped.set()
        raise AttemptStopped

    worker, task = await running(ledger, handler)
    await ledger.out.put(lease())
    await ledger.out.put((lease().fence, kind))
    async with asyncio.timeout(10):
        await stopped.wait()
    if ended is None:
        await ledger.until(lambda: worker.running == 0)
        assert ledger.ended == [], "a lost lease commits nothing"
    else:
        await ledger.until(lambda: ledger.ended)
        assert ledger.ended[0][0] == ended
    await stop(task)


async def test_a_lease_that_could_not_be_confirmed_is_given_up_by_this_side_too(ledger):
    stopped = asyncio.Event()

    async def handler(attempt):
        assert await attempt.wait_stop() is StopKind.LOST
        stopped.set()
        raise AttemptStopped

    async def broken(beats):
        raise unavailable(Reason.SERVICE_UNAVAILABLE, "down")

    ledger.heartbeat = broken
    _, task = await running(ledger, handler)
    await ledger.out.put(lease(lease_s=0.05))
    async with asyncio.timeout(10):
        await stopped.wait()
    await stop(task)


async def test_a_broken_channel_is_opened_anew_and_the_work_goes_on(ledger):
    go = asyncio.Event()

    async def handler(attempt):
        await go.wait()
        return Succeeded()

    worker, task = await running(ledger, handler)
    await ledger.out.put(lease())
    await ledger.until(lambda: worker.running == 1)
    await ledger.out.put(unavailable(Reason.SERVICE_UNAVAILABLE, "metadata restarts"))
    await ledger.until(lambda: ledger.connections == 2)
    go.set()
    await ledger.until(lambda: ledger.ended)
    await stop(task)


async def test_finished_work_is_not_thrown_away_because_metadata_restarts(ledger):
    ledger.end_errors = [unavailable(Reason.SERVICE_UNAVAILABLE, "down")] * 2

    async def handler(attempt):
        return Succeeded()

    _, task = await running(ledger, handler)
    await ledger.out.put(lease())
    await ledger.until(lambda: ledger.ended)
    await stop(task)


async def test_draining_gives_everything_back_and_takes_no_more(ledger):
    async def handler(attempt):
        await attempt.wait_stop()
        raise AttemptStopped

    worker, task = await running(ledger, handler)
    await ledger.out.put(lease())
    await ledger.until(lambda: worker.running == 1)
    await worker.drain(grace_s=5)
    assert ledger.ended[0][0] == Released("shutdown")
    await ledger.until(lambda: ledger.offers[-1][0] == {})
    await stop(task)


async def test_a_lost_lease_at_the_end_is_no_failure(ledger):
    ledger.end_errors = [VoxfleetError(Reason.LEASE_LOST, "gone", kind=Kind.ABORTED)]

    async def handler(attempt):
        return Succeeded()

    worker, task = await running(ledger, handler)
    await ledger.out.put(lease())
    await ledger.until(lambda: not ledger.end_errors and worker.running == 0)
    assert ledger.ended == []
    await stop(task)


async def test_every_phase_is_told_in_order_however_short(ledger):
    async def handler(attempt):
        for phase in ("fetch", "work", "publish"):
            for step in range(3):
                attempt.report(Progress(phase, step, 3))
        return Succeeded()

    _, task = await running(ledger, handler)
    await ledger.out.put(lease())
    await ledger.until(lambda: ledger.ended)
    told = [(progress.phase, progress.step) for _, progress in ledger.beats if progress]
    assert told == [("fetch", 2), ("work", 2), ("publish", 2)]
    await stop(task)


async def test_a_lease_that_comes_while_draining_is_given_back(ledger):
    async def handler(attempt):
        await attempt.wait_stop()
        raise AttemptStopped

    worker, task = await running(ledger, handler)
    await ledger.until(lambda: ledger.offers)
    await worker.drain(grace_s=1)
    await ledger.out.put(lease())
    await ledger.until(lambda: ledger.ended)
    assert ledger.ended[0][0] == Released("shutdown")
    await stop(task)


async def test_an_attempt_that_does_not_stop_in_time_is_given_back_before_the_drain_ends(ledger):
    begun = asyncio.Event()

    async def handler(attempt):
        begun.set()
        await asyncio.Event().wait()

    worker, task = await running(ledger, handler)
    await ledger.out.put(lease())
    await begun.wait()
    await worker.drain(grace_s=0.01)
    assert [outcome for outcome, _ in ledger.ended] == [Released("the worker was stopped")]
    await stop(task)


async def test_a_task_of_a_newer_release_is_given_back_and_the_work_goes_on(ledger):
    async def handler(attempt):
        return Succeeded()

    _, task = await running(ledger, handler)
    await ledger.out.put(UnreadableLease(Fence("job-9", 1, "token"), "teams/alpha/jobs/job-9"))
    await ledger.out.put(lease())
    await ledger.until(lambda: len(ledger.ended) == 2 and ledger.offers[-1][1] == 2)
    refused = next(what for what, fence in ledger.ended if fence.job_id == "job-9")
    assert refused.failure is FailureClass.TRANSIENT
    await stop(task)


async def test_orders_are_passed_on_and_the_newest_is_kept(ledger):
    told, room = [], {"bundle.pull": 4}

    def obey(orders):
        told.append(orders)
        room["bundle.pull"] = 0

    worker = Worker(
        ledger, None, lambda: Capacity(dict(room)), orders=obey, heartbeat_s=60.0, reconnect_s=0.01
    )
    assert worker.orders == FleetOrders()
    task = asyncio.create_task(worker.run())
    await ledger.until(lambda: ledger.offers)
    first = FleetOrders(frozenset({"nodes/a"}), {"trainer": 1.0})
    await ledger.out.put(first)
    # Long before the next heartbeat: what the orders changed is offered at once.
    await ledger.until(lambda: ledger.offers[-1][0] == {"bundle.pull": 0})
    await ledger.out.put(FleetOrders())
    await ledger.out.put(unavailable(Reason.SERVICE_UNAVAILABLE, "metadata restarts"))
    await ledger.until(lambda: ledger.connections == 2)
    assert told == [first, FleetOrders()]
    assert worker.orders == FleetOrders()
    await stop(task)
