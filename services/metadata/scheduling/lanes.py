"""Whose turn it is: classes with ageing, and weighted fair share between teams.

A *lane* is what one team has waiting of one kind in one class. Which job of a lane goes first is the
database's matter (priority, then order of submission); which lane goes first is decided here.

Between classes the order is strict, higher first, with ageing: a class that has waiting jobs and was not
served for ``age_s`` seconds counts as one class higher, after twice that as two higher, and so on; to be
served sets it back. So a class of rank r is served at least every ``r * age_s`` seconds while a worker
takes jobs at all, however much higher work arrives, and a backlog that is old gains nothing by its age.

Between the teams of a class it is start-time fair queueing (Goyal, Vin, Cheng 1996): each lane has a
virtual start time, the least goes next, and is moved on by cost / weight. A lane that was idle starts at
the virtual time of the lane in service: it gains no credit by idling and loses nothing by another's
backlog, so a team that submits 100,000 lines delays another's job by at most one turn.

This is a hint kept in one process: wrong guesses cost an empty look, never a job. What is claimed, and
what quotas allow, is decided by the claiming statement.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from services.metadata.model.jobs import PriorityClass

AGE_S = 60.0


class LaneKey(NamedTuple):
    """Which lane: all three are the beginning of the index of claimable jobs."""

    kind: str
    priority_class: PriorityClass
    team: str


@dataclass(frozen=True, slots=True)
class Pick:
    """Up to ``count`` jobs of a lane are to be claimed, from the queue key ``after`` on."""

    lane: LaneKey
    count: int
    after: int


@dataclass(slots=True)
class _Lane:
    key: LaneKey
    start: float = 0.0
    unit: float = 1.0
    after: int = 0
    waiting: bool = False
    closed: bool = False
    mark: int = 0


@dataclass(slots=True)
class _Class:
    """The lanes of one kind and class, in the order of their virtual start times."""

    virtual: float = 0.0
    served_s: float = 0.0
    waiting: int = 0
    heap: list[tuple[float, int, _Lane]] = field(default_factory=list)


class LaneBook:
    """Which lanes have something waiting, and the order in which they are served.

    Args:
        weight_of: a team's weight in the fair share.
        age_s: seconds without service after which a class counts as one higher.
    """

    def __init__(self, weight_of: Callable[[str], float] = lambda _: 1.0, *, age_s: float = AGE_S) -> None:
        self._weight_of = weight_of
        self._age_s = age_s
        self._lanes: dict[LaneKey, _Lane] = {}
        self._classes: dict[tuple[str, PriorityClass], _Class] = {}
        self._closed: frozenset[str] = frozenset()
        self._marks = 0

    def waiting(self, kind: str = "") -> list[LaneKey]:
        """The lanes that are believed to have something claimable."""
        return [key for key, lane in self._lanes.items() if lane.waiting and kind in ("", key.kind)]

    def open(self, key: LaneKey, now_s: float, *, rewind: bool = True) -> None:
        """Something may be claimable in this lane; with ``rewind`` it may stand before what was claimed."""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(key)
        if rewind:
            lane.after = 0
        if lane.waiting:
            return
        found = self._class(key)
        if not found.waiting:
            # Nothing was owed to a class that had nothing waiting.
            found.served_s = now_s
        lane.start = max(lane.start, found.virtual)
        lane.closed = key.team in self._closed
        lane.waiting = True
        found.waiting += 0 if lane.closed else 1
        self._push(found, lane)

    def dry(self, key: LaneKey) -> None:
        """A look found nothing claimable in this lane: it is passed over until :meth:`open`."""
        lane = self._lanes.get(key)
        if lane is not None and lane.waiting:
            lane.waiting = False
            if not lane.closed:
                self._class(key).waiting -= 1

    def refresh(self, keys: Iterable[LaneKey], now_s: float) -> None:
        """Takes the lanes that the database has; the others are dry. Looks start at the front again."""
        found = set(keys)
        for key in [key for key in self._lanes if key not in found]:
            self.dry(key)
            if self._lanes[key].start <= self._class(key).virtual:
                # It is owed nothing and owes nothing: as good as new, and may be forgotten.
                del self._lanes[key]
        for key in found:
            self.open(key, now_s)

    def close_teams(self, teams: Iterable[str]) -> None:
        """These teams, and no others, are passed over: they are at a quota."""
        closed = frozenset(teams)
        if closed == self._closed:
            return
        for lane in self._lanes.values():
            shut = lane.key.team in closed
            if shut == lane.closed:
                continue
            lane.closed = shut
            if lane.waiting:
                found = self._class(lane.key)
                found.waiting += -1 if shut else 1
                if not shut:
                    lane.start = max(lane.start, found.virtual)
                    self._push(found, lane)
        self._closed = closed

    def pick(self, kind: str, count: int, now_s: float) -> list[Pick]:
        """The lanes whose turn it is for ``count`` free places; their virtual times move on at once.

        What the claim then found is told by :meth:`claimed`.
        """
        turns: dict[LaneKey, int] = {}
        for _ in range(count):
            chosen = self._next_class(kind, now_s)
            if chosen is None:
                break
            found = self._classes[kind, chosen]
            lane = self._head(found)
            assert lane is not None
            found.virtual = max(found.virtual, lane.start)
            found.served_s = now_s
            turns[lane.key] = turns.get(lane.key, 0) + 1
            lane.start += lane.unit / self._weight_of(lane.key.team)
            heapq.heappop(found.heap)
            self._push(found, lane)
        return [Pick(key, turn, self._lanes[key].after) for key, turn in turns.items()]

    def claimed(self, pick: Pick, costs: Iterable[float], last_key: int) -> None:
        """What a pick brought: the cost of each job claimed and the queue key of the last.

        A lane that brought fewer than it was asked for is dry.
        """
        lane = self._lanes.get(pick.lane)
        if lane is None:
            return
        found = list(costs)
        weight = self._weight_of(pick.lane.team)
        lane.start += (sum(found) - pick.count * lane.unit) / weight
        if found:
            lane.unit = sum(found) / len(found)
            lane.after = max(lane.after, last_key)
        if lane.waiting and not lane.closed:
            # Its place changed under the heap: the old entry is told by its mark.
            self._push(self._class(pick.lane), lane)
        if len(found) < pick.count:
            self.dry(pick.lane)

    def charge(self, key: LaneKey, cost: float) -> None:
        """Adds what a job turned out to cost beyond what was charged when it was claimed; may be negative."""
        lane = self._lanes.get(key)
        if lane is None:
            return
        lane.start += cost / self._weight_of(key.team)
        if lane.waiting and not lane.closed:
            self._push(self._class(key), lane)

    def starts(self, kind: str, priority_class: PriorityClass) -> Mapping[str, float]:
        """Each waiting team's virtual start time ahead of the class's own, in units of cost / weight."""
        virtual = self._class(LaneKey(kind, priority_class, "")).virtual
        return {
            key.team: max(0.0, lane.start - virtual)
            for key, lane in self._lanes.items()
            if lane.waiting and key.kind == kind and key.priority_class is priority_class
        }

    def _class(self, key: LaneKey) -> _Class:
        return self._classes.setdefault((key.kind, key.priority_class), _Class())

    def _push(self, found: _Class, lane: _Lane) -> None:
        self._marks += 1
        lane.mark = self._marks
        heapq.heappush(found.heap, (lane.start, lane.mark, lane))

    def _head(self, found: _Class) -> _Lane | None:
        while found.heap:
            _, mark, lane = found.heap[0]
            if lane.waiting and not lane.closed and lane.mark == mark:
                return lane
            heapq.heappop(found.heap)
        return None

    def _next_class(self, kind: str, now_s: float) -> PriorityClass | None:
        best: tuple[float, int] | None = None
        for priority_class in PriorityClass:
            found = self._classes.get((kind, priority_class))
            if found is None or not found.waiting or self._head(found) is None:
                continue
            aged = int((now_s - found.served_s) / self._age_s) if self._age_s > 0 else 0
            rank = (priority_class - aged, -priority_class) if aged else (int(priority_class), 0)
            if best is None or rank < best:
                best, chosen = rank, priority_class
        return None if best is None else chosen
