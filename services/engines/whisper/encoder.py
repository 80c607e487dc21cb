"""Whisper's encoder as a source of content features: what is said, with little of who says it."""

from __future__ import annotations

import itertools
from pathlib import Path

import ctranslate2
import numpy as np
from faster_whisper.feature_extractor import FeatureExtractor
from numpy.typing import NDArray

Floats = NDArray[np.float32]

RATE_HZ = 16_000
FRAME_SAMPLES = 320
"""Samples of 16 kHz audio a feature frame: 50 frames a second."""
WIDTH = 512
_WINDOW_FRAMES = 1500
_MARGIN_FRAMES = 50
_MIN_FRAMES = 8


class WhisperEncoder:
    """Features ``[frames, 512]`` at 50 Hz from 16 kHz audio, of any length, in bounded memory.

    The encoder has positions for 30 s. Longer audio goes through overlapping windows, of which the
    outer second on an inner edge is dropped, so that no frame is computed without its context.
    Shorter audio is not padded to 30 s: the cost is that of the audio.

    Args:
        model_dir: the folder of :func:`services.engines.whisper.bundle.whisper_base`.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads of one call.
    """

    name = "whisper-base"
    width = WIDTH

    def __init__(self, model_dir: Path, *, device: str = "cpu", threads: int = 1) -> None:
        # float32 on a CPU: features must be the same in training and in conversion, wherever they run.
        compute = "float32" if device == "cpu" else "float16"
        self._model = ctranslate2.models.Whisper(
            str(model_dir), device=device, compute_type=compute, intra_threads=threads, inter_threads=1
        )
        self._mel = FeatureExtractor()

    def encode(self, samples: Floats) -> Floats:
        """Features ``[ceil(len(samples) / 320), 512]``; frame i is centred at sample ``320 * i``."""
        frames = -(-len(samples) // FRAME_SAMPLES)
        if frames == 0:
            return np.zeros((0, WIDTH), np.float32)
        padded = np.pad(samples, (0, max(frames, _MIN_FRAMES) * FRAME_SAMPLES - len(samples)))
        parts: list[Floats] = []
        for first, last in window_spans(frames):
            begin = max(first - _MARGIN_FRAMES, 0)
            end = min(last + _MARGIN_FRAMES, max(frames, _MIN_FRAMES))
            features = self._encode_window(padded[begin * FRAME_SAMPLES : end * FRAME_SAMPLES])
            parts.append(features[first - begin : last - begin])
        return np.concatenate(parts)

    def _encode_window(self, samples: Floats) -> Floats:
        mel = self._mel(samples, padding=0)
        wanted = 2 * (len(samples) // FRAME_SAMPLES)
        view = ctranslate2.StorageView.from_array(np.ascontiguousarray(mel[None, :, :wanted], np.float32))
        output = self._model.encode(view, to_cpu=True)
        features: Floats = np.asarray(output, dtype=np.float32)[0]
        return features


def window_spans(frames: int) -> list[tuple[int, int]]:
    """The spans of frames that each window answers for: they tile ``0..frames`` without overlap.

    A window sees its span and one second more on either side, 30 s at most.
    """
    if frames <= _WINDOW_FRAMES:
        return [(0, frames)]
    step = _WINDOW_FRAMES - 2 * _MARGIN_FRAMES
    windows = -(-frames // step)
    # Equal spans: no last window of a few frames without context.
    edges = [round(frames * index / windows) for index in range(windows + 1)]
    return list(itertools.pairwise(edges))
