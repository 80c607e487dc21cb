"""Who has the GPUs: single decisions, and what holds for every one of them."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.metadata.model.jobs import PriorityClass
from services.metadata.scheduling.grants import (
    HoldingTraining,
    Load,
    Node,
    Pool,
    Rules,
    WaitingTraining,
    divide,
)

INTERACTIVE, CONVERSION, BATCH, TRAINING = PriorityClass
ONE = [Node("n1", 1)]
FOUR = [Node("n1", 4)]
RULES = Rules()


def pool(name="rvc", share=0.5, **facts):
    at = facts.pop("at", CONVERSION)
    load = Load(facts.pop("queued", 0), facts.pop("running", 0), facts.pop("waited_s", 0.0))
    return Pool(name, {at: load} if load.queued or load.running else {}, share, **facts)


def idle(**facts):
    return [pool("rvc", **facts), pool("f5", **facts)]


def trains(job="t1", gpus=1, run_s=1000.0, node="n1", **facts):
    return HoldingTraining(job, gpus, node, run_s, **facts)


def decide(*, nodes=ONE, holding=(), waiting=(), pools=(), rules=RULES, since_s=math.inf):
    found = divide(nodes, holding, waiting, pools, rules, since_training_s=since_s)
    check(found, nodes)
    return found


def check(found, nodes):
    total = sum(node.gpus for node in nodes if node.alive)
    assert isinstance(found.trainer_gpus, int)
    assert found.trainer_gpus >= 0
    assert min(found.pools.values(), default=0.0) >= 0.0
    assert found.trainer_gpus + sum(found.pools.values()) <= total + 1e-6


# ---- a single GPU


def test_pools_that_were_busy_a_moment_ago_keep_the_only_gpu():
    found = decide(pools=idle(held_gpus=0.5, idle_s=10.0))
    assert (found.trainer_gpus, found.pools) == (0, {"rvc": 0.5, "f5": 0.5})


def test_pools_that_were_idle_for_a_while_give_the_only_gpu_back():
    found = decide(pools=idle(idle_s=300.0))
    assert (found.trainer_gpus, found.pools) == (1, {"rvc": 0.0, "f5": 0.0})


def test_idle_pools_give_the_only_gpu_to_a_training_that_waits_after_a_moment():
    """First they drain: what they hold is nobody else's until then."""
    waiting = [WaitingTraining(1, 1.0)]
    found = decide(waiting=waiting, pools=idle(held_gpus=0.5, idle_s=9.9))
    assert found.pools == {"rvc": 0.5, "f5": 0.5}, "whoever speaks may only have paused"
    found = decide(waiting=waiting, pools=idle(held_gpus=0.5, idle_s=10.0))
    assert (found.trainer_gpus, found.pools) == (0, {"rvc": 0.0, "f5": 0.0})
    assert decide(waiting=waiting, pools=idle()).trainer_gpus == 1


def test_work_keeps_the_only_gpu_and_room_beside_it_stays_warm():
    pools = [pool("rvc", running=1, held_gpus=0.5, since_begin_s=3.0), pool("f5", held_gpus=0.5, idle_s=9.0)]
    found = decide(waiting=[WaitingTraining(1, 5.0)], pools=pools, since_s=30.0)
    assert (found.trainer_gpus, found.pools) == (0, {"rvc": 0.5, "f5": 0.5})


@pytest.mark.parametrize("at", [INTERACTIVE, CONVERSION])
def test_work_that_someone_waits_for_makes_a_training_yield_after_its_guaranteed_run(at):
    pools = [pool("rvc", queued=1, at=at, waited_s=1.0), pool("f5")]
    early = decide(holding=[trains(run_s=299.9)], pools=pools)
    assert (early.yields, early.trainer_gpus) == ((), 1)
    due = decide(holding=[trains(run_s=300.0)], pools=pools)
    # Until it has left the GPU is its own.
    assert (due.yields, due.trainer_gpus, due.pools) == (("t1",), 1, {"rvc": 0.0, "f5": 0.0})
    asked = decide(holding=[trains(run_s=301.0, yield_asked=True)], pools=pools)
    assert (asked.yields, asked.trainer_gpus) == ((), 1)
    left = decide(waiting=[WaitingTraining(1, 0.0)], pools=pools, since_s=0.0)
    assert (left.trainer_gpus, left.pools) == (0, {"rvc": 0.5, "f5": 0.5})


@pytest.mark.parametrize(
    ("guaranteed_s", "run_s", "yields"),
    [(0.0, 9.0, ()), (0.0, 10.0, ("t1",)), (None, 1e9, ()), (50.0, 49.0, ()), (50.0, 51.0, ("t1",))],
)
def test_the_guaranteed_run_is_a_setting(guaranteed_s, run_s, yields):
    rules = replace(RULES, guaranteed_run_s=guaranteed_s)
    found = decide(holding=[trains(run_s=run_s)], pools=[pool(queued=1)], rules=rules)
    assert found.yields == yields
    assert any("higher work waits" in reason for reason in found.reasons)


@pytest.mark.parametrize(("waited_s", "yields"), [(59.0, ()), (60.0, ("t1",))])
def test_batch_work_makes_a_training_yield_only_when_it_has_aged(waited_s, yields):
    pools = [pool(queued=100, at=BATCH, waited_s=waited_s)]
    assert decide(holding=[trains()], pools=pools).yields == yields


def test_nor_when_some_of_it_is_being_done():
    """An old backlog of which something was begun a moment ago is served, not starved."""
    held = pool(
        queued=9_999, running=3, at=BATCH, waited_s=9_999.0, held_gpus=1.0, share=1.0, since_begin_s=5.0
    )
    found = decide(nodes=FOUR, holding=[trains(gpus=3)], pools=[replace(held, places_each=3, most=4)])
    assert found.yields == ()


def test_batch_work_goes_before_a_training_that_only_waits():
    found = decide(waiting=[WaitingTraining(1, 5.0)], pools=[pool(queued=9, at=BATCH)])
    assert (found.trainer_gpus, found.pools["rvc"]) == (0, 0.5)


@pytest.mark.parametrize(("at", "due_s"), [(INTERACTIVE, 180.0), (CONVERSION, 120.0), (BATCH, 60.0)])
def test_the_training_class_ages_like_any_other(at, due_s):
    """The farther it is below the work that waits, the longer."""
    pools = [pool(queued=50, running=3, at=at, waited_s=20.0, held_gpus=0.5, since_begin_s=1.0)]
    early = decide(waiting=[WaitingTraining(1, due_s - 1)], pools=pools, since_s=due_s)
    assert early.pools["rvc"] == 0.5
    lately = decide(waiting=[WaitingTraining(1, due_s)], pools=pools, since_s=due_s - 1)
    assert lately.pools["rvc"] == 0.5
    found = decide(waiting=[WaitingTraining(1, due_s)], pools=pools, since_s=due_s)
    assert (found.trainer_gpus, found.pools["rvc"]) == (0, 0.0)
    assert found.reasons
    drained = replace(pools[0], held_gpus=0.0, loads={at: Load(50, 0, 30.0)}, since_begin_s=9.0)
    assert decide(waiting=[WaitingTraining(1, due_s)], pools=[drained], since_s=due_s).trainer_gpus == 1


def test_pools_that_are_still_starting_have_not_had_their_turn():
    slow = pool(queued=5, waited_s=500.0, held_gpus=0.5, since_begin_s=700.0)
    found = decide(waiting=[WaitingTraining(1, 400.0)], pools=[slow], since_s=400.0)
    assert found.pools["rvc"] == 0.5
    broken = replace(slow, since_begin_s=math.inf)
    found = decide(waiting=[WaitingTraining(1, 900.0)], pools=[broken], since_s=900.0)
    assert found.pools["rvc"] == 0.0


# ---- more GPUs


def test_pools_keep_their_least_where_there_is_more_than_one_gpu():
    waiting = [WaitingTraining(1, 1e6)] * 9
    found = decide(nodes=FOUR, waiting=waiting, pools=idle(idle_s=1e6, held_gpus=0.5))
    assert (found.trainer_gpus, found.pools) == (3, {"rvc": 0.5, "f5": 0.5})


def test_the_least_never_takes_the_last_gpu_of_trainings():
    pools = idle(share=1.0, least=3, most=4, held_gpus=3.0, idle_s=10.0)
    found = decide(nodes=FOUR, waiting=[WaitingTraining(1, 5.0)], pools=pools)
    assert sum(found.pools.values()) == 3.0


def test_pools_grow_into_what_trainings_do_not_want_and_give_it_back_when_they_do():
    grown = pool(queued=4, running=8, share=1.0, places_each=3, most=4, held_gpus=3.0, since_begin_s=1.0)
    assert decide(nodes=FOUR, pools=[grown]).pools == {"rvc": 4.0}
    eased = pool(running=3, share=1.0, places_each=3, most=4, held_gpus=3.0, since_begin_s=1.0)
    assert decide(nodes=FOUR, pools=[eased]).pools == {"rvc": 3.0}
    one = decide(nodes=FOUR, pools=[eased], waiting=[WaitingTraining(1, 0.0)])
    assert (one.trainer_gpus, one.pools) == (1, {"rvc": 3.0})
    two = decide(nodes=FOUR, pools=[eased], waiting=[WaitingTraining(1, 0.0)] * 2)
    # What the pool holds is nobody else's until it has drained.
    assert (two.trainer_gpus, two.pools) == (1, {"rvc": 2.0})


def test_one_more_training_at_a_time_gets_its_turn():
    pools = [pool(queued=99, running=12, share=1.0, places_each=3, most=4, held_gpus=4.0, since_begin_s=1.0)]
    waiting = [WaitingTraining(1, 500.0)] * 5
    assert decide(nodes=FOUR, waiting=waiting, pools=pools).pools == {"rvc": 3.0}
    held = [replace(pools[0], held_gpus=3.0)]
    began = [trains(run_s=30.0)]
    assert decide(nodes=FOUR, holding=began, waiting=waiting, pools=held).pools == {"rvc": 3.0}
    later = [trains(run_s=130.0)]
    assert decide(nodes=FOUR, holding=later, waiting=waiting, pools=held).pools == {"rvc": 2.0}


def test_what_a_training_was_asked_for_goes_to_those_who_asked():
    """Another training that has waited for long does not take it on the way."""
    pools = [pool(queued=9, share=1.0, held_gpus=1.0, running=1, most=2, since_begin_s=1.0)]
    two = [Node("n1", 2)]
    waiting = [WaitingTraining(1, 1e4)]
    first = decide(nodes=two, holding=[trains()], waiting=waiting, pools=pools)
    assert (first.yields, first.pools) == (("t1",), {"rvc": 1.0})
    asked = decide(nodes=two, holding=[trains(yield_asked=True)], waiting=waiting, pools=pools)
    assert (asked.yields, asked.pools) == ((), {"rvc": 1.0})
    left = decide(nodes=two, waiting=[*waiting, WaitingTraining(1, 0.0)], pools=pools, since_s=0.0)
    assert (left.trainer_gpus, left.pools) == (0, {"rvc": 2.0})


def test_a_training_of_a_whole_node_is_kept_out_by_work_but_not_by_idle_pools():
    waiting = [WaitingTraining(4, 1.0)]
    found = decide(nodes=FOUR, waiting=waiting, pools=idle(idle_s=1.0))
    assert (found.trainer_gpus, found.pools) == (4, {"rvc": 0.0, "f5": 0.0})
    busy = [pool("rvc", running=1, held_gpus=0.5, since_begin_s=1.0), pool("f5", held_gpus=0.5, idle_s=1.0)]
    found = decide(nodes=FOUR, waiting=waiting, pools=busy, since_s=5.0)
    assert found.pools == {"rvc": 0.5, "f5": 0.5}


def test_a_training_that_no_node_can_hold_moves_nothing():
    nodes = [Node("n1", 2), Node("n2", 2)]
    waiting = [WaitingTraining(3, 1e6)]
    pools = [pool(queued=99, running=12, share=1.0, most=4, held_gpus=4.0, since_begin_s=1.0)]
    assert decide(nodes=nodes, waiting=waiting, pools=pools).pools == {"rvc": 4.0}


def test_draining_nodes_count_for_nothing():
    nodes = [Node("n1", 1), Node("n2", 4, alive=False)]
    found = decide(nodes=nodes, holding=[trains("on2", 4, node="n2")], pools=[pool(queued=1)])
    assert (found.trainer_gpus, found.pools, found.yields) == (0, {"rvc": 0.5}, ())
    assert decide(nodes=[Node("n1", 4, alive=False)], pools=idle()).pools == {"rvc": 0.0, "f5": 0.0}
    assert decide(nodes=[]).trainer_gpus == 0


def test_a_pool_that_needs_no_gpu_gets_and_disturbs_nothing():
    pools = [pool("cpu", share=0.0, queued=99), pool("rvc")]
    found = decide(holding=[trains()], pools=pools)
    assert (found.yields, found.pools) == ((), {"cpu": 0.0, "rvc": 0.0})


# ---- who yields


def urgent(gpus):
    return [pool(queued=gpus, share=1.0, most=gpus)]


def test_the_lowest_class_yields_first_then_priority_then_who_loses_least():
    holding = [
        trains("high", priority=5, run_s=400.0),
        trains("long", run_s=900.0),
        trains("short", run_s=400.0),
        trains("batch", run_s=301.0, priority=-9, priority_class=BATCH),
    ]
    order = []
    for count in (1, 2, 3, 4):
        found = decide(nodes=FOUR, holding=holding, pools=urgent(count)).yields
        assert set(order) <= set(found)
        order += [job for job in found if job not in order]
    assert order == ["short", "long", "high", "batch"]


def test_who_has_not_had_the_guaranteed_run_does_not_yield_however_low():
    holding = [trains("young", priority=-100, run_s=299.0), trains("old", priority=100)]
    found = decide(nodes=[Node("n1", 2)], holding=holding, pools=urgent(2))
    assert found.yields == ("old",)
    assert any("1 GPU more" in reason for reason in found.reasons)


def test_no_more_yield_than_do():
    holding = [trains("small", 1, run_s=400.0), trains("large", 3, run_s=500.0)]
    assert decide(nodes=FOUR, holding=holding, pools=urgent(1)).yields == ("small",)
    # The large one is needed, and then the small one is not.
    assert decide(nodes=FOUR, holding=holding, pools=urgent(3)).yields == ("large",)
    leaving = [replace(holding[1], yield_asked=True), holding[0]]
    assert decide(nodes=FOUR, holding=leaving, pools=urgent(3)).yields == ()
    assert decide(nodes=[Node("n1", 8)], holding=holding, pools=urgent(3)).yields == ()


# ---- between pools


def test_shares_are_packed_into_whole_gpus():
    pools = [
        pool("rvc", 0.6, queued=3, most=3),
        pool("f5", 0.4, queued=2, most=2),
    ]
    found = decide(nodes=FOUR, pools=pools)
    assert found.pools == {"rvc": pytest.approx(1.8), "f5": pytest.approx(0.8)}
    assert found.trainer_gpus == 1


def test_a_pool_with_much_work_does_not_push_the_other_out():
    pools = [pool("rvc", queued=99, most=9), pool("f5", queued=1)]
    assert decide(pools=pools).pools == {"rvc": 0.5, "f5": 0.5}


def test_where_only_one_pool_fits_the_higher_class_has_the_gpu_until_the_other_has_aged():
    first = pool("rvc", 1.0, queued=9, running=3, held_gpus=1.0, since_begin_s=2.0, waited_s=40.0)
    second = pool("f5", 1.0, queued=999, at=BATCH, waited_s=100.0, since_begin_s=100.0)
    assert decide(pools=[first, second]).pools == {"rvc": 1.0, "f5": 0.0}
    aged = replace(second, since_begin_s=200.0, loads={BATCH: Load(999, 0, 200.0)})
    assert decide(pools=[first, aged]).pools == {"rvc": 0.0, "f5": 1.0}


# ---- every decision


CLASSES = st.sampled_from([INTERACTIVE, CONVERSION, BATCH])
WAITS = st.floats(0.0, 1000.0)
POOLS = st.lists(
    st.builds(
        lambda at, load, gpus_each, held, most: Pool(
            "", {at: load}, gpus_each, places_each=2, most=most, held_gpus=held * gpus_each, idle_s=50.0
        ),
        CLASSES,
        st.builds(Load, st.integers(0, 20), st.integers(0, 8), WAITS),
        st.sampled_from([0.25, 0.5, 1.0, 2.0]),
        st.integers(0, 2),
        st.integers(1, 6),
    ),
    max_size=3,
)


@settings(max_examples=300)
@given(
    gpus=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    pools=POOLS,
    waiting=st.lists(st.builds(WaitingTraining, st.integers(1, 8), WAITS), max_size=6),
    runs=st.lists(st.tuples(st.floats(0.0, 1000.0), st.booleans()), max_size=4),
    since_s=WAITS,
)
def test_no_decision_gives_more_than_there_is_or_asks_before_the_guaranteed_run(
    gpus, pools, waiting, runs, since_s
):
    nodes = [Node(f"n{number}", count) for number, count in enumerate(gpus)]
    # One training of one GPU on each of the first nodes: they fit by construction.
    holding = [
        trains(f"t{number}", node=f"n{number}", run_s=run_s, yield_asked=asked)
        for number, (run_s, asked) in enumerate(runs[: len(nodes)])
    ]
    named = [replace(one, name=f"p{number}") for number, one in enumerate(pools)]
    found = decide(nodes=nodes, holding=holding, waiting=waiting, pools=named, since_s=since_s)
    assert found.trainer_gpus >= len(holding)
    for training in holding:
        if training.job in found.yields:
            assert training.run_s >= RULES.guaranteed_run_s
            assert not training.yield_asked
    assert set(found.pools) == {one.name for one in named}
    for one in named:
        assert found.pools[one.name] <= one.most * one.gpus_each + 1e-6
