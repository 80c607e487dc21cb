"""TRAIN: content features, then steps to the end, with checkpoints. The one stage with GPUs."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from services.common.artifacts.model import work_key
from services.common.errors import Kind, Reason, VoxfleetError, internal
from services.common.jobs.model import Checkpoint
from services.common.jobs.tasks import Blob
from services.trainer import model, records
from services.trainer.model import Curve, Phase
from services.trainer.stage import Trained
from services.trainer.stages.context import StageContext, Telling
from services.trainer.stages.prepare import Floats, Slices, TrackedF0
from services.trainer.stages.ranks import Ranks, device_of, gathered
from services.trainer.stages.steps import Ground, run

if TYPE_CHECKING:
    from services.engines.rvc.content import ContentEncoder
    from services.engines.rvc.pipeline import FeatureSet, ModelConfig, State, TrainProgress, TrainResult

log = logging.getLogger(__name__)

FEATURES_FILE = "features"
_GPU_PROGRESS_S = 0.5
"""On a GPU, reading a loss waits for it."""
_UNUSABLE = (
    Reason.CHECKPOINT_CORRUPT,
    Reason.ARTIFACT_CORRUPT,
    Reason.ARTIFACT_NOT_FOUND,
    Reason.MODEL_CORRUPT,
)


def train(context: StageContext) -> Trained:
    """Trains from the newest usable checkpoint to the end, to where it gets no better, or to a stop.

    Raises:
        VoxfleetError: GPU_OUT_OF_MEMORY, TRAINING_DIVERGED, STORAGE_UNAVAILABLE, WORKER_LOST; CANCELLED
            where it was stopped before training began.
    """
    from services.engines.device import limit_threads, natural_device
    from services.engines.rvc import pipeline

    spec, telling = context.spec, context.telling
    recipe, schedule = spec.recipe, spec.schedule
    if schedule is None or spec.prepared is None:
        raise internal("there is nothing to train on yet")
    limit_threads(context.threads)
    device = natural_device()
    width = pipeline.encoder_spec(recipe.content_encoder).width
    config = pipeline.preset(recipe.preset, content_width=width)
    features, stored = _features(context, config, device)
    judging = model.judging(schedule.total_steps)
    params = pipeline.TrainParams(
        epochs=schedule.epochs,
        max_steps=schedule.max_steps,
        batch_size=recipe.batch_size,
        micro_batch=recipe.micro_batch,
        learning_rate=recipe.learning_rate,
        seed=recipe.seed,
        validate_steps=judging.every,
        patience=judging.patience,
        checkpoint_steps=recipe.save_every * schedule.steps_per_epoch,
        checkpoint_s=0.0 if recipe.save_every else recipe.checkpoint_s,
        progress_s=_GPU_PROGRESS_S if device == "cuda" else 0.0,
    )
    ranks = Ranks(recipe.gpus, context.folder / FEATURES_FILE, context.threads)
    resumed, curve, ground = _begun(context, Ground(context.folder, config, params, device_of(0, device)))
    state = resumed
    resumed_step = state.step
    telling.tell(Phase.TRAIN, state.step, schedule.total_steps)

    def on_progress(progress: TrainProgress) -> None:
        figures = _figures(progress)
        curve.add(progress.step, figures)
        note = ""
        share = -(-recipe.batch_size // recipe.gpus)
        if progress.at_once < min(share, len(features.slices)) and state.micro_batch:
            note = f"{progress.at_once} of a batch's {share} rows at a time: memory did not do for more"
        telling.tell(Phase.TRAIN, progress.step, progress.total_steps, figures, note)

    with CheckpointSaver(context, curve, ground) as saver, gathered(ranks, ground) as group:

        def on_checkpoint(state: State) -> None:
            if telling.should_save:
                saver.save(state, must=telling.should_stop())

        def loop(state: State) -> TrainResult:
            return pipeline.train(
                state,
                features,
                params,
                on_progress=on_progress,
                on_checkpoint=on_checkpoint,
                should_stop=telling.should_stop,
                group=group,
            )

        def on_rollback(back: State) -> None:
            nonlocal state
            state = back
            telling.tell(
                Phase.TRAIN,
                back.step,
                schedule.total_steps,
                note=f"a loss was not a number: back to step {back.step}, with half the learning rate",
            )

        state, result = run(ground, features, state, group=group, train=loop, on_rollback=on_rollback)
        if not result.stopped:
            saver.save(state, must=True)
    if result.end is pipeline.End.OVERTRAINED and state.best is not None:
        telling.tell(
            Phase.TRAIN,
            result.step,
            result.step,
            note=f"ended at step {result.step}: what is held out was best at step {state.best.step}",
        )
    return Trained(stored, saver.last, result.stopped, curve.points(), device, resumed_step)


def _begun(context: StageContext, ground: Ground) -> tuple[State, Curve, Ground]:
    """The newest state that can be had, its curve, and the ground with its file.

    A fresh one only where none can be had, and it is said.
    """
    from services.engines.rvc import pipeline

    telling = context.telling
    for checkpoint in context.spec.checkpoints:
        try:
            path = context.fetch(checkpoint.blob, f"resume-{checkpoint.step}")
            state = pipeline.load_checkpoint(path, ground.device)
            if state.config != ground.config:
                raise VoxfleetError(
                    Reason.CHECKPOINT_CORRUPT, "it is of a model of another shape", kind=Kind.DATA_LOSS
                )
        except VoxfleetError as error:
            if error.reason not in _UNUSABLE:
                raise
            note = f"the checkpoint at step {checkpoint.step} cannot be used ({error.reason.value})"
            log.warning("%s: %s: %s", context.spec.job_id, note, error.message)
            telling.fell_back(note)
            continue
        telling.tell(Phase.TRAIN, state.step, note=_resumed_note(telling, checkpoint))
        return state, _curve(context, checkpoint), replace(ground, resume=path)
    if context.spec.checkpoints:
        note = "no checkpoint can be used: training starts anew from step 0"
        log.error("%s: %s", context.spec.job_id, note)
        telling.tell(Phase.TRAIN, note=note)
    return ground.state(), Curve(), ground


class CheckpointSaver:
    """Saves states: to disk at once, from there to the store beside the training.

    Args:
        context: where to.
        curve: goes with every checkpoint.
        ground: keeps the newest on disk, to go back to.
    """

    def __init__(self, context: StageContext, curve: Curve, ground: Ground) -> None:
        self._context, self._curve, self._ground = context, curve, ground
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._upload: Future[Checkpoint] | None = None
        self._step = -1
        self.last: Checkpoint | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(wait=error is None)

    def save(self, state: State, *, must: bool) -> None:
        """Saves a state.

        Args:
            state: as it is now.
            must: wait until it is stored, and raise where it cannot be; else it is left out where the
                one before is still on its way, and a failure is only told.
        """
        from services.engines.rvc import pipeline

        if self._upload is not None and not self._upload.done() and not must:
            return
        self._settle(must=False)
        if state.step != self._step:
            path = self._context.folder / f"ckpt-{state.step}"
            pipeline.save_checkpoint(path, state)
            self._ground.keep(path)
            curve = records.dump_curve(self._curve.points())
            self._step = state.step
            self._upload = self._executor.submit(self._store, path, curve, state.epoch, state.step)
        if must:
            self._settle(must=True)

    def _settle(self, *, must: bool) -> None:
        """Waits for the upload on its way."""
        upload, self._upload = self._upload, None
        if upload is None:
            return
        try:
            self.last = upload.result()
        except VoxfleetError as error:
            self._step = -1
            if must:
                raise
            log.warning("a checkpoint could not be stored: %s", error.message)

    def _store(self, path: Path, curve: bytes, epoch: int, step: int) -> Checkpoint:
        context = self._context
        try:
            name = records.checkpoint_name(step)
            key = work_key(context.spec.task.team, context.spec.job_id, context.spec.attempt, name)
            context.store.put_bytes(records.curve_key(key), curve, media_type="application/json")
            checkpoint = Checkpoint(context.put(name, path), epoch, step, context.spec.attempt)
        finally:
            path.unlink(missing_ok=True)
        context.telling.saved(checkpoint)
        return checkpoint


class _Counted:
    """A content encoder that says how far it is."""

    def __init__(self, encoder: ContentEncoder, telling: Telling, total: int) -> None:
        self.name, self.width = encoder.name, encoder.width
        self._encoder, self._telling, self._total = encoder, telling, total
        self._done = 0

    def encode(self, samples: Floats) -> Floats:
        self._telling.tell(Phase.FEATURES, min(self._done, self._total), self._total)
        self._done += 1
        return self._encoder.encode(samples)


def _features(context: StageContext, config: ModelConfig, device: str) -> tuple[FeatureSet, Blob]:
    """The features of the slices: an earlier attempt's where they are sound, else made and stored."""
    from services.engines.rvc import pipeline

    spec, telling = context.spec, context.telling
    telling.tell(Phase.FEATURES)
    if spec.features is not None:
        try:
            return pipeline.FeatureSet.load(context.fetch(spec.features, FEATURES_FILE)), spec.features
        except VoxfleetError as error:
            if error.reason not in _UNUSABLE:
                raise
            telling.tell(Phase.FEATURES, note="the stored features cannot be read: they are made anew")
    assert spec.prepared is not None
    slices = Slices.load(context.fetch(spec.prepared.blob, "slices"))
    sources = pipeline.ContentSources(
        context.cache, contentvec_dir=context.contentvec_dir(), device=device, threads=context.threads
    )
    encoder = _Counted(
        pipeline.content_encoder(spec.recipe.content_encoder, sources), telling, len(slices.samples)
    )
    pieces = [
        pipeline.Slice(samples, samples_16k, clip=0, start_s=0.0)
        for samples, samples_16k in zip(slices.samples, slices.samples_16k, strict=True)
    ]
    features = pipeline.extract(pieces, encoder, TrackedF0(slices), config, should_stop=telling.should_stop)
    path = context.folder / FEATURES_FILE
    features.save(path)
    blob = context.put(records.features_name(spec.features_key), path)
    context.put_record(records.features_record_name(spec.features_key), records.dump_blob(blob))
    return features, blob


def _curve(context: StageContext, checkpoint: Checkpoint) -> Curve:
    try:
        data = context.store.get_bytes(records.curve_key(checkpoint.blob.key))
    except VoxfleetError as error:
        log.warning("the curve of step %d is lost: %s", checkpoint.step, error.message)
        return Curve()
    return Curve(records.load_curve(data))


def _resumed_note(telling: Telling, checkpoint: Checkpoint) -> str:
    before = telling.snapshot(0)
    said = f"{before.note}; " if before.fallbacks else ""
    return f"{said}resumed at step {checkpoint.step}"


def _figures(progress: TrainProgress) -> dict[str, float]:
    names = ["loss_mel", "loss_g", "loss_d", "loss_kl", "loss_fm", "steps_per_s", "lr", "epoch"]
    if progress.best_step:
        names += ["mel_error", "best_mel_error", "best_step"]
    return {name: float(getattr(progress, name)) for name in names}
