"""Who gets which slot, step by step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.inference.health import Condition
from services.inference.model import PoolPlan, Rank, Replica, ReplicaState, Role
from services.inference.slots import assign, expected_wait_s, places

PLAN = PoolPlan(Role.F5, least=1, most=3)
READY = Replica(1, 1, ReplicaState.READY, slots=2, busy=0, since_s=0.0)
STARTING = Replica(2, 1, ReplicaState.STARTING, slots=0, busy=0, since_s=0.0)


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


def test_a_node_to_avoid_is_used_where_no_other_has_room() -> None:
    bad, good = replace(READY, node="nodes/a"), replace(READY, number=2, node="nodes/b", busy=1)
    tickets, avoid = [(1, Rank.CONVERSION)], {1: frozenset({"nodes/a"})}
    assert assign(PLAN, tickets, [bad, good]) == {1: 1}
    assert assign(PLAN, tickets, [bad, good], avoid) == {1: 2}
    assert assign(PLAN, tickets, [bad, replace(good, busy=2)], avoid) == {1: 1}


def test_no_places_where_nothing_is_granted() -> None:
    assert places(replace(PLAN, least=0, most=0), []) == 0


def test_what_something_is_held_against_comes_last() -> None:
    good = replace(READY, number=2, busy=1)
    for held in (Condition(missed=1), Condition(probes_failed=1), Condition(out_of_memory=1)):
        bad = replace(READY, condition=held)
        assert assign(PLAN, [(1, Rank.BATCH)], [bad, good]) == {1: 2}
        assert assign(PLAN, [(1, Rank.BATCH)], [bad, replace(good, busy=2)]) == {1: 1}
    assert assign(PLAN, [(1, Rank.BATCH)], [READY, good]) == {1: 1}


def test_a_wait_is_told_within_bounds() -> None:
    assert expected_wait_s(4, 2, 3.0) == pytest.approx(7.5)
    assert expected_wait_s(0, 5, 0.1) == 1.0
    assert expected_wait_s(1000, 0, 10.0) == 60.0


def test_a_warm_replica_is_preferred_where_it_has_room() -> None:
    busy, empty = replace(READY, busy=1), replace(READY, number=7)
    ticket = [(1, Rank.CONVERSION)]
    assert assign(PLAN, ticket, [busy, empty], warm={1: [1]}) == {1: 1}
    assert assign(PLAN, ticket, [busy, empty], warm={1: [1, 7]}) == {1: 7}, "of two, the emptier"
    full = replace(READY, busy=2)
    assert assign(PLAN, ticket, [full, empty], warm={1: [1]}) == {1: 7}, "nobody waits for it"
    assert assign(PLAN, ticket, [full, replace(empty, busy=2)], warm={1: [1]}) == {}


def test_a_warm_replica_is_not_preferred_to_a_well_one_or_to_another_node() -> None:
    warm, cold = replace(READY, node="nodes/a"), replace(READY, number=2, node="nodes/b")
    ticket = [(1, Rank.CONVERSION)]
    assert assign(PLAN, ticket, [warm, cold], {1: ["nodes/a"]}, {1: [1]}) == {1: 2}
    sick = replace(warm, condition=Condition(missed=1))
    assert assign(PLAN, ticket, [sick, cold], warm={1: [1]}) == {1: 2}


def test_requests_that_come_together_each_go_where_their_voice_is() -> None:
    one, two = replace(READY, slots=1), replace(READY, number=2, slots=1)
    tickets = [(1, Rank.CONVERSION), (2, Rank.CONVERSION)]
    assert assign(PLAN, tickets, [one, two], warm={1: [2], 2: [1]}) == {1: 2, 2: 1}
    # The order of arrival comes before warmth.
    assert assign(PLAN, tickets, [one], warm={2: [1]}) == {1: 1}
