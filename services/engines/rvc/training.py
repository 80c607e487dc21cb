"""RVC training: one state, one step, one loop (upstream ``infer/modules/train/train.py``, rewritten).

Every random number of a step comes from a generator seeded by (seed, step), and the order of the
slices from (seed, epoch): a run resumed from a checkpoint repeats, on a CPU bit for bit, what it
would have done unbroken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.common.errors import FailureClass, Kind, Reason, VoxfleetError, invalid
from services.engines.rvc.features import Batch, FeatureSet, make_batch
from services.engines.rvc.losses import adversarial_loss, discriminator_loss, feature_loss, kl_loss
from services.engines.rvc.mel import linear_spectrogram, log_mel
from services.engines.rvc.state import State, TrainParams, autocast_type
from services.engines.rvc.stopping import ShouldStop, never
from services.engines.rvc.synthesizer import cut_frames

_FINITE_CHECK_STEPS = 10


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """Losses of one step, weighted as they enter the sum, still on the device: reading one waits for it."""

    loss_g: Tensor
    loss_d: Tensor
    loss_mel: Tensor
    loss_kl: Tensor
    loss_fm: Tensor


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """A snapshot for whoever watches; losses are of the last step, weighted."""

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


@dataclass(frozen=True, slots=True)
class TrainResult:
    """How the loop ended."""

    epochs_done: int
    step: int
    stopped: bool
    last: TrainProgress | None


def train_step(state: State, batch: Batch) -> StepMetrics:
    """One update of the discriminator, then one of the generator; advances ``state.step``."""
    config, params = state.config, state.params
    generator = torch.Generator(state.device).manual_seed(_mixed(params.seed, state.step))
    if config.dropout > 0:
        # Dropout draws from the global generator alone.
        torch.manual_seed(_mixed(params.seed + 1, state.step))
    autocast = torch.autocast(
        state.device.type,
        dtype=autocast_type(params, state.device),
        enabled=autocast_type(params, state.device) is not None,
    )
    spectrogram = linear_spectrogram(batch.samples, config)
    speakers = torch.zeros_like(batch.lengths)
    with autocast:
        made, starts, gaussians = state.synthesizer(
            batch.content,
            batch.pitch,
            batch.f0_hz,
            spectrogram=spectrogram,
            lengths=batch.lengths,
            speaker_ids=speakers,
            generator=generator,
        )
    frames = batch.samples.view(len(batch.samples), -1, config.hop).transpose(1, 2)
    real = cut_frames(frames, starts, config.segment_frames).transpose(1, 2).flatten(1).unsqueeze(1)
    made = made.float()

    with autocast:
        loss_d = discriminator_loss(*state.discriminator.compare(real, made.detach()))
    _update(state, state.optimizer_d, loss_d)

    # The critic's own gradients are not wanted here: leaving them out saves a third of its backward.
    state.discriminator.requires_grad_(False)
    with autocast:
        with torch.no_grad():
            real_judged = state.discriminator(real)
        made_judged = state.discriminator(made)
        loss_fm = params.feature_weight * feature_loss(real_judged, made_judged)
        loss_adversarial = adversarial_loss(made_judged)
    target_mel = cut_frames(log_mel(spectrogram, config), starts, config.segment_frames)
    made_mel = log_mel(linear_spectrogram(made.squeeze(1), config), config)
    loss_mel = params.mel_weight * (target_mel - made_mel).abs().mean()
    loss_kl = params.kl_weight * kl_loss(gaussians)
    loss_g = loss_adversarial + loss_fm + loss_mel + loss_kl
    _update(state, state.optimizer_g, loss_g)
    state.discriminator.requires_grad_(True)
    state.scaler.update()
    state.step += 1
    return StepMetrics(*(loss.detach() for loss in (loss_g, loss_d, loss_mel, loss_kl, loss_fm)))


def train(
    state: State,
    dataset: FeatureSet,
    params: TrainParams | None = None,
    *,
    on_progress: Callable[[TrainProgress], None] = lambda progress: None,
    on_checkpoint: Callable[[State], None] = lambda state: None,
    should_stop: ShouldStop = never,
    clock: Callable[[], float] = time.monotonic,
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
        should_stop: polled before every step.
        clock: seconds that only go forward.

    Raises:
        VoxfleetError: ``TRAINING_DIVERGED`` at a loss that is no number (the last checkpoint is
            sound: losses are checked before each one), ``GPU_OUT_OF_MEMORY``, ``INVALID_ARGUMENT``
            where the features are not of the model's width or rate.
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
        return _Loop(state, dataset, on_progress, on_checkpoint, clock).run(should_stop)
    except torch.OutOfMemoryError as error:
        raise VoxfleetError(
            Reason.GPU_OUT_OF_MEMORY,
            f"the GPU's memory does not hold a batch of {state.params.batch_size}; halve batch_size",
            kind=Kind.EXHAUSTED,
            metadata={"batch_size": state.params.batch_size},
            failure=FailureClass.RESOURCE,
        ) from error


def steps_per_epoch(slices: int, batch_size: int) -> int:
    """Steps of one pass; the last batch may be smaller."""
    return -(-slices // batch_size)


def epoch_order(seed: int, epoch: int, slices: int) -> NDArray[np.int64]:
    """The order in which an epoch visits the slices."""
    return np.random.default_rng([seed, epoch]).permutation(slices)


class _Loop:
    """The running totals of :func:`train`."""

    def __init__(
        self,
        state: State,
        dataset: FeatureSet,
        on_progress: Callable[[TrainProgress], None],
        on_checkpoint: Callable[[State], None],
        clock: Callable[[], float],
    ) -> None:
        self.state, self.dataset, self.clock = state, dataset, clock
        self.on_progress, self.on_checkpoint = on_progress, on_checkpoint
        self.began_s = self.reported_s = self.saved_s = clock()
        self.first_step = self.saved_step = state.step
        self.last: TrainProgress | None = None

    def run(self, should_stop: ShouldStop) -> TrainResult:
        state, params = self.state, self.state.params
        slices = self.dataset.slices
        while state.epoch < params.epochs:
            self._set_learning_rate()
            order = epoch_order(params.seed, state.epoch, len(slices))
            while state.position < len(slices):
                if should_stop():
                    self.on_checkpoint(state)
                    return TrainResult(state.epoch, state.step, True, self.last)
                chosen = order[state.position : state.position + params.batch_size]
                batch = make_batch([slices[index] for index in chosen], state.config.hop, state.device)
                metrics = train_step(state, batch)
                state.position += len(chosen)
                ends = state.position >= len(slices) and state.epoch + 1 >= params.epochs
                self._after_step(metrics, final=ends)
            state.epoch, state.position = state.epoch + 1, 0
        return TrainResult(state.epoch, state.step, False, self.last)

    def _after_step(self, metrics: StepMetrics, *, final: bool) -> None:
        state, params, now_s = self.state, self.state.params, self.clock()
        report = final or now_s - self.reported_s >= params.progress_s
        save = (
            bool(params.checkpoint_steps) and state.step - self.saved_step >= params.checkpoint_steps
        ) or (bool(params.checkpoint_s) and now_s - self.saved_s >= params.checkpoint_s)
        # Reading a loss waits for the GPU: not at every step there.
        if report or save or state.device.type == "cpu" or state.step % _FINITE_CHECK_STEPS == 0:
            self._check_finite(metrics)
        if report:
            self.reported_s = now_s
            self.last = self._progress(metrics, now_s)
            self.on_progress(self.last)
        if save and not final:
            self.saved_s, self.saved_step = now_s, state.step
            self.on_checkpoint(state)

    def _check_finite(self, metrics: StepMetrics) -> None:
        if math.isfinite(float(metrics.loss_g)) and math.isfinite(float(metrics.loss_d)):
            return
        raise VoxfleetError(
            Reason.TRAINING_DIVERGED,
            f"a loss is not a number by step {self.state.step}; resume from the last checkpoint with a "
            "smaller learning_rate",
            kind=Kind.ABORTED,
            metadata={"step": self.state.step, "epoch": self.state.epoch},
            failure=FailureClass.PERMANENT,
        )

    def _progress(self, metrics: StepMetrics, now_s: float) -> TrainProgress:
        state, params = self.state, self.state.params
        elapsed_s = max(now_s - self.began_s, 1e-9)
        return TrainProgress(
            epoch=state.epoch + 1,
            epochs=params.epochs,
            step=state.step,
            total_steps=state.step
            + steps_per_epoch(len(self.dataset.slices) - state.position, params.batch_size)
            + (params.epochs - state.epoch - 1)
            * steps_per_epoch(len(self.dataset.slices), params.batch_size),
            loss_g=float(metrics.loss_g),
            loss_d=float(metrics.loss_d),
            loss_mel=float(metrics.loss_mel),
            loss_kl=float(metrics.loss_kl),
            loss_fm=float(metrics.loss_fm),
            lr=float(state.optimizer_g.param_groups[0]["lr"]),
            steps_per_s=(state.step - self.first_step) / elapsed_s,
        )

    def _set_learning_rate(self) -> None:
        state, params = self.state, self.state.params
        for optimizer in (state.optimizer_g, state.optimizer_d):
            for group in optimizer.param_groups:
                group["lr"] = params.learning_rate * params.lr_decay**state.epoch


def _update(state: State, optimizer: torch.optim.AdamW, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(state.scaler.scale(loss))
    state.scaler.step(optimizer)


def _mixed(seed: int, step: int) -> int:
    """A seed for one step (the finaliser of SplitMix64, Steele et al. 2014): near seeds, far streams."""
    mask = (1 << 64) - 1
    value = (seed * 0x9E3779B97F4A7C15 + step + 1) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return (value ^ (value >> 31)) >> 1
