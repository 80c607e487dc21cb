"""How a pool of engine replicas is run: what to start, stop and assign, given what is seen.

Pure decisions over plain data. ``app.pool`` keeps the state that they are made from and carries them
out; nothing here waits, and nothing here knows what a replica is made of.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from services.inference.health import USUAL, WELL, Ailment, Condition, HealthPlan, ends_for, leaves_for


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
        grow_depth: requests beyond the free slots for which one more replica is started.
        grow_wait_s: a request without a slot that waited so long has one more started, however few wait.
        surge: replicas above ``most`` that may be there while others are replaced.
        start_tries: starts in a row that new weights may fail before the old ones are held again.
        retry_s: until the new ones are then tried once more; twice as long after each failure.
        health: how replicas are watched.
        reserved: slots of each replica that only interactive requests use (where it has more than that).
        gpus_each: share of a GPU that a replica holds; 0 where it needs none.
        keeps: voices that a replica keeps in memory.
    """

    role: Role
    least: int = 1
    most: int = 1
    queue_limit: int = 32
    queue_wait_s: float = 30.0
    idle_s: float = 300.0
    start_limit_s: float = 900.0
    grow_depth: int = 1
    grow_wait_s: float = 5.0
    surge: int = 0
    start_tries: int = 3
    retry_s: float = 900.0
    health: HealthPlan = USUAL
    reserved: int = 0
    gpus_each: float = 0.0
    keeps: int = 0

    def within(self, granted_gpus: float | None) -> PoolPlan:
        """The plan with no more replicas than fit into what is granted.

        Where nobody says what is, there is no room above ``most`` on GPUs: a successor that cannot be
        placed would wait for ever for the one that it is to replace.
        """
        if self.gpus_each <= 0.0:
            return self
        if granted_gpus is None:
            return replace(self, surge=0)
        fitting = int(granted_gpus / self.gpus_each + _EPSILON)
        most = min(self.most, fitting)
        surge = min(self.surge, fitting - most)
        return replace(self, least=min(self.least, most), most=most, surge=surge)


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
        condition: what is held against it.
        node: where it runs; empty until it is ready.
        avoids: the nodes that it was not to be started on.
    """

    number: int
    generation: int
    state: ReplicaState
    slots: int
    busy: int
    since_s: float
    condition: Condition = WELL
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

DRAINED = "drained"
"""Why a draining replica stops that did nothing worse; what is counted is why it was drained."""
SLOW_START = "slow start"
OUTDATED = "outdated"
_WITH_SUCCESSOR = (OUTDATED, Ailment.LEAK)
"""What is no reason to be without a replica for a moment."""
_EPSILON = 1e-6
_BACK_OFF_S = 1.0
_LONGEST_BACK_OFF_S = 60.0
_LONGEST_PAUSE_S = 86_400.0


def generation_to_hold(
    plan: PoolPlan, newest: int, proven: int, *, failures: int, since_failure_s: float
) -> int:
    """Which weights replicas are to hold: the newest, unless these do not start while older ones did.

    Args:
        plan: for how often and how long.
        newest: generation of the weights that were asked for last.
        proven: generation of those that a replica last held; 0 for none.
        failures: starts in a row that the newest have failed.
        since_failure_s: since the last of them.
    """
    beyond = failures - plan.start_tries
    if not proven or beyond < 0:
        return newest
    pause_s = min(plan.retry_s * 2.0 ** min(beyond, 16), _LONGEST_PAUSE_S)
    return proven if since_failure_s < pause_s else newest


def reconcile(
    plan: PoolPlan,
    generation: int,
    replicas: Sequence[Replica],
    *,
    waiting: int,
    waited_s: float = 0.0,
    now_s: float,
    start_from_s: float,
    drained: Collection[str] = (),
) -> tuple[Action, ...]:
    """What to do to bring a pool to what it should be.

    A replica that is to be replaced and still works is drained when a successor is ready. Only where there
    is no room for one beside it does it go first.

    Args:
        plan: what it should be, within what is granted; replicas above its most are drained, none is cut off.
        generation: of the weights that replicas should hold; replicas of another one are replaced.
        replicas: what there is.
        waiting: requests that cannot have a slot now.
        waited_s: how long the first of them has waited.
        now_s: the time.
        start_from_s: nothing is started before then (it failed a moment ago).
        drained: nodes that are to be left; what is being started with other such nodes in mind starts anew.
    """
    drained = frozenset(drained)
    kept, going, actions = _sorted_out(plan, generation, replicas, now_s, drained)
    kept, above = _within_most(plan, kept, going)
    actions.extend(above)
    leaving = _leaving(replicas, actions, drained)
    wanted = _wanted(plan, [*kept, *going], waiting, waited_s)
    if going:
        wanted = min(max(wanted, _needed(replicas, waiting)), plan.most)
    room = plan.most + (plan.surge if going else 0) - len(kept) - len(going) - leaving
    if now_s >= start_from_s:
        actions.extend(Start() for _ in range(min(wanted - len(kept), room)))
    if going:
        actions.extend(_succeeded(kept, going, wanted, room=room, leaving=leaving))
    elif waiting == 0:
        actions.extend(_idle(plan, kept, wanted, now_s))
    return tuple(actions)


def _sorted_out(
    plan: PoolPlan, generation: int, replicas: Sequence[Replica], now_s: float, drained: frozenset[str]
) -> tuple[list[Replica], dict[Replica, str], list[Action]]:
    """What stays, what works until it is succeeded (with the reason), and what is done about the rest."""
    kept: list[Replica] = []
    going: dict[Replica, str] = {}
    actions: list[Action] = []
    for replica in replicas:
        unwell = _unwell(plan, replica, now_s)
        unfit = _unfit(plan, replica, generation, drained)
        if unwell or (unfit and replica.state is ReplicaState.STARTING):
            actions.append(Stop(replica.number, unwell or unfit))
        elif replica.state is ReplicaState.DRAINING:
            if replica.busy == 0:
                actions.append(Stop(replica.number, DRAINED))
        elif unfit in _WITH_SUCCESSOR:
            going[replica] = unfit
        elif unfit:
            actions.append(Drain(replica.number, unfit))
        else:
            kept.append(replica)
    return kept, going, actions


def _idle(plan: PoolPlan, kept: Sequence[Replica], wanted: int, now_s: float) -> list[Action]:
    """Of the ready replicas that are more than wanted those that have long done nothing.

    One that is only coming does not count: it may not come.
    """
    ready = sorted(
        (replica for replica in kept if replica.state is ReplicaState.READY),
        key=lambda replica: replica.since_s,
    )
    long_idle = [replica for replica in ready if replica.busy == 0 and now_s - replica.since_s >= plan.idle_s]
    return [Drain(replica.number, "idle") for replica in long_idle[: max(len(ready) - wanted, 0)]]


def _within_most(
    plan: PoolPlan, kept: list[Replica], going: dict[Replica, str]
) -> tuple[list[Replica], list[Action]]:
    """The replicas that stay where there are more than may be: those that would lose least go.

    What goes is taken out of ``going``.
    """
    most = plan.most + (plan.surge if going else 0)
    order = sorted(
        [*kept, *going],
        key=lambda one: (one.state is not ReplicaState.STARTING, one not in going, one.busy, one.since_s),
    )
    gone = order[: max(len(order) - most, 0)]
    actions: list[Action] = [
        Stop(one.number, "not granted")
        if one.state is ReplicaState.STARTING
        else Drain(one.number, "not granted")
        for one in gone
    ]
    for one in gone:
        going.pop(one, None)
    return [one for one in kept if one not in gone], actions


def _leaving(replicas: Sequence[Replica], actions: Sequence[Action], drained: frozenset[str]) -> int:
    """Replicas that drain, now or from now on.

    Each still holds its share of a GPU: its successor could not be placed beside it. What is held of a
    drained node is nobody else's.
    """
    from_now_on = {action.number for action in actions if isinstance(action, Drain)}
    return sum(
        1
        for replica in replicas
        if (replica.state is ReplicaState.DRAINING or replica.number in from_now_on)
        and replica.node not in drained
    )


def _needed(replicas: Sequence[Replica], waiting: int) -> int:
    """Replicas that have slots enough for all that runs and waits."""
    each = max((replica.slots for replica in replicas), default=0)
    return -(-(sum(replica.busy for replica in replicas) + waiting) // max(each, 1))


def _succeeded(
    kept: Sequence[Replica], going: Mapping[Replica, str], wanted: int, *, room: int, leaving: int
) -> list[Action]:
    """Which of those that are to be replaced drain now: as many as are not needed any more.

    Where no successor can be placed beside them, one makes room; the others wait until it is ready.
    """
    ready = sum(1 for replica in kept if replica.state is ReplicaState.READY)
    count = len(going) - max(wanted - ready, 0)
    is_stuck = room <= 0 and leaving == 0 and ready == len(kept) < wanted
    if count <= 0 and is_stuck:
        count = 1
    order = sorted(going, key=lambda replica: (replica.busy, replica.since_s))
    return [Drain(replica.number, going[replica]) for replica in order[: max(count, 0)]]


def back_off_s(failures: int) -> float:
    """How long after so many failures in a row the next replica is started."""
    if failures <= 0:
        return 0.0
    return float(min(_BACK_OFF_S * 2.0 ** min(failures - 1, 10), _LONGEST_BACK_OFF_S))


def _unwell(plan: PoolPlan, replica: Replica, now_s: float) -> str:
    """Why a replica is to be ended at once."""
    if replica.state is ReplicaState.STARTING:
        return SLOW_START if now_s - replica.since_s > plan.start_limit_s else ""
    return ends_for(plan.health, replica.condition) or ""


def _unfit(plan: PoolPlan, replica: Replica, generation: int, drained: frozenset[str]) -> str:
    """Why a replica that works is to be replaced by another."""
    if replica.state is ReplicaState.STARTING:
        if replica.generation != generation:
            return OUTDATED
        return "" if replica.avoids == drained else "other nodes"
    if replica.node in drained:
        return "node drained"
    ailment = leaves_for(plan.health, replica.condition)
    if ailment is not None:
        return ailment
    return OUTDATED if replica.generation != generation else ""


def _wanted(plan: PoolPlan, kept: Sequence[Replica], waiting: int, waited_s: float) -> int:
    """Replicas wanted: one more where too many wait or one waits too long, and none is coming already."""
    if waiting == 0:
        return min(plan.least, plan.most)
    coming = any(replica.state is ReplicaState.STARTING for replica in kept)
    free = sum(replica.slots - replica.busy for replica in kept if replica.state is ReplicaState.READY)
    short = waiting >= free + plan.grow_depth or waited_s >= plan.grow_wait_s or not kept
    return min(max(plan.least, len(kept) + (1 if short and not coming else 0)), plan.most)
