"""How a pool of engine replicas is run: what to start, stop and assign, given what is seen.

Pure decisions over plain data. ``app.pool`` keeps the state that they are made from and carries them
out; nothing here waits, and nothing here knows what a replica is made of.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace


class Role(enum.StrEnum):
    """Which engine a replica holds."""

    F5 = "f5"
    RVC = "rvc"


class Rank(enum.IntEnum):
    """Who goes first where both could: lower goes first."""

    INTERACTIVE = 0
    CONVERSION = 1
    BATCH = 2


class ReplicaState(enum.StrEnum):
    """What a replica is doing. STARTING -> READY -> DRAINING -> gone; a dead one is gone at once."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """How a pool is to be run.

    Args:
        role: what its replicas hold.
        least: replicas that are always kept.
        most: replicas that are started where requests wait.
        queue_limit: interactive requests that may wait; the next one is refused.
        queue_wait_s: how long an interactive request may wait.
        idle_s: a replica above ``least`` that did nothing for so long is stopped.
        start_limit_s: a replica that is not ready after so long is given up.
        misses: health checks in a row that a replica may leave unanswered.
        reserved: slots of each replica that only interactive requests use (where it has more than that).
        gpus_each: share of a GPU that a replica holds; 0 where it needs none.
    """

    role: Role
    least: int = 1
    most: int = 1
    queue_limit: int = 32
    queue_wait_s: float = 30.0
    idle_s: float = 300.0
    start_limit_s: float = 900.0
    misses: int = 3
    reserved: int = 0
    gpus_each: float = 0.0

    def within(self, granted_gpus: float | None) -> PoolPlan:
        """The plan with no more replicas than fit into what is granted; as it is where nobody says."""
        if granted_gpus is None or self.gpus_each <= 0.0:
            return self
        most = min(self.most, int(granted_gpus / self.gpus_each + _EPSILON))
        return replace(self, least=min(self.least, most), most=most)


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica as it was last seen.

    Args:
        number: counts up; never used again.
        generation: of the weights that it was started with.
        state: what it is doing.
        slots: calls that it takes at once; 0 until it is ready.
        busy: calls that it runs.
        since_s: when it came to be in this state, or when its last call ended.
        missed: health checks in a row without an answer.
        node: where it runs; empty until it is ready.
        avoids: the nodes that it was not to be started on.
    """

    number: int
    generation: int
    state: ReplicaState
    slots: int
    busy: int
    since_s: float
    missed: int = 0
    node: str = ""
    avoids: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Start:
    """Start a replica of the newest generation."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Give a replica nothing new."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """End a replica; nothing runs on it unless it is unwell."""

    number: int
    reason: str


Action = Start | Drain | Stop

_EPSILON = 1e-6
_BACK_OFF_S = 1.0
_LONGEST_BACK_OFF_S = 60.0


def reconcile(
    plan: PoolPlan,
    generation: int,
    replicas: Sequence[Replica],
    *,
    waiting: int,
    now_s: float,
    start_from_s: float,
    drained: Collection[str] = (),
) -> tuple[Action, ...]:
    """What to do to bring a pool to what it should be.

    Args:
        plan: what it should be, within what is granted; replicas above its most are drained, none is cut off.
        generation: of the weights that replicas should hold; replicas of an older one are drained.
        replicas: what there is.
        waiting: requests without a slot.
        now_s: the time.
        start_from_s: nothing is started before then (it failed a moment ago).
        drained: nodes that are to be left; what is being started with other such nodes in mind starts anew.
    """
    drained = frozenset(drained)
    actions: list[Action] = []
    kept: list[Replica] = []
    for replica in replicas:
        unwell = _unwell(plan, replica, now_s)
        unfit = _unfit(replica, generation, drained)
        if unwell or (unfit and replica.state is ReplicaState.STARTING):
            actions.append(Stop(replica.number, unwell or unfit))
        elif replica.state is ReplicaState.DRAINING:
            if replica.busy == 0:
                actions.append(Stop(replica.number, "drained"))
        elif unfit:
            actions.append(Drain(replica.number, unfit))
        else:
            kept.append(replica)
    kept, above = _within_most(plan, kept)
    actions.extend(above)
    wanted = _wanted(plan, kept, waiting)
    # A draining replica still holds its share of a GPU: its successor could not be placed beside it. What it
    # holds of a drained node is nobody else's.
    leaving = {action.number for action in actions if isinstance(action, Drain)}
    leaving |= {replica.number for replica in replicas if replica.state is ReplicaState.DRAINING}
    leaving -= {replica.number for replica in replicas if replica.node in drained}
    room = plan.most - len(kept) - len(leaving)
    if now_s >= start_from_s:
        actions.extend(Start() for _ in range(min(wanted - len(kept), max(room, 0))))
    spare = len(kept) - max(plan.least, wanted)
    for replica in sorted(kept, key=lambda replica: replica.since_s):
        idle = replica.state is ReplicaState.READY and replica.busy == 0
        if spare > 0 and idle and waiting == 0 and now_s - replica.since_s >= plan.idle_s:
            actions.append(Drain(replica.number, "idle"))
            spare -= 1
    return tuple(actions)


def _within_most(plan: PoolPlan, kept: list[Replica]) -> tuple[list[Replica], list[Action]]:
    """The replicas that stay where there are more than may be: those that would lose least go."""
    order = sorted(kept, key=lambda one: (one.state is not ReplicaState.STARTING, one.busy, one.since_s))
    gone = order[: max(len(kept) - plan.most, 0)]
    actions: list[Action] = [
        Stop(one.number, "not granted")
        if one.state is ReplicaState.STARTING
        else Drain(one.number, "not granted")
        for one in gone
    ]
    return [one for one in kept if one not in gone], actions


def assign(
    plan: PoolPlan,
    tickets: Sequence[tuple[int, Rank]],
    replicas: Sequence[Replica],
    avoid: Mapping[int, Collection[str]] | None = None,
) -> dict[int, int]:
    """Which waiting ticket goes to which replica.

    Interactive before conversion before batch, and within a rank in order of the tickets' numbers;
    to the replica with the most free slots, on another node than those to be avoided where one has room.

    Args:
        plan: for the slots that are reserved for interactive requests.
        tickets: (number, rank) of all that wait.
        replicas: what there is.
        avoid: nodes by ticket number.

    Returns:
        replica number by ticket number.
    """
    free = {
        replica.number: replica.slots - replica.busy
        for replica in replicas
        if replica.state is ReplicaState.READY and replica.slots > replica.busy
    }
    reserved = {replica.number: plan.reserved if replica.slots > plan.reserved else 0 for replica in replicas}
    nodes = {replica.number: replica.node for replica in replicas}
    given: dict[int, int] = {}
    for number, rank in sorted(tickets, key=lambda ticket: (ticket[1], ticket[0])):
        kept_back = 0 if rank is Rank.INTERACTIVE else 1
        open_to = [replica for replica in free if free[replica] > reserved[replica] * kept_back]
        if open_to:
            bad = avoid.get(number, ()) if avoid else ()
            best = min(open_to, key=lambda one: (nodes[one] in bad, -free[one], one))
            given[number] = best
            free[best] -= 1
    return given


def places(plan: PoolPlan, replicas: Sequence[Replica]) -> int:
    """How many leased jobs a pool can hold, running ones included.

    One replica more than is ready is counted where one could be started, so that work arrives for
    which the pool then grows; none where one is being started already and may wait for a GPU.

    Args:
        plan: how far it may grow.
        replicas: what there is.
    """
    ready = [replica for replica in replicas if replica.state is ReplicaState.READY]
    slots = sum(max(replica.slots - plan.reserved, 1) for replica in ready)
    if len(replicas) < plan.most and len(ready) == len(replicas):
        slots += max((max(replica.slots - plan.reserved, 1) for replica in ready), default=1)
    return slots


def back_off_s(failures: int) -> float:
    """How long after so many failures in a row the next replica is started."""
    if failures <= 0:
        return 0.0
    return float(min(_BACK_OFF_S * 2.0 ** min(failures - 1, 10), _LONGEST_BACK_OFF_S))


def expected_wait_s(ahead: int, slots: int, call_s: float) -> float:
    """When a repeat may find a slot: between 1 s and a minute.

    Args:
        ahead: requests that wait already.
        slots: slots of the pool.
        call_s: how long a call has lately taken.
    """
    return min(max(call_s * (ahead + 1) / max(slots, 1), 1.0), 60.0)


def _unwell(plan: PoolPlan, replica: Replica, now_s: float) -> str:
    if replica.missed >= plan.misses:
        return "unresponsive"
    if replica.state is ReplicaState.STARTING and now_s - replica.since_s > plan.start_limit_s:
        return "slow start"
    return ""


def _unfit(replica: Replica, generation: int, drained: frozenset[str]) -> str:
    """Why a replica that is well is to be replaced by another."""
    if replica.generation < generation:
        return "outdated"
    if replica.state is ReplicaState.STARTING:
        return "" if replica.avoids == drained else "other nodes"
    return "node drained" if replica.node in drained else ""


def _wanted(plan: PoolPlan, kept: Sequence[Replica], waiting: int) -> int:
    """Replicas wanted: enough for what waits beyond the slots that are free or coming, one at a time."""
    starting = sum(1 for replica in kept if replica.state is ReplicaState.STARTING)
    free = sum(replica.slots - replica.busy for replica in kept if replica.state is ReplicaState.READY)
    short = waiting > free and starting == 0
    return min(max(plan.least, len(kept) + (1 if short else 0) if waiting else plan.least), plan.most)
