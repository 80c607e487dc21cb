"""One pool: slots given out, calls ended for certain, replicas watched and kept as ``model`` decides.

Everything runs on one event loop. :meth:`Pool.step` carries out what ``model`` decides at once; what
takes time (loading, health checks, a call that is asked to stop) runs in tasks that call it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection

from services.common.errors import Kind, Reason, VoxfleetError, unavailable
from services.common.jobs.model import PoolState
from services.inference import metrics
from services.inference.app.members import GpusLentError, Member, Running, Ticket, ends
from services.inference.app.replicas import Replicas
from services.inference.app.watching import Paces, Watch
from services.inference.calls import EngineFacts, EngineSpec, Request
from services.inference.model import PoolPlan, Rank, Replica
from services.inference.ports import Call, Executor
from services.inference.slots import assign, expected_wait_s, places

log = logging.getLogger(__name__)

_TICK_S = 1.0
_SMOOTHING = 0.2
_DIED = "died"


class Pool:
    """The replicas of one engine.

    Args:
        plan: how it is run.
        executor: where replicas run.
        clock: seconds, monotonic.
        stop_grace_s: how long a call may take to end when it is asked to; then its replica is replaced.
    """

    def __init__(
        self,
        plan: PoolPlan,
        executor: Executor,
        *,
        clock: Callable[[], float] = time.monotonic,
        stop_grace_s: float = 10.0,
    ) -> None:
        self.plan = plan
        self._clock = clock
        self._stop_grace_s = stop_grace_s
        self._replicas = Replicas(plan.role, executor, clock=clock, changed=self.step)
        self._paces = Paces()
        self._watch = Watch(
            plan.role,
            self._paces,
            clock=clock,
            stop_grace_s=stop_grace_s,
            lost=self._lost,
            changed=self.step,
        )
        self._tickets: list[Ticket] = []
        self._asked = 0
        self._call_s = 1.0
        self._granted: float | None = None
        self._drained: frozenset[str] = frozenset()
        self._streams = 0
        self._begun = 0
        self._begun_s: float | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._listeners: list[Callable[[], None]] = []

    # ---- what is seen of it

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """The replicas there are."""
        return self._replicas.seen

    @property
    def facts(self) -> EngineFacts | None:
        """Of the newest ready replica; None while there is none."""
        return self._replicas.facts

    @property
    def last_facts(self) -> EngineFacts | None:
        """Of the newest replica that ever was ready: what its weights are holds while its GPUs are lent."""
        return self._replicas.last_facts

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
        newest = self.last_facts
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
        return self._replicas.broken

    def places(self) -> int:
        """How many leased jobs it can hold, running ones included; see ``slots.places``."""
        if not self.has_weights or (self.broken is not None and self.facts is None):
            return 0
        return places(self.allowed, self.replicas)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Calls ``listener`` whenever slots or replicas may have changed."""
        self._listeners.append(listener)

    # ---- its life

    def use(self, spec: EngineSpec) -> None:
        """Says what replicas are to hold; those that hold something else are replaced."""
        if self._replicas.use(spec):
            self._paces.forget()
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
        if not self.has_weights:
            self._replicas.refuse(error)
            self.step()

    @property
    def has_weights(self) -> bool:
        """Whether it was said what replicas are to hold."""
        return self._replicas.has_weights

    async def run(self) -> None:
        """Keeps the replicas until cancelled; then ends them all."""
        try:
            while True:
                self.watch()
                self.step()
                # Once a tick: a request takes several steps, and a scrape sees one moment.
                self._show()
                await asyncio.sleep(_TICK_S)
        finally:
            self.close()
            self._show()

    def close(self) -> None:
        """Ends every replica."""
        self._replicas.close()

    def watch(self) -> None:
        """Begins the looks at replicas that are due."""
        self._watch.look(self.plan.health, self._replicas)

    def step(self) -> None:
        """Gives slots to those who wait; starts, drains and stops replicas."""
        self._give_slots()
        waiting = [ticket for ticket in self._tickets if not ticket.given.done()]
        now_s = self._clock()
        self._replicas.reconcile(
            self.allowed,
            self._drained,
            waiting=len(waiting),
            waited_s=max((now_s - ticket.since_s for ticket in waiting), default=0.0),
        )
        self._tell()

    def _turn(self) -> None:
        """After a request came or went: a step, where it waits or where a replica may end by this."""
        self._give_slots()
        waits = any(not ticket.given.done() for ticket in self._tickets)
        if waits or not all(member.is_well for member in self._replicas):
            self.step()
        else:
            self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    def _give_slots(self) -> None:
        if not self._tickets:
            return
        tickets = {ticket.number: ticket for ticket in self._tickets if not ticket.given.done()}
        waiting = [(ticket.number, ticket.rank) for ticket in tickets.values()]
        avoid = {ticket.number: ticket.avoid for ticket in tickets.values() if ticket.avoid}
        warm = {
            ticket.number: [member.number for member in self._replicas if ticket.needs in member.holds]
            for ticket in tickets.values()
            if ticket.needs
        }
        for number, replica in assign(self.plan, waiting, self.replicas, avoid, warm).items():
            member = self._replicas[replica]
            if needed := tickets[number].needs:
                state = "warm" if member.used(needed, self.plan.keeps) else "cold"
                metrics.VOICES.labels(self.plan.role, state).inc()
            member.busy += 1
            member.begun += 1
            self._begun, self._begun_s = self._begun + 1, self._clock()
            tickets[number].given.set_result(member)

    def _lost(self, member: Member) -> None:
        self._drop(member, _DIED)

    def _drop(self, member: Member, reason: str) -> None:
        self._replicas.drop(member, reason)
        self.step()

    # ---- calls

    @contextlib.asynccontextmanager
    async def call(
        self,
        make: Callable[[EngineFacts], Request],
        rank: Rank,
        *,
        avoid: Collection[str] = (),
        needs: str = "",
    ) -> AsyncIterator[Running]:
        """A slot, with a call in it, for as long as the context lasts.

        A context that is left before its call has ended asks the call to stop; the slot is given on
        when it has, or with the replica's successor where it does not stop in time.

        Args:
            make: makes the request once there is a slot.
            rank: who goes first.
            avoid: nodes to be passed over where another has room.
            needs: what a replica loads for it and keeps (a voice, by its package's hash): one that has it is
                preferred where it has room.

        Errors: QUEUE_FULL and SERVICE_UNAVAILABLE (interactive only); what ``make`` raises; WORKER_LOST
        and the engine's own from :meth:`Running.events`. GpusLentError (a job, not a streamed request) where
        the pool has lost its GPUs before there was a slot.
        """
        began_s = self._clock()
        member = await self._acquire(rank, avoid, needs)
        held = True
        call_s = self._clock()
        streams = 1 if rank is Rank.INTERACTIVE else 0
        self._streams += streams
        try:
            assert member.facts is not None
            waited_s = call_s - began_s
            metrics.WAIT_SECONDS.labels(self.plan.role, rank.name.lower()).observe(waited_s)
            request = make(member.facts)
            call = member.engine.call(request)
            running = Running(
                call, member.facts, waited_s, request=request, beside=member.busy, clock=self._clock
            )
            member.calls.add(running)
            try:
                yield running
            except VoxfleetError as error:
                # What another pool's call within this one failed of says nothing of this replica.
                if error is running.error:
                    if error.failure.concerns_node:
                        error.metadata.setdefault("node", member.facts.node)
                    if error.reason is Reason.WORKER_LOST:
                        self._lost(member)
                raise
            finally:
                member.calls.discard(running)
                if running.ended:
                    self._call_s += _SMOOTHING * (self._clock() - call_s - self._call_s)
                    self._learn(member, running)
                else:
                    held = False
                    task = asyncio.create_task(self._finish(member, call))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
        finally:
            self._streams -= streams
            if held:
                self._release(member)

    def _learn(self, member: Member, running: Running) -> None:
        """What a call that has ended says of its replica."""
        if running.lacked_memory:
            member.out_of_memory += 1
        elif running.error is None:
            member.out_of_memory = 0
            member.proved(self._clock() + self.plan.health.probe_s)
            self._paces.note(running, member.busy)

    async def _acquire(self, rank: Rank, avoid: Collection[str], needs: str) -> Member:
        self._asked += 1
        given: asyncio.Future[Member] = asyncio.get_running_loop().create_future()
        ticket = Ticket(self._asked, rank, given, self._clock(), avoid, needs)
        ahead = sum(1 for other in self._tickets if other.rank is Rank.INTERACTIVE and not other.given.done())
        self._tickets.append(ticket)
        try:
            self._give_back()
            self._turn()
            if rank is not Rank.INTERACTIVE:
                return await ticket.given
            if not self.has_weights and self.broken is not None:
                raise self._full(ahead)
            if not ticket.given.done() and ahead >= self.plan.queue_limit:
                raise self._full(ahead)
            async with asyncio.timeout(self.plan.queue_wait_s):
                return await ticket.given
        except TimeoutError:
            if not _has_slot(ticket):
                raise self._full(ahead) from None
            return ticket.given.result()
        except BaseException:
            # Given and cancelled at once: the slot must not be lost.
            if _has_slot(ticket):
                self._release(ticket.given.result())
            raise
        finally:
            ticket.given.cancel()
            self._tickets.remove(ticket)

    def _full(self, ahead: int) -> VoxfleetError:
        broken = self.broken
        if broken is not None and self.facts is None:
            return unavailable(
                Reason.SERVICE_UNAVAILABLE,
                f"no {self.plan.role} engine runs: {broken.message}",
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
            if not await ends(call, self._stop_grace_s):
                log.warning("%s replica %d does not stop its call", self.plan.role, member.number)
                self._drop(member, "did not stop")
        finally:
            self._release(member)

    def _release(self, member: Member) -> None:
        member.busy -= 1
        member.since_s = self._clock()
        self._turn()

    def _show(self) -> None:
        waiting = sum(1 for ticket in self._tickets if not ticket.given.done())
        metrics.show_pool(self.plan.role, self.replicas, waiting)


def _has_slot(ticket: Ticket) -> bool:
    given = ticket.given
    return given.done() and not given.cancelled() and given.exception() is None
