"""Whose turn it is: classes with ageing, and weighted fair share between teams.

A *lane* is what one team has waiting of one kind in one class. Which job of a lane goes first is the
database's matter (priority, then order of submission); which lane goes first is decided here.

Between classes the order is strict, higher first, with ageing: a class that has waiting jobs and was not
served for ``age_s`` seconds counts as one class higher, after twice that as two higher, and so on; to be
served sets it back. So a class that is ``d`` ranks below the highest with work is served at least every
``d * age_s`` seconds, while a worker takes jobs at all, however much higher work arrives; and a backlog that
is old gains nothing by its age. A look that finds nothing is no service.

Between the teams of a class it is start-time fair queueing (Goyal, Vin, Cheng 1996): each lane has a
virtual start time, the least goes next, and is moved on by cost / weight. A lane that was idle starts at
the virtual time of the lane in service: it gains no credit by idling and loses nothing by another's
backlog, so a team that submits 100,000 lines delays another's job by at most one turn. When nothing waits
in a class any more, its past is forgotten, as in the paper.

This is a hint kept in one process: wrong guesses cost an empty look, never a job. What is claimed, and
what quotas allow, is decided by the claiming statement.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from services.metadata.model.jobs import PriorityClass

AGE_S = 60.0

LANES_A_CLAIM = 16
"""Into how many turns the places of one claim are divided at the least."""

_CLASSES = tuple(PriorityClass)


class LaneKey(NamedTuple):
    """Which lane: all three are the beginning of the index of claimable jobs."""

    kind: str
    priority_class: PriorityClass
    team: str


@dataclass(frozen=True, slots=True)
class Pick:
    """Up to ``count`` jobs of a lane are to be claimed, from the queue key ``after`` on.

    The rest is for the book: what it charged in advance, when, and how many changes it had seen by then.
    """

    lane: LaneKey
    count: int
    after: int
    charged: float = 0.0
    at_s: float = 0.0
    mark: int = 0


class Turn(NamedTuple):
    """A pick, and for whom."""

    worker: str
    node: str
    pick: Pick


@dataclass(slots=True)
class _Lane:
    """``start`` includes what is ``ahead``: charged for picks of which nothing was told yet.

    ``born``, ``opened`` and ``rewound`` are marks; ``missed`` says that the last look found nothing.
    """

    key: LaneKey
    unit: float
    born: int
    start: float = 0.0
    ahead: float = 0.0
    after: int = 0
    waiting: bool = False
    closed: bool = False
    missed: bool = False
    opened: int = 0
    rewound: int = 0
    mark: int = 0


@dataclass(slots=True)
class _Class:
    """The lanes of one kind and class, in the order of their virtual start times.

    ``served_s`` is when something was last claimed, ``taken_s`` when it was last picked for a claim that is
    still ``flying``, ``looked_s`` when it last had a chance; while nothing is open it is ``stopped`` and does
    not age. ``finish`` is the latest virtual time that any lane was served up to.
    """

    virtual: float = 0.0
    finish: float = 0.0
    unit: float = 1.0
    served_s: float = 0.0
    taken_s: float = -math.inf
    looked_s: float = 0.0
    stopped: bool = False
    flying: int = 0
    waiting: int = 0
    heap: list[tuple[float, int, _Lane]] = field(default_factory=list)


class LaneBook:
    """Which lanes have something waiting, and the order in which they are served.

    Args:
        weight_of: a team's weight in the fair share.
        age_s: seconds without service after which a class counts as one higher; 0: never.
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

    def mark(self) -> int:
        """A moment of this book: see :meth:`refresh`."""
        self._marks += 1
        return self._marks

    def open(self, key: LaneKey, now_s: float, *, rewind: bool = True) -> None:
        """Something may be claimable in this lane; with ``rewind`` it may stand before what was claimed."""
        self._join(key, now_s, rewind=rewind, fresh=True)

    def dry(self, key: LaneKey) -> None:
        """A look found nothing claimable in this lane: it is passed over until :meth:`open`."""
        lane = self._lanes.get(key)
        if lane is None or not lane.waiting:
            return
        lane.waiting = False
        if lane.closed:
            return
        found = self._class(key)
        found.waiting -= 1
        if not found.waiting:
            found.virtual = max(found.virtual, found.finish)
            found.stopped = True
            found.heap.clear()

    def refresh(self, keys: Iterable[LaneKey], now_s: float, *, since: int | None = None) -> None:
        """Takes the lanes that the database has; the others are dry. Looks start at the front again.

        Args:
            keys: what the database has.
            now_s: the time.
            since: the :meth:`mark` of when the database was asked. What was opened after that it cannot know.
        """
        # In the order given: what is undecided by virtual times is decided alike in every run.
        found = dict.fromkeys(keys)
        gone = [
            key
            for key, lane in self._lanes.items()
            if key not in found and (since is None or lane.opened <= since)
        ]
        for key in gone:
            self.dry(key)
            self._lanes[key].missed = False
        for key in gone:
            if self._lanes[key].start <= self._class(key).virtual:
                # It is owed nothing and owes nothing: as good as new, and may be forgotten.
                del self._lanes[key]
        for key in found:
            self._join(key, now_s, rewind=True, fresh=False)

    def close_teams(self, teams: Iterable[str]) -> None:
        """These teams, and no others, are passed over: they are at a quota."""
        closed = frozenset(teams)
        if closed == self._closed:
            return
        self._closed = closed
        for lane in self._lanes.values():
            shut = lane.key.team in closed
            if shut == lane.closed:
                continue
            lane.closed = shut
            if not lane.waiting:
                continue
            found = self._class(lane.key)
            if shut:
                lane.mark = 0
                found.waiting -= 1
                # A class does not age while all of it is shut, and goes on where it stopped.
                found.stopped = found.stopped or not found.waiting
            else:
                lane.start = max(lane.start, self._floor(found))
                found.waiting += 1
                self._push(found, lane)

    def pick(self, kind: str, count: int, now_s: float, *, parts: int = LANES_A_CLAIM) -> list[Pick]:
        """The lanes whose turn it is for ``count`` free places; their virtual times move on at once.

        What the claim then found is told by :meth:`claimed`, or that it failed by :meth:`returned`. The
        places are divided into ``parts`` turns at the least: what is claimed at once begins at once, and to
        look into a lane costs more than to take another job of it.
        """
        mark = self.mark()
        turns: dict[LaneKey, tuple[int, float]] = {}
        turn = max(1, count // parts)
        left = count
        while left > 0:
            chosen = self._next_class(kind, now_s)
            if chosen is None:
                break
            found = self._classes[kind, chosen]
            lane = self._head(found)
            assert lane is not None
            # Only as far as is certain: what is ahead may yet be taken back.
            found.virtual = max(found.virtual, lane.start - lane.ahead)
            found.taken_s = now_s
            jobs = min(turn, left)
            left -= jobs
            charge = jobs * lane.unit / self._weight_of(lane.key.team)
            before, charged = turns.get(lane.key, (0, 0.0))
            turns[lane.key] = before + jobs, charged + charge
            lane.start += charge
            lane.ahead += charge
            heapq.heappop(found.heap)
            self._push(found, lane)
        picks = []
        for key, (jobs, charged) in turns.items():
            self._class(key).flying += 1
            picks.append(Pick(key, jobs, self._lanes[key].after, charged, now_s, mark))
        return picks

    def claimed(self, pick: Pick, costs: Iterable[float], last_key: int) -> None:
        """What a pick brought: the cost of each job claimed and the queue key of the last.

        A lane that brought fewer than it was asked for is dry, unless it was opened meanwhile.
        """
        costs = list(costs)
        found = self._landed(pick, served=bool(costs))
        lane = self._take_back(pick)
        if lane is None:
            return
        weight = self._weight_of(pick.lane.team)
        cost = sum(costs)
        lane.start += cost / weight
        if cost > 0.0:
            lane.unit = found.unit = cost / len(costs)
        if costs:
            lane.missed = False
            certain = lane.start - lane.ahead
            found.finish = max(found.finish, certain)
            found.virtual = max(found.virtual, certain - costs[-1] / weight)
            if lane.rewound <= pick.mark:
                lane.after = max(lane.after, last_key)
        if len(costs) < pick.count:
            if lane.opened <= pick.mark:
                lane.missed = not costs
                self.dry(pick.lane)
            else:
                # It ran out and was filled again: as if it joined now.
                lane.start = max(lane.start, self._floor(found))
        self._push(found, lane)

    def returned(self, pick: Pick) -> None:
        """The claim failed: as if it had not been picked."""
        found = self._landed(pick, served=False)
        lane = self._take_back(pick)
        if lane is not None:
            self._push(found, lane)

    def charge(self, key: LaneKey, cost: float) -> None:
        """Adds what a job turned out to cost beyond what was charged when it was claimed; may be negative."""
        lane = self._lanes.get(key)
        if lane is None:
            return
        found = self._class(key)
        lane.start += cost / self._weight_of(key.team)
        found.finish = max(found.finish, lane.start - lane.ahead)
        self._push(found, lane)

    def starts(self, kind: str, priority_class: PriorityClass) -> Mapping[str, float]:
        """Each waiting team's virtual start time ahead of the class's own, in units of cost / weight."""
        virtual = self._class(LaneKey(kind, priority_class, "")).virtual
        return {
            key.team: max(0.0, lane.start - virtual)
            for key, lane in self._lanes.items()
            if lane.waiting and key.kind == kind and key.priority_class is priority_class
        }

    def unserved_s(self, kind: str, priority_class: PriorityClass, now_s: float) -> float:
        """For how long a class has had something waiting and was not served, in seconds."""
        found = self._class(LaneKey(kind, priority_class, ""))
        if not found.waiting:
            return 0.0
        return (found.looked_s if found.stopped else now_s) - max(found.served_s, found.taken_s)

    def _class(self, key: LaneKey) -> _Class:
        return self._classes.setdefault((key.kind, key.priority_class), _Class())

    def _join(self, key: LaneKey, now_s: float, *, rewind: bool, fresh: bool) -> None:
        found = self._class(key)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(key, found.unit, self._marks + 1)
        lane.opened = self.mark()
        if rewind:
            lane.after, lane.rewound = 0, lane.opened
        if fresh and lane.missed:
            lane.missed = False
            self._push(found, lane)
        if lane.waiting:
            return
        lane.closed = key.team in self._closed
        if not found.waiting:
            if not lane.missed:
                # Nothing was owed to a class that had nothing waiting. What one worker could not take may
                # have waited for another all the while.
                found.served_s = found.looked_s = now_s
            found.stopped = lane.closed
        lane.start = max(lane.start, self._floor(found))
        lane.waiting = True
        found.waiting += 0 if lane.closed else 1
        self._push(found, lane)

    def _floor(self, found: _Class) -> float:
        """Where a lane that joins begins: at the lane in service, and never behind all that wait."""
        head = self._head(found)
        return found.virtual if head is None else min(found.virtual, head.start)

    def _landed(self, pick: Pick, *, served: bool) -> _Class:
        """Notes that a claim came back."""
        found = self._class(pick.lane)
        found.flying = max(0, found.flying - 1)
        if served:
            found.served_s = max(found.served_s, pick.at_s)
        if not found.flying:
            found.taken_s = -math.inf
        return found

    def _take_back(self, pick: Pick) -> _Lane | None:
        """Takes back what a pick was charged in advance; None where the lane was forgotten."""
        lane = self._lanes.get(pick.lane)
        if lane is not None and lane.born <= pick.mark:
            lane.start -= pick.charged
            lane.ahead = max(0.0, lane.ahead - pick.charged)
        return lane

    def _push(self, found: _Class, lane: _Lane) -> None:
        """Puts a lane where it belongs; an entry that it had is told by its mark."""
        if not lane.waiting or lane.closed:
            return
        lane.mark = self.mark()
        # Where the last look found nothing the next comes after all the others: lanes that have only what no
        # worker here can take do not hold up those that have something.
        place = max(lane.start, found.finish) if lane.missed else lane.start
        heapq.heappush(found.heap, (place, lane.mark, lane))
        if len(found.heap) > 64 + 4 * found.waiting:
            found.heap = [entry for entry in found.heap if _is_valid(entry)]
            heapq.heapify(found.heap)

    def _head(self, found: _Class) -> _Lane | None:
        while found.heap and not _is_valid(found.heap[0]):
            heapq.heappop(found.heap)
        return found.heap[0][2] if found.heap else None

    def _next_class(self, kind: str, now_s: float) -> PriorityClass | None:
        best: tuple[float, int] | None = None
        for priority_class in _CLASSES:
            found = self._classes.get((kind, priority_class))
            if found is None or not found.waiting or self._head(found) is None:
                continue
            if found.stopped:
                found.served_s += now_s - found.looked_s
                found.stopped = False
            found.looked_s = now_s
            unserved_s = now_s - max(found.served_s, found.taken_s)
            aged = int(unserved_s / self._age_s) if self._age_s > 0 else 0
            rank = (priority_class - aged, -priority_class) if aged else (int(priority_class), 0)
            if best is None or rank < best:
                best, chosen = rank, priority_class
        return None if best is None else chosen


def _is_valid(entry: tuple[float, int, _Lane]) -> bool:
    _, mark, lane = entry
    return lane.waiting and not lane.closed and lane.mark == mark
