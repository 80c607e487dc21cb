"""The trainer's decisions: stages, percent, recipe, schedule, what to resume from. Plain data alone."""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from services.common.jobs.model import NodeFacts


class Phase(enum.StrEnum):
    """What a training does, in order, as its progress names it."""

    FETCH = "fetch"
    SLICE = "slice"
    F0 = "f0"
    FEATURES = "features"
    TRAIN = "train"
    INDEX = "index"
    PUBLISH = "publish"


class Stage(enum.StrEnum):
    """Phases that share one process; only TRAIN holds GPUs."""

    PREPARE = "prepare"
    TRAIN = "train"
    PUBLISH = "publish"


PHASES_OF = {
    Stage.PREPARE: (Phase.FETCH, Phase.SLICE, Phase.F0),
    Stage.TRAIN: (Phase.FEATURES, Phase.TRAIN),
    Stage.PUBLISH: (Phase.INDEX, Phase.PUBLISH),
}

_SHARE = {
    Phase.FETCH: 1.0,
    Phase.SLICE: 1.0,
    Phase.F0: 3.0,
    Phase.FEATURES: 5.0,
    Phase.TRAIN: 86.0,
    Phase.INDEX: 2.0,
    Phase.PUBLISH: 2.0,
}
"""Percent of the whole that each phase is said to be; they add up to 100."""

PUBLISH_S = 5.0
"""What the phases after training are taken to last, in an estimate of what remains."""

TINY_PRESET = "tiny_40k"
FULL_PRESET = "v2_40k"
TINY_STEPS = 160
"""Steps of the tiny preset where the request does not say: one to two minutes on two cores
(measured at batch 4: 0.5 s a step on one thread of a quiet machine, twice that on a busy one)."""
TINY_BATCH = 4
TINY_LEARNING_RATE = 6e-4
"""The small network wants a higher rate than the full one: at 7e-4 its mel loss fell from 101 to 39 in 800
steps, at the full preset's 1e-4 it hardly moves in as many as a CPU affords."""

CURVE_POINTS = 1000
_FULL_STEPS = 6000
_FULL_EPOCHS = (100, 800)
_CURVE_ENDS = 5
_JUDGEMENTS = 40
_JUDGE_EVERY = 25
_PATIENCE = 14


def percent(phase: Phase, share: float) -> float:
    """How much of the whole is done with ``share`` (0..1) of a phase done."""
    before = 0.0
    for other in Phase:
        if other is phase:
            break
        before += _SHARE[other]
    return min(before + _SHARE[phase] * min(max(share, 0.0), 1.0), 100.0)


def remaining_s(step: int, total_steps: int, steps_per_s: float) -> float:
    """Estimate of what is left while training; 0 where nothing is known yet."""
    if steps_per_s <= 0 or total_steps <= 0:
        return 0.0
    return max(total_steps - step, 0) / steps_per_s + PUBLISH_S


# ---- what to do


@dataclass(frozen=True, slots=True)
class Wish:
    """What the request says; a zero or an empty string is no wish."""

    preset: str = ""
    content_encoder: str = ""
    f0_method: str = ""
    epochs: int = 0
    max_steps: int = 0
    batch_size: int = 0
    learning_rate: float = 0.0
    save_every: int = 0
    seed: int = 0
    gpus: int = 1


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a training is done, every default filled in but the epochs, which wait for the slices.

    Args:
        bounded: whether steps are bounded because nobody asked for a number of them.
        checkpoint_s: between checkpoints, where ``save_every`` (epochs) is 0.
        micro_batch: rows that a GPU takes at once, where memory did not do for a batch; 0 is all of them.
    """

    preset: str
    content_encoder: str
    f0_method: str
    epochs: int
    max_steps: int
    bounded: bool
    batch_size: int
    learning_rate: float
    save_every: int
    checkpoint_s: float
    seed: int
    gpus: int
    micro_batch: int = 0


def settle(wish: Wish, *, virtual_gpus: bool, has_contentvec: bool, checkpoint_s: float = 0.0) -> Recipe:
    """Fill in the defaults.

    Args:
        wish: what the request says.
        virtual_gpus: whether the cluster's GPUs are pretended.
        has_contentvec: whether ContentVec's weights are in the store.
        checkpoint_s: of the operator; 0 is 15 s for the tiny preset and 60 s for others.
    """
    preset = wish.preset or (TINY_PRESET if virtual_gpus else FULL_PRESET)
    tiny = preset == TINY_PRESET
    bounded = tiny and not wish.epochs and not wish.max_steps
    return Recipe(
        preset=preset,
        content_encoder=wish.content_encoder or ("contentvec" if has_contentvec else "whisper-base"),
        f0_method=wish.f0_method or "fcpe",
        epochs=wish.epochs,
        max_steps=TINY_STEPS if bounded else wish.max_steps,
        bounded=bounded,
        batch_size=wish.batch_size or (TINY_BATCH if tiny else 8),
        learning_rate=wish.learning_rate or (TINY_LEARNING_RATE if tiny else 1e-4),
        save_every=wish.save_every,
        checkpoint_s=checkpoint_s or (15.0 if tiny else 60.0),
        seed=wish.seed,
        gpus=max(wish.gpus, 1),
    )


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long to train; ``max_steps`` 0 is no bound but the epochs."""

    epochs: int
    max_steps: int
    steps_per_epoch: int

    @property
    def total_steps(self) -> int:
        """Steps in all."""
        whole = self.epochs * self.steps_per_epoch
        return min(whole, self.max_steps) if self.max_steps else whole

    def finished(self, *, epoch: int, step: int) -> bool:
        """Whether a checkpoint with ``epoch`` epochs done after ``step`` steps is the end of training."""
        return epoch >= self.epochs or bool(self.max_steps and step >= self.max_steps)


def schedule(recipe: Recipe, slices: int) -> Schedule:
    """The epochs for so many slices: as asked, else about 6,000 steps within 100 and 800 epochs."""
    a_pass = max(-(-slices // recipe.batch_size), 1)
    if recipe.epochs:
        epochs = recipe.epochs
    elif recipe.bounded:
        # A ninth more than the slices need: up to a tenth of them is held out, and the steps are the bound.
        epochs = -(-recipe.max_steps * 10 // (a_pass * 9))
    else:
        low, high = _FULL_EPOCHS
        epochs = min(max(-(-_FULL_STEPS // a_pass), low), high)
    return Schedule(epochs, recipe.max_steps, a_pass)


def scaled(recipe: Recipe, batch_scale: float) -> Recipe:
    """The recipe that takes that share of its batch at once, as the ledger asks for after a lack of memory.

    The batch stays as large: gradients of its parts are added up.
    """
    if batch_scale >= 1.0:
        return recipe
    each = -(-recipe.batch_size // recipe.gpus)
    return replace(recipe, micro_batch=max(1, round(each * batch_scale)))


@dataclass(frozen=True, slots=True)
class Judging:
    """How often what is held out is judged, in steps, and after how many that are no better training ends."""

    every: int
    patience: int


def judging(total_steps: int) -> Judging:
    """About forty in all, none before 25 steps; a third of them without a better one is the end."""
    return Judging(max(_JUDGE_EVERY, total_steps // _JUDGEMENTS), _PATIENCE)


def slices_key(audios_sha256: Sequence[str], recipe: Recipe) -> str:
    """What names the output of PREPARE: equal inputs give equal keys, in whatever attempt."""
    return _digest(["slices", 1, list(audios_sha256), recipe.preset, recipe.f0_method])


def features_key(slices: str, recipe: Recipe) -> str:
    """What names the features made of those slices."""
    return _digest(["features", 1, slices, recipe.content_encoder])


def _digest(parts: list[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


# ---- what comes next


@dataclass(frozen=True, slots=True)
class Facts:
    """What an attempt has so far.

    Args:
        prepared: slices with F0 are in the store.
        features: their content features are, too.
        finished: a checkpoint holds the end of training.
        published: the packed voice is in the store.
    """

    prepared: bool = False
    features: bool = False
    finished: bool = False
    published: bool = False


def next_stage(facts: Facts) -> Stage | None:
    """What to run now; None where everything is there.

    An attempt that begins with a finished checkpoint goes to PUBLISH without a GPU, but only where the
    features, of which the index is made, are there as well.
    """
    if facts.published:
        return None
    if not facts.prepared:
        return Stage.PREPARE
    if facts.finished and facts.features:
        return Stage.PUBLISH
    return Stage.TRAIN


# ---- places


def nodes_for(
    nodes: Sequence[NodeFacts],
    *,
    gpus: int,
    gpu_type: str = "",
    drained: Collection[str] = (),
    avoid: Collection[str] = (),
) -> frozenset[str]:
    """The nodes, by name, on which a stage may be placed; empty where there is none just now.

    Never a drained one. One to be avoided only where no other has room, or could ever have: rather there than
    to wait.

    Args:
        nodes: as Ray last told.
        gpus: that it needs on one node; 0 for a stage without.
        gpu_type: the only one that will do; any where empty.
        drained: take no new work.
        avoid: where it failed lately.
    """
    fitting = [
        node
        for node in nodes
        if node.state == "alive"
        and node.name not in drained
        and node.gpus >= gpus
        and (not gpus or gpu_type in ("", node.gpu_type))
    ]
    others = [node for node in fitting if node.name not in avoid]
    has_room = any(node.gpus_free >= gpus for node in others)
    if not others or (not has_room and any(node.gpus_free >= gpus for node in fitting)):
        others = fitting
    return frozenset(node.name for node in others)


def free_places(
    gpus_free: Sequence[float], gpus_total: float, *, waiting: int, held: int, granted: float | None = None
) -> int:
    """How many one-GPU trainings could begin now.

    Args:
        gpus_free: free on each node that takes work, as Ray last said; a fraction of a GPU is no place.
        gpus_total: whole GPUs of those nodes.
        waiting: GPUs that attempts of ours will still ask for.
        held: GPUs of those nodes that attempts of ours hold; Ray's word may be a second old and not know it.
        granted: GPUs that belong to trainings; None where nobody says.
    """
    free = sum(int(gpus + 1e-6) for gpus in gpus_free) - waiting
    most = int(gpus_total) if granted is None else min(int(gpus_total), int(granted + 1e-6))
    return max(min(free, most - waiting - held), 0)


# ---- the curve


Point = tuple[int, Mapping[str, float]]


class Curve:
    """Losses by step, thinned by half whenever there are too many, so that any length fits."""

    def __init__(self, points: Sequence[Point] = (), *, limit: int = CURVE_POINTS) -> None:
        self._points = list(points)
        self._limit = limit
        self._every = 1
        self._seen = 0
        self._last: Point | None = None

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """One more point; a step at or before the last one replaces what came after it (a resume)."""
        while self._points and self._points[-1][0] >= step:
            self._points.pop()
        self._last = (step, dict(metrics))
        if self._seen % self._every == 0:
            self._points.append(self._last)
        self._seen += 1
        if len(self._points) >= self._limit:
            self._points = self._points[::2]
            self._every *= 2

    def points(self) -> tuple[Point, ...]:
        """The kept points in order of steps, the newest among them."""
        if self._last is not None and (not self._points or self._points[-1][0] != self._last[0]):
            return (*self._points, self._last)
        return tuple(self._points)


def curve_ends(points: Sequence[Point], name: str) -> tuple[float, float]:
    """A metric at the start and at the end: means of up to five points, as one step says little."""
    values = [metrics[name] for _, metrics in points if name in metrics]
    if not values:
        return 0.0, 0.0
    count = max(min(_CURVE_ENDS, len(values) // 2), 1)
    return sum(values[:count]) / count, sum(values[-count:]) / count
