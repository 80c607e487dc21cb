"""The worker loop: takes leases, runs their handlers, keeps them alive, ends them.

It holds one work channel and opens it anew when it breaks; leases outlive the channel, so a restart
of metadata loses no work. A lease that was not confirmed for its whole length is given up *by this
side as well*: the handler is told LOST before another worker can have the job.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field

from services.common import telemetry
from services.common.errors import Kind, Reason, VoxfleetError, internal, unavailable
from services.common.jobs.model import (
    AttemptStopped,
    Capacity,
    Checkpoint,
    Fence,
    FleetOrders,
    HeartbeatAck,
    Lease,
    Outcome,
    Progress,
    Released,
    StopKind,
    UnreadableLease,
)
from services.common.jobs.ports import LedgerPort, WorkStream

log = logging.getLogger(__name__)

_NEWS_S = 0.01
_TELL_S = 3.0
_WEIGHT = {StopKind.CANCEL: 1, StopKind.LOST: 2}


@dataclass(eq=False)
class Attempt:
    """One lease being worked on; what a handler is given."""

    lease: Lease
    _ledger: LedgerPort
    _wake: Callable[[], None] = field(default=lambda: None)
    _progress: deque[Progress] = field(default_factory=deque)
    _confirmed: float = field(default_factory=time.monotonic)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    stop_kind: StopKind | None = None

    @property
    def stopping(self) -> bool:
        """Whether the handler has been told to stop."""
        return self._stop.is_set()

    async def wait_stop(self) -> StopKind:
        """Waits until the handler is told to stop."""
        await self._stop.wait()
        assert self.stop_kind is not None
        return self.stop_kind

    def check_stop(self) -> None:
        """Raises AttemptStopped where the handler has been told to stop."""
        if self.stopping:
            raise AttemptStopped

    def report(self, progress: Progress) -> None:
        """Keeps the newest snapshot of each phase; they travel with the next heartbeats, in order."""
        if self._progress and self._progress[-1].phase == progress.phase:
            self._progress[-1] = progress
        else:
            self._progress.append(progress)
            # A new phase is news: it does not wait for the next heartbeat's time.
            self._wake()

    async def record_checkpoint(self, checkpoint: Checkpoint) -> list[str]:
        """Makes a checkpoint's row; returns keys whose bytes may go. Errors: LEASE_LOST."""
        return await self._ledger.record_checkpoint(self.lease.fence, checkpoint)

    def tell_stop(self, kind: StopKind) -> None:
        """Tells the handler to stop; a lost lease overrides any other reason, a cancel those to give back."""
        if self.stop_kind is None or _WEIGHT.get(kind, 0) > _WEIGHT.get(self.stop_kind, 0):
            self.stop_kind = kind
        self._stop.set()

    def take_progress(self) -> Progress | None:
        """The oldest snapshot that was not yet sent, once."""
        return self._progress.popleft() if self._progress else None

    @property
    def has_news(self) -> bool:
        """Whether there are snapshots that were not yet sent."""
        return bool(self._progress)

    def confirm(self, sent: float) -> None:
        """Notes that the ledger took a heartbeat that was sent at ``sent`` (monotonic seconds)."""
        self._confirmed = max(self._confirmed, sent)

    @property
    def overdue(self) -> bool:
        """Whether the lease may have expired without our having heard."""
        return time.monotonic() - self._confirmed > self.lease.lease_s


Handler = Callable[[Attempt], Awaitable[Outcome]]


class Worker:
    """A worker process's loop over one queue."""

    def __init__(
        self,
        ledger: LedgerPort,
        handler: Handler,
        capacity: Callable[[], Capacity],
        *,
        orders: Callable[[FleetOrders], None] = lambda _: None,
        heartbeat_s: float = 1.0,
        reconnect_s: float = 0.5,
    ) -> None:
        """Makes the loop; :meth:`run` runs it.

        Args:
            ledger: the ledger.
            handler: does the work of one lease.
            capacity: what could be taken now, running attempts accounted for.
            orders: told what operators and the scheduler ask for, whenever that changes. The last word holds
                while the channel is broken.
            heartbeat_s: between heartbeats; progress travels with them.
            reconnect_s: before a broken channel is opened anew.
        """
        self._ledger = ledger
        self._handler = handler
        self._capacity = capacity
        self._obey = orders
        self._orders = FleetOrders()
        self._heartbeat_s = heartbeat_s
        self._reconnect_s = reconnect_s
        self._running: dict[Fence, Attempt] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._draining = False
        self._leases_seen = 0
        self._unconfirmed: deque[tuple[float, list[Fence]]] = deque()

    @property
    def running(self) -> int:
        """Attempts being worked on."""
        return len(self._running)

    @property
    def orders(self) -> FleetOrders:
        """What operators and the scheduler last asked for."""
        return self._orders

    def wake(self) -> None:
        """Says that the capacity may have changed."""
        self._changed.set()

    async def run(self) -> None:
        """Works until cancelled; opens the channel anew whenever it breaks."""
        watchdog = asyncio.create_task(self._give_up_overdue())
        try:
            while True:
                try:
                    stream = await self._ledger.connect()
                    log.info("work channel open")
                    await self._serve(stream)
                except VoxfleetError as error:
                    log.warning("work channel: %s", error.message)
                await asyncio.sleep(self._reconnect_s)
        finally:
            watchdog.cancel()

    async def drain(self, *, grace_s: float) -> None:
        """Takes no more, lets handlers save and give back, at most ``grace_s`` seconds."""
        self._draining = True
        self._changed.set()
        for attempt in self._running.values():
            attempt.tell_stop(StopKind.SHUTDOWN)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        late = set(self._tasks)
        for task in late:
            task.cancel()
        if late:
            # Each still tells the ledger that it gave its job back.
            await asyncio.wait(late, timeout=_TELL_S)

    async def _serve(self, stream: WorkStream) -> None:
        """Reads and beats until either side of the channel ends."""
        self._leases_seen = 0
        self._unconfirmed.clear()
        sides = [asyncio.create_task(self._read(stream)), asyncio.create_task(self._beat(stream))]
        try:
            done, _ = await asyncio.wait(sides, return_when=asyncio.FIRST_COMPLETED)
            for side in done:
                side.result()
        finally:
            for side in sides:
                side.cancel()
            await asyncio.gather(*sides, return_exceptions=True)
            await stream.close()

    async def _read(self, stream: WorkStream) -> None:
        async for message in stream.messages():
            match message:
                case Lease():
                    self._leases_seen += 1
                    self._begin(message)
                case UnreadableLease():
                    self._leases_seen += 1
                    self._spawn(self._refuse(message))
                case HeartbeatAck():
                    self._confirm()
                case FleetOrders():
                    self._heed(message)
                case (fence, kind):
                    if attempt := self._running.get(fence):
                        attempt.tell_stop(kind)

    async def _beat(self, stream: WorkStream) -> None:
        """Offers capacity when it changes, and heartbeats on time."""
        while True:
            capacity = Capacity({}) if self._draining else self._capacity()
            await stream.offer(capacity, leases_seen=self._leases_seen)
            beats = [(fence, attempt.take_progress()) for fence, attempt in self._running.items()]
            if beats:
                self._unconfirmed.append((time.monotonic(), [fence for fence, _ in beats]))
                await stream.heartbeat(beats)
            self._changed.clear()
            # Not wait_for, which on Python 3.11 can swallow a cancellation.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_s):
                    await self._changed.wait()

    def _heed(self, orders: FleetOrders) -> None:
        """Passes orders on, and says at once what has changed by them."""
        if orders != self._orders:
            log.info("orders: %d nodes drained, grants %s", len(orders.drained_nodes), dict(orders.grants))
        self._orders = orders
        self._obey(orders)
        self._changed.set()

    def _confirm(self) -> None:
        """The oldest heartbeat has been taken: its leases hold from when it was sent."""
        if not self._unconfirmed:
            return
        sent, fences = self._unconfirmed.popleft()
        for fence in fences:
            if attempt := self._running.get(fence):
                attempt.confirm(sent)

    async def _give_up_overdue(self) -> None:
        """Tells handlers LOST whose lease may have expired unheard, whatever the channel's state."""
        while True:
            await asyncio.sleep(self._heartbeat_s)
            for attempt in self._running.values():
                if attempt.overdue:
                    attempt.tell_stop(StopKind.LOST)

    def _begin(self, lease: Lease) -> None:
        if lease.fence in self._running:
            return
        attempt = Attempt(lease, self._ledger, self._changed.set)
        self._running[lease.fence] = attempt
        if self._draining:
            # It was on its way when the last offer was withdrawn: given back, not left to expire.
            attempt.tell_stop(StopKind.SHUTDOWN)
        self._spawn(self._work(attempt))
        self._changed.set()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, attempt: Attempt) -> None:
        lease = attempt.lease
        kind = lease.task.kind
        try:
            with telemetry.span(f"job {kind}", traceparent=lease.traceparent, job=lease.job):
                outcome = await self._outcome(attempt)
                await self._tell_news(attempt)
                await self._end(attempt, outcome)
        except VoxfleetError as error:
            level = logging.INFO if error.reason is Reason.LEASE_LOST else logging.ERROR
            log.log(level, "%s could not be ended: %s", lease.job, error.message)
        finally:
            self._running.pop(lease.fence, None)
            self._changed.set()

    async def _refuse(self, lease: UnreadableLease) -> None:
        """Gives a job back that this release cannot read; a newer worker may."""
        error = unavailable(
            Reason.INTERNAL, f"{lease.job}: this worker's release cannot read its task; upgrade the workers"
        )
        with contextlib.suppress(VoxfleetError):
            await self._ledger.fail(lease.fence, error)

    async def _tell_news(self, attempt: Attempt) -> None:
        """Lets the last phases be told before the end, as long as the channel takes them."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * self._heartbeat_s):
                while attempt.has_news or any(
                    attempt.lease.fence in fences for _, fences in self._unconfirmed
                ):
                    if attempt.has_news:
                        self._changed.set()
                    await asyncio.sleep(_NEWS_S)

    async def _outcome(self, attempt: Attempt) -> Outcome | VoxfleetError:
        """What became of the handler: an outcome, or the error to record."""
        try:
            return await self._handler(attempt)
        except AttemptStopped:
            return Released((attempt.stop_kind or StopKind.YIELD).value)
        except VoxfleetError as error:
            return error
        except asyncio.CancelledError:
            return Released("the worker was stopped")
        except Exception as error:
            log.exception("%s: unexpected error", attempt.lease.job)
            return internal(f"{type(error).__name__}: {error}")

    async def _end(self, attempt: Attempt, outcome: Outcome | VoxfleetError) -> None:
        fence = attempt.lease.fence
        if attempt.stop_kind is StopKind.LOST:
            log.info("%s: lease lost, nothing committed", attempt.lease.job)
            return
        if isinstance(outcome, VoxfleetError):
            await self._insist(lambda: self._ledger.fail(fence, outcome))
        elif isinstance(outcome, Released) and attempt.stop_kind is StopKind.CANCEL:
            await self._insist(lambda: self._ledger.cancelled(fence))
        else:
            await self._insist(lambda: self._ledger.succeed(fence, outcome))

    async def _insist(self, call: Callable[[], Awaitable[None]]) -> None:
        """Calls until it is answered: finished work is not thrown away because metadata restarts."""
        delay_s = 0.1
        while True:
            try:
                await call()
                return
            except VoxfleetError as error:
                if error.kind not in (Kind.UNAVAILABLE, Kind.DEADLINE):
                    raise
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, 5.0)
