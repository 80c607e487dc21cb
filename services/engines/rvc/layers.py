"""Building blocks of the synthesiser, with the parameter names of upstream's checkpoints.

Upstream (``infer/lib/infer_pack/{modules,attentions}.py``) descends from VITS (Kim et al. 2021).
Weight normalisation (Salimans and Kingma 2016) is written out here instead of hooked on, so that a
state dict holds ``weight_g`` and ``weight_v`` as community files do, and modules copy and fold plainly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.engines.rvc.config import ModelConfig

LEAKY_SLOPE = 0.1
ATTENTION_WINDOW = 10
_MASKED_SCORE = -1e4


class WeightNorm(nn.Module):
    """A layer whose weight is a direction times a magnitude per entry of its first axis."""

    def __init__(self, layer: nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d) -> None:
        super().__init__()
        weight = layer.weight.detach()
        self.weight_g = nn.Parameter(_magnitude(weight).clone())
        self.weight_v = nn.Parameter(weight.clone())
        self.bias = nn.Parameter(layer.bias.detach().clone()) if layer.bias is not None else None
        self._folded: Tensor | None = None

    def weight(self) -> Tensor:
        """The effective weight."""
        if self._folded is not None:
            return self._folded
        return self.weight_v * (self.weight_g / _magnitude(self.weight_v))

    def fold(self) -> None:
        """Compute the weight once and for all: for inference, after the module is on its device."""
        self._folded = self.weight().detach()


class NormConv1d(WeightNorm):
    """A weight-normalised 1-D convolution over ``[batch, channels, time]``."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        padding: int,
        groups: int = 1,
    ) -> None:
        super().__init__(nn.Conv1d(inputs, outputs, kernel, groups=groups))
        self.stride, self.dilation, self.padding, self.groups = stride, dilation, padding, groups

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        return functional.conv1d(
            x, self.weight(), self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class NormConv2d(WeightNorm):
    """A weight-normalised convolution along the first of two axes: ``[batch, channels, time, period]``."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int, padding: int) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, (kernel, 1)))
        self.stride, self.padding = (stride, 1), (padding, 0)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        return functional.conv2d(x, self.weight(), self.bias, self.stride, self.padding)


class NormConvTranspose1d(WeightNorm):
    """A weight-normalised transposed convolution: lengthens time by ``stride``."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int) -> None:
        super().__init__(nn.ConvTranspose1d(inputs, outputs, kernel))
        self.stride, self.padding = stride, (kernel - stride) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        return functional.conv_transpose1d(x, self.weight(), self.bias, self.stride, self.padding)


def _magnitude(weight: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(weight.flatten(1), dim=1)
    return lengths.view(-1, *([1] * (weight.dim() - 1)))


def fold_weight_norm(module: nn.Module) -> None:
    """Fold every weight-normalised layer under ``module``."""
    for layer in module.modules():
        if isinstance(layer, WeightNorm):
            layer.fold()


def same_padding(kernel: int, dilation: int = 1) -> int:
    """Padding that keeps the length, for an odd kernel."""
    return (kernel - 1) * dilation // 2


def length_mask(lengths: Tensor, frames: int) -> Tensor:
    """``[batch, 1, frames]`` floats, 1 where a frame lies within its row's length."""
    return (torch.arange(frames, device=lengths.device)[None, :] < lengths[:, None]).float().unsqueeze(1)


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of ``[batch, channels, time]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        normed = functional.layer_norm(x.transpose(1, 2), self.gamma.shape, self.gamma, self.beta)
        return normed.transpose(1, 2)


class GatedStack(nn.Module):
    """Gated dilated convolutions with skip connections, conditioned on the speaker (upstream ``WN``)."""

    def __init__(self, channels: int, kernel: int, layers: int, speaker_channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.cond_layer = NormConv1d(speaker_channels, 2 * channels * layers, 1, padding=0)
        self.in_layers = nn.ModuleList(
            NormConv1d(channels, 2 * channels, kernel, padding=same_padding(kernel)) for _ in range(layers)
        )
        self.res_skip_layers = nn.ModuleList(
            NormConv1d(channels, channels if layer == layers - 1 else 2 * channels, 1, padding=0)
            for layer in range(layers)
        )

    def forward(self, x: Tensor, mask: Tensor, speaker: Tensor) -> Tensor:
        """``[batch, channels, time]`` to the same; ``speaker`` is ``[batch, speaker_channels, 1]``."""
        skipped = torch.zeros_like(x)
        conditions = self.cond_layer(speaker).chunk(len(self.in_layers), dim=1)
        for entry, exit_layer, condition in zip(
            self.in_layers, self.res_skip_layers, conditions, strict=True
        ):
            tanh_half, gate_half = (entry(x) + condition).chunk(2, dim=1)
            out = exit_layer(torch.tanh(tanh_half) * torch.sigmoid(gate_half))
            if out.shape[1] == self.channels:
                skipped = skipped + out
            else:
                residual, skip = out.chunk(2, dim=1)
                x = (x + residual) * mask
                skipped = skipped + skip
        return skipped * mask


class RelativeAttention(nn.Module):
    """Self-attention with learnt terms for offsets up to ``ATTENTION_WINDOW`` frames (Shaw et al. 2018)."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.head_channels = heads, channels // heads
        self.conv_q = nn.Conv1d(channels, channels, 1)
        self.conv_k = nn.Conv1d(channels, channels, 1)
        self.conv_v = nn.Conv1d(channels, channels, 1)
        self.conv_o = nn.Conv1d(channels, channels, 1)
        for layer in (self.conv_q, self.conv_k, self.conv_v):
            nn.init.xavier_uniform_(layer.weight)
        shape = (1, 2 * ATTENTION_WINDOW + 1, self.head_channels)
        self.emb_rel_k = nn.Parameter(torch.randn(shape) * self.head_channels**-0.5)
        self.emb_rel_v = nn.Parameter(torch.randn(shape) * self.head_channels**-0.5)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, pair_mask: Tensor) -> Tensor:
        """``[batch, channels, time]`` to the same; ``pair_mask`` is ``[batch, 1, time, time]``."""
        query, key, value = (self._split(layer(x)) for layer in (self.conv_q, self.conv_k, self.conv_v))
        query = query / math.sqrt(self.head_channels)
        scores = query @ key.transpose(-2, -1) + _band_to_square(query @ self.emb_rel_k.transpose(-2, -1))
        weights = self.drop(scores.masked_fill(pair_mask == 0, _MASKED_SCORE).softmax(-1))
        mixed = weights @ value + _square_to_band(weights) @ self.emb_rel_v
        merged: Tensor = self.conv_o(mixed.transpose(2, 3).flatten(1, 2))
        return merged

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], self.heads, self.head_channels, -1).transpose(2, 3)


def _band_to_square(band: Tensor) -> Tensor:
    """Place per-offset terms ``[..., t, 2w+1]`` at their columns of ``[..., t, t]``, zero elsewhere.

    Padding each row by one more than the target's width shifts row i by i when the rows are re-cut.
    """
    frames, width = band.shape[-2], band.shape[-1]
    flat = functional.pad(band, (0, frames)).flatten(-2)
    skewed = flat[..., : frames * (frames + width - 1)]
    half = width // 2
    rows = skewed.reshape(*band.shape[:-2], frames, frames + width - 1)
    return rows[..., half : half + frames]


def _square_to_band(square: Tensor) -> Tensor:
    """The inverse cut: the ``2w+1`` diagonals around the main one of ``[..., t, t]``, one row per frame."""
    frames, half = square.shape[-1], ATTENTION_WINDOW
    flat = functional.pad(square, (half, half)).flatten(-2)
    recut = functional.pad(flat, (0, frames)).view(*square.shape[:-2], frames, frames + 2 * half + 1)
    return recut[..., : 2 * half + 1]


class FeedForward(nn.Module):
    """Two convolutions with a ReLU between, over masked frames."""

    def __init__(self, channels: int, filter_channels: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.padding = ((kernel - 1) // 2, kernel // 2)
        self.conv_1 = nn.Conv1d(channels, filter_channels, kernel)
        self.conv_2 = nn.Conv1d(filter_channels, channels, kernel)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``[batch, channels, time]`` to the same; ``mask`` is ``[batch, 1, time]``."""
        hidden = self.drop(torch.relu(self.conv_1(functional.pad(x * mask, self.padding))))
        out: Tensor = self.conv_2(functional.pad(hidden * mask, self.padding)) * mask
        return out


class Encoder(nn.Module):
    """A post-norm transformer over ``[batch, channels, time]`` (upstream ``attentions.Encoder``)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels, layers, dropout = config.hidden_channels, config.layers, config.dropout
        self.drop = nn.Dropout(dropout)
        self.attn_layers = nn.ModuleList(
            RelativeAttention(channels, config.heads, dropout) for _ in range(layers)
        )
        self.norm_layers_1 = nn.ModuleList(ChannelNorm(channels) for _ in range(layers))
        self.ffn_layers = nn.ModuleList(
            FeedForward(channels, config.filter_channels, config.kernel_size, dropout) for _ in range(layers)
        )
        self.norm_layers_2 = nn.ModuleList(ChannelNorm(channels) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``[batch, channels, time]`` to the same; ``mask`` is ``[batch, 1, time]``."""
        pair_mask = mask.unsqueeze(2) * mask.unsqueeze(-1)
        x = x * mask
        blocks = zip(self.attn_layers, self.norm_layers_1, self.ffn_layers, self.norm_layers_2, strict=True)
        for attention, first_norm, feed_forward, second_norm in blocks:
            x = first_norm(x + self.drop(attention(x, pair_mask)))
            x = second_norm(x + self.drop(feed_forward(x, mask)))
        return x * mask
