"""The decoder: an NSF-HiFiGAN that turns latent frames and F0 into samples.

HiFi-GAN (Kong et al. 2020) with the neural source filter of Wang et al. 2019: a sine at F0, plus
noise, is added at every resolution. Parameter names are upstream's (``infer_pack/models.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.engines.rvc.config import ModelConfig
from services.engines.rvc.layers import LEAKY_SLOPE, NormConv1d, NormConvTranspose1d, same_padding

SINE_AMPLITUDE = 0.1
VOICED_NOISE = 0.003
_FIRST_GAIN = 5.0


def sine_source(f0_hz: Tensor, hop: int, rate_hz: int, generator: torch.Generator | None) -> Tensor:
    """The excitation: a sine where F0 is above 0, noise elsewhere.

    Args:
        f0_hz: ``[batch, frames]``, 0 where unvoiced.
        hop: samples a frame.
        rate_hz: of the output.
        generator: source of the noise.

    Returns:
        ``[batch, 1, frames * hop]``. Formula: upstream ``SineGen``, its fundamental alone, as RVC uses it.
    """
    with torch.no_grad():
        # Phase in turns, in doubles: a float32 cumulative sum drifts audibly within a minute.
        per_sample = f0_hz.double() / rate_hz
        ends = torch.cumsum(per_sample * hop, dim=1)
        starts = ends - per_sample * hop
        steps = torch.arange(1, hop + 1, device=f0_hz.device, dtype=torch.float64)
        turns = (starts.unsqueeze(-1) + per_sample.unsqueeze(-1) * steps).flatten(1)
        sine = torch.sin(2 * math.pi * torch.frac(turns)).float() * SINE_AMPLITUDE
        voiced = (f0_hz > 0).float().repeat_interleave(hop, dim=1)
        amplitude = voiced * VOICED_NOISE + (1 - voiced) * (SINE_AMPLITUDE / 3)
        noise = torch.randn(sine.shape, generator=generator, device=sine.device)
        return (sine * voiced + noise * amplitude).unsqueeze(1)


class HarmonicSource(nn.Module):
    """Scales the excitation by one learnt weight and squashes it."""

    def __init__(self) -> None:
        super().__init__()
        self.l_linear = nn.Linear(1, 1)
        # Upstream leaves this one weight to chance and starts from pre-trained models. From scratch a
        # small one dies out (0.2 fell to 5e-5 in 800 steps), the decoder hums at multiples of the frame
        # rate instead, and pitch follows nothing. From 5, F0 is followed within 50 steps at the same loss.
        nn.init.constant_(self.l_linear.weight, _FIRST_GAIN)
        nn.init.zeros_(self.l_linear.bias)

    def forward(self, excitation: Tensor) -> Tensor:
        """``[batch, 1, samples]`` to the same."""
        return torch.tanh(self.l_linear(excitation.transpose(1, 2))).transpose(1, 2)


class DilatedPairs(nn.Module):
    """Residual pairs of a dilated and a plain convolution (HiFi-GAN's block 1)."""

    def __init__(self, channels: int, kernel: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            NormConv1d(channels, channels, kernel, dilation=step, padding=same_padding(kernel, step))
            for step in dilations
        )
        self.convs2 = nn.ModuleList(
            NormConv1d(channels, channels, kernel, padding=same_padding(kernel)) for _ in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, channels, time]`` to the same."""
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            hidden = dilated(functional.leaky_relu(x, LEAKY_SLOPE))
            x = x + plain(functional.leaky_relu(hidden, LEAKY_SLOPE))
        return x


class DilatedSingles(nn.Module):
    """Residual dilated convolutions (HiFi-GAN's block 2)."""

    def __init__(self, channels: int, kernel: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            NormConv1d(channels, channels, kernel, dilation=step, padding=same_padding(kernel, step))
            for step in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, channels, time]`` to the same."""
        for dilated in self.convs:
            x = x + dilated(functional.leaky_relu(x, LEAKY_SLOPE))
        return x


class Generator(nn.Module):
    """Latent frames and F0 to samples."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.hop, self.rate_hz = config.hop, config.rate_hz
        self.reach_frames = _reach_frames(config)
        self.kernels = len(config.resblock_kernel_sizes)
        first = config.upsample_initial_channels
        self.m_source = HarmonicSource()
        self.conv_pre = nn.Conv1d(config.inter_channels, first, 7, padding=3)
        self.cond = nn.Conv1d(config.speaker_channels, first, 1)
        self.ups = nn.ModuleList()
        self.noise_convs = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        block = DilatedPairs if config.resblock == "1" else DilatedSingles
        remaining = config.hop
        for level, (rate, kernel) in enumerate(
            zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True)
        ):
            channels = first >> (level + 1)
            remaining //= rate
            self.ups.append(NormConvTranspose1d(first >> level, channels, kernel, stride=rate))
            self.noise_convs.append(
                nn.Conv1d(1, channels, 2 * remaining, stride=remaining, padding=remaining // 2)
                if remaining > 1
                else nn.Conv1d(1, channels, 1)
            )
            self.resblocks.extend(
                block(channels, size, dilations)
                for size, dilations in zip(
                    config.resblock_kernel_sizes, config.resblock_dilations, strict=True
                )
            )
        self.conv_post = nn.Conv1d(channels, 1, 7, padding=3, bias=False)

    def forward(
        self,
        latent: Tensor,
        f0_hz: Tensor,
        speaker: Tensor,
        generator: torch.Generator | None = None,
        *,
        only: tuple[int, int] | None = None,
    ) -> Tensor:
        """Samples ``[batch, 1, frames * hop]`` within -1..1.

        Args:
            latent: ``[batch, inter_channels, frames]``.
            f0_hz: ``[batch, frames]``, 0 where unvoiced.
            speaker: ``[batch, speaker_channels, 1]``.
            generator: source of the excitation's noise.
            only: the first frame and the one after the last whose samples are wanted; what no sample of
                theirs hears is not computed.
        """
        # The sine's phase is a sum from the first frame on: the excitation is made for all.
        excitation = sine_source(f0_hz, self.hop, self.rate_hz, generator)
        first, last = only or (0, latent.shape[2])
        begin, end = max(first - self.reach_frames, 0), min(last + self.reach_frames, latent.shape[2])
        latent = latent[..., begin:end]
        source = self.m_source(excitation[..., begin * self.hop : end * self.hop])
        x = self.conv_pre(latent) + self.cond(speaker)
        for level, (up, noise_conv) in enumerate(zip(self.ups, self.noise_convs, strict=True)):
            x = up(functional.leaky_relu(x, LEAKY_SLOPE)) + noise_conv(source)
            blocks = self.resblocks[level * self.kernels : (level + 1) * self.kernels]
            x = torch.stack([block(x) for block in blocks]).mean(0) if len(blocks) > 1 else blocks[0](x)
        # HiFi-GAN's own code uses torch's default slope of 0.01 here, and the weights expect it.
        made: Tensor = self.conv_post(functional.leaky_relu(x))
        return torch.tanh(made)[..., (first - begin) * self.hop : (last - begin) * self.hop]


def _reach_frames(config: ModelConfig) -> int:
    """Frames to either side that a sample of the decoder hears, rounded up at every layer."""
    frames, samples_a_frame = 3.0, 1
    for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
        # A transposed convolution hears as many of its inputs as kernels overlap.
        frames += -(-kernel // rate) / samples_a_frame
        samples_a_frame *= rate
        widest = max(
            same_padding(size) * (sum(dilations) + len(dilations))
            for size, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilations, strict=True)
        )
        frames += widest / samples_a_frame
    # The excitation's convolutions hear up to a frame; the last layer 3 samples.
    return math.ceil(frames) + 2
