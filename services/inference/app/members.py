"""What a pool keeps of its replicas, of those who wait for one, and of the calls that run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass, field

from services.common.errors import VoxfleetError
from services.inference.calls import EngineFacts, Event
from services.inference.model import Rank, Replica, ReplicaState
from services.inference.ports import Call, Engine


class GpusLentError(Exception):
    """A job's pool has no GPUs of its own any more: it is to be given back, unharmed."""


@dataclass(eq=False)
class Member:
    """A replica that is kept: what is seen of it, and the process itself."""

    number: int
    generation: int
    engine: Engine
    since_s: float
    checked_s: float
    state: ReplicaState = ReplicaState.STARTING
    avoids: frozenset[str] = frozenset()
    facts: EngineFacts | None = None
    busy: int = 0
    missed: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def seen(self) -> Replica:
        """What is seen of it."""
        slots, node = (self.facts.slots, self.facts.node) if self.facts is not None else (0, "")
        return Replica(
            *(self.number, self.generation, self.state, slots, self.busy, self.since_s, self.missed),
            node=node,
            avoids=self.avoids,
        )


@dataclass(eq=False)
class Ticket:
    """A request that waits for a slot."""

    number: int
    rank: Rank
    given: asyncio.Future[Member]
    since_s: float
    avoid: Collection[str] = ()


class Running:
    """A call in its slot.

    Args:
        facts: of the replica that runs it.
        waited_s: for the slot.
    """

    def __init__(self, call: Call, facts: EngineFacts, waited_s: float) -> None:
        self._call = call
        self.facts = facts
        self.waited_s = waited_s
        self.ended = False

    async def events(self) -> AsyncGenerator[Event]:
        """What the engine sends; see :meth:`ports.Call.events`."""
        try:
            async for event in self._call.events():
                yield event
        except VoxfleetError:
            self.ended = True
            raise
        self.ended = True
