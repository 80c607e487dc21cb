"""Whisper's encoder as a source of content features: what is said, with little of who says it."""

from __future__ import annotations

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
CORE_FRAMES = 25
MARGIN_FRAMES = 25
_EDGE_FRAMES = 1
"""Where the spectrogram's own window overhangs a block; cut off again."""
_WINDOW_FRAMES = CORE_FRAMES + 2 * MARGIN_FRAMES
_BATCH_WINDOWS = 16
_BLOCK_WINDOWS = 4 * _BATCH_WINDOWS


class WhisperEncoder:
    """Features ``[frames, 512]`` at 50 Hz from 16 kHz audio, of any length, in bounded memory.

    The audio goes through in windows of 1.5 s, of which the middle half second is kept. Whisper's
    features say where in its window a sound is, almost as loudly as what it is: on real speech the
    same frame at two places of a 30 s window has a cosine of 0.44, of which 0.12 is there between any
    two frames; at two places of this half second it has 0.91. A voice trained on slices of 4 s could
    not follow features of whole recordings.

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
        windows = -(-frames // CORE_FRAMES)
        margin = (MARGIN_FRAMES + _EDGE_FRAMES) * FRAME_SAMPLES
        tail = windows * CORE_FRAMES * FRAME_SAMPLES - len(samples)
        padded = np.pad(samples, (margin, tail + margin))
        parts = [np.zeros((0, WIDTH), np.float32)]
        for first in range(0, windows, _BLOCK_WINDOWS):
            last = min(first + _BLOCK_WINDOWS, windows)
            begin, end = first * CORE_FRAMES, last * CORE_FRAMES + 2 * (MARGIN_FRAMES + _EDGE_FRAMES)
            parts.extend(self._encode_block(padded[begin * FRAME_SAMPLES : end * FRAME_SAMPLES]))
        return np.concatenate(parts)[:frames]

    def _encode_block(self, samples: Floats) -> list[Floats]:
        """The middles of every window of up to half a minute."""
        # Two columns of the mel spectrogram a frame.
        edge = 2 * _EDGE_FRAMES
        mel = np.asarray(self._mel(samples, padding=0), dtype=np.float32)[:, edge:-edge]
        views = np.lib.stride_tricks.sliding_window_view(mel, 2 * _WINDOW_FRAMES, axis=1)
        windows = views[:, :: 2 * CORE_FRAMES].transpose(1, 0, 2)
        middles: list[Floats] = []
        for first in range(0, len(windows), _BATCH_WINDOWS):
            # A copy: CTranslate2 takes neither views with strides nor read-only memory.
            batch = np.array(windows[first : first + _BATCH_WINDOWS], order="C")
            output = self._model.encode(ctranslate2.StorageView.from_array(batch), to_cpu=True)
            features = np.asarray(output, dtype=np.float32)
            middle = features[:, MARGIN_FRAMES : MARGIN_FRAMES + CORE_FRAMES]
            middles.append(middle.reshape(-1, WIDTH))
        return middles
