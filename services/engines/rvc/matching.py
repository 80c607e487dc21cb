"""By how much a source's pitch is moved so that it comes to lie where a voice speaks.

Only the pitch that the model is given is moved: the formants are the voice's own, whatever the shift.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.common.jobs.model import PitchMatch
from services.engines.rvc import f0 as pitch
from services.engines.rvc.audio import CONTENT_RATE_HZ, Floats, high_pass, mono, resample
from services.engines.rvc.config import FRAMES_PER_S
from services.engines.rvc.voice import Voice

MOST_SEMITONES = 12.0
RANGE_KEY = "f0_hz"
"""Where a voice's facts of training keep its range."""
_LEAST_VOICED_S = 0.3
_WINDOWS = 6
_WINDOW_S = 10.0


@dataclass(frozen=True, slots=True)
class PitchRange:
    """The pitch of a speaker, in Hz: what a twentieth of the voiced frames is below, the middle, the top."""

    low: float
    median: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """JSON data."""
        return {"low": self.low, "median": self.median, "high": self.high}


def pitch_range(tracks: Iterable[Floats]) -> PitchRange | None:
    """The range of F0 tracks (``[frames]`` at 100 Hz, 0 where unvoiced); None where 0.3 s are not voiced."""
    found = [track[track > 0] for track in tracks]
    voiced = np.concatenate(found) if found else np.zeros(0, np.float32)
    if len(voiced) < _LEAST_VOICED_S * FRAMES_PER_S:
        return None
    low, median, high = np.percentile(voiced, (5, 50, 95))
    return PitchRange(round(float(low), 2), round(float(median), 2), round(float(high), 2))


def voice_range(voice: Voice) -> PitchRange | None:
    """The range that a voice was trained on; None of one that was made before voices knew."""
    found: Any = voice.facts.training.get(RANGE_KEY)
    try:
        known = PitchRange(float(found["low"]), float(found["median"]), float(found["high"]))
    except (TypeError, KeyError, ValueError):
        return None
    return known if 0 < known.low <= known.median <= known.high < math.inf else None


def source_range(
    voice: Voice, samples: np.ndarray[Any, Any], rate_hz: int, f0_method: str | None = None
) -> PitchRange | None:
    """The range of a recording, heard as the voice hears: of a long one in six windows of 10 s.

    Args:
        voice: names the method where none is given.
        samples: ``[n]`` or ``[channels, n]``.
        rate_hz: theirs.
        f0_method: in place of the voice's own.
    """
    whole = mono(samples)
    window = round(_WINDOW_S * rate_hz)
    starts = [0]
    if len(whole) > _WINDOWS * window:
        starts = [round(part * (len(whole) - window) / (_WINDOWS - 1)) for part in range(_WINDOWS)]
    else:
        window = len(whole)
    tracker = pitch.f0_method(f0_method or voice.facts.f0_method, device=voice.device.type)
    tracks = []
    for start in starts:
        heard = high_pass(resample(whole[start : start + window], rate_hz, CONTENT_RATE_HZ), CONTENT_RATE_HZ)
        tracks.append(tracker.track(heard, max(len(heard) * FRAMES_PER_S // CONTENT_RATE_HZ, 1)))
    return pitch_range(tracks)


def match(source: PitchRange | None, target: PitchRange | None, *, beside: float = 0.0) -> PitchMatch:
    """Whole semitones from one median to the other, an octave at most; none where either is not known.

    Args:
        source: of the recording.
        target: of the voice.
        beside: semitones that are asked for besides; both together are at most two octaves.

    Returns:
        The semitones to move by, and both medians; 0 for one that is not known.
    """
    source_hz, voice_hz = (known.median if known is not None else 0.0 for known in (source, target))
    if not source_hz or not voice_hz:
        return PitchMatch(0.0, source_hz, voice_hz)
    exact = 12.0 * math.log2(voice_hz / source_hz)
    semitones = float(round(min(max(exact, -MOST_SEMITONES), MOST_SEMITONES)))
    low, high = -2 * MOST_SEMITONES - beside, 2 * MOST_SEMITONES - beside
    return PitchMatch(min(max(semitones, low), high), source_hz, voice_hz)
