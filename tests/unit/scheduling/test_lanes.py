"""The lane book: fair between teams, strict with ageing between classes, and it forgets no job."""

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.metadata.model.jobs import PriorityClass
from services.metadata.scheduling.lanes import LaneBook, LaneKey

INTERACTIVE, CONVERSION, BATCH, TRAINING = PriorityClass
KIND = "rvc.convert"


def lane(team="a", priority_class=BATCH, kind=KIND):
    return LaneKey(kind, priority_class, team)


@dataclass
class Queue:
    """A database in small: jobs by lane, each with its cost; claims them as the book says."""

    book: LaneBook
    costs: dict[LaneKey, Iterator[float]] = field(default_factory=dict)
    began: list[tuple[LaneKey, float]] = field(default_factory=list)
    keys: Counter = field(default_factory=Counter)

    def add(self, key, costs, now_s=0.0):
        self.costs[key] = itertools.chain(self.costs.get(key, ()), costs)
        self.book.open(key, now_s, rewind=False)

    def take(self, count, now_s=0.0, kind=KIND):
        """One claim of ``count`` places; returns the lanes of the jobs that began."""
        return [key for pick in self.book.pick(kind, count, now_s) for key in self.claim(pick)]

    def claim(self, pick):
        found = list(itertools.islice(self.costs[pick.lane], pick.count))
        self.keys[pick.lane] += len(found)
        self.began += [(pick.lane, cost) for cost in found]
        self.book.claimed(pick, found, self.keys[pick.lane])
        return [pick.lane] * len(found)

    def served(self, since=0):
        shares = Counter()
        for key, cost in self.began[since:]:
            shares[key.team] += cost
        return shares


def endless(cost=1.0):
    return itertools.repeat(cost)


# ---- between teams


@settings(max_examples=20, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 1.0, 2.0, 3.0, 8.0]), min_size=2, max_size=5),
    spread=st.sampled_from([1.0, 4.0, 20.0]),
    places=st.integers(1, 16),
    seed=st.integers(0, 2**32 - 1),
)
def test_teams_with_a_backlog_share_by_weight(weights, spread, places, seed):
    rng = random.Random(seed)
    by_team = {f"team{n}": weight for n, weight in enumerate(weights)}
    queue = Queue(LaneBook(by_team.__getitem__))
    for n, team in enumerate(by_team):
        # Each team's jobs are of another size, and no two cost the same.
        size = 1 + n
        queue.add(lane(team), (size * rng.uniform(1.0, spread) for _ in itertools.count()))
    while len(queue.began) < 6_000:
        queue.take(rng.randint(1, places))
    served = queue.served()
    for team, weight in by_team.items():
        share = served[team] / sum(served.values())
        assert share == pytest.approx(weight / sum(weights), rel=0.03, abs=0.01)


def test_a_flood_delays_another_teams_new_job_by_at_most_one_turn():
    queue = Queue(LaneBook())
    queue.add(lane("flood"), [1.0] * 100_000)
    for _ in range(5_000):
        queue.take(1)
    queue.add(lane("small"), [1.0])
    taken = [queue.take(1)[0].team for _ in range(2)]
    assert "small" in taken


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), guess=st.sampled_from([0.01, 1.0, 300.0]))
def test_nor_does_a_flood_whose_costs_were_guessed_wrong_or_that_is_being_claimed(seed, guess):
    """The last job's cost is the guess of the next; a hundred places are asked for on the strength of it."""
    rng = random.Random(seed)
    queue = Queue(LaneBook())
    queue.add(lane("flood"), [guess, *(1.0 for _ in range(2_000))])
    queue.take(1)
    flying = queue.book.pick(KIND, rng.randint(1, 100), 0.0)
    came_in_flight = rng.random() < 0.5
    if came_in_flight:
        queue.add(lane("small"), [1.0])
    for pick in flying:
        queue.claim(pick)
    if not came_in_flight:
        queue.add(lane("small"), [1.0])
    assert lane("small") in queue.take(1) + queue.take(1)


def test_a_new_teams_first_jobs_are_taken_to_cost_what_others_cost():
    queue = Queue(LaneBook())
    queue.add(lane("old"), [100.0] * 50)
    for _ in range(10):
        queue.take(1)
    queue.add(lane("new"), [100.0] * 50)
    assert Counter(key.team for key in queue.take(20)) == {"old": 10, "new": 10}


def test_an_idle_team_gains_no_credit():
    queue = Queue(LaneBook())
    queue.add(lane("a"), [1.0] * 3_000)
    queue.add(lane("idle"), [1.0])
    for _ in range(1_000):
        queue.take(1)
    queue.add(lane("idle"), [1.0] * 3_000)
    since = len(queue.began)
    for _ in range(200):
        queue.take(1)
    assert abs(queue.served(since)["a"] - queue.served(since)["idle"]) <= 2


def test_what_a_team_used_while_nobody_waited_is_not_held_against_it():
    queue = Queue(LaneBook())
    queue.add(lane("a"), [10_000.0])
    queue.take(2)
    queue.add(lane("b"), [1.0] * 100)
    queue.add(lane("a"), [1.0] * 100)
    for _ in range(20):
        queue.take(1)
    assert queue.served(1)["a"] >= 9


def test_a_job_that_cost_more_than_was_charged_is_paid_for():
    queue = Queue(LaneBook())
    for team in ("a", "b"):
        queue.add(lane(team), [1.0] * 100)
    queue.take(2)
    queue.book.charge(lane("a"), 10.0)
    assert [key.team for key in queue.take(10)] == ["b"] * 10
    queue.book.charge(lane("b"), -4.0)
    assert Counter(key.team for key in queue.take(8)) == {"a": 2, "b": 6}


def test_two_claims_at_once_are_both_paid_for():
    """The second was charged on an old guess of the cost; what is taken back is what was charged."""
    queue = Queue(LaneBook())
    queue.add(lane("a"), [50.0] * 100)
    first, second = queue.book.pick(KIND, 1, 0.0), queue.book.pick(KIND, 1, 0.0)
    for pick in first + second:
        queue.claim(pick)
    queue.add(lane("b"), [50.0] * 100)
    queue.take(6)
    assert queue.served()["a"] - queue.served()["b"] <= 100.0
    assert queue.book.starts(KIND, BATCH)["a"] == pytest.approx(50.0, abs=1e-6)


def test_a_claim_that_failed_costs_nothing():
    queue = Queue(LaneBook())
    for team in ("a", "b"):
        queue.add(lane(team), [1.0] * 100)
    before = dict(queue.book.starts(KIND, BATCH))
    for pick in queue.book.pick(KIND, 10, 0.0):
        queue.book.returned(pick)
    assert queue.book.starts(KIND, BATCH) == pytest.approx(before)
    assert Counter(key.team for key in queue.take(10)) == {"a": 5, "b": 5}


def test_a_lane_that_was_forgotten_during_a_claim_gains_no_credit():
    queue = Queue(LaneBook())
    queue.add(lane("b"), endless())
    flying = queue.book.pick(KIND, 100, 0.0)
    queue.add(lane("a"), endless())
    queue.book.dry(lane("b"))
    for _ in range(150):
        queue.take(1)
    queue.book.refresh([lane("a")], 0.0)
    assert set(queue.book._lanes) == {lane("a")}
    queue.book.open(lane("b"), 0.0)
    for pick in flying:
        queue.book.returned(pick)
    since = len(queue.began)
    for _ in range(10):
        queue.take(1)
    assert queue.served(since) == {"a": 5.0, "b": 5.0}


def test_picking_many_is_picking_one_many_times():
    def book():
        made = LaneBook({"a": 1.0, "b": 2.0, "c": 5.0}.__getitem__)
        for team in "abc":
            for priority_class in PriorityClass:
                made.open(lane(team, priority_class), 0.0)
        return made

    many = Counter({pick.lane: pick.count for pick in book().pick(KIND, 40, 1000.0, parts=40)})
    one = book()
    assert many == Counter(pick.lane for _ in range(40) for pick in one.pick(KIND, 1, 1000.0))


def test_of_many_places_a_turn_takes_a_sixteenth_and_the_next_claims_make_it_even():
    queue = Queue(LaneBook())
    teams = [f"t{number}" for number in range(50)]
    for team in teams:
        queue.add(lane(team), endless())
    assert [pick.count for pick in queue.book.pick(KIND, 100, 0.0)] == [6] * 16 + [4]
    assert [pick.count for pick in queue.book.pick(KIND, 31, 0.0)] == [1] * 31
    queue = Queue(LaneBook())
    for team in teams:
        queue.add(lane(team), endless())
    for _ in range(30):
        queue.take(100)
    served = queue.served(0)
    assert max(served.values()) - min(served.values()) <= 6.0


# ---- between classes


def test_higher_classes_come_first():
    queue = Queue(LaneBook())
    for n, priority_class in enumerate(reversed(PriorityClass)):
        queue.add(lane(f"team{n}", priority_class), [1.0] * 3)
    taken = [key.priority_class for _ in range(12) for key in queue.take(1)]
    assert taken == sorted(taken)


def test_a_kind_is_served_its_own_lanes_only():
    queue = Queue(LaneBook())
    queue.add(lane(kind="f5.item"), [1.0])
    assert queue.take(5) == []
    assert queue.take(5, kind="f5.item") == [lane(kind="f5.item")]


@settings(max_examples=60, deadline=None)
@given(
    classes=st.sets(st.sampled_from(list(PriorityClass)), min_size=2),
    every_s=st.sampled_from([0.05, 1.0, 7.0, 59.0, 61.0, 200.0]),
    age_s=st.sampled_from([10.0, 60.0]),
    places=st.integers(1, 3),
)
def test_no_class_starves_under_endless_higher_load(classes, every_s, age_s, places):
    """Served at least every (rank difference) x age_s, and a look for each class."""
    queue = Queue(LaneBook(age_s=age_s))
    for priority_class in classes:
        queue.add(lane("t", priority_class), endless())
    last_s, longest_s = dict.fromkeys(classes, 0.0), dict.fromkeys(classes, 0.0)
    now_s, end_s = 0.0, 12 * age_s + 12 * every_s
    while now_s < end_s:
        now_s += every_s
        for key in queue.take(places, now_s):
            at = key.priority_class
            longest_s[at] = max(longest_s[at], now_s - last_s[at])
            last_s[at] = now_s
    for priority_class in classes:
        waited_s = max(longest_s[priority_class], end_s - last_s[priority_class])
        assert waited_s <= (priority_class - min(classes)) * age_s + (len(classes) + 1) * every_s


def test_a_class_that_aged_gets_one_turn_and_no_more():
    queue = Queue(LaneBook(age_s=10.0))
    queue.add(lane("a", INTERACTIVE), [1.0] * 100)
    queue.add(lane("b", TRAINING), [1.0] * 100)
    queue.take(1, 29.9)
    assert [key.priority_class for key in queue.take(10, 30.0)].count(TRAINING) == 1


def test_a_backlog_gains_nothing_by_its_age():
    """Ageing counts from the last service, not from the submission: a day-old backlog is no higher."""
    queue = Queue(LaneBook(age_s=10.0))
    queue.add(lane("b", TRAINING), endless())
    for now_s in range(0, 86_400, 9):
        queue.take(1, float(now_s))
    queue.add(lane("a", INTERACTIVE), [1.0] * 100, 86_400.0)
    assert queue.take(5, 86_400.0) == [lane("a", INTERACTIVE)] * 5


def test_without_ageing_the_order_is_strict_for_ever():
    queue = Queue(LaneBook(age_s=0.0))
    queue.add(lane("a", INTERACTIVE), [1.0] * 100)
    queue.add(lane("b", TRAINING), [1.0] * 100)
    assert {key for n in range(50) for key in queue.take(1, n * 1e6)} == {lane("a", INTERACTIVE)}


def test_a_look_that_finds_nothing_is_no_service():
    """A lane that has only what this worker cannot take must not use up its class's turn, time and again."""
    book = LaneBook(age_s=10.0)
    keys = [lane("busy", INTERACTIVE), lane("unfit", TRAINING), lane("fit", TRAINING)]
    began = Counter()
    for now_s in range(40):
        book.refresh(keys, float(now_s))
        for _ in range(4):
            for pick in book.pick(KIND, 1, float(now_s)):
                found = [] if pick.lane.team == "unfit" else [1.0]
                began.update([pick.lane.team] * len(found))
                book.claimed(pick, found, 0)
    assert began["fit"] >= 1


def test_many_lanes_that_nobody_here_can_serve_do_not_hold_up_one_that_has_work():
    """Few looks a second, each at one lane, and every second the database says that all have something."""
    book = LaneBook()
    keys = [lane(f"unfit{n}") for n in range(20)] + [lane("fit")]
    book.refresh(keys, 0.0)
    for pick in book.pick(KIND, 21, 0.0):
        book.claimed(pick, [1.0] if pick.lane.team == "fit" else [], 0)
    began = 0
    for now_s in range(1, 60):
        book.refresh(keys, float(now_s))
        for _ in range(4):
            for pick in book.pick(KIND, 1, float(now_s)):
                book.claimed(pick, [1.0] * (pick.lane.team == "fit"), 0)
                began += pick.lane.team == "fit"
    assert began >= 8


@pytest.fixture
def looked_in_vain():
    """Lane b was looked at in vain; a has work, and far ahead of it one of c's jobs was paid for."""
    queue = Queue(LaneBook())
    queue.add(lane("a"), endless())
    queue.add(lane("b"), [])
    queue.add(lane("c"), itertools.chain([1_000.0], endless()))
    for _ in range(10):
        queue.take(1)
    assert set(queue.book.waiting()) == {lane("a"), lane("c")}
    return queue


def test_a_lane_that_is_heard_of_after_a_vain_look_is_as_good_as_new(looked_in_vain):
    queue = looked_in_vain
    queue.add(lane("b"), [1.0])
    assert lane("b") in queue.take(1) + queue.take(1)


def test_a_lane_that_has_something_again_after_a_vain_look_shares_as_before(looked_in_vain):
    queue = looked_in_vain
    queue.book.refresh([lane("a"), lane("b"), lane("c")], 0.0)
    queue.costs[lane("b")] = endless()
    # Its turn is after c's; from then on it is a lane like others.
    while lane("b") not in queue.take(1):
        pass
    queue.book.charge(lane("c"), 1_000.0)
    since = len(queue.began)
    for _ in range(100):
        queue.take(1)
    assert queue.served(since)["b"] >= 45


def test_a_lane_that_the_database_had_not_and_has_again_is_no_longer_one_looked_at_in_vain(looked_in_vain):
    queue = looked_in_vain
    queue.book.charge(lane("b"), 5.0 + queue.served()["a"])
    queue.book.refresh([lane("a"), lane("c")], 0.0)
    queue.costs[lane("b")] = endless()
    queue.book.refresh([lane("a"), lane("b"), lane("c")], 0.0)
    assert lane("b") in [key for _ in range(20) for key in queue.take(1)]


# ---- quotas


def test_closed_teams_are_passed_over_and_come_back_without_credit():
    queue = Queue(LaneBook())
    for team in ("a", "b"):
        queue.add(lane(team), [1.0] * 1_000)
    queue.book.close_teams(["b"])
    assert {key.team for _ in range(100) for key in queue.take(1)} == {"a"}
    queue.book.close_teams([])
    since = len(queue.began)
    for _ in range(50):
        queue.take(1)
    assert abs(queue.served(since)["a"] - queue.served(since)["b"]) <= 2


def test_a_closed_team_gets_nothing_however_it_opens():
    book = LaneBook()
    book.open(lane("a"), 0.0)
    book.close_teams(["a"])
    book.open(lane("a", INTERACTIVE), 0.0)
    book.refresh([lane("a"), lane("a", INTERACTIVE)], 1.0)
    assert book.pick(KIND, 5, 2.0) == []
    book.close_teams(["other"])
    assert len(book.pick(KIND, 5, 3.0)) == 1


def test_a_class_does_not_age_while_its_only_team_is_closed():
    queue = Queue(LaneBook(age_s=10.0))
    queue.add(lane("a", INTERACTIVE), [1.0] * 10_000)
    queue.add(lane("b", TRAINING), [1.0] * 10)
    queue.take(1, 25.0)
    queue.book.close_teams(["b"])
    for now_s in range(26, 500):
        queue.take(1, float(now_s))
    queue.book.close_teams([])
    # It had waited for 25 s of the 30 s; it goes on there.
    taken = [(now_s, key.priority_class) for now_s in range(500, 520) for key in queue.take(1, float(now_s))]
    assert [now_s for now_s, at in taken if at is TRAINING] == [505]


def test_weights_may_change_while_claims_are_under_way():
    weights = {"a": 1.0, "b": 1.0}
    queue = Queue(LaneBook(weights.__getitem__))
    for team in weights:
        queue.add(lane(team), [1.0] * 10_000)
    flying = queue.book.pick(KIND, 10, 0.0)
    weights["a"] = 10.0
    for pick in flying:
        queue.claim(pick)
    since = len(queue.began)
    for _ in range(1_100):
        queue.take(1)
    assert queue.served(since)["a"] / queue.served(since)["b"] == pytest.approx(10.0, rel=0.1)


# ---- what is known of the database


def test_a_dry_lane_is_passed_over_until_it_is_opened():
    book = LaneBook()
    book.open(lane("a"), 0.0)
    book.dry(lane("a"))
    book.dry(lane("a"))
    assert book.waiting() == []
    assert book.pick(KIND, 3, 0.0) == []
    book.open(lane("a"), 0.0)
    assert [pick.lane for pick in book.pick(KIND, 3, 0.0)] == [lane("a")]


def test_a_lane_that_brought_less_than_it_was_asked_for_is_dry():
    queue = Queue(LaneBook())
    queue.add(lane("a"), [1.0] * 3)
    assert len(queue.take(5)) == 3
    assert queue.book.waiting(KIND) == []
    assert queue.book.pick(KIND, 1, 0.0) == []


def test_what_arrives_while_a_claim_is_under_way_is_not_lost():
    """The claim's snapshot is older than the wake-up: that it found little says nothing of the new."""
    book = LaneBook()
    book.open(lane("a"), 0.0)
    (pick,) = book.pick(KIND, 5, 0.0)
    book.open(lane("a"), 0.0)
    book.claimed(pick, [1.0], 7)
    assert [found.lane for found in book.pick(KIND, 5, 0.0)] == [lane("a")]


def test_what_arrives_while_the_lanes_are_read_is_not_lost():
    book = LaneBook()
    book.open(lane("old"), 0.0)
    asked = book.mark()
    book.open(lane("new"), 0.0)
    book.refresh([], 0.0, since=asked)
    assert book.waiting() == [lane("new")]


def test_looks_go_on_after_the_last_claim_and_start_anew_when_told_to():
    book = LaneBook()
    book.open(lane("a"), 0.0)

    def look():
        (pick,) = book.pick(KIND, 1, 0.0)
        return pick

    book.claimed(look(), [1.0], 41)
    assert look().after == 41
    book.open(lane("a"), 0.0, rewind=False)
    assert look().after == 41
    book.open(lane("a"), 0.0)
    assert look().after == 0
    # A job came back in front of what a claim under way will report.
    pick = look()
    book.open(lane("a"), 0.0)
    book.claimed(pick, [1.0], 99)
    assert look().after == 0
    book.claimed(look(), [1.0], 99)
    book.refresh([lane("a")], 0.0)
    assert look().after == 0


def test_refresh_takes_what_the_database_has():
    book = LaneBook()
    book.open(lane("a"), 0.0)
    book.refresh([lane("b"), lane("c", TRAINING)], 0.0)
    assert set(book.waiting()) == {lane("b"), lane("c", TRAINING)}


def test_what_is_waiting_for_service_can_be_asked():
    queue = Queue(LaneBook())
    assert queue.book.unserved_s(KIND, BATCH, 50.0) == 0.0
    queue.add(lane("a"), [1.0] * 10, 100.0)
    assert queue.book.unserved_s(KIND, BATCH, 130.0) == 30.0
    queue.take(1, 140.0)
    assert queue.book.unserved_s(KIND, BATCH, 145.0) == 5.0
    assert queue.book.unserved_s(KIND, TRAINING, 145.0) == 0.0


def test_nothing_is_kept_of_lanes_that_are_gone():
    queue = Queue(LaneBook())
    for n in range(3_000):
        key = lane(f"team{n}", PriorityClass(1 + n % 4))
        queue.add(key, [float(1 + n % 7)], float(n))
        if n % 3:
            queue.take(3, float(n))
        if n % 50 == 0:
            queue.book.refresh(queue.book.waiting(), float(n))
    while queue.take(100, 3_000.0):
        pass
    queue.book.refresh([], 3_001.0)
    assert not queue.book._lanes
    assert not any(found.heap for found in queue.book._classes.values())


def test_empty_looks_leave_nothing_behind():
    """A lane that another process always empties first, beside one that has work."""
    book = LaneBook()
    book.open(lane("b"), 0.0)
    for _ in range(5_000):
        book.open(lane("a"), 0.0)
        for pick in book.pick(KIND, 2, 0.0):
            book.claimed(pick, [0.001] * pick.count if pick.lane.team == "b" else [], 0)
        book.charge(lane("b"), 0.0)
    assert all(len(found.heap) <= 100 for found in book._classes.values())
