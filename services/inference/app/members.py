"""What a pool keeps of its replicas, of those who wait for one, and of the calls that run."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Collection
from dataclasses import dataclass, field

from services.common.errors import Reason, VoxfleetError
from services.inference.calls import ConvertStream, EngineFacts, Event, Pcm, Request
from services.inference.health import WELL, Condition, Vitals
from services.inference.model import Rank, Replica, ReplicaState
from services.inference.ports import Call, Engine

log = logging.getLogger(__name__)


FED_AHEAD = 4
"""Pieces that a call is fed before it has answered the first of them."""


class GpusLentError(Exception):
    """A job's pool has no GPUs of its own any more: it is to be given back, unharmed."""


@dataclass(eq=False)
class Member:
    """A replica that is kept: what is seen of it, and the process itself.

    Args:
        number: counts up.
        generation: of the weights that it holds.
        engine: the process.
        since_s: when it came to be in its state, or when its last call ended.
        state: what it is doing.
        avoids: the nodes that it was not to be started on.
        facts: once it is ready.
        busy: slots that are taken.
        begun: calls that it was ever given.
        calls: those that run.
        leaving: why it drains.
        checked_s: when it last was asked whether it is there.
        probe_due_s: when it is to be given work, if it has none.
        is_probed: whether such work runs.
        vitals: what it last said of itself; None before.
        when_ready: what it said first.
        missed, probes_failed, overdue, out_of_memory, over_memory: see ``health.Condition``.
        tasks: what is done for it beside its calls.
        holds: what its calls needed (voices, by their packages' hashes), the one used last at the end.
    """

    number: int
    generation: int
    engine: Engine
    since_s: float
    state: ReplicaState = ReplicaState.STARTING
    avoids: frozenset[str] = frozenset()
    facts: EngineFacts | None = None
    busy: int = 0
    begun: int = 0
    calls: set[Running] = field(default_factory=set)
    leaving: str = ""
    checked_s: float = float("-inf")
    probe_due_s: float = float("inf")
    is_probed: bool = False
    vitals: Vitals | None = None
    when_ready: Vitals | None = None
    missed: int = 0
    probes_failed: int = 0
    overdue: bool = False
    out_of_memory: int = 0
    over_memory: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    holds: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def used(self, needed: str, most: int) -> bool:
        """Notes what a call needs, as the replica itself does: of more than ``most`` it drops the oldest.

        Returns:
            Whether it has that in memory already.
        """
        had = needed in self.holds
        self.holds[needed] = None
        self.holds.move_to_end(needed)
        while len(self.holds) > most:
            self.holds.popitem(last=False)
        return had

    def seen(self) -> Replica:
        """What is seen of it."""
        slots, node = (self.facts.slots, self.facts.node) if self.facts is not None else (0, "")
        return Replica(
            *(self.number, self.generation, self.state, slots, self.busy, self.since_s, self.condition),
            node=node,
            avoids=self.avoids,
        )

    @property
    def condition(self) -> Condition:
        """What is held against it."""
        return Condition(
            *(self.missed, self.probes_failed, self.overdue, self.out_of_memory, self.over_memory)
        )

    @property
    def is_well(self) -> bool:
        """Whether it is ready and nothing at all is held against it."""
        return self.state is ReplicaState.READY and self.condition == WELL

    def proved(self, next_probe_s: float) -> None:
        """Notes that it has just worked well; a probe is not needed before ``next_probe_s``."""
        self.probes_failed = 0
        self.probe_due_s = next_probe_s


@dataclass(eq=False)
class Ticket:
    """A request that waits for a slot."""

    number: int
    rank: Rank
    given: asyncio.Future[Member]
    since_s: float
    avoid: Collection[str] = ()
    needs: str = ""


class Running:
    """A call in its slot.

    Args:
        call: what runs.
        facts: of the replica that runs it.
        waited_s: for the slot.
        request: what is asked for.
        beside: calls on the replica, this one included.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        call: Call,
        facts: EngineFacts,
        waited_s: float,
        *,
        request: Request,
        beside: int,
        clock: Callable[[], float],
    ) -> None:
        self._call = call
        self._is_fed = isinstance(request, ConvertStream)
        self._ahead = asyncio.Semaphore(FED_AHEAD)
        self._owed = 0
        self.facts = facts
        self.waited_s = waited_s
        self.kind = type(request).__name__
        self.size = request.size
        self.beside = beside
        self._clock = clock
        self.work_s = 0.0
        self.heard_s = clock()
        self.looked_overdue = False
        self._since_s: float | None = None
        self.ended = False
        self.error: VoxfleetError | None = None

    @property
    def lacked_memory(self) -> bool:
        """Whether it failed because the GPU's memory was full."""
        return self.error is not None and self.error.reason is Reason.GPU_OUT_OF_MEMORY

    def silent_s(self, now_s: float) -> float:
        """How long the engine has been waited for: nothing while it is the caller who does not read on.

        Nor while there is nothing to do: an engine that is fed answers each piece.
        """
        if self._since_s is None or (self._is_fed and self._owed == 0):
            return 0.0
        return now_s - self._since_s

    async def feed(self, data: bytes) -> None:
        """Gives the engine the next piece, an empty one at the end; waits while it is far behind.

        Errors: WORKER_LOST.
        """
        await self._ahead.acquire()
        if self._owed == 0 and self._since_s is not None:
            self._since_s = self._clock()
        self._owed += 1
        try:
            await self._call.feed(data)
        except VoxfleetError as error:
            self.error = error
            raise

    async def stop(self) -> None:
        """Asks it to end early: its events then end with CANCELLED."""
        await self._call.stop()

    def _answered(self, event: Event) -> None:
        if self._is_fed and isinstance(event, Pcm) and self._owed:
            self._owed -= 1
            self._ahead.release()

    async def events(self) -> AsyncGenerator[Event]:
        """What the engine sends; see :meth:`ports.Call.events`."""
        events = aiter(self._call.events())
        try:
            while True:
                self._since_s = self._clock()
                try:
                    event = await anext(events, None)
                finally:
                    self.heard_s = self._clock()
                    self.work_s += self.silent_s(self.heard_s)
                    self._since_s = None
                if event is None:
                    break
                self._answered(event)
                yield event
        except VoxfleetError as error:
            self.ended, self.error = True, error
            raise
        self.ended = True


async def ends(call: Call, grace_s: float) -> bool:
    """Asks a call to stop; whether it has ended in time, if only with its replica."""
    try:
        async with asyncio.timeout(grace_s):
            await call.stop()
            await call.ended()
    except TimeoutError:
        return False
    except VoxfleetError as error:
        # Its replica is gone: the next check finds that out.
        log.info("a call that was asked to stop: %s", error.message)
    return True
