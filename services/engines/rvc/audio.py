"""Sample arrays: resampling and filtering, on mono float32."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from services.common.errors import Reason, invalid
from services.common.media import resample as media

Floats = NDArray[np.float32]

CONTENT_RATE_HZ = 16_000
"""What content encoders and F0 methods listen at."""
HIGH_PASS_HZ = 48.0


def mono(samples: NDArray[np.floating]) -> Floats:
    """Check and copy to ``[n]`` float32: the mean of the channels of ``[channels, n]``.

    Raises:
        VoxfleetError: ``INVALID_FORMAT`` for other shapes and for NaN or infinity, ``AUDIO_EMPTY``.
    """
    array = np.array(samples, dtype=np.float32)
    if array.ndim == 2:
        array = array.mean(axis=0, dtype=np.float32)
    if array.ndim != 1:
        raise invalid(
            Reason.INVALID_FORMAT, f"audio has {array.ndim} axes, expected samples or channels by samples"
        )
    if array.size == 0:
        raise invalid(Reason.AUDIO_EMPTY, "the audio has no samples")
    if not np.isfinite(array).all():
        raise invalid(Reason.INVALID_FORMAT, "the audio holds NaN or infinite samples")
    return array


def resample(samples: Floats, rate_hz: int, target_hz: int) -> Floats:
    """Band-limited resampling to exactly ``round(n * target / rate)`` samples."""
    if rate_hz == target_hz:
        return samples
    wanted = resampled_length(len(samples), rate_hz, target_hz)
    return fit_length(media.resample(samples, rate_hz, target_hz), wanted)


def resampled_length(samples: int, rate_hz: int, target_hz: int) -> int:
    """Samples at ``target_hz`` of as long a sound, rounded half up."""
    return (2 * samples * target_hz + rate_hz) // (2 * rate_hz)


def fit_length(samples: Floats, wanted: int) -> Floats:
    """Cut, or pad with zeros, to ``wanted`` samples."""
    return np.pad(samples[:wanted], (0, max(wanted - len(samples), 0))).astype(np.float32, copy=False)


def high_pass(samples: Floats, rate_hz: int) -> Floats:
    """Remove rumble below 48 Hz: Butterworth, order 5, forwards and backwards so that no phase moves."""
    if len(samples) < 2:
        return samples
    padding = min(len(samples) - 1, rate_hz // 10)
    filtered = signal.sosfiltfilt(_butterworth(rate_hz), samples, padlen=padding)
    return np.asarray(filtered, dtype=np.float32)


@functools.lru_cache(maxsize=16)
def _butterworth(rate_hz: int) -> NDArray[np.float64]:
    return np.asarray(signal.butter(5, HIGH_PASS_HZ, "highpass", fs=rate_hz, output="sos"), np.float64)


def frame_levels(samples: Floats, window: int, hop: int) -> NDArray[np.float64]:
    """Root mean square of ``window`` samples around every multiple of ``hop``: ``ceil(n / hop)`` values."""
    count = -(-len(samples) // hop)
    energy = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    centres = np.arange(count) * hop
    first = np.clip(centres - window // 2, 0, len(samples))
    last = np.clip(centres + window - window // 2, 0, len(samples))
    power = np.maximum(energy[last] - energy[first], 0.0) / np.maximum(last - first, 1)
    return np.asarray(np.sqrt(power), dtype=np.float64)
