"""The RVC v2 synthesiser (upstream ``SynthesizerTrnMs768NSFsid``), a VITS whose text is content features.

Parameter names are upstream's, so that community weights load with none missing and none left over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.engines.rvc.config import ModelConfig
from services.engines.rvc.generator import Generator
from services.engines.rvc.layers import LEAKY_SLOPE, Encoder, GatedStack, length_mask

PITCH_BINS = 256
INFERENCE_TEMPERATURE = 0.66666
_POSTERIOR_LAYERS = 16
_FLOW_LAYERS = 3
_FLOWS = 4
_GATED_KERNEL = 5


@dataclass(frozen=True, slots=True)
class Gaussians:
    """What the KL loss compares; every tensor is ``[batch, inter_channels, frames]`` but ``mask``."""

    flowed: Tensor
    prior_mean: Tensor
    prior_log_scale: Tensor
    posterior_log_scale: Tensor
    mask: Tensor


class ContentEncoder(nn.Module):
    """Content features and coarse pitch to the prior's mean and log scale (upstream ``TextEncoder``)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = config.hidden_channels
        self.scale = math.sqrt(hidden)
        self.emb_phone = nn.Linear(config.content_width, hidden)
        self.emb_pitch = nn.Embedding(PITCH_BINS, hidden)
        self.encoder = Encoder(config)
        self.proj = nn.Conv1d(hidden, 2 * config.inter_channels, 1)

    def forward(self, content: Tensor, pitch: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log scale, ``[batch, inter_channels, frames]`` each."""
        x = (self.emb_phone(content) + self.emb_pitch(pitch)) * self.scale
        x = functional.leaky_relu(x, LEAKY_SLOPE).transpose(1, 2)
        mean, log_scale = (self.proj(self.encoder(x * mask, mask)) * mask).chunk(2, dim=1)
        return mean, log_scale


class PosteriorEncoder(nn.Module):
    """Linear spectrogram to the posterior over latent frames; used in training alone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = config.hidden_channels
        self.pre = nn.Conv1d(config.spec_channels, hidden, 1)
        self.enc = GatedStack(hidden, _GATED_KERNEL, _POSTERIOR_LAYERS, config.speaker_channels)
        self.proj = nn.Conv1d(hidden, 2 * config.inter_channels, 1)

    def forward(
        self, spectrogram: Tensor, mask: Tensor, speaker: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """A sample of the posterior and its log scale, ``[batch, inter_channels, frames]`` each."""
        x = self.enc(self.pre(spectrogram) * mask, mask, speaker)
        mean, log_scale = (self.proj(x) * mask).chunk(2, dim=1)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return (mean + noise * torch.exp(log_scale)) * mask, log_scale


class Coupling(nn.Module):
    """An additive coupling of one half of the channels by the other (VITS' mean-only layer)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        half, hidden = config.inter_channels // 2, config.hidden_channels
        self.pre = nn.Conv1d(half, hidden, 1)
        self.enc = GatedStack(hidden, _GATED_KERNEL, _FLOW_LAYERS, config.speaker_channels)
        self.post = nn.Conv1d(hidden, half, 1)
        # Starts as the identity.
        nn.init.zeros_(self.post.weight)
        if self.post.bias is not None:
            nn.init.zeros_(self.post.bias)

    def forward(self, x: Tensor, mask: Tensor, speaker: Tensor, *, sign: float) -> Tensor:
        """Add (``sign`` 1) or take away (-1) the shift."""
        kept, moved = x.chunk(2, dim=1)
        shift = self.post(self.enc(self.pre(kept) * mask, mask, speaker)) * mask
        return torch.cat([kept, moved * mask + sign * shift], dim=1)


class ChannelFlip(nn.Module):
    """Reverses the channels between couplings; holds no parameters, but a place in upstream's list."""

    def forward(self, x: Tensor) -> Tensor:
        """Reverse the channels."""
        return x.flip(1)


class Flow(nn.Module):
    """The invertible map between posterior and prior latents (upstream ``ResidualCouplingBlock``)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.flows = nn.ModuleList()
        for _ in range(_FLOWS):
            self.flows.extend([Coupling(config), ChannelFlip()])

    def forward(self, x: Tensor, mask: Tensor, speaker: Tensor, *, reverse: bool = False) -> Tensor:
        """From posterior to prior latents, or back."""
        for layer in reversed(self.flows) if reverse else self.flows:
            if isinstance(layer, Coupling):
                x = layer(x, mask, speaker, sign=-1.0 if reverse else 1.0)
            else:
                x = layer(x)
        return x


class Synthesizer(nn.Module):
    """The whole model. Without ``enc_q`` (``with_posterior=False``) it can only convert."""

    def __init__(self, config: ModelConfig, *, with_posterior: bool = True) -> None:
        super().__init__()
        self.config = config
        self.enc_p = ContentEncoder(config)
        self.dec = Generator(config)
        self.enc_q = PosteriorEncoder(config) if with_posterior else None
        self.flow = Flow(config)
        self.emb_g = nn.Embedding(config.speakers, config.speaker_channels)

    def forward(
        self,
        content: Tensor,
        pitch: Tensor,
        f0_hz: Tensor,
        *,
        spectrogram: Tensor,
        lengths: Tensor,
        speaker_ids: Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor, Gaussians]:
        """One training pass.

        Args:
            content: ``[batch, frames, content_width]``.
            pitch: ``[batch, frames]``, coarse bins.
            f0_hz: ``[batch, frames]``.
            spectrogram: ``[batch, spec_channels, frames]``.
            lengths: ``[batch]``, valid frames of each row.
            speaker_ids: ``[batch]``.
            generator: source of every random number drawn here.

        Returns:
            Samples ``[batch, 1, segment_samples]`` of one random segment per row, the first frame of
            each ``[batch]``, and the latents for the KL loss.
        """
        assert self.enc_q is not None, "this synthesiser was built without its posterior encoder"
        speaker = self.emb_g(speaker_ids).unsqueeze(-1)
        mask = length_mask(lengths, content.shape[1])
        prior_mean, prior_log_scale = self.enc_p(content, pitch, mask)
        latent, posterior_log_scale = self.enc_q(spectrogram, mask, speaker, generator)
        flowed = self.flow(latent, mask, speaker)
        frames = self.config.segment_frames
        room = (lengths - frames + 1).clamp(min=1)
        draw = torch.rand(lengths.shape, generator=generator, device=lengths.device)
        starts = (draw * room).long()
        segment = cut_frames(latent, starts, frames)
        segment_f0 = cut_frames(f0_hz.unsqueeze(1), starts, frames).squeeze(1)
        wave = self.dec(segment, segment_f0, speaker, generator)
        return wave, starts, Gaussians(flowed, prior_mean, prior_log_scale, posterior_log_scale, mask)

    def convert(
        self,
        content: Tensor,
        pitch: Tensor,
        f0_hz: Tensor,
        speaker_ids: Tensor,
        generator: torch.Generator | None = None,
        *,
        only: tuple[int, int] | None = None,
    ) -> Tensor:
        """Samples ``[batch, 1, frames * hop]`` of whole, unpadded rows (upstream ``infer``).

        Arguments as in :meth:`forward`; ``only`` the frames from the first to before the second are
        decoded where it is given, the rest is context for them.
        """
        speaker = self.emb_g(speaker_ids).unsqueeze(-1)
        mask = torch.ones(content.shape[0], 1, content.shape[1], device=content.device)
        mean, log_scale = self.enc_p(content, pitch, mask)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        prior = mean + torch.exp(log_scale) * noise * INFERENCE_TEMPERATURE
        latent = self.flow(prior, mask, speaker, reverse=True)
        made: Tensor = self.dec(latent, f0_hz, speaker, generator, only=only)
        return made


def cut_frames(x: Tensor, starts: Tensor, frames: int) -> Tensor:
    """``frames`` steps of ``[batch, channels, time]`` from each row's own start."""
    index = starts[:, None] + torch.arange(frames, device=x.device)[None, :]
    return x.gather(2, index.unsqueeze(1).expand(-1, x.shape[1], -1))
