"""The critics of training: one over scales, one per period (upstream ``MultiPeriodDiscriminatorV2``)."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.engines.rvc.config import ModelConfig
from services.engines.rvc.layers import LEAKY_SLOPE, NormConv1d, NormConv2d, same_padding

Judgement = tuple[Tensor, list[Tensor]]
"""Scores ``[batch, positions]`` and the feature maps that led to them."""


class ScaleDiscriminator(nn.Module):
    """Judges the raw waveform with strided, grouped convolutions (MelGAN's, as in HiFi-GAN)."""

    def __init__(self, divisor: int) -> None:
        super().__init__()
        # inputs, outputs, kernel, stride, groups at full size
        plan = [
            (1, 16, 15, 1, 1),
            (16, 64, 41, 4, 4),
            (64, 256, 41, 4, 16),
            (256, 1024, 41, 4, 64),
            (1024, 1024, 41, 4, 256),
            (1024, 1024, 5, 1, 1),
        ]
        self.convs = nn.ModuleList(
            NormConv1d(
                max(inputs // divisor, 1),
                max(outputs // divisor, 1),
                kernel,
                stride=stride,
                padding=same_padding(kernel),
                groups=max(groups // divisor, 1),
            )
            for inputs, outputs, kernel, stride, groups in plan
        )
        self.conv_post = NormConv1d(max(1024 // divisor, 1), 1, 3, padding=1)

    def forward(self, wave: Tensor) -> Judgement:
        """Judge ``[batch, 1, samples]``."""
        return _judge(self.convs, self.conv_post, wave)


class PeriodDiscriminator(nn.Module):
    """Judges the waveform folded at one period, so that equal phases stand in a column."""

    def __init__(self, period: int, divisor: int) -> None:
        super().__init__()
        self.period = period
        widths = [1, *(max(width // divisor, 1) for width in (32, 128, 512, 1024, 1024))]
        self.convs = nn.ModuleList(
            NormConv2d(inputs, outputs, 5, stride=1 if layer == 4 else 3, padding=2)
            for layer, (inputs, outputs) in enumerate(itertools.pairwise(widths))
        )
        self.conv_post = NormConv2d(max(1024 // divisor, 1), 1, 3, stride=1, padding=1)

    def forward(self, wave: Tensor) -> Judgement:
        """Judge ``[batch, 1, samples]``."""
        wave = functional.pad(wave, (0, -wave.shape[-1] % self.period), "reflect")
        folded = wave.view(*wave.shape[:2], -1, self.period)
        return _judge(self.convs, self.conv_post, folded)


def _judge(convs: nn.ModuleList, last: nn.Module, x: Tensor) -> Judgement:
    maps: list[Tensor] = []
    for conv in convs:
        x = functional.leaky_relu(conv(x), LEAKY_SLOPE)
        maps.append(x)
    x = last(x)
    maps.append(x)
    return x.flatten(1), maps


class Discriminator(nn.Module):
    """Every sub-discriminator over a batch of waveforms ``[batch, 1, samples]``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        divisor = config.discriminator_divisor
        self.discriminators = nn.ModuleList(
            [
                ScaleDiscriminator(divisor),
                *(PeriodDiscriminator(period, divisor) for period in config.discriminator_periods),
            ]
        )

    def forward(self, wave: Tensor) -> list[Judgement]:
        """One judgement of each sub-discriminator."""
        return [judge(wave) for judge in self.discriminators]

    def compare(self, real: Tensor, made: Tensor) -> tuple[list[Judgement], list[Judgement]]:
        """Judge real and generated audio in one pass: half the kernel launches, the same numbers."""
        rows = real.shape[0]
        both = self(torch.cat([real, made]))
        halves = [
            [(scores[part], [feature[part] for feature in maps]) for scores, maps in both]
            for part in (slice(None, rows), slice(rows, None))
        ]
        return halves[0], halves[1]
