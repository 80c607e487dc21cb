"""RVC training: the loop around its steps (upstream ``infer/modules/train/train.py``, rewritten).

Every random number of a step comes from a generator seeded by (seed, step), and the order of the
slices from (seed, epoch): a run resumed from a checkpoint repeats, on a CPU bit for bit, what it
would have done unbroken.
"""

from __future__ import annotations

import enum
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from services.common.errors import FailureClass, Kind, Reason, VoxfleetError, invalid
from services.engines.rvc.batches import SliceStore, epoch_order
from services.engines.rvc.features import FeatureSet
from services.engines.rvc.heldout import Best, HeldOut, held_out
from services.engines.rvc.parallel import Alone, Group, share_of
from services.engines.rvc.state import State, TrainParams
from services.engines.rvc.step import Share, StepMetrics, train_step
from services.engines.rvc.stopping import ShouldStop, never
from services.engines.rvc.voice import inference_weights

_FINITE_CHECK_STEPS = 10
_LEAST_GAIN = 1e-3
"""By how much, as a share, an error must be lower to be better: less is chance."""


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """A snapshot for whoever watches; losses are of the last step, weighted.

    ``mel_error`` and ``best_mel_error`` are of what is held out, 0 before it was judged; ``at_once`` is how
    many rows are worked on at a time.
    """

    epoch: int
    epochs: int
    step: int
    total_steps: int
    loss_g: float
    loss_d: float
    loss_mel: float
    loss_kl: float
    loss_fm: float
    lr: float
    steps_per_s: float
    mel_error: float = 0.0
    best_mel_error: float = 0.0
    best_step: int = 0
    at_once: int = 0


class End(enum.Enum):
    """How a loop ended."""

    DONE = "done"
    STOPPED = "stopped"
    OVERTRAINED = "overtrained"


@dataclass(frozen=True, slots=True)
class TrainResult:
    """How the loop ended."""

    epochs_done: int
    step: int
    end: End
    last: TrainProgress | None

    @property
    def stopped(self) -> bool:
        """Whether it was asked to end."""
        return self.end is End.STOPPED


def train(
    state: State,
    dataset: FeatureSet,
    params: TrainParams | None = None,
    *,
    on_progress: Callable[[TrainProgress], None] = lambda progress: None,
    on_checkpoint: Callable[[State], None] = lambda state: None,
    should_stop: ShouldStop = never,
    clock: Callable[[], float] = time.monotonic,
    group: Group | None = None,
) -> TrainResult:
    """Train to ``params.epochs``, from wherever the state stands.

    ``should_stop`` is polled before every step; when it says so, ``on_checkpoint`` is called once
    more and the result says ``stopped``.

    Args:
        state: where to start; changed in place.
        dataset: what to train on.
        params: in place of the state's own, for instance a smaller batch after running out of memory.
        on_progress: called at most every ``progress_s``, and after the last step.
        on_checkpoint: called between steps, when one is due.
        should_stop: polled before every step; any rank's word stops all.
        clock: seconds that only go forward.
        group: the ranks that share every step; each calls this with an equal state and dataset, and the
            first alone judges, reports and saves.

    Raises:
        VoxfleetError: ``TRAINING_DIVERGED`` at a loss or a weight that is no number (the last checkpoint
            is sound: both are checked before each one), ``GPU_OUT_OF_MEMORY`` where a single row is too
            much, ``INVALID_ARGUMENT`` where the features are not of the model's width or rate.
    """
    if dataset.content_width != state.config.content_width or dataset.rate_hz != state.config.rate_hz:
        raise invalid(
            Reason.INVALID_ARGUMENT,
            f"features are {dataset.content_width} wide at {dataset.rate_hz} Hz, the model takes "
            f"{state.config.content_width} at {state.config.rate_hz} Hz",
        )
    if params is not None:
        state.params = params
    try:
        return _Loop(
            state,
            dataset,
            on_progress=on_progress,
            on_checkpoint=on_checkpoint,
            clock=clock,
            group=group or Alone(),
        ).run(should_stop)
    except torch.OutOfMemoryError as error:
        raise VoxfleetError(
            Reason.GPU_OUT_OF_MEMORY,
            "the GPU's memory does not hold a batch of 1; use a GPU with more memory",
            kind=Kind.EXHAUSTED,
            metadata={"batch_size": state.params.batch_size},
            failure=FailureClass.RESOURCE,
        ) from error


def trained_slices(dataset: FeatureSet, seed: int) -> int:
    """How many slices an epoch visits: all but those that are held out."""
    return len(dataset.slices) - len(held_out(dataset.slices, seed))


def steps_per_epoch(slices: int, batch_size: int) -> int:
    """Steps of one pass; the last batch may be smaller."""
    return -(-slices // batch_size)


class _Loop:
    """The running totals of :func:`train`."""

    def __init__(
        self,
        state: State,
        dataset: FeatureSet,
        *,
        on_progress: Callable[[TrainProgress], None],
        on_checkpoint: Callable[[State], None],
        clock: Callable[[], float],
        group: Group,
    ) -> None:
        self.state, self.clock, self.group = state, clock, group
        self.on_progress, self.on_checkpoint = on_progress, on_checkpoint
        kept = set(held_out(dataset.slices, state.params.seed))
        judged = [dataset.slices[number] for number in sorted(kept)]
        self.leads = group.rank == 0
        self.held_out = HeldOut(judged, state.config, state.device) if judged and self.leads else None
        self.store = SliceStore(
            [part for number, part in enumerate(dataset.slices) if number not in kept],
            state.config,
            state.device,
        )
        self.slices = len(self.store.lengths)
        self.began_s = self.reported_s = self.saved_s = clock()
        self.first_step = self.saved_step = state.step
        self.mel_error = 0.0
        self.last: TrainProgress | None = None

    def run(self, should_stop: ShouldStop) -> TrainResult:
        state, params = self.state, self.state.params
        while not self._is_over():
            self._set_learning_rate()
            order = epoch_order(params.seed, state.epoch, self.store.lengths)[state.position :]
            steps = [
                order[first : first + params.batch_size] for first in range(0, len(order), params.batch_size)
            ]
            mine = [
                [int(chosen[row]) for row in share_of(len(chosen), self.group.rank, self.group.size)]
                for chosen in steps
            ]
            for chosen, batch in zip(steps, self.store.batches(mine), strict=True):
                stop, worse = self.group.any(should_stop(), self._overtrained())
                if stop or worse:
                    self._save()
                    return self._result(End.STOPPED if stop else End.OVERTRAINED)
                frames = sum(self.store.lengths[index] for index in chosen)
                metrics = train_step(state, Share(batch, len(chosen), frames), self.group)
                state.position += len(chosen)
                if state.position >= self.slices:
                    state.epoch, state.position = state.epoch + 1, 0
                over = self._is_over()
                self._after_step(metrics, final=over)
                if over:
                    break
        if not self._is_sound():
            raise self._diverged("a weight")
        return self._result(End.DONE)

    def _is_over(self) -> bool:
        state, params = self.state, self.state.params
        return state.epoch >= params.epochs or bool(params.max_steps and state.step >= params.max_steps)

    def _result(self, end: End) -> TrainResult:
        return TrainResult(self.state.epoch, self.state.step, end, self.last)

    def _after_step(self, metrics: StepMetrics, *, final: bool) -> None:
        state, params, now_s = self.state, self.state.params, self.clock()
        every = params.validate_steps
        judge = bool(every) and (final or state.step % every == 0)
        report = final or judge or now_s - self.reported_s >= params.progress_s
        save = (
            bool(params.checkpoint_steps) and state.step - self.saved_step >= params.checkpoint_steps
        ) or (bool(params.checkpoint_s) and now_s - self.saved_s >= params.checkpoint_s)
        # Ranks' clocks differ, and all must look at the same steps: where there are several, steps say when.
        due = state.device.type == "cpu" or state.step % _FINITE_CHECK_STEPS == 0 or judge
        if due or (self.group.size == 1 and (report or save)):
            self._check_finite(metrics)
        if not self.leads:
            return
        if judge:
            self._judge()
        if report:
            self.reported_s = now_s
            self.last = self._progress(metrics, now_s)
            self.on_progress(self.last)
        if save and not final:
            self.saved_s, self.saved_step = now_s, state.step
            self._save()

    def _save(self) -> None:
        # A sound loss may have spoilt the weights all the same: the next one says so, and this is not kept.
        if self.leads and self._is_sound():
            self.on_checkpoint(self.state)

    def _is_sound(self) -> bool:
        """Whether every weight is a number."""
        models = (self.state.synthesizer, self.state.discriminator)
        norms = [nn.utils.get_total_norm([p.detach() for p in model.parameters()]) for model in models]
        return bool(torch.isfinite(torch.stack(norms)).all())

    def _judge(self) -> None:
        """Judges what is held out; keeps the weights that did best."""
        if self.held_out is None:
            return
        state = self.state
        self.mel_error = self.held_out.mel_error(state.synthesizer)
        if state.best is None or self.mel_error < state.best.error * (1 - _LEAST_GAIN):
            weights = inference_weights(state.synthesizer.state_dict())
            state.best, state.unimproved = Best(state.step, self.mel_error, weights), 0
        else:
            state.unimproved += 1

    def _overtrained(self) -> bool:
        patience = self.state.params.patience
        return bool(patience) and self.leads and self.state.unimproved >= patience

    def _check_finite(self, metrics: StepMetrics) -> None:
        if not (math.isfinite(float(metrics.loss_g)) and math.isfinite(float(metrics.loss_d))):
            raise self._diverged("a loss")

    def _diverged(self, what: str) -> VoxfleetError:
        return VoxfleetError(
            Reason.TRAINING_DIVERGED,
            f"{what} is not a number by step {self.state.step}; resume from the last checkpoint with a "
            "smaller learning_rate",
            kind=Kind.ABORTED,
            metadata={"step": self.state.step, "epoch": self.state.epoch},
            failure=FailureClass.PERMANENT,
        )

    def _progress(self, metrics: StepMetrics, now_s: float) -> TrainProgress:
        state, params = self.state, self.state.params
        elapsed_s = max(now_s - self.began_s, 1e-9)
        share = -(-min(params.batch_size, self.slices) // self.group.size)
        left = (
            steps_per_epoch(self.slices - state.position, params.batch_size)
            + (params.epochs - state.epoch - 1) * steps_per_epoch(self.slices, params.batch_size)
            if state.epoch < params.epochs
            else 0
        )
        total = state.step + left
        # A pass that this very step ended is the one to name.
        epoch = state.epoch + (1 if state.position else 0)
        return TrainProgress(
            epoch=epoch,
            epochs=params.epochs,
            step=state.step,
            total_steps=min(total, params.max_steps) if params.max_steps else total,
            loss_g=float(metrics.loss_g),
            loss_d=float(metrics.loss_d),
            loss_mel=float(metrics.loss_mel),
            loss_kl=float(metrics.loss_kl),
            loss_fm=float(metrics.loss_fm),
            lr=float(state.optimizer_g.param_groups[0]["lr"]),
            steps_per_s=(state.step - self.first_step) / elapsed_s,
            mel_error=self.mel_error,
            best_mel_error=state.best.error if state.best else 0.0,
            best_step=state.best.step if state.best else 0,
            at_once=min(state.micro_batch or params.micro_batch or share, share),
        )

    def _set_learning_rate(self) -> None:
        state, params = self.state, self.state.params
        rate = params.learning_rate * params.lr_decay**state.epoch * 0.5**state.rollbacks
        for optimizer in (state.optimizer_g, state.optimizer_d):
            for group in optimizer.param_groups:
                group["lr"] = rate
