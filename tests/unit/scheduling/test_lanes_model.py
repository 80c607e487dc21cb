"""The lane book against a model of the same rules that is slow and plain."""

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.metadata.model.jobs import PriorityClass
from services.metadata.scheduling.lanes import LaneBook, LaneKey
from tests.unit.scheduling.test_lanes import BATCH, CONVERSION, KIND, TRAINING, lane


@dataclass
class Plain:
    """What the model knows of a lane."""

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
    order: tuple[float, int] = (0.0, 0)


class Model:
    """The same rules by linear search, and one dict after the other instead of counters kept up to date."""

    def __init__(self, weights, age_s):
        self.weights, self.age_s, self.ticks, self.shut = weights, age_s, 0, set()
        self.lanes: dict[LaneKey, Plain] = {}
        self.virtual, self.finish, self.unit = Counter(), Counter(), {}
        self.served, self.looked, self.taken = Counter(), Counter(), Counter()
        self.flights: list[PriorityClass] = []
        self.stopped: set[PriorityClass] = set()

    def tick(self):
        self.ticks += 1
        return self.ticks

    def live(self, at):
        lanes = [(key, found) for key, found in self.lanes.items() if key.priority_class is at]
        return [(found.order, key) for key, found in lanes if found.waiting and not found.closed]

    def put(self, key):
        found, finish = self.lanes[key], self.finish[key.priority_class]
        if found.waiting and not found.closed:
            found.order = (max(found.start, finish) if found.missed else found.start, self.tick())

    def floor(self, at, without=None):
        live = [entry for entry in self.live(at) if entry[1] != without]
        return min(self.virtual[at], self.lanes[min(live)[1]].start) if live else self.virtual[at]

    def open(self, key, now_s, *, rewind=True, fresh=True):
        at = key.priority_class
        found = self.lanes.setdefault(key, Plain(self.unit.get(at, 1.0), self.ticks + 1))
        found.opened = self.tick()
        if rewind:
            found.after, found.rewound = 0, found.opened
        if fresh and found.missed:
            found.missed = False
            self.put(key)
        if found.waiting:
            return
        found.closed = key.team in self.shut
        if not self.live(at):
            if not found.missed:
                self.served[at] = self.looked[at] = now_s
            self.stopped.discard(at)
            if found.closed:
                self.stopped.add(at)
        found.start = max(found.start, self.floor(at))
        found.waiting = True
        self.put(key)

    def dry(self, key):
        at, found = key.priority_class, self.lanes.get(key)
        if found is None or not found.waiting:
            return
        found.waiting = False
        if not found.closed and not self.live(at):
            self.virtual[at] = max(self.virtual[at], self.finish[at])
            self.stopped.add(at)

    def refresh(self, keys, now_s, since=None):
        gone = [
            key
            for key, found in self.lanes.items()
            if key not in keys and (since is None or found.opened <= since)
        ]
        for key in gone:
            self.dry(key)
            self.lanes[key].missed = False
        for key in gone:
            if self.lanes[key].start <= self.virtual[key.priority_class]:
                del self.lanes[key]
        for key in dict.fromkeys(keys):
            self.open(key, now_s, fresh=False)

    def close_teams(self, teams):
        self.shut = set(teams)
        for key, found in self.lanes.items():
            at, shut = key.priority_class, key.team in self.shut
            if shut == found.closed:
                continue
            found.closed = shut
            if found.waiting and shut and not self.live(at):
                self.stopped.add(at)
            elif found.waiting and not shut:
                found.start = max(found.start, self.floor(at, without=key))
                self.put(key)

    def unserved_s(self, at, now_s):
        return now_s - (max(self.served[at], self.taken[at]) if at in self.flights else self.served[at])

    def pick(self, now_s):
        ranks = []
        for at in PriorityClass:
            if not self.live(at):
                continue
            if at in self.stopped:
                self.served[at] += now_s - self.looked[at]
                self.stopped.discard(at)
            self.looked[at] = now_s
            aged = int(self.unserved_s(at, now_s) / self.age_s)
            # Of two that have come to the same rank, the one that waited for it; of two that did, the lower.
            ranks.append((at - aged, 1 if aged == 0 else 0, -at, at))
        mark = self.tick()
        if not ranks:
            return None
        at = min(ranks)[3]
        key = min(self.live(at))[1]
        found = self.lanes[key]
        self.virtual[at] = max(self.virtual[at], found.start - found.ahead)
        self.taken[at] = now_s
        self.flights.append(at)
        charge = found.unit / self.weights[key.team]
        found.start += charge
        found.ahead += charge
        self.put(key)
        return key, found.after, charge, now_s, mark

    def landed(self, flight, costs, last_key):
        """``costs`` None: the claim failed."""
        key, _, charge, at_s, mark = flight
        at = key.priority_class
        self.flights.remove(at)
        if costs:
            self.served[at] = max(self.served[at], at_s)
        found = self.lanes.get(key)
        if found is None:
            return
        if found.born <= mark:
            found.start -= charge
            found.ahead = max(0.0, found.ahead - charge)
        if costs:
            cost = costs[0]
            found.start += cost / self.weights[key.team]
            if cost > 0.0:
                found.unit = self.unit[at] = cost
            found.missed = False
            certain = found.start - found.ahead
            self.finish[at] = max(self.finish[at], certain)
            self.virtual[at] = max(self.virtual[at], certain - cost / self.weights[key.team])
            if found.rewound <= mark:
                found.after = max(found.after, last_key)
        elif costs is not None:
            if found.opened <= mark:
                found.missed = True
                self.dry(key)
            else:
                found.start = max(found.start, self.floor(at))
        self.put(key)

    def charge(self, key, cost):
        if found := self.lanes.get(key):
            at = key.priority_class
            found.start += cost / self.weights[key.team]
            self.finish[at] = max(self.finish[at], found.start - found.ahead)
            self.put(key)

    def starts(self, at):
        lanes = {
            key.team: found.start
            for key, found in self.lanes.items()
            if key.priority_class is at and found.waiting
        }
        return {team: max(0.0, start - self.virtual[at]) for team, start in lanes.items()}


TEAMS = {"a": 1.0, "b": 2.0, "c": 0.5}
KEYS = [lane("a", CONVERSION), *(lane(team, BATCH) for team in TEAMS), lane("b", TRAINING)]
A_KEY = st.sampled_from(KEYS)
A_COST = st.sampled_from([0.0, 0.25, 1.0, 3.5, 40.0])


class BookAgainstModel(RuleBasedStateMachine):
    """Anything in any order; claims come back late, out of order, or not at all."""

    def __init__(self):
        super().__init__()
        self.book, self.model = LaneBook(TEAMS.__getitem__, age_s=10.0), Model(TEAMS, 10.0)
        self.now_s, self.last_key, self.flying, self.asked = 1.0, 0, [], (0, 0)

    @rule(key=A_KEY, rewind=st.booleans())
    def open(self, key, rewind):
        self.book.open(key, self.now_s, rewind=rewind)
        self.model.open(key, self.now_s, rewind=rewind)

    @rule()
    def pick(self):
        picks, found = self.book.pick(KIND, 1, self.now_s), self.model.pick(self.now_s)
        assert [(pick.lane, pick.after, pick.count) for pick in picks] == ([(*found[:2], 1)] if found else [])
        if found:
            self.flying.append((picks[0], found))

    @precondition(lambda self: self.flying)
    @rule(which=st.integers(0, 100), costs=st.lists(A_COST, max_size=1))
    def claimed(self, which, costs):
        pick, flight = self.flying.pop(which % len(self.flying))
        self.last_key += 1
        self.book.claimed(pick, costs, self.last_key)
        self.model.landed(flight, costs, self.last_key)

    @precondition(lambda self: self.flying)
    @rule(which=st.integers(0, 100))
    def returned(self, which):
        pick, flight = self.flying.pop(which % len(self.flying))
        self.book.returned(pick)
        self.model.landed(flight, None, 0)

    @rule(key=A_KEY, cost=st.sampled_from([-3.0, -0.5, 0.5, 10.0]))
    def charge(self, key, cost):
        self.book.charge(key, cost)
        self.model.charge(key, cost)

    @rule(key=A_KEY)
    def dry(self, key):
        self.book.dry(key)
        self.model.dry(key)

    @rule(keys=st.lists(A_KEY, max_size=6), late=st.booleans())
    def refresh(self, keys, late):
        self.book.refresh(keys, self.now_s, since=self.asked[0] if late else None)
        self.model.refresh(keys, self.now_s, since=self.asked[1] if late else None)

    @rule(teams=st.sets(st.sampled_from(list(TEAMS))))
    def close_teams(self, teams):
        self.book.close_teams(teams)
        self.model.close_teams(teams)

    @rule(span_s=st.sampled_from([0.5, 3.0, 11.0, 50.0]))
    def wait(self, span_s):
        self.now_s += span_s
        self.asked = self.book.mark(), self.model.tick()

    @invariant()
    def they_agree(self):
        assert self.book.waiting() == [key for key, found in self.model.lanes.items() if found.waiting]
        for at in PriorityClass:
            assert self.book.starts(KIND, at) == pytest.approx(self.model.starts(at), abs=1e-9)


TestBookAgainstModel = BookAgainstModel.TestCase
TestBookAgainstModel.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
