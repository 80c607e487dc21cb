"""The pool's decisions, step by step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.inference.model import (
    Drain,
    PoolPlan,
    Rank,
    Replica,
    ReplicaState,
    Role,
    Start,
    Stop,
    assign,
    back_off_s,
    expected_wait_s,
    places,
    reconcile,
)

PLAN = PoolPlan(Role.F5, least=1, most=3, idle_s=60.0, start_limit_s=100.0, misses=3)
READY = Replica(1, 1, ReplicaState.READY, slots=2, busy=0, since_s=0.0)
STARTING = Replica(2, 1, ReplicaState.STARTING, slots=0, busy=0, since_s=0.0)


def decide(plan: PoolPlan, *replicas: Replica, waiting: int = 0, now_s: float = 10.0, generation: int = 1):
    return reconcile(plan, generation, replicas, waiting=waiting, now_s=now_s, start_from_s=5.0)


def test_the_least_is_started_and_then_nothing() -> None:
    assert decide(replace(PLAN, least=2)) == (Start(), Start())
    assert decide(PLAN, READY) == ()
    assert decide(PLAN, STARTING) == ()


def test_nothing_starts_before_its_time() -> None:
    assert decide(PLAN, now_s=4.9) == ()
    assert decide(PLAN, now_s=5.0) == (Start(),)


def test_a_pool_grows_by_one_while_more_waits_than_is_free() -> None:
    full = replace(READY, busy=2)
    assert decide(PLAN, full, waiting=1) == (Start(),)
    assert decide(PLAN, full, STARTING, waiting=5) == ()
    assert decide(PLAN, READY, waiting=2) == ()
    assert decide(PLAN, full, replace(full, number=3), replace(full, number=4), waiting=9) == ()


def test_a_pool_of_none_starts_when_something_waits() -> None:
    none = replace(PLAN, least=0)
    assert decide(none) == ()
    assert decide(none, waiting=1) == (Start(),)


def test_the_idle_one_above_the_least_goes_the_longest_idle_first() -> None:
    older, newer = replace(READY, since_s=1.0), replace(READY, number=5, since_s=2.0)
    assert decide(PLAN, newer, older, now_s=61.5) == (Drain(1, "idle"),)
    assert decide(PLAN, newer, older, now_s=60.5) == ()
    assert decide(PLAN, newer, replace(older, busy=1), now_s=70.0) == (Drain(5, "idle"),)
    assert decide(PLAN, older, now_s=500.0) == ()


def test_a_drained_replica_ends_when_its_last_call_has() -> None:
    draining = replace(READY, number=9, state=ReplicaState.DRAINING, busy=1)
    assert decide(PLAN, READY, draining) == ()
    assert decide(PLAN, READY, replace(draining, busy=0)) == (Stop(9, "drained"),)


def test_an_outdated_replica_makes_room_before_its_successor_comes() -> None:
    alone = replace(PLAN, most=1)
    assert decide(alone, READY, generation=2) == (Drain(1, "outdated"),)
    draining = replace(READY, state=ReplicaState.DRAINING, busy=1)
    assert decide(alone, draining, generation=2) == ()
    assert decide(alone, generation=2) == (Start(),)
    assert decide(PLAN, READY, generation=2) == (Drain(1, "outdated"), Start())
    assert decide(PLAN, STARTING, generation=2) == (Stop(2, "outdated"), Start())


def test_an_unwell_replica_is_replaced() -> None:
    assert decide(PLAN, replace(READY, missed=3, busy=1)) == (Stop(1, "unresponsive"), Start())
    assert decide(PLAN, replace(READY, missed=2)) == ()
    assert decide(PLAN, STARTING, now_s=100.5) == (Stop(2, "slow start"), Start())
    assert decide(PLAN, STARTING, now_s=99.5) == ()


def test_interactive_goes_first_then_the_order_of_arrival() -> None:
    one = replace(READY, slots=1)
    tickets = [(1, Rank.BATCH), (2, Rank.CONVERSION), (3, Rank.INTERACTIVE), (4, Rank.INTERACTIVE)]
    assert assign(PLAN, tickets, [one]) == {3: 1}
    assert assign(PLAN, tickets, [replace(one, slots=3)]) == {3: 1, 4: 1, 2: 1}
    assert assign(PLAN, [(5, Rank.BATCH), (4, Rank.BATCH)], [one]) == {4: 1}


def test_the_emptiest_replica_is_chosen_and_the_unready_none() -> None:
    busy, empty = replace(READY, busy=1), replace(READY, number=7)
    assert assign(PLAN, [(1, Rank.BATCH)], [busy, empty]) == {1: 7}
    draining = replace(READY, state=ReplicaState.DRAINING)
    assert assign(PLAN, [(1, Rank.BATCH)], [STARTING, draining, replace(READY, busy=2)]) == {}


def test_a_slot_is_kept_back_for_interactive_requests() -> None:
    plan = replace(PLAN, reserved=1)
    tickets = [(1, Rank.BATCH), (2, Rank.BATCH)]
    assert assign(plan, tickets, [READY]) == {1: 1}
    assert assign(plan, [(3, Rank.INTERACTIVE)], [replace(READY, busy=1)]) == {3: 1}
    assert assign(plan, tickets, [replace(READY, slots=1)]) == {1: 1}


def test_places_count_one_replica_more_where_one_could_come() -> None:
    alone = replace(PLAN, most=1)
    assert places(alone, []) == 1
    assert places(alone, [STARTING]) == 0
    assert places(alone, [READY]) == 2
    assert places(PLAN, [READY]) == 4
    assert places(PLAN, [READY, STARTING]) == 2
    assert places(replace(alone, reserved=1), [replace(READY, slots=5)]) == 4


def test_waits_grow_and_are_bounded() -> None:
    assert [back_off_s(n) for n in (0, 1, 2, 3)] == [0.0, 1.0, 2.0, 4.0]
    assert back_off_s(500) == 60.0
    assert expected_wait_s(4, 2, 3.0) == pytest.approx(7.5)
    assert expected_wait_s(0, 5, 0.1) == 1.0
    assert expected_wait_s(1000, 0, 10.0) == 60.0


def test_a_pool_keeps_within_what_is_granted() -> None:
    plan = replace(PLAN, least=2, most=3, gpus_each=0.5)
    assert plan.within(None) == plan
    assert [plan.within(gpus).most for gpus in (0.0, 0.49, 0.5, 1.0, 9.0)] == [0, 0, 1, 2, 3]
    assert plan.within(0.5).least == 1
    assert replace(plan, gpus_each=0.0).within(0.0).most == 3, "what needs no GPU is bounded by none"


def test_what_is_above_the_grant_goes_without_cutting_anything_off() -> None:
    two = replace(PLAN, least=0, most=2)
    busy, idle = replace(READY, busy=1, since_s=9.0), replace(READY, number=3)
    assert decide(two, busy, idle, STARTING) == (Stop(2, "not granted"),)
    assert decide(replace(two, most=1), busy, idle) == (Drain(3, "not granted"),)
    none = replace(two, most=0)
    assert decide(none, busy, waiting=5) == (Drain(1, "not granted"),)
    draining = replace(busy, state=ReplicaState.DRAINING)
    assert decide(none, draining, waiting=5) == (), "a running call is let end"
    assert decide(none, waiting=5) == ()


def leave(*replicas: Replica, plan: PoolPlan = PLAN, drained: frozenset[str] = frozenset({"nodes/a"})):
    return reconcile(plan, 1, replicas, waiting=0, now_s=10.0, start_from_s=0.0, drained=drained)


def test_a_drained_node_is_left_and_its_successor_need_not_wait() -> None:
    there, elsewhere = replace(READY, node="nodes/a", busy=1), replace(READY, number=4, node="nodes/b")
    assert leave(there) == (Drain(1, "node drained"), Start())
    leaving = replace(there, state=ReplicaState.DRAINING)
    assert leave(leaving, plan=replace(PLAN, most=1)) == (Start(),)
    assert leave(elsewhere) == ()
    avoids = replace(STARTING, avoids=frozenset({"nodes/a"}))
    assert leave(leaving, avoids) == ()
    assert leave(STARTING) == (Stop(2, "other nodes"), Start())
    assert leave(avoids, drained=frozenset()) == (Stop(2, "other nodes"), Start())


def test_a_node_to_avoid_is_used_where_no_other_has_room() -> None:
    bad, good = replace(READY, node="nodes/a"), replace(READY, number=2, node="nodes/b", busy=1)
    tickets, avoid = [(1, Rank.CONVERSION)], {1: frozenset({"nodes/a"})}
    assert assign(PLAN, tickets, [bad, good]) == {1: 1}
    assert assign(PLAN, tickets, [bad, good], avoid) == {1: 2}
    assert assign(PLAN, tickets, [bad, replace(good, busy=2)], avoid) == {1: 1}


def test_no_places_where_nothing_is_granted() -> None:
    assert places(replace(PLAN, least=0, most=0), []) == 0
