"""What a training is judged by: slices that it never sees, and the error of converting them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.engines.rvc.batches import SliceStore
from services.engines.rvc.config import FRAMES_PER_S, ModelConfig
from services.engines.rvc.features import SliceFeatures
from services.engines.rvc.mel import linear_spectrogram, log_mel
from services.engines.rvc.synthesizer import Synthesizer

_LEAST_SLICES = 10
_SHARE = 0.05
_MOST = 8
_LEAST_FRAMES = FRAMES_PER_S
_NOISE_SEED = 20_240_229


@dataclass(frozen=True, slots=True)
class Best:
    """The weights that did best on what was held out.

    Args:
        step: when.
        error: the mel error then.
        weights: of the voice, as :func:`services.engines.rvc.voice.inference_weights` gives them.
    """

    step: int
    error: float
    weights: dict[str, Tensor]


def held_out(slices: Sequence[SliceFeatures], seed: int) -> tuple[int, ...]:
    """Which slices are held out: a twentieth, 1 to 8, of voiced ones of a second and more.

    None where there are fewer than ten of those: a voice with little audio needs all of it. Neighbouring
    slices share 0.3 s, so a little of what is held out is heard in training after all.
    """
    fit = [n for n, part in enumerate(slices) if part.frames >= _LEAST_FRAMES and part.f0_hz.any()]
    if len(fit) < _LEAST_SLICES:
        return ()
    count = min(max(round(len(fit) * _SHARE), 1), _MOST)
    return tuple(sorted(int(n) for n in np.random.default_rng([seed, len(fit)]).choice(fit, count, False)))


class HeldOut:
    """Held-out slices on a device.

    Args:
        slices: what was held out.
        config: of the model.
        device: where it computes.
    """

    def __init__(self, slices: Sequence[SliceFeatures], config: ModelConfig, device: torch.device) -> None:
        self._store = SliceStore(slices, config, device)
        self._config, self._device = config, device

    def mel_error(self, synthesizer: Synthesizer) -> float:
        """Mean absolute difference of log-mel frames between the slices and their conversion.

        The noise is the same every time, so that two calls differ by the weights alone.
        """
        total, frames = 0.0, 0
        training = synthesizer.training
        synthesizer.eval()
        try:
            for number, length in enumerate(self._store.lengths):
                total += self._error(synthesizer, number, length) * length
                frames += length
        finally:
            synthesizer.train(training)
        return total / frames

    def _error(self, synthesizer: Synthesizer, number: int, length: int) -> float:
        batch = self._store.batch([number])
        generator = torch.Generator(self._device).manual_seed(_NOISE_SEED + number)
        with torch.inference_mode():
            made = synthesizer.convert(
                batch.content[:, :length],
                batch.pitch[:, :length],
                batch.f0_hz[:, :length],
                torch.zeros_like(batch.lengths),
                generator,
            )
            made_mel = log_mel(linear_spectrogram(made[:, 0].float(), self._config), self._config)
            real_mel = log_mel(batch.spectrogram[:, :, :length], self._config)
            return float((made_mel - real_mel).abs().mean())
