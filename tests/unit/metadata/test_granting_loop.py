"""One GPU, endless trainings and endless streams: decided second by second, nobody starves."""

import math
from dataclasses import dataclass, field, replace

import pytest

from services.common.jobs.model import TRAINER_POOL, GpuFacts, PoolState
from services.metadata.app.grants import Memory, merged, pools_of, remember, to_tell
from services.metadata.ports.grants import WantingTraining
from services.metadata.scheduling.grants import (
    HoldingTraining,
    Node,
    Rules,
    WaitingTraining,
    divide,
)

DRAIN_S, START_S, SAVE_S, PLACE_S = 8.0, 20.0, 5.0, 3.0
CALL_S = 5.0
RULES = Rules(guaranteed_run_s=120.0)


@dataclass
class Cluster:
    """A pool of one replica and a trainer that share one GPU; each obeys what it is told.

    ``speaks`` says of each second whether anyone wants to be spoken to.
    """

    speaks: object
    trains: bool = True
    now_s: float = 0.0
    memory: Memory = field(default_factory=Memory)
    held_since_s: float | None = None
    leaves_s: float | None = None
    begun_s: float | None = None
    training_since_s: float | None = None
    gives_back_s: float | None = None
    places_s: float | None = None
    waits_since_s: float = 0.0
    asked: bool = False
    asked_after_s: list[float] = field(default_factory=list)
    training_gaps_s: list[float] = field(default_factory=list)
    stream_gaps_s: list[float] = field(default_factory=list)
    silent_since_s: float | None = None

    def second(self) -> None:
        self.now_s += 1.0
        speaks = self.speaks(self.now_s)
        told = self._decide(speaks)
        self._pool(told["f5"] > 0, speaks)
        self._trainer(told[TRAINER_POOL] >= 1)
        assert self.held_since_s is None or self.training_since_s is None, "both have the one GPU"

    @property
    def _is_ready(self) -> bool:
        return self.held_since_s is not None and self.now_s - self.held_since_s >= START_S

    def _decide(self, speaks: bool) -> dict[str, float]:
        serving = self._is_ready and self.leaves_s is None
        state = PoolState(
            "f5",
            1.0,
            held_gpus=1.0 if self.held_since_s is not None else 0.0,
            streams_waiting=3 if speaks else 0,
            streams_running=1 if speaks and serving else 0,
            streams_waited_s=1.0,
            since_begin_s=-1.0 if self.begun_s is None else self.now_s - self.begun_s,
        )
        holding, wanting = [], []
        if self.training_since_s is not None:
            run_s = self.now_s - self.training_since_s
            holding = [HoldingTraining("t", 1, "n", run_s, yield_asked=self.asked)]
        elif self.trains:
            wanting = [WantingTraining("t", 1, self.now_s)]
        pools = pools_of(merged([GpuFacts(pools=(state,))]), [], [])
        self.memory = remember(Memory.load(self.memory.dump()), self.now_s, holding, wanting, pools)
        found = divide(
            [Node("n", 1)],
            holding,
            [WaitingTraining(1, self.now_s - self.memory.left.get("t", 0.0)) for _ in wanting],
            [replace(pool, idle_s=self.now_s - self.memory.busy[pool.name]) for pool in pools],
            RULES,
            since_training_s=math.inf if self.memory.left_s is None else self.now_s - self.memory.left_s,
        )
        if found.yields:
            self.asked = True
            self.gives_back_s = self.now_s + SAVE_S
            self.asked_after_s.append(holding[0].run_s)
        return to_tell(found, holding)

    def _pool(self, granted: bool, speaks: bool) -> None:
        if self.held_since_s is None and granted:
            self.held_since_s = self.now_s
        elif self.held_since_s is not None and not granted and self.leaves_s is None:
            self.leaves_s = self.now_s + (DRAIN_S if self._is_ready else 0.0)
        if self.leaves_s is not None and self.now_s >= self.leaves_s:
            self.held_since_s = self.leaves_s = None
        if self._is_ready and self.leaves_s is None and speaks and self.now_s % CALL_S == 0:
            self.begun_s = self.now_s
            if self.silent_since_s is not None:
                self.stream_gaps_s.append(self.now_s - self.silent_since_s)
            self.silent_since_s = self.now_s
        if not speaks:
            self.silent_since_s = None
        elif self.silent_since_s is None:
            self.silent_since_s = self.now_s

    def _trainer(self, granted: bool) -> None:
        if self.gives_back_s is not None and self.now_s >= self.gives_back_s:
            self.training_since_s = self.gives_back_s = None
            self.asked, self.waits_since_s = False, self.now_s
        elif self.training_since_s is None and self.trains:
            if not granted:
                self.places_s = None
            elif self.places_s is None:
                self.places_s = self.now_s + PLACE_S
            elif self.now_s >= self.places_s and self.held_since_s is None:
                self.training_since_s, self.places_s = self.now_s, None
                self.training_gaps_s.append(self.now_s - self.waits_since_s)


def run(cluster: Cluster, seconds: int = 7200) -> Cluster:
    for _ in range(seconds):
        cluster.second()
    return cluster


def test_endless_streams_and_endless_trainings_take_turns():
    found = run(Cluster(lambda _: True))
    # A guaranteed run each, then three classes' ageing until the next turn, and what it takes to change.
    change_s = DRAIN_S + START_S + SAVE_S + PLACE_S + 2 * CALL_S
    assert len(found.training_gaps_s) > 10
    assert max(found.training_gaps_s) <= 3 * RULES.age_s + change_s
    assert max(found.stream_gaps_s) <= RULES.guaranteed_run_s + change_s
    assert min(found.asked_after_s) >= RULES.guaranteed_run_s


@pytest.mark.parametrize("pause_s", [4, 9, 30, 400])
def test_one_who_pauses_is_not_interrupted_for_a_short_pause_and_trainings_fill_the_long_ones(pause_s):
    """Ten seconds of speech, a pause, and so on."""
    found = run(Cluster(lambda now_s: now_s % (10 + pause_s) < 10))
    assert min(found.asked_after_s, default=math.inf) >= RULES.guaranteed_run_s
    assert len(found.training_gaps_s) >= 10
    if pause_s < RULES.linger_s:
        # It keeps its replica from one sentence to the next until the trainings' turn has come.
        assert sum(gap_s > CALL_S + pause_s for gap_s in found.stream_gaps_s) <= len(found.training_gaps_s)


def test_a_training_that_nobody_disturbs_keeps_the_gpu():
    found = run(Cluster(lambda _: False))
    assert (len(found.training_gaps_s), found.asked_after_s) == (1, [])


def test_pools_that_nobody_competes_with_keep_the_gpu_while_they_speak_and_a_while_after():
    found = run(Cluster(lambda now_s: now_s % 200 < 50, trains=False), 2000)
    assert max(found.stream_gaps_s) <= START_S + 2 * CALL_S
    assert found.held_since_s is not None
    assert found.held_since_s <= START_S
