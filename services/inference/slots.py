"""Who gets which slot of a pool, and what is said to those who get none."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from services.inference.model import PoolPlan, Rank, Replica, ReplicaState, Role

_NATURAL: Final = {Role.F5: (32, 4), Role.RVC: (3, 1)}
"""On a GPU and on a CPU. There nothing is gained by more texts at once, but what is urgent need not wait for
a whole one."""


def natural_slots(role: Role, *, on_gpu: bool) -> int:
    """Calls that a replica takes at once where nobody says how many."""
    return _NATURAL[role][0 if on_gpu else 1]


def assign(
    plan: PoolPlan,
    tickets: Sequence[tuple[int, Rank]],
    replicas: Sequence[Replica],
    avoid: Mapping[int, Collection[str]] | None = None,
    warm: Mapping[int, Collection[int]] | None = None,
) -> dict[int, int]:
    """Which waiting ticket goes to which replica.

    Interactive before conversion before batch, and within a rank in order of the tickets' numbers;
    to the replica with the most free slots, on another node than those to be avoided, with nothing held
    against it and with the voice in memory, where such a one has room. Nobody waits for a warm replica while
    another has room: loading a voice takes a moment, a call before one takes its whole length.

    Args:
        plan: for the slots that are reserved for interactive requests.
        tickets: (number, rank) of all that wait.
        replicas: what there is.
        avoid: nodes by ticket number.
        warm: replicas that have in memory what a ticket needs, by ticket number.

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
    suspect = {replica.number: replica.condition.is_suspect for replica in replicas}
    given: dict[int, int] = {}
    for number, rank in sorted(tickets, key=lambda ticket: (ticket[1], ticket[0])):
        kept_back = 0 if rank is Rank.INTERACTIVE else 1
        open_to = [replica for replica in free if free[replica] > reserved[replica] * kept_back]
        if open_to:
            bad = avoid.get(number, ()) if avoid else ()
            has_it = warm.get(number, ()) if warm else ()
            best = min(
                open_to,
                key=lambda one: (nodes[one] in bad, suspect[one], one not in has_it, -free[one], one),
            )
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


def expected_wait_s(ahead: int, slots: int, call_s: float) -> float:
    """When a repeat may find a slot: between 1 s and a minute.

    Args:
        ahead: requests that wait already.
        slots: slots of the pool.
        call_s: how long a call has lately taken.
    """
    return min(max(call_s * (ahead + 1) / max(slots, 1), 1.0), 60.0)
