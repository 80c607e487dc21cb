"""Where somebody speaks: Silero's network, and WebRTC's older detector beside it.

Silero runs from the ONNX file in the ``silero-vad`` package, straight through onnxruntime: importing that
package itself would load torch, which a measuring service has no other use for.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import webrtcvad
from numpy.typing import NDArray

from services.common.errors import internal

VOICE_RATE_HZ = 16_000
FRAME_SAMPLES = 512
"""Silero judges 32 ms at a time at 16 kHz."""

_CONTEXT_SAMPLES = 64
_BLOCK_FRAMES = 512
_MODEL_FILE = "silero_vad_16k_sequence.onnx"

Samples = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class VoiceThresholds:
    """When a probability becomes speech; Silero's own defaults (``get_speech_timestamps``)."""

    start: float = 0.5
    stop: float = 0.35
    min_speech_s: float = 0.25
    min_silence_s: float = 0.1
    pad_s: float = 0.03


def voice_probabilities(samples: Samples) -> Samples:
    """Silero's probability of speech for each 32 ms.

    Args:
        samples: mono float32 at 16 kHz, shape [samples].

    Returns:
        float32, shape [ceil(samples / 512)], each in 0..1. The last frame is padded with zeros.
    """
    count = -(-samples.size // FRAME_SAMPLES)
    if count == 0:
        return np.zeros(0, dtype=np.float32)
    session = _session()
    padded = np.zeros(_CONTEXT_SAMPLES + count * FRAME_SAMPLES, dtype=np.float32)
    padded[_CONTEXT_SAMPLES : _CONTEXT_SAMPLES + samples.size] = samples
    # Each frame is led by the 64 samples before it, the first by zeros.
    windows = np.lib.stride_tricks.sliding_window_view(padded, _CONTEXT_SAMPLES + FRAME_SAMPLES)
    windows = windows[::FRAME_SAMPLES]
    hidden = cell = np.zeros((1, 1, 128), dtype=np.float32)
    out: list[Samples] = []
    for start in range(0, count, _BLOCK_FRAMES):
        block = np.ascontiguousarray(windows[start : start + _BLOCK_FRAMES])
        inputs = {"input": block, "h": hidden, "c": cell}
        values, hidden, cell = session.run(["speech_probs", "hn", "cn"], inputs)
        out.append(np.asarray(values, dtype=np.float32).reshape(-1))
    return np.concatenate(out)


def speech_segments(
    probabilities: Samples, duration_s: float, thresholds: VoiceThresholds | None = None
) -> tuple[tuple[float, float], ...]:
    """Stretches of speech, from frame probabilities.

    A stretch starts at ``start`` and ends where the probability stays under ``stop`` for
    ``min_silence_s``; shorter ones than ``min_speech_s`` are dropped and the rest padded by ``pad_s``
    without overlap. The rules are silero-vad's ``get_speech_timestamps_from_probs``.

    Returns:
        (start_s, end_s) pairs, rising, within 0..duration_s.
    """
    limits = thresholds or VoiceThresholds()
    frame_s = FRAME_SAMPLES / VOICE_RATE_HZ
    found: list[tuple[float, float]] = []
    begun: float | None = None
    lull: float | None = None
    for index, probability in enumerate(probabilities):
        now = index * frame_s
        if probability >= limits.start:
            lull = None
            begun = now if begun is None else begun
        elif begun is not None and probability < limits.stop:
            lull = now if lull is None else lull
            if now - lull >= limits.min_silence_s:
                found.append((begun, lull))
                begun = lull = None
        # Between the two thresholds nothing changes, and a lull goes on counting.
    if begun is not None:
        found.append((begun, duration_s))
    kept = [(start, end) for start, end in found if end - start > limits.min_speech_s]
    return _padded(kept, duration_s, limits.pad_s)


def _padded(
    segments: list[tuple[float, float]], duration_s: float, pad_s: float
) -> tuple[tuple[float, float], ...]:
    out: list[tuple[float, float]] = []
    for index, (start, end) in enumerate(segments):
        before = segments[index - 1][1] if index else -2 * pad_s
        after = segments[index + 1][0] if index + 1 < len(segments) else duration_s + 2 * pad_s
        out.append(
            (
                max(0.0, start - min(pad_s, (start - before) / 2)),
                min(duration_s, end + min(pad_s, (after - end) / 2)),
            )
        )
    return tuple(out)


def webrtc_ratio(samples: Samples, aggressiveness: int = 2) -> float:
    """Share of 30 ms frames that WebRTC's detector calls voice; it takes steady noise for voice.

    Args:
        samples: mono float32 at 16 kHz.
        aggressiveness: 0 to 3, the detector's own scale.

    Returns:
        0..1; 0 where there is less than one frame.
    """
    frame = VOICE_RATE_HZ * 30 // 1000
    count = samples.size // frame
    if count == 0:
        return 0.0
    detector = webrtcvad.Vad(aggressiveness)
    voiced = 0
    for start in range(0, count * frame, frame):
        steps = np.clip(samples[start : start + frame] * 32767.0, -32768, 32767).astype(np.int16)
        voiced += bool(detector.is_speech(steps.tobytes(), VOICE_RATE_HZ))
    return voiced / count


@functools.cache
def _session() -> onnxruntime.InferenceSession:
    # find_spec locates a top-level package without running it.
    spec = importlib.util.find_spec("silero_vad")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    path = next((Path(folder) / "data" / _MODEL_FILE for folder in folders), None)
    if path is None or not path.is_file():
        raise internal(f"the silero-vad package with data/{_MODEL_FILE} is not installed")
    options = onnxruntime.SessionOptions()
    # The network is small: more threads only take cores from the next request.
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), sess_options=options, providers=["CPUExecutionProvider"])
