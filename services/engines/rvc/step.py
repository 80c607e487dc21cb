"""One step of RVC training: the critic's update, then the generator's, in as many parts as memory asks for.

A step's rows are divided among ranks, and a rank's among parts that its memory holds. The losses of a part
count by its share of the rows (the KL by its share of the frames), so that the sum of all parts' gradients is
the gradient of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from services.engines.memory import is_out_of_memory
from services.engines.rvc.batches import Batch
from services.engines.rvc.losses import adversarial_loss, discriminator_loss, feature_loss, kl_loss
from services.engines.rvc.mel import linear_spectrogram, log_mel
from services.engines.rvc.parallel import Group
from services.engines.rvc.state import State, autocast_type
from services.engines.rvc.synthesizer import Gaussians, cut_frames

_PARTS_PER_RANK = 1 << 12
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Share:
    """A rank's share of a step.

    Args:
        batch: its rows; None where there are fewer rows than ranks.
        rows, frames: of the whole step, on all ranks.
    """

    batch: Batch | None
    rows: int
    frames: int


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """Losses of one step, weighted as they enter the sum, still on the device: reading one waits for it."""

    loss_g: Tensor
    loss_d: Tensor
    loss_mel: Tensor
    loss_kl: Tensor
    loss_fm: Tensor


@dataclass(frozen=True, slots=True)
class _Part:
    batch: Batch
    number: int
    rows: float
    frames: float


@dataclass(frozen=True, slots=True)
class _Made:
    """What the generator made of a part, and the real sound of the same segments."""

    wave: Tensor
    real: Tensor
    starts: Tensor
    gaussians: Gaussians


def train_step(state: State, share: Share, group: Group) -> StepMetrics:
    """One update of the discriminator, then one of the generator; advances ``state.step``.

    Where memory does not do, on any rank, all halve what they take at once and repeat what they were at.

    Raises:
        torch.OutOfMemoryError: a single row is too much.
    """
    kept: list[_Made] = []

    def judge(parts: Sequence[_Part]) -> Tensor:
        kept.clear()
        # In one part, what was made is of use twice; in several, their graphs would fill the memory.
        alone = len(parts) == 1
        total = torch.zeros((), device=state.device)
        for part in parts:
            with torch.set_grad_enabled(alone):
                made = _generated(state, part)
            with _autocast(state):
                loss = discriminator_loss(*state.discriminator.compare(made.real, made.wave.detach()))
            total += _backward(state, loss * part.rows)
            if alone:
                kept.append(made)
        return total

    def generate(parts: Sequence[_Part]) -> Tensor:
        usable = kept if len(parts) == 1 else []
        total = torch.zeros(4, device=state.device)
        for number, part in enumerate(parts):
            made = usable[number] if usable else _generated(state, part)
            total += _generator_losses(state, part, made)
        return total

    loss_d = _in_parts(state, share, group, judge, state.discriminator)
    _update(state, group, state.discriminator, state.optimizer_d)
    # The critic's own gradients are not wanted here: leaving them out saves a third of its backward.
    state.discriminator.requires_grad_(False)
    try:
        losses = _in_parts(state, share, group, generate, state.synthesizer)
    finally:
        state.discriminator.requires_grad_(True)
    _update(state, group, state.synthesizer, state.optimizer_g)
    state.scaler.update()
    state.step += 1
    loss_g, loss_mel, loss_kl, loss_fm, loss_d = group.sum(torch.cat([losses, loss_d.view(1)])).unbind()
    return StepMetrics(loss_g, loss_d, loss_mel, loss_kl, loss_fm)


def _in_parts(
    state: State, share: Share, group: Group, work: Callable[[Sequence[_Part]], _T], model: nn.Module
) -> _T:
    """Does work on a rank's parts, in smaller ones where a rank's memory is full."""
    while True:
        model.zero_grad(set_to_none=True)
        done: _T | None = None
        full: RuntimeError | None = None
        try:
            done = work(_parts(state, share, group))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            # Its traceback would hold on to what filled the memory.
            full = error.with_traceback(None)
        (any_full,) = group.any(full is not None)
        if not any_full:
            assert done is not None
            return done
        at_once = -(-share.rows // group.size)
        at_once = min(_at_once(state) or at_once, at_once)
        if at_once == 1:
            raise torch.OutOfMemoryError(str(full or "another GPU's memory is full"))
        state.micro_batch = -(-at_once // 2)
        del done
        if state.device.type == "cuda":
            torch.cuda.empty_cache()


def _at_once(state: State) -> int:
    """Rows that may be worked on at once; 0 is any number."""
    return state.micro_batch or state.params.micro_batch


def _parts(state: State, share: Share, group: Group) -> list[_Part]:
    if share.batch is None:
        return []
    lengths = share.batch.lengths
    rows = len(lengths)
    at_once = _at_once(state) or rows
    # Lengths are on the device: reading them would wait for it, and a part that is the whole step needs none.
    whole = rows == share.rows and at_once >= rows
    frames = [0] if whole else lengths.tolist()
    return [
        _Part(
            share.batch if at_once >= rows else share.batch.rows(first, first + at_once),
            group.rank * _PARTS_PER_RANK + number,
            min(at_once, rows - first) / share.rows,
            1.0 if whole else sum(frames[first : first + at_once]) / share.frames,
        )
        for number, first in enumerate(range(0, rows, at_once))
    ]


def _generated(state: State, part: _Part) -> _Made:
    config, batch = state.config, part.batch
    seed = state.params.seed + (part.number << 20) + (state.rollbacks << 40)
    generator = torch.Generator(state.device).manual_seed(_mixed(seed, state.step))
    if config.dropout > 0:
        # Dropout draws from the global generator alone.
        torch.manual_seed(_mixed(seed + 1, state.step))
    with _autocast(state):
        wave, starts, gaussians = state.synthesizer(
            batch.content,
            batch.pitch,
            batch.f0_hz,
            spectrogram=batch.spectrogram,
            lengths=batch.lengths,
            speaker_ids=torch.zeros_like(batch.lengths),
            generator=generator,
        )
    frames = batch.samples.view(len(batch.samples), -1, config.hop).transpose(1, 2)
    real = cut_frames(frames, starts, config.segment_frames).transpose(1, 2).flatten(1).unsqueeze(1)
    return _Made(wave.float(), real, starts, gaussians)


def _generator_losses(state: State, part: _Part, made: _Made) -> Tensor:
    """Adds a part's gradients; the sum of its losses, then mel, KL and feature losses ``[4]``."""
    config, params = state.config, state.params
    with _autocast(state):
        with torch.no_grad():
            real_judged = state.discriminator(made.real)
        made_judged = state.discriminator(made.wave)
        loss_fm = params.feature_weight * feature_loss(real_judged, made_judged)
        loss_adversarial = adversarial_loss(made_judged)
    # The mel bands are a sum over bins: of the segment's frames alone they are the same.
    target = cut_frames(part.batch.spectrogram, made.starts, config.segment_frames)
    made_mel = log_mel(linear_spectrogram(made.wave.squeeze(1), config), config)
    loss_mel = params.mel_weight * (log_mel(target, config) - made_mel).abs().mean()
    loss_kl = params.kl_weight * kl_loss(made.gaussians)
    by_rows, by_frames = loss_adversarial + loss_fm + loss_mel, loss_kl * part.frames
    loss_g = by_rows * part.rows + by_frames
    _backward(state, loss_g)
    return torch.stack([loss_g, loss_mel * part.rows, by_frames, loss_fm * part.rows]).detach()


def _autocast(state: State) -> torch.autocast:
    kind = autocast_type(state.params, state.device)
    return torch.autocast(state.device.type, dtype=kind, enabled=kind is not None)


def _backward(state: State, loss: Tensor) -> Tensor:
    torch.autograd.backward(state.scaler.scale(loss))
    return loss.detach()


def _update(state: State, group: Group, model: nn.Module, optimizer: torch.optim.AdamW) -> None:
    group.sum_gradients(model)
    state.scaler.step(optimizer)


def _mixed(seed: int, step: int) -> int:
    """A seed for one step (the finaliser of SplitMix64, Steele et al. 2014): near seeds, far streams."""
    mask = (1 << 64) - 1
    value = (seed * 0x9E3779B97F4A7C15 + step + 1) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return (value ^ (value >> 31)) >> 1
