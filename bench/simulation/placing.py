"""Where a training goes: pure decisions, the stand-in for what Ray does with what it is handed.

Trainings need all their GPUs on one node. The one whose turn it is and that fits nowhere reserves the node
that will have room first (EASY backfilling: Lifka 1995; Mu'alem and Feitelson 2001); until then that node
takes only what is expected to be gone by that time. So small trainings fill the holes and none starves a big
one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Training:
    """A training under way on a node, and for how long it is expected to go on."""

    node: str
    gpus: int
    left_s: float


@dataclass(frozen=True, slots=True)
class Reservation:
    """A node kept for a training that fits nowhere now; ``in_s`` until it is expected to have room.

    ``beyond`` GPUs of the node are not needed even then: who fits into these may stay longer.
    """

    node: str
    gpus: int
    in_s: float
    beyond: int


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


class Room:
    """Which node a training of each width could begin on now."""

    WIDTHS = (1, 2, 4, 8)

    def __init__(self, idle: Mapping[str, int], budget: int, reservation: Reservation | None) -> None:
        self._kept = reservation
        kept = None if reservation is None else reservation.node
        others = {node: room for node, room in idle.items() if node != kept}
        self._nodes = {width: place(others, width) if width <= budget else None for width in self.WIDTHS}
        self._room = 0 if reservation is None else min(budget, idle[reservation.node])
        self.any = self._room > 0 or self._nodes[1] is not None

    def node_for(self, gpus: int, most_s: float) -> str | None:
        """The node for a training of so many GPUs and seconds; the reserved one only where it may."""
        node = self._nodes[gpus]
        if node is not None or self._kept is None or gpus > self._room:
            return node
        return self._kept.node if may_use(self._kept.node, gpus, most_s, self._kept) else None
