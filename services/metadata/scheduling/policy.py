"""Which GPUs belong to which pool, where a training goes, and which must yield: pure decisions.

Every pool of workers (trainings, conversions, lines) is entitled to a number of GPUs. What one does not want
the others may borrow; a pool that wants its own back gets it: borrowed places of inference drain, since their
jobs are short, and borrowed GPUs of trainings are asked to yield at a checkpoint, never before their
guaranteed run. Work that a person waits for (interactive, conversion) may go beyond what its pool is entitled
to, down to a floor of the others'.

Trainings need all their GPUs on one node. The one whose turn it is and that fits nowhere reserves the node
that will have room first (EASY backfilling: Lifka 1995; Mu'alem and Feitelson 2001); until then that node
takes only what is expected to be gone by that time. So small trainings fill the holes and none starves a big
one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

GUARANTEED_S = 300.0
"""A training is not asked to yield before it has run for so long."""

NEARLY_DONE_S = 120.0
"""A training that is expected to end within this time is left to end."""

FLOOR = 0.5
"""The part of its entitlement that urgent work of others cannot take from a pool."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a pool could use at once, in GPUs; ``urgent`` of them for work that a person waits for."""

    pool: str
    entitled: int
    wanted: int
    urgent: int = 0


@dataclass(frozen=True, slots=True)
class Training:
    """A training under way: for how long in this lease, and for how long it is expected to go on.

    ``yielded`` counts how often it had to give way; ``crowd`` the GPUs of its node that other pools hold.
    """

    id: str
    node: str
    gpus: int
    ran_s: float
    left_s: float
    yielded: int = 0
    crowd: int = 0


@dataclass(frozen=True, slots=True)
class Reservation:
    """A node kept for a training that fits nowhere now; ``in_s`` until it is expected to have room.

    ``beyond`` GPUs of the node are not needed even then: who fits into these may stay longer.
    """

    node: str
    gpus: int
    in_s: float
    beyond: int


def grant(gpus: int, demands: Sequence[Demand]) -> dict[str, int]:
    """Shares whole GPUs out among pools: entitlements first, then urgent work, then by entitlement.

    Returns:
        GPUs by pool; their sum is at most ``gpus``, and no pool gets more than it wants.
    """
    given = {demand.pool: min(demand.wanted, demand.entitled) for demand in demands}
    spare = gpus - sum(given.values())
    if spare < 0:
        # More was promised than there is: everybody's part shrinks alike.
        return _in_proportion(gpus, {demand.pool: given[demand.pool] for demand in demands}, given)
    for demand in demands:
        lacking = min(demand.urgent, demand.wanted) - given[demand.pool]
        taken = min(spare, max(0, lacking))
        given[demand.pool] += taken
        spare -= taken
        lacking -= taken
        for other in sorted(demands, key=lambda other: other.urgent - given[other.pool]):
            if lacking <= 0:
                break
            if other.pool == demand.pool:
                continue
            kept = max(int(FLOOR * other.entitled), min(other.urgent, other.entitled))
            taken = min(lacking, max(0, given[other.pool] - kept))
            given[other.pool] -= taken
            given[demand.pool] += taken
            lacking -= taken
    if spare > 0:
        more = _in_proportion(
            spare,
            {demand.pool: demand.entitled for demand in demands},
            {demand.pool: demand.wanted - given[demand.pool] for demand in demands},
        )
        for pool, count in more.items():
            given[pool] += count
    return given


def place(free: Mapping[str, int], gpus: int) -> str | None:
    """The node with the least room that has enough; among equals the last by name. None where none has."""
    best: tuple[int, str] | None = None
    for node, room in free.items():
        if room >= gpus and (best is None or room < best[0] or (room == best[0] and node > best[1])):
            best = room, node
    return None if best is None else best[1]


def reserve(free: Mapping[str, int], running: Iterable[Training], gpus: int) -> Reservation | None:
    """The node that is expected to have room for ``gpus`` first; None where no node ever has as many.

    Args:
        free: GPUs by node that trainings may use and that nothing holds.
        running: the trainings under way; ``left_s`` is when each is expected to make room.
        gpus: what the waiting training needs on one node.
    """
    ends: dict[str, list[tuple[float, int]]] = {node: [] for node in free}
    for training in running:
        ends.setdefault(training.node, []).append((training.left_s, training.gpus))
    best: Reservation | None = None
    for node, leaving in ends.items():
        room, in_s = free.get(node, 0), 0.0
        for left_s, count in sorted(leaving):
            if room >= gpus:
                break
            room, in_s = room + count, left_s
        if room >= gpus and (best is None or in_s < best.in_s):
            best = Reservation(node, gpus, in_s, room - gpus)
    return best


def may_use(node: str, gpus: int, takes_s: float, reservation: Reservation | None) -> bool:
    """Whether a training that takes so long may begin on a node without being in a reservation's way."""
    if reservation is None or node != reservation.node:
        return True
    return takes_s <= reservation.in_s or gpus <= reservation.beyond


def victims(
    trainings: Iterable[Training], gpus: int, *, guaranteed_s: float = GUARANTEED_S
) -> list[Training]:
    """Which trainings are to yield so that ``gpus`` become free: as few as do, and fairly in turn.

    Those on nodes that other pools hold most of come first, which keeps whole nodes for big trainings; then
    those that gave way least often, then the small ones, then those that have done least since they began.
    None that has not had its guaranteed run, and none that will end by itself.
    """
    able = [found for found in trainings if found.ran_s >= guaranteed_s and found.left_s > NEARLY_DONE_S]
    able.sort(key=lambda found: (-found.crowd, found.yielded, found.gpus, found.ran_s, found.id))
    chosen: list[Training] = []
    for found in able:
        if gpus <= 0:
            break
        chosen.append(found)
        gpus -= found.gpus
    # The last may have made an earlier one needless.
    for found in list(chosen):
        if gpus + found.gpus <= 0:
            chosen.remove(found)
            gpus += found.gpus
    return chosen


def _in_proportion(gpus: int, parts: Mapping[str, int], most: Mapping[str, int]) -> dict[str, int]:
    """Shares ``gpus`` out in proportion to ``parts``, one by one, to none more than its ``most``."""
    given = dict.fromkeys(parts, 0)
    for _ in range(gpus):
        open_pools = [pool for pool in parts if given[pool] < most[pool]]
        if not open_pools:
            break
        chosen = min(open_pools, key=lambda pool: (given[pool] + 1) / max(parts[pool], 1e-9))
        given[chosen] += 1
    return given
