"""The pool's decisions, step by step."""

from __future__ import annotations

from dataclasses import replace

from services.inference.health import Condition
from services.inference.model import (
    Drain,
    PoolPlan,
    Replica,
    ReplicaState,
    Role,
    Start,
    Stop,
    back_off_s,
    generation_to_hold,
    reconcile,
)

PLAN = PoolPlan(Role.F5, least=1, most=3, idle_s=60.0, start_limit_s=100.0)
READY = Replica(1, 1, ReplicaState.READY, slots=2, busy=0, since_s=0.0)
STARTING = Replica(2, 1, ReplicaState.STARTING, slots=0, busy=0, since_s=0.0)


def decide(
    plan: PoolPlan,
    *replicas: Replica,
    waiting: int = 0,
    waited_s: float = 0.0,
    now_s: float = 10.0,
    generation: int = 1,
):
    return reconcile(
        plan, generation, replicas, waiting=waiting, waited_s=waited_s, now_s=now_s, start_from_s=5.0
    )


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


def test_what_serves_is_not_given_up_for_what_may_come() -> None:
    older, newer = replace(READY, since_s=1.0), replace(READY, number=5, since_s=2.0)
    assert decide(PLAN, older, newer, replace(STARTING, since_s=90.0), now_s=99.0) == (Drain(1, "idle"),)
    assert decide(PLAN, older, replace(STARTING, since_s=90.0), now_s=99.0) == ()


def test_a_drained_replica_ends_when_its_last_call_has() -> None:
    draining = replace(READY, number=9, state=ReplicaState.DRAINING, busy=1)
    assert decide(PLAN, READY, draining) == ()
    assert decide(PLAN, READY, replace(draining, busy=0)) == (Stop(9, "drained"),)


def ill(*, busy: int = 0, **found: int) -> Replica:
    return replace(READY, busy=busy, condition=Condition(**found))


def test_an_unwell_replica_is_replaced() -> None:
    assert decide(PLAN, ill(busy=1, missed=3)) == (Stop(1, "unresponsive"), Start())
    assert decide(PLAN, ill(missed=2)) == ()
    assert decide(PLAN, ill(busy=1, overdue=True)) == (Stop(1, "hung"), Start())
    assert decide(PLAN, ill(probes_failed=3)) == (Stop(1, "failed probe"), Start())
    assert decide(PLAN, ill(probes_failed=2)) == ()
    hung = replace(ill(busy=1, overdue=True), state=ReplicaState.DRAINING)
    assert decide(PLAN, READY, replace(hung, number=4)) == (Stop(4, "hung"),), "a hung call never drains"
    assert decide(PLAN, STARTING, now_s=100.5) == (Stop(2, "slow start"), Start())
    assert decide(PLAN, STARTING, now_s=99.5) == ()


def test_waits_grow_and_are_bounded() -> None:
    assert [back_off_s(n) for n in (0, 1, 2, 3)] == [0.0, 1.0, 2.0, 4.0]
    assert back_off_s(500) == 60.0


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


def test_a_long_wait_asks_for_one_more_however_few_wait() -> None:
    plan = replace(PLAN, grow_wait_s=4.0, grow_depth=3, reserved=1)
    one_free = replace(READY, busy=1)
    # What waits has the reserved slot before it, which it may not have.
    assert decide(plan, one_free, waiting=1, waited_s=3.9) == ()
    assert decide(plan, one_free, waiting=1, waited_s=4.0) == (Start(),)
    assert decide(plan, one_free, STARTING, waiting=1, waited_s=60.0) == (), "one at a time"
    assert decide(replace(plan, most=1), one_free, waiting=1, waited_s=60.0) == ()


def test_a_depth_can_be_asked_for() -> None:
    plan, full = replace(PLAN, grow_depth=3, grow_wait_s=4.0), replace(READY, busy=2)
    assert decide(plan, full, waiting=2) == ()
    assert decide(plan, full, waiting=3) == (Start(),)
    assert decide(replace(plan, least=0), waiting=1) == (Start(),), "without any, the first is enough"


def test_what_lacks_memory_is_drained_and_its_neighbours_are_let_end() -> None:
    assert decide(PLAN, ill(busy=1, out_of_memory=2)) == ()
    assert decide(PLAN, ill(busy=1, out_of_memory=3)) == (Drain(1, "out of memory"), Start())
    alone = replace(PLAN, most=1)
    assert decide(alone, ill(busy=1, out_of_memory=3), waiting=5) == (Drain(1, "out of memory"),)


def test_what_leaks_is_replaced_by_a_successor_that_is_ready() -> None:
    leaking, two = ill(busy=1, over_memory=3), replace(PLAN, most=2)
    assert decide(two, ill(busy=1, over_memory=2)) == ()
    assert decide(two, leaking) == (Start(),)
    assert decide(two, leaking, STARTING) == ()
    successor = replace(READY, number=2, since_s=9.0)
    assert decide(two, leaking, successor) == (Drain(1, "leaked memory"),)
    assert decide(replace(PLAN, most=1), leaking) == (Drain(1, "leaked memory"),)


OLD, NEW = READY, replace(READY, number=2, generation=2, since_s=9.0)
COMING = replace(STARTING, generation=2)


def test_new_weights_are_ready_before_the_old_ones_go() -> None:
    # Step by step: one replica, room for another.
    assert decide(PLAN, OLD, generation=2) == (Start(),)
    assert decide(PLAN, OLD, COMING, generation=2) == ()
    assert decide(PLAN, OLD, NEW, generation=2) == (Drain(1, "outdated"),)
    leaving = replace(OLD, state=ReplicaState.DRAINING, busy=1)
    assert decide(PLAN, leaving, NEW, generation=2) == ()
    assert decide(PLAN, replace(leaving, busy=0), NEW, generation=2) == (Stop(1, "drained"),)


def test_the_old_ones_go_on_while_the_new_do_not_start() -> None:
    later = {"waiting": 0, "now_s": 10.0, "start_from_s": 11.0}
    assert reconcile(PLAN, 2, [OLD], **later) == ()
    busy = replace(OLD, busy=2)
    assert reconcile(PLAN, 2, [busy], **(later | {"waiting": 9})) == ()


def test_without_room_one_makes_room_and_then_its_successor_comes() -> None:
    alone = replace(PLAN, most=1)
    assert decide(alone, OLD, waiting=3, generation=2) == (Drain(1, "outdated"),)
    draining = replace(OLD, state=ReplicaState.DRAINING, busy=1)
    assert decide(alone, draining, waiting=3, generation=2) == ()
    assert decide(alone, waiting=3, generation=2) == (Start(),)
    assert decide(alone, COMING, waiting=3, generation=2) == ()


def test_a_full_pool_changes_its_weights_one_by_one() -> None:
    two = replace(PLAN, least=2, most=2)
    other = replace(OLD, number=4, since_s=1.0, busy=1)
    assert decide(two, OLD, other, generation=2) == (Drain(1, "outdated"),), "the idle one first"
    draining = replace(OLD, state=ReplicaState.DRAINING, busy=1)
    assert decide(two, draining, other, generation=2) == ()
    assert decide(two, other, generation=2) == (Start(),)
    assert decide(two, other, COMING, generation=2) == (), "one serves while the other loads"
    assert decide(two, other, NEW, generation=2) == (Drain(4, "outdated"),)
    assert decide(two, NEW, generation=2) == (Start(),)


def test_as_many_successors_are_started_as_the_work_needs() -> None:
    plan = replace(PLAN, most=6)
    three = [replace(OLD, number=number, busy=2) for number in (1, 3, 5)]
    assert decide(plan, *three, generation=2) == (Start(), Start(), Start())
    ready = [replace(NEW, number=number) for number in (6, 7)]
    coming = replace(COMING, number=8)
    assert decide(plan, *three, *ready, coming, generation=2) == (Drain(1, "outdated"), Drain(3, "outdated"))
    idle = [replace(one, busy=0) for one in three]
    found = decide(plan, *idle, generation=2)
    assert found == (Start(), Drain(1, "outdated"), Drain(3, "outdated")), "idle ones need no successor"


def test_there_may_be_room_above_the_most_while_weights_change() -> None:
    plan = replace(PLAN, most=1, surge=1)
    assert decide(plan, OLD, generation=2) == (Start(),)
    assert decide(plan, OLD, COMING, generation=2) == ()
    assert decide(plan, OLD, NEW, generation=2) == (Drain(1, "outdated"),)
    assert decide(plan, replace(NEW, busy=2), waiting=9, generation=2) == (), "and at no other time"
    # Its grant shrinks: what serves stays.
    assert decide(replace(plan, surge=0), OLD, COMING, generation=2)[0] == Stop(2, "not granted")


def test_where_the_grant_shrinks_the_outdated_go_first() -> None:
    alone, busy = replace(PLAN, most=1), replace(OLD, busy=1)
    assert decide(alone, busy, NEW, generation=2) == (Drain(1, "not granted"),)


def test_a_successor_that_only_loads_is_stopped_where_weights_change_again() -> None:
    assert decide(PLAN, COMING, generation=3) == (Stop(2, "outdated"), Start())
    assert decide(PLAN, OLD, COMING, generation=3) == (Stop(2, "outdated"), Start())


def test_weights_that_do_not_start_leave_the_place_to_those_that_did() -> None:
    plan = replace(PLAN, start_tries=3, retry_s=100.0)

    def held(failures: int, since_failure_s: float, proven: int = 1) -> int:
        return generation_to_hold(plan, 2, proven, failures=failures, since_failure_s=since_failure_s)

    assert [held(failures, 0.0) for failures in (0, 2, 3)] == [2, 2, 1]
    assert (held(3, 99.0), held(3, 100.0)) == (1, 2)
    assert (held(4, 199.0), held(4, 200.0)) == (1, 2), "each time later"
    assert (held(500, 86_399.0), held(500, 86_400.0)) == (1, 2)
    assert held(9, 0.0, proven=0) == 2, "there is nothing else"
    # Back to the old ones: what held them is no longer outdated.
    assert decide(PLAN, OLD, generation=1) == ()


def test_room_above_the_most_is_granted_or_needs_no_gpu() -> None:
    plan = replace(PLAN, most=1, surge=1, gpus_each=0.5)
    assert [plan.within(gpus).surge for gpus in (None, 0.0, 0.5, 1.0, 4.0)] == [0, 0, 0, 1, 1]
    assert replace(plan, gpus_each=0.0).within(None).surge == 1


def test_whole_gpus_and_shares_of_one() -> None:
    whole, half = replace(PLAN, most=4, gpus_each=1.0), replace(PLAN, most=4, gpus_each=0.5)
    assert [whole.within(gpus).most for gpus in (0.5, 1.0, 1.9, 2.0)] == [0, 1, 1, 2]
    assert [half.within(gpus).most for gpus in (0.5, 1.0, 1.9, 2.0)] == [1, 2, 3, 4]
