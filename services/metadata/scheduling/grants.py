"""Which GPUs belong to trainings and which to the pools, and which trainings must yield.

Classes go in order, interactive and conversion before batch before training, with these exceptions:

- A training is not asked to yield before its guaranteed run; so a GPU that it came back to is its own for as
  long again, and changes hands at most once in that time.
- Work of the batch class takes what is free before trainings do, but makes a training yield only when none of
  it was begun for ``age_s`` seconds, and then for one replica.
- The training class ages like any other (see :mod:`.lanes`): where no training began, and none gave its GPUs
  back, for ``age_s`` seconds for each class between it and the highest with work, one more gets its turn. So
  under endless higher work a training waits that long and for the pools to drain, and under endless trainings
  higher work waits for a guaranteed run and a checkpoint: a bound either way.
- The pools keep their least replicas, save where that leaves a waiting training no GPU at all or too few on
  any terms: a fleet with a single GPU. There they give them back where a training waits and they have had
  neither queued nor running work for a moment (whoever speaks pauses), or, where nobody waits, for a while.

A grant is the right to hold. What one side still holds is granted to the other only once it is given back, so
that grants and holdings never add up to more than there is: the pools drain, trainings save, then it changes.

Which GPU is whose is Ray's matter; counts of whole GPUs are decided here, a pool's fractions are packed into
them first-fit. A GPU that is pretended is divided like a real one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from services.metadata.model.jobs import PriorityClass
from services.metadata.scheduling.lanes import AGE_S

TURN_MOST_S = 900.0
"""A pool that began nothing for so long with a GPU of its own is broken: trainings wait for it no longer."""

_EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class Node:
    """A node's whole GPUs; one that is dead or drained (not ``alive``) counts for nothing."""

    name: str
    gpus: int
    alive: bool = True


@dataclass(frozen=True, slots=True)
class HoldingTraining:
    """A training that has its GPUs, for ``run_s`` seconds now; a higher ``priority`` yields later."""

    job: str
    gpus: int
    node: str
    run_s: float
    priority: int = 0
    priority_class: PriorityClass = PriorityClass.TRAINING
    yield_asked: bool = False


@dataclass(frozen=True, slots=True)
class WaitingTraining:
    """A training without GPUs: queued, or begun and not yet at the phase that needs them.

    ``waited_s`` counts from its submission or from when it last gave GPUs back, whichever is later.
    """

    gpus: int
    waited_s: float


@dataclass(frozen=True, slots=True)
class Load:
    """The jobs of one class in a pool; ``waited_s`` is for how long the oldest queued one has waited."""

    queued: int = 0
    running: int = 0
    waited_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Pool:
    """What a pool has to do and what it holds.

    Args:
        name: of the pool.
        loads: its jobs by class; streamed requests that no job stands for count as interactive ones.
        gpus_each: share of a GPU of one replica; 0: it needs none.
        places_each: jobs that a replica runs at once.
        least: replicas that are always kept, by setting.
        most: replicas at most, by setting.
        held_gpus: what its replicas hold on nodes that are alive, those included that drain.
        idle_s: for how long it has had neither queued nor running work.
        since_begin_s: since it last began a job; infinite if it never did.
    """

    name: str
    loads: Mapping[PriorityClass, Load]
    gpus_each: float
    places_each: int = 1
    least: int = 1
    most: int = 1
    held_gpus: float = 0.0
    idle_s: float = 0.0
    since_begin_s: float = math.inf

    def unserved_s(self, priority_class: PriorityClass) -> float:
        """For how long a class waits and nothing is begun: that a backlog is old does not count."""
        load = self.loads.get(priority_class, Load())
        return min(load.waited_s, self.since_begin_s) if load.queued else 0.0


@dataclass(frozen=True, slots=True)
class Rules:
    """The operator's settings.

    Args:
        guaranteed_run_s: what a training runs before it is asked to yield; None: it never is.
        free_hold_s: for how long idle pools keep GPUs that nobody waits for.
        linger_s: for how long idle pools keep replicas that a training waits for.
        age_s: seconds without service after which a class counts as one higher; above 0.
        least_run_s: what it runs even where nothing is guaranteed: less would be spent on starting alone.
    """

    guaranteed_run_s: float | None = 300.0
    free_hold_s: float = 300.0
    linger_s: float = 10.0
    age_s: float = AGE_S
    least_run_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Grants:
    """The decision: GPUs of trainings and by pool, jobs to ask for theirs, and the reasons, for people."""

    trainer_gpus: int
    pools: Mapping[str, float]
    yields: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()


def divide(
    nodes: Iterable[Node],
    holding: Iterable[HoldingTraining],
    waiting: Iterable[WaitingTraining],
    pools: Sequence[Pool],
    rules: Rules,
    *,
    since_training_s: float,
) -> Grants:
    """Divides the GPUs of the nodes that are alive.

    Args:
        nodes: all of them.
        holding: trainings with GPUs, those included that were asked to yield.
        waiting: trainings without.
        pools: their work and what they hold.
        rules: the settings.
        since_training_s: since a training last gave its GPUs back, by whatever end; infinite if none did.
    """
    alive = {node.name: node.gpus for node in nodes if node.alive and node.gpus > 0}
    fleet = _Fleet(
        alive,
        [training for training in holding if training.node in alive],
        sorted(
            (training for training in waiting if 0 < training.gpus <= max(alive.values(), default=0)),
            key=lambda training: -training.waited_s,
        ),
        [pool for pool in pools if pool.gpus_each > 0.0],
        rules,
        since_training_s,
    )
    fleet.decide()
    given = {pool.name: 0.0 for pool in pools} | fleet.shared_out()
    return Grants(fleet.trainer_gpus, given, tuple(fleet.yields), tuple(fleet.reasons))


@dataclass(slots=True)
class _Fleet:
    """One division as it is worked out; what it has of the world is given and left as it is."""

    nodes: Mapping[str, int]
    holding: Sequence[HoldingTraining]
    waiting: Sequence[WaitingTraining]
    pools: Sequence[Pool]
    rules: Rules
    since_training_s: float
    trainer_gpus: int = 0
    pool_gpus: int = 0
    yields: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def decide(self) -> None:
        total = sum(self.nodes.values())
        held = sum(training.gpus for training in self.holding)
        floor = self._floor(total)
        turn = self._turn(total - held, floor)
        self._ask(total)
        staying = [training for training in self.holding if not self._leaves(training)]
        room = total - sum(training.gpus for training in staying)
        # Work first, and what the pools always keep; less what a training whose turn it is gets of it.
        least = _whole(self.pools, lambda pool: pool.least)
        if floor >= least:
            wanted = _whole(self.pools, lambda pool: max(pool.least, _replicas(pool, _jobs(pool))))
        else:
            wanted = max(floor, _whole(self.pools, self._in_use))
        wanted = min(wanted, room - (turn.gpus if turn else 0))
        # Then trainings that wait, the oldest that fits first; then what the pools have and nobody asks for.
        spare = room - wanted
        spare -= turn.gpus if turn else 0
        for training in self.waiting:
            if training is not turn and training.gpus <= spare and self._has_node(training, staying):
                spare -= training.gpus
        warm = _whole(self.pools, self._kept_warm)
        wanted += max(0, min(spare, warm - wanted))
        pools_hold = _whole(self.pools, _held)
        self.trainer_gpus = max(min(held, total), min(total - wanted, total - pools_hold), 0)
        self.pool_gpus = max(0, min(wanted, total - held))

    def shared_out(self) -> dict[str, float]:
        """The pools' GPUs by pool: first a replica for each that has work, then the least of each."""
        given = dict.fromkeys((pool.name for pool in self.pools), 0)
        ranked = sorted(self.pools, key=self._rank)
        with_work = [pool for pool in ranked if _jobs(pool)]
        steps: list[tuple[list[Pool], Callable[[Pool], int]]] = [
            (with_work, lambda _: 1),
            (ranked, lambda pool: pool.least),
            (with_work, lambda pool: _replicas(pool, _jobs(pool))),
            (ranked, _held),
        ]
        for some, target in steps:
            for level in range(1, max((target(pool) for pool in some), default=0) + 1):
                for pool in some:
                    if given[pool.name] < min(level, target(pool), pool.most):
                        given[pool.name] += 1
                        if _whole(self.pools, lambda pool: given[pool.name]) > self.pool_gpus:
                            given[pool.name] -= 1
        return {pool.name: given[pool.name] * pool.gpus_each for pool in self.pools}

    def _floor(self, total: int) -> int:
        """The GPUs that the pools keep without work: their least, but never what a training needs."""
        largest = max((training.gpus for training in self.waiting), default=1)
        return max(0, min(_whole(self.pools, lambda pool: pool.least), total - largest))

    def _turn(self, free: int, floor: int) -> WaitingTraining | None:
        """The training that gets GPUs of the pools now, because its class has waited long enough.

        GPUs of trainings that were asked to yield are not counted: these go to those who asked.
        """
        classes = [
            at for pool in self.pools for at, load in pool.loads.items() if load.queued or load.running
        ]
        if not classes:
            return None
        due_s = (PriorityClass.TRAINING - min(classes)) * self.rules.age_s
        last_s = min([self.since_training_s, *(training.run_s for training in self.holding)])
        if last_s < due_s or not (self._pools_had_a_turn() or last_s >= TURN_MOST_S):
            return None
        for training in self.waiting:
            if training.waited_s < due_s:
                break
            if training.gpus <= free - floor and self._has_node(training, self.holding):
                self.reasons.append(f"a training has waited {training.waited_s:.0f} s: it has its turn")
                return training
        return None

    def _pools_had_a_turn(self) -> bool:
        """Whether they began something since a training last gave GPUs back, which first takes a start."""
        return any(pool.since_begin_s < self.since_training_s for pool in self.pools)

    def _ask(self, total: int) -> None:
        """Chooses who is to yield so that urgent work of the pools has room."""
        urgent = min(total, _whole(self.pools, self._urgent))
        short = urgent - total + sum(training.gpus for training in self.holding if not training.yield_asked)
        if short <= 0:
            return
        guaranteed_s = self.rules.guaranteed_run_s
        least_s = math.inf if guaranteed_s is None else max(guaranteed_s, self.rules.least_run_s)
        able = [
            training for training in self.holding if not training.yield_asked and training.run_s >= least_s
        ]
        # The lowest class, then priority, then who loses the least.
        able.sort(key=lambda one: (-one.priority_class, one.priority, one.run_s, one.job))
        chosen: list[HoldingTraining] = []
        for training in able:
            if short <= 0:
                break
            chosen.append(training)
            short -= training.gpus
        for training in list(chosen):
            # A larger one that came later may have made it needless.
            if short + training.gpus <= 0:
                chosen.remove(training)
                short += training.gpus
        self.yields = [training.job for training in chosen]
        self.reasons += [
            f"{training.job} yields {training.gpus} GPU after {training.run_s:.0f} s: higher work waits"
            for training in chosen
        ]
        if short > 0:
            why = "yield never" if guaranteed_s is None else f"have {least_s:.0f} s guaranteed"
            self.reasons.append(f"higher work waits for {short} GPU more: trainings {why}")

    def _leaves(self, training: HoldingTraining) -> bool:
        return training.yield_asked or training.job in self.yields

    def _urgent(self, pool: Pool) -> int:
        """The replicas for which trainings must make room."""
        jobs = 0
        for priority_class, load in pool.loads.items():
            if priority_class < PriorityClass.BATCH:
                jobs += load.queued + load.running
            elif (
                priority_class == PriorityClass.BATCH and pool.unserved_s(priority_class) >= self.rules.age_s
            ):
                jobs += min(load.queued, pool.places_each)
        return _replicas(pool, jobs)

    def _in_use(self, pool: Pool) -> int:
        """The replicas that have work, or had some a moment ago."""
        lingering = min(_held(pool), pool.least) if pool.idle_s < self.rules.linger_s else 0
        return max(_replicas(pool, _jobs(pool)), lingering)

    def _kept_warm(self, pool: Pool) -> int:
        """The replicas that it has or could have where nobody else wants their GPUs."""
        working = _replicas(pool, _jobs(pool))
        if pool.idle_s >= self.rules.free_hold_s:
            return working
        return max(working, pool.least, min(_held(pool), pool.most))

    def _has_node(self, training: WaitingTraining, staying: Sequence[HoldingTraining]) -> bool:
        """Whether one node could have room for it when the pools make way."""
        return any(
            gpus - sum(other.gpus for other in staying if other.node == name) >= training.gpus
            for name, gpus in self.nodes.items()
        )

    def _rank(self, pool: Pool) -> tuple[float, bool, float, str]:
        """Whose turn it is where not all pools fit: by class with ageing; among equals, who has GPUs."""
        best, waited_s = math.inf, 0.0
        for priority_class, load in pool.loads.items():
            if load.running:
                best = min(best, float(priority_class))
            if load.queued:
                unserved_s = pool.unserved_s(priority_class)
                best = min(best, float(priority_class - int(unserved_s / self.rules.age_s)))
                waited_s = max(waited_s, unserved_s)
        return best, not _held(pool), -waited_s, pool.name


def _jobs(pool: Pool) -> int:
    return sum(load.queued + load.running for load in pool.loads.values())


def _replicas(pool: Pool, jobs: int) -> int:
    """The replicas that so many jobs keep busy, within what the settings allow."""
    return min(-(-jobs // max(pool.places_each, 1)), pool.most)


def _held(pool: Pool) -> int:
    return round(pool.held_gpus / pool.gpus_each)


def _whole(pools: Sequence[Pool], replicas: Callable[[Pool], int]) -> int:
    """The whole GPUs that so many replicas of each pool need, packed first-fit by falling size."""
    shares = sorted((pool.gpus_each for pool in pools for _ in range(replicas(pool))), reverse=True)
    rooms: list[float] = []
    whole = 0
    for share in shares:
        if share > 1.0:
            whole += math.ceil(share - _EPSILON)
            continue
        for index, room in enumerate(rooms):
            if share <= room + _EPSILON:
                rooms[index] -= share
                break
        else:
            rooms.append(1.0 - share)
    return whole + len(rooms)
