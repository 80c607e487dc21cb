"""What a stage is handed and what it answers: plain data that crosses processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.common.errors import VoxfleetError
from services.common.jobs.model import Checkpoint
from services.common.jobs.tasks import Blob, TrainTask
from services.engines.bundles.manifest import Manifest
from services.trainer.model import Phase, Point, Recipe, Schedule, Stage


@dataclass(frozen=True, slots=True)
class Prepared:
    """Slices with their F0, in the store.

    Args:
        blob: the file.
        slices: how many.
        audio_s: their length in all.
    """

    blob: Blob
    slices: int
    audio_s: float


@dataclass(frozen=True, slots=True)
class StageSpec:
    """A stage of one attempt.

    Args:
        stage: which one.
        job_id, attempt: whose.
        task: the request.
        recipe: how.
        slices_key, features_key: content keys; they name what this stage stores.
        prepared: the slices (not for PREPARE).
        schedule: how long to train (not for PREPARE).
        features: the features, where they are in the store already.
        checkpoints: to resume from, newest first (TRAIN); the finished one first (PUBLISH).
        contentvec: the stored ContentVec bundle, where there is one.
        traceparent: the trace to go on with.
    """

    stage: Stage
    job_id: str
    attempt: int
    task: TrainTask
    recipe: Recipe
    slices_key: str
    features_key: str
    prepared: Prepared | None = None
    schedule: Schedule | None = None
    features: Blob | None = None
    checkpoints: tuple[Checkpoint, ...] = ()
    contentvec: Manifest | None = None
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class Trained:
    """How the TRAIN stage ended.

    Args:
        features: of the slices, in the store.
        checkpoint: the last one, in the store; None where it was stopped without saving.
        stopped: whether it was asked to end before the schedule's end.
        curve: losses by step.
        device: ``cuda`` or ``cpu``.
        resumed_step: where it went on from a checkpoint; 0 where it began.
    """

    features: Blob
    checkpoint: Checkpoint | None
    stopped: bool
    curve: tuple[Point, ...]
    device: str
    resumed_step: int = 0


@dataclass(frozen=True, slots=True)
class Published:
    """The packed voice, in the store under its hash."""

    package: Blob
    rate_hz: int


Result = Prepared | Trained | Published


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a stage says when it is asked how far it is.

    Args:
        phase: what it does.
        step, total_steps: of that phase.
        metrics: newest figures.
        note: the last thing worth telling a person, or empty.
        checkpoints: in the store and not yet acknowledged, each with its number, oldest first.
        fallbacks: checkpoints that could not be used to resume from.
        result: set once it has ended well.
        error: set once it has ended badly.
    """

    phase: Phase
    step: int = 0
    total_steps: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    checkpoints: tuple[tuple[int, Checkpoint], ...] = ()
    fallbacks: int = 0
    result: Result | None = None
    error: VoxfleetError | None = None
