"""One pool: replicas kept as ``model`` decides, slots given out, calls ended for certain.

Everything runs on one event loop. :meth:`Pool.step` carries out what ``model`` decides at once; what
takes time (loading, health checks, a call that is asked to stop) runs in tasks that call it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from typing import Any

from services.common.errors import FailureClass, Kind, Reason, VoxfleetError, internal, unavailable
from services.common.jobs.model import PoolState
from services.inference import metrics
from services.inference.app.members import GpusLentError, Member, Running, Ticket
from services.inference.calls import EngineFacts, EngineSpec, Request
from services.inference.model import (
    Drain,
    PoolPlan,
    Rank,
    Replica,
    ReplicaState,
    Start,
    Stop,
    assign,
    back_off_s,
    expected_wait_s,
    places,
    reconcile,
)
from services.inference.ports import Call, Executor

log = logging.getLogger(__name__)

_TICK_S = 1.0
_SMOOTHING = 0.2
_OF_A_NODE = (FailureClass.NODE, FailureClass.RESOURCE, FailureClass.TRANSIENT)


class Pool:
    """The replicas of one engine.

    Args:
        plan: how it is run.
        executor: where replicas run.
        clock: seconds, monotonic.
        health_s: between two health checks of a replica.
        health_limit_s: how long an answer may take.
        stop_grace_s: how long a call may take to end when it is asked to; then its replica is replaced.
    """

    def __init__(
        self,
        plan: PoolPlan,
        executor: Executor,
        *,
        clock: Callable[[], float] = time.monotonic,
        health_s: float = 5.0,
        health_limit_s: float = 10.0,
        stop_grace_s: float = 10.0,
    ) -> None:
        self.plan = plan
        self._executor = executor
        self._clock = clock
        self._health_s = health_s
        self._health_limit_s = health_limit_s
        self._stop_grace_s = stop_grace_s
        self._spec: EngineSpec | None = None
        self._generation = 0
        self._members: dict[int, Member] = {}
        self._tickets: list[Ticket] = []
        self._started = 0
        self._asked = 0
        self._failures = 0
        self._start_from_s = 0.0
        self._broken: VoxfleetError | None = None
        self._call_s = 1.0
        self._granted: float | None = None
        self._drained: frozenset[str] = frozenset()
        self._newest: EngineFacts | None = None
        self._streams = 0
        self._begun = 0
        self._begun_s: float | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._listeners: list[Callable[[], None]] = []

    # ---- what is seen of it

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """The replicas there are."""
        return tuple(member.seen() for member in self._members.values())

    @property
    def facts(self) -> EngineFacts | None:
        """Of the newest ready replica; None while there is none."""
        ready = [member for member in self._members.values() if member.state is ReplicaState.READY]
        return max(ready, key=lambda member: member.number).facts if ready else None

    @property
    def last_facts(self) -> EngineFacts | None:
        """Of the newest replica that ever was ready: what its weights are holds while its GPUs are lent."""
        return self._newest

    @property
    def allowed(self) -> PoolPlan:
        """The plan within what is granted."""
        return self.plan.within(self._granted)

    @property
    def state(self) -> PoolState:
        """What it holds and has to do, as the scheduler is told of it."""
        now_s = self._clock()
        each = self.plan.gpus_each
        held = [replica for replica in self.replicas if replica.node not in self._drained]
        interactive = [ticket for ticket in self._tickets if ticket.rank is Rank.INTERACTIVE]
        streams = [ticket for ticket in interactive if not ticket.given.done()]
        newest = self._newest
        return PoolState(
            name=self.plan.role.value,
            gpus_each=each,
            places_each=newest.slots if newest is not None else 1,
            least=self.plan.least,
            most=self.plan.most,
            held_gpus=each * len(held),
            streams_waiting=len(streams),
            # Those included that have been given a slot and have not yet taken it.
            streams_running=self._streams + len(interactive) - len(streams),
            begun=self._begun,
            streams_waited_s=max((now_s - ticket.since_s for ticket in streams), default=0.0),
            since_begin_s=now_s - self._begun_s if self._begun_s is not None else -1.0,
        )

    def left(self, node: str) -> bool:
        """Whether no replica is there any more."""
        return all(replica.node != node for replica in self.replicas)

    @property
    def broken(self) -> VoxfleetError | None:
        """Why the last replica could not be started; None where it could."""
        return self._broken

    def places(self) -> int:
        """How many leased jobs it can hold, running ones included; see ``model.places``."""
        if self._spec is None or self._broken is not None:
            return 0
        return places(self.allowed, self.replicas)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Calls ``listener`` whenever slots or replicas may have changed."""
        self._listeners.append(listener)

    # ---- its life

    def use(self, spec: EngineSpec) -> None:
        """Says what replicas are to hold; those that hold something else are replaced."""
        if spec != self._spec:
            self._spec = spec
            self._generation += 1
            self._broken, self._failures, self._start_from_s = None, 0, 0.0
            self._newest = None
            self.step()

    def obey(self, drained: frozenset[str], granted_gpus: float | None) -> None:
        """Keeps to what is granted and leaves drained nodes: replicas end when their calls have.

        Args:
            drained: nodes, by name.
            granted_gpus: of the pool; None where nobody says.
        """
        if (drained, granted_gpus) != (self._drained, self._granted):
            self._drained, self._granted = drained, granted_gpus
            self._give_back()
            self.step()

    def _give_back(self) -> None:
        """Sends jobs away that would wait for as long as a training runs: the ledger queues them better."""
        if self.allowed.most == 0:
            for ticket in self._tickets:
                if ticket.rank is not Rank.INTERACTIVE and not ticket.given.done():
                    ticket.given.set_exception(GpusLentError())

    def refuse(self, error: VoxfleetError) -> None:
        """Says that there are no weights to hold: streamed requests are told so, replicas go on."""
        if self._spec is None:
            self._broken = error
            self.step()

    @property
    def has_weights(self) -> bool:
        """Whether it was said what replicas are to hold."""
        return self._spec is not None

    async def run(self) -> None:
        """Keeps the replicas until cancelled; then ends them all."""
        try:
            while True:
                self.step()
                self._check_all()
                await asyncio.sleep(_TICK_S)
        finally:
            self.close()

    def close(self) -> None:
        """Ends every replica."""
        for member in list(self._members.values()):
            self._drop(member, "closed")

    def step(self) -> None:
        """Starts, drains and stops replicas, and gives slots to those who wait."""
        if self._spec is not None:
            self._reconcile(self._spec)
        tickets = {ticket.number: ticket for ticket in self._tickets if not ticket.given.done()}
        waiting = [(ticket.number, ticket.rank) for ticket in tickets.values()]
        avoid = {ticket.number: ticket.avoid for ticket in tickets.values() if ticket.avoid}
        for number, replica in assign(self.plan, waiting, self.replicas, avoid).items():
            member = self._members[replica]
            member.busy += 1
            self._begun, self._begun_s = self._begun + 1, self._clock()
            tickets[number].given.set_result(member)
        self._measure()
        for listener in self._listeners:
            listener()

    def _reconcile(self, spec: EngineSpec) -> None:
        now_s = self._clock()
        waiting = sum(1 for ticket in self._tickets if not ticket.given.done())
        actions = reconcile(
            self.allowed,
            self._generation,
            self.replicas,
            waiting=waiting,
            now_s=now_s,
            start_from_s=self._start_from_s,
            drained=self._drained,
        )
        for action in actions:
            match action:
                case Start():
                    self._start(spec)
                case Drain(number, reason):
                    member = self._members[number]
                    log.info("%s replica %d drains: %s", self.plan.role, number, reason)
                    member.state, member.since_s = ReplicaState.DRAINING, now_s
                    if member.busy == 0:
                        self._drop(member, reason)
                case Stop(number, reason):
                    self._drop(self._members[number], reason)

    def _start(self, spec: EngineSpec) -> None:
        self._started += 1
        now_s = self._clock()
        log.info("%s replica %d starts", self.plan.role, self._started)
        engine = self._executor.start(spec, self._drained)
        member = Member(self._started, self._generation, engine, now_s, now_s, avoids=self._drained)
        self._members[member.number] = member
        self._spawn(self._bring_up(member), member.tasks)

    async def _bring_up(self, member: Member) -> None:
        try:
            facts = await member.engine.ready()
        except Exception as error:  # noqa: BLE001 - whatever it is, the pool goes on without this replica
            known = (
                error if isinstance(error, VoxfleetError) else internal(f"{type(error).__name__}: {error}")
            )
            self._failures += 1
            self._start_from_s = self._clock() + back_off_s(self._failures)
            self._broken = known
            log.warning("%s replica %d does not start: %s", self.plan.role, member.number, known.message)
            self._drop(member, "start failed")
        else:
            self._failures, self._broken = 0, None
            member.facts, member.state, member.since_s = facts, ReplicaState.READY, self._clock()
            self._newest = facts
            log.info(
                "%s replica %d is ready on %s, pid %d (%s): %s, %d slots",
                *(self.plan.role, member.number, facts.node, facts.pid, facts.device),
                *(facts.weights.label, facts.slots),
            )
        self.step()

    def _check_all(self) -> None:
        now_s = self._clock()
        for member in self._members.values():
            if member.state is not ReplicaState.STARTING and now_s - member.checked_s >= self._health_s:
                member.checked_s = now_s + self._health_limit_s
                self._spawn(self._check(member), member.tasks)

    async def _check(self, member: Member) -> None:
        try:
            await asyncio.wait_for(member.engine.check(), self._health_limit_s)
            member.missed = 0
        except TimeoutError:
            member.missed += 1
            log.warning("%s replica %d misses a health check", self.plan.role, member.number)
        except VoxfleetError as error:
            log.warning("%s replica %d is lost: %s", self.plan.role, member.number, error.message)
            self._drop(member, "died")
        member.checked_s = self._clock()
        self.step()

    def _drop(self, member: Member, reason: str) -> None:
        if self._members.pop(member.number, None) is None:
            return
        log.info("%s replica %d ends: %s", self.plan.role, member.number, reason)
        metrics.ENDED.labels(self.plan.role, reason).inc()
        member.engine.end()
        current = asyncio.current_task()
        for task in member.tasks:
            if task is not current:
                task.cancel()

    # ---- calls

    @contextlib.asynccontextmanager
    async def call(
        self, make: Callable[[EngineFacts], Request | None], rank: Rank, *, avoid: Collection[str] = ()
    ) -> AsyncIterator[Running | None]:
        """A slot, with a call in it, for as long as the context lasts.

        A context that is left before its call has ended asks the call to stop; the slot is given on
        when it has, or with the replica's successor where it does not stop in time.

        Args:
            make: makes the request once there is a slot; None for nothing to do after all.
            rank: who goes first.
            avoid: nodes to be passed over where another has room.

        Errors: QUEUE_FULL and SERVICE_UNAVAILABLE (interactive only); what ``make`` raises; WORKER_LOST
        and the engine's own from :meth:`Running.events`. GpusLentError (a job, not a streamed request) where
        the pool has lost its GPUs before there was a slot.
        """
        began_s = self._clock()
        member = await self._acquire(rank, avoid)
        held = True
        call_s = self._clock()
        streams = 1 if rank is Rank.INTERACTIVE else 0
        self._streams += streams
        try:
            assert member.facts is not None
            waited_s = call_s - began_s
            metrics.WAIT_SECONDS.labels(self.plan.role, rank.name.lower()).observe(waited_s)
            request = make(member.facts)
            if request is None:
                yield None
                return
            call = member.engine.call(request)
            running = Running(call, member.facts, waited_s)
            try:
                yield running
            except VoxfleetError as error:
                if error.failure in _OF_A_NODE:
                    error.metadata.setdefault("node", member.facts.node)
                if error.reason is Reason.WORKER_LOST:
                    self._drop(member, "died")
                raise
            finally:
                if running.ended:
                    self._call_s += _SMOOTHING * (self._clock() - call_s - self._call_s)
                else:
                    held = False
                    self._spawn(self._finish(member, call), self._tasks)
        finally:
            self._streams -= streams
            if held:
                self._release(member)

    async def _acquire(self, rank: Rank, avoid: Collection[str]) -> Member:
        self._asked += 1
        ticket = Ticket(self._asked, rank, asyncio.get_running_loop().create_future(), self._clock(), avoid)
        ahead = sum(1 for other in self._tickets if other.rank is Rank.INTERACTIVE and not other.given.done())
        self._tickets.append(ticket)
        try:
            self._give_back()
            self.step()
            if rank is not Rank.INTERACTIVE:
                return await ticket.given
            if not self.has_weights and self._broken is not None:
                raise self._full(ahead)
            if not ticket.given.done() and ahead >= self.plan.queue_limit:
                raise self._full(ahead)
            return await asyncio.wait_for(ticket.given, self.plan.queue_wait_s)
        except TimeoutError:
            raise self._full(ahead) from None
        except BaseException:
            # Given and cancelled at once: the slot must not be lost.
            given = ticket.given
            if given.done() and not given.cancelled() and given.exception() is None:
                self._release(given.result())
            raise
        finally:
            ticket.given.cancel()
            self._tickets.remove(ticket)
            self._measure()

    def _full(self, ahead: int) -> VoxfleetError:
        if self._broken is not None and self.facts is None:
            return unavailable(
                Reason.SERVICE_UNAVAILABLE,
                f"no {self.plan.role} engine runs: {self._broken.message}",
                retry_after_s=10.0,
                engine=self.plan.role,
            )
        slots = sum(replica.slots for replica in self.replicas)
        taken = f"all {slots} slots of the {self.plan.role} pool are taken and {ahead} requests wait"
        if self.allowed.most == 0:
            taken = f"trainings have the GPUs just now: the {self.plan.role} pool waits for its share"
        return VoxfleetError(
            Reason.QUEUE_FULL,
            f"{taken}; try later",
            kind=Kind.EXHAUSTED,
            metadata={"engine": self.plan.role, "waiting": ahead, "slots": slots},
            retry_after_s=expected_wait_s(ahead, slots, self._call_s),
            user_message="All voices are busy at the moment. Please try again shortly.",
        )

    async def _finish(self, member: Member, call: Call) -> None:
        """Sees a call to its end, or else to its replica's."""
        try:
            async with asyncio.timeout(self._stop_grace_s):
                await call.stop()
                await call.ended()
        except TimeoutError:
            log.warning("%s replica %d does not stop its call", self.plan.role, member.number)
            self._drop(member, "did not stop")
        except VoxfleetError as error:
            log.info("%s replica %d: a stopped call: %s", self.plan.role, member.number, error.message)
        finally:
            self._release(member)

    def _release(self, member: Member) -> None:
        member.busy -= 1
        member.since_s = self._clock()
        self.step()

    # ---- small things

    def _spawn(self, work: Coroutine[Any, Any, None], group: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(work)
        group.add(task)
        task.add_done_callback(group.discard)

    def _measure(self) -> None:
        role = self.plan.role
        seen = self.replicas
        for state in ReplicaState:
            metrics.REPLICAS.labels(role, state).set(sum(1 for replica in seen if replica.state is state))
        ready = [replica for replica in seen if replica.state is ReplicaState.READY]
        used = sum(replica.busy for replica in seen)
        metrics.SLOTS.labels(role, "used").set(used)
        metrics.SLOTS.labels(role, "free").set(sum(replica.slots - replica.busy for replica in ready))
        metrics.WAITING.labels(role).set(sum(1 for ticket in self._tickets if not ticket.given.done()))
