"""What training reads: the features of every slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from services.common.errors import Kind, Reason, VoxfleetError, invalid
from services.engines.rvc import f0 as pitch
from services.engines.rvc.audio import Floats, fit_length
from services.engines.rvc.config import FRAMES_PER_S, ModelConfig
from services.engines.rvc.content import ContentEncoder
from services.engines.rvc.preprocess import Slice
from services.engines.rvc.stopping import ShouldStop, never, stopped
from services.engines.rvc.tensors import TensorsCorruptError, load_tensors, save_tensors

_FORMAT = "voxfleet-rvc-features"
_SILENT_SLICE_S = 3.0
_SLICES_PER_SILENT = 20
_MAX_SILENT_SLICES = 2


@dataclass(frozen=True, slots=True)
class SliceFeatures:
    """One slice as the model sees it.

    Args:
        content: ``[ceil(frames / 2), width]`` at 50 Hz.
        f0_hz: ``[frames]`` at 100 Hz, 0 where unvoiced.
        samples: ``[frames * hop]`` at the model's rate.
    """

    content: Floats
    f0_hz: Floats
    samples: Floats

    @property
    def frames(self) -> int:
        """Frames of 10 ms."""
        return len(self.f0_hz)


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """Every slice of a training run, and what made the features."""

    slices: tuple[SliceFeatures, ...]
    content_encoder: str
    f0_method: str
    rate_hz: int

    @property
    def duration_s(self) -> float:
        """Seconds of audio in all."""
        return sum(part.frames for part in self.slices) / FRAMES_PER_S

    @property
    def content_width(self) -> int:
        """Width of the content features."""
        return int(self.slices[0].content.shape[1])

    def content_vectors(self) -> Floats:
        """All content features ``[n, width]``, for the retrieval index."""
        return np.concatenate([part.content for part in self.slices])

    def save(self, path: Path) -> str:
        """Write one safetensors file; returns the SHA-256 of its contents."""
        tensors = {
            "content": torch.from_numpy(self.content_vectors()),
            "f0_hz": torch.from_numpy(np.concatenate([part.f0_hz for part in self.slices])),
            "samples": torch.from_numpy(np.concatenate([part.samples for part in self.slices])),
            "frames": torch.tensor([part.frames for part in self.slices]),
        }
        header = {
            "format": _FORMAT,
            "version": 1,
            "content_encoder": self.content_encoder,
            "f0_method": self.f0_method,
            "rate_hz": self.rate_hz,
        }
        return save_tensors(path, tensors, header)

    @classmethod
    def load(cls, path: Path) -> FeatureSet:
        """Read what :meth:`save` wrote; ``ARTIFACT_CORRUPT`` where it is damaged."""
        try:
            tensors, header = load_tensors(path)
        except TensorsCorruptError as error:
            raise _corrupt(str(error)) from error
        if header.get("format") != _FORMAT or header.get("version") != 1:
            raise _corrupt(f"{path.name} holds no features of version 1")
        hop = int(header["rate_hz"]) // FRAMES_PER_S
        frames = tensors["frames"].numpy()
        content_ends = np.cumsum((frames + 1) // 2)[:-1]
        frame_ends = np.cumsum(frames)[:-1]
        parts = zip(
            np.split(tensors["content"].numpy(), content_ends),
            np.split(tensors["f0_hz"].numpy(), frame_ends),
            np.split(tensors["samples"].numpy(), frame_ends * hop),
            strict=True,
        )
        return cls(
            tuple(SliceFeatures(*part) for part in parts),
            str(header["content_encoder"]),
            str(header["f0_method"]),
            int(header["rate_hz"]),
        )


def extract(
    slices: Sequence[Slice],
    encoder: ContentEncoder,
    f0: pitch.F0Method,
    config: ModelConfig,
    *,
    should_stop: ShouldStop = never,
) -> FeatureSet:
    """Features of every slice long enough to train on, plus a little silence.

    As upstream mixes silent files in: without them a voice has never heard nothing, and hums.

    Raises:
        VoxfleetError: ``AUDIO_TOO_SHORT`` where no slice is long enough, ``CANCELLED``.
    """
    found: list[SliceFeatures] = []
    for part in slices:
        if should_stop():
            raise stopped("extracting features")
        features = slice_features(part.samples, part.samples_16k, encoder, f0, config)
        if features.frames > config.segment_frames:
            found.append(features)
    if not found:
        raise invalid(
            Reason.AUDIO_TOO_SHORT,
            f"no stretch of speech is longer than {config.segment_frames / FRAMES_PER_S} s",
            min_duration_s=config.segment_frames / FRAMES_PER_S,
        )
    silent = min(len(found) // _SLICES_PER_SILENT, _MAX_SILENT_SLICES)
    if silent:
        nothing = np.zeros(round(_SILENT_SLICE_S * config.rate_hz), np.float32)
        nothing_16k = np.zeros(round(_SILENT_SLICE_S * 16_000), np.float32)
        found.extend([slice_features(nothing, nothing_16k, encoder, f0, config)] * silent)
    return FeatureSet(tuple(found), encoder.name, f0.name, config.rate_hz)


def slice_features(
    samples: Floats, samples_16k: Floats, encoder: ContentEncoder, f0: pitch.F0Method, config: ModelConfig
) -> SliceFeatures:
    """Features of one stretch of audio, given at the model's rate and at 16 kHz; whole frames only."""
    frames = len(samples) // config.hop
    content = encoder.encode(samples_16k)[: (frames + 1) // 2]
    frames = min(frames, 2 * len(content))
    return SliceFeatures(content, f0.track(samples_16k, frames), fit_length(samples, frames * config.hop))


def _corrupt(why: str) -> VoxfleetError:
    return VoxfleetError(Reason.ARTIFACT_CORRUPT, why, kind=Kind.DATA_LOSS)
