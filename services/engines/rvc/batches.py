"""What a step reads: slices kept where it computes, the order they come in, and batches cut from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.engines.rvc import f0 as pitch
from services.engines.rvc.config import ModelConfig
from services.engines.rvc.features import SliceFeatures
from services.engines.rvc.mel import linear_spectrogram

_POOL = 32
_BUCKET = 8
_GPU_SHARE = 0.25
"""Of a GPU's free memory, what slices may take; models, gradients and moments want the rest."""
_HOST_SPECTROGRAM_BYTES = 2 << 30
_GPU_FRAMES = 32
"""On a GPU lengths are rounded up: each new shape has cudnn look for its fastest kernels again."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Slices padded with zeros to the longest.

    Args:
        content: ``[batch, frames, width]`` at 100 Hz.
        pitch, f0_hz: ``[batch, frames]``.
        samples: ``[batch, frames * hop]``.
        spectrogram: ``[batch, spec_channels, frames]``, linear.
        lengths: ``[batch]`` in frames.
    """

    content: Tensor
    pitch: Tensor
    f0_hz: Tensor
    samples: Tensor
    spectrogram: Tensor
    lengths: Tensor

    def rows(self, first: int, last: int) -> Batch:
        """Some of its rows, padded as they are."""
        return Batch(
            self.content[first:last],
            self.pitch[first:last],
            self.f0_hz[first:last],
            self.samples[first:last],
            self.spectrogram[first:last],
            self.lengths[first:last],
        )

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(
            *(
                tensor.to(device, non_blocking=True)
                for tensor in (
                    self.content,
                    self.pitch,
                    self.f0_hz,
                    self.samples,
                    self.spectrogram,
                    self.lengths,
                )
            )
        )


@dataclass(frozen=True, slots=True)
class _Stored:
    content: Tensor
    pitch: Tensor
    f0_hz: Tensor
    samples: Tensor
    spectrogram: Tensor | None


class SliceStore:
    """Slices where the steps compute, with their spectrograms, as far as memory allows.

    A GPU keeps them all where they fit into a quarter of what it has free: then no step waits for the host.
    Else they stay in host memory, and :meth:`batches` brings one batch while the last is worked on.

    Args:
        slices: what to train on.
        config: of the model.
        device: where it trains.
        room_bytes: in place of what the device has to spare.
    """

    def __init__(
        self,
        slices: Sequence[SliceFeatures],
        config: ModelConfig,
        device: torch.device,
        *,
        room_bytes: int | None = None,
    ) -> None:
        self._config, self._device = config, device
        self.lengths = tuple(part.frames for part in slices)
        room = _room_bytes(device) if room_bytes is None else room_bytes
        fits = sum(self.lengths) * _frame_bytes(config) <= room
        self._home = device if fits else torch.device("cpu")
        self._slices = [self._stored(part, with_spectrogram=fits) for part in slices]

    def _stored(self, part: SliceFeatures, *, with_spectrogram: bool) -> _Stored:
        content, bins, f0_hz, samples = (
            torch.from_numpy(array).to(self._home)
            for array in (part.content, pitch.coarse(part.f0_hz), part.f0_hz, part.samples)
        )
        spectrogram = linear_spectrogram(samples[None], self._config)[0] if with_spectrogram else None
        return _Stored(content, bins, f0_hz, samples, spectrogram)

    def batch(self, chosen: Sequence[int]) -> Batch:
        """Some slices, padded, on the device."""
        return self._moved(self._gathered(chosen))

    def batches(self, plan: Sequence[Sequence[int]]) -> Iterator[Batch | None]:
        """Batch after batch; ``None`` where a share of the step holds no slice."""
        if self._home == self._device:
            for chosen in plan:
                yield self.batch(chosen) if len(chosen) else None
            return
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as ahead:
            coming = None
            for number, chosen in enumerate(plan):
                ready = coming if number else ahead.submit(self._gathered, chosen)
                following = plan[number + 1] if number + 1 < len(plan) else ()
                coming = ahead.submit(self._gathered, following)
                assert ready is not None
                gathered = ready.result()
                yield self._moved(gathered) if len(chosen) else None

    def _gathered(self, chosen: Sequence[int]) -> Batch:
        parts = [self._slices[index] for index in chosen]
        longest = max((self.lengths[index] for index in chosen), default=0)
        unit = _GPU_FRAMES if self._device.type == "cuda" else 2
        # A multiple of two at least, so that each content feature fills two frames.
        frames = -(-longest // unit) * unit
        rows, hop = len(parts), self._config.hop
        width = parts[0].content.shape[1] if parts else 1
        pinned = self._device.type == "cuda" and self._home.type == "cpu"
        content = torch.zeros(rows, frames // 2, width, device=self._home, pin_memory=pinned)
        bins = torch.zeros(rows, frames, dtype=torch.int64, device=self._home, pin_memory=pinned)
        f0_hz = torch.zeros(rows, frames, device=self._home, pin_memory=pinned)
        samples = torch.zeros(rows, frames * hop, device=self._home, pin_memory=pinned)
        spectra = [part.spectrogram for part in parts]
        kept = all(spectrum is not None for spectrum in spectra)
        spectrogram = torch.zeros(
            rows, self._config.spec_channels, frames if kept else 0, device=self._home, pin_memory=pinned
        )
        for row, part in enumerate(parts):
            content[row, : len(part.content)] = part.content
            bins[row, : len(part.pitch)] = part.pitch
            f0_hz[row, : len(part.f0_hz)] = part.f0_hz
            samples[row, : len(part.samples)] = part.samples
            if part.spectrogram is not None:
                spectrogram[row, :, : part.spectrogram.shape[1]] = part.spectrogram
        lengths = torch.tensor([self.lengths[index] for index in chosen])
        return Batch(content, bins, f0_hz, samples, spectrogram, lengths)

    def _moved(self, batch: Batch) -> Batch:
        found = batch.to(self._device)
        spectrogram = found.spectrogram
        if spectrogram.shape[2] == 0:
            spectrogram = linear_spectrogram(found.samples, self._config)
        content = found.content.repeat_interleave(2, dim=1)
        return Batch(content, found.pitch, found.f0_hz, found.samples, spectrogram, found.lengths)


def epoch_order(seed: int, epoch: int, lengths: Sequence[int]) -> NDArray[np.int64]:
    """The order in which an epoch visits the slices.

    Slices of like length come together, so that little of a batch is padding: every 32 of a random order
    are sorted, and the eights of them shuffled. What is left at the end stays random.
    """
    draws = np.random.default_rng([seed, epoch])
    order = draws.permutation(len(lengths))
    frames = np.asarray(lengths)
    for first in range(0, len(order) - _POOL + 1, _POOL):
        pool = order[first : first + _POOL]
        eights = pool[np.argsort(frames[pool], kind="stable")].reshape(-1, _BUCKET)
        order[first : first + _POOL] = eights[draws.permutation(len(eights))].reshape(-1)
    return order


def _room_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return _HOST_SPECTROGRAM_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return int(free * _GPU_SHARE)


def _frame_bytes(config: ModelConfig) -> int:
    # Half a content vector, a bin of 8 bytes, F0, the samples and the spectrum of a frame.
    return 4 * (config.content_width // 2 + 2 + 1 + config.hop + config.spec_channels)
