"""Decisions over whole histories: whatever happens, a pool comes to what it should be and keeps serving."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.health import Condition
from services.inference.model import (
    Drain,
    PoolPlan,
    Replica,
    ReplicaState,
    Role,
    Start,
    Stop,
    reconcile,
)

SLOTS = 2


class World:
    """A pool whose replicas do what a history says."""

    def __init__(self, plan: PoolPlan) -> None:
        self.plan = plan
        self.replicas: dict[int, Replica] = {}
        self.generation = 1
        self.waiting = 0
        self.now_s = 1000.0
        self.number = 0
        self.can_start = True

    @property
    def ready(self) -> list[Replica]:
        return [one for one in self.replicas.values() if one.state is ReplicaState.READY]

    def step(self) -> int:
        actions = reconcile(
            self.plan,
            self.generation,
            list(self.replicas.values()),
            waiting=self.waiting,
            waited_s=100.0 if self.waiting else 0.0,
            now_s=self.now_s,
            start_from_s=0.0,
        )
        for action in actions:
            match action:
                case Start():
                    self.number += 1
                    self.replicas[self.number] = Replica(
                        self.number, self.generation, ReplicaState.STARTING, 0, 0, self.now_s
                    )
                case Drain(number):
                    old = self.replicas[number]
                    assert old.state is ReplicaState.READY, "only what serves is drained"
                    self.replicas[number] = replace(old, state=ReplicaState.DRAINING, since_s=self.now_s)
                case Stop(number, reason):
                    gone = self.replicas.pop(number)
                    assert gone.busy == 0 or reason in {"hung", "unresponsive"}, "no running call is cut off"
        assert len(self.replicas) <= self.plan.most + self.plan.surge
        return len(actions)

    def load(self) -> None:
        """What is loading is ready, where it can be."""
        for number, one in list(self.replicas.items()):
            if one.state is ReplicaState.STARTING:
                if self.can_start:
                    self.replicas[number] = replace(
                        one, state=ReplicaState.READY, slots=SLOTS, since_s=self.now_s
                    )
                else:
                    del self.replicas[number]

    def work(self) -> None:
        for number, one in list(self.replicas.items()):
            if one.state is ReplicaState.READY and self.waiting and one.busy < SLOTS:
                self.waiting -= 1
                self.replicas[number] = replace(one, busy=one.busy + 1)

    def end_calls(self) -> None:
        for number, one in list(self.replicas.items()):
            if one.busy:
                self.replicas[number] = replace(one, busy=0, since_s=self.now_s)

    def falls_ill(self, **found: int) -> None:
        if self.ready:
            one = self.ready[0]
            self.replicas[one.number] = replace(one, condition=Condition(**found))

    def happens(self, what: str) -> None:
        self.now_s += 1.0
        match what:
            case "arrives":
                self.waiting += 3
            case "works":
                self.work()
            case "ends":
                self.end_calls()
            case "loads":
                self.load()
            case "weights":
                self.generation += 1
            case "leaks":
                self.falls_ill(over_memory=9)
            case "hangs":
                self.falls_ill(overdue=True)
            case "lacks memory":
                self.falls_ill(out_of_memory=9)
            case "time":
                self.now_s += 1000.0
        self.step()

    def settle(self) -> None:
        """Nothing more comes, and everything ends."""
        self.can_start = True
        quiet = 0
        for _ in range(60):
            self.now_s += 1000.0
            self.load()
            self.work()
            self.end_calls()
            quiet = 0 if self.step() or self.waiting else quiet + 1
            # Twice: what has just worked is not idle yet.
            if quiet == 2:
                return
        raise AssertionError(f"it never comes to rest: {self.replicas}")


PLANS = st.builds(
    lambda least, more, surge: PoolPlan(
        Role.F5, least, max(least + more, 1), surge=surge, idle_s=60.0, start_limit_s=5000.0
    ),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 1),
)
MILD = ("arrives", "works", "ends", "loads", "weights", "leaks", "time")
ALL = (*MILD, "hangs", "lacks memory")


@settings(max_examples=300, deadline=None)
@given(PLANS, st.lists(st.sampled_from(ALL), max_size=40))
def test_a_pool_comes_to_rest_with_what_it_should_have(plan: PoolPlan, history: list[str]) -> None:
    world = World(plan)
    for what in history:
        world.happens(what)
    world.settle()
    assert len(world.replicas) == plan.least
    assert all(one.generation == world.generation for one in world.replicas.values())
    assert all(one.condition.over_memory == 0 for one in world.replicas.values())


@settings(max_examples=300, deadline=None)
@given(PLANS, st.lists(st.sampled_from(MILD), max_size=40), st.booleans())
def test_weights_change_without_a_moment_without_service(
    plan: PoolPlan, history: list[str], new_ones_start: bool
) -> None:
    plan = replace(plan, least=max(plan.least, 1))
    if plan.most + plan.surge < 2:
        plan = replace(plan, most=2)
    world = World(plan)
    world.step()
    world.load()
    world.step()
    world.can_start = new_ones_start
    for what in history:
        world.happens(what)
        assert world.ready, f"nothing serves after {what}"
