"""Recordings to training slices: rumble out, silence out, 3.7 s pieces (upstream ``preprocess.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.common.errors import Reason, invalid
from services.engines.rvc.audio import (
    CONTENT_RATE_HZ,
    Floats,
    frame_levels,
    high_pass,
    mono,
    resample,
)
from services.engines.rvc.stopping import ShouldStop, never, stopped

SILENCE_DB = -42.0
PIECE_S = 3.7
OVERLAP_S = 0.3
PEAK = 0.9
_PEAK_SHARE = 0.75
"""How far a piece's peak moves towards ``PEAK``: all the way would make whispers as loud as shouts."""
_FRAME_S = 0.015
_WINDOW_S = 0.06
_MIN_SILENCE_S = 0.4
_KEPT_SILENCE_S = 0.25
_MIN_SPEECH_S = 0.3
_MIN_PEAK = 1e-3


@dataclass(frozen=True, slots=True)
class Slice:
    """A piece of a recording that training sees whole.

    Args:
        samples: ``[n]`` at the model's rate.
        samples_16k: the same sound for the content encoder and F0.
        clip: which recording of the request it is from.
        start_s: where in that recording.
    """

    samples: Floats
    samples_16k: Floats
    clip: int
    start_s: float


def prepare(
    clips: Sequence[NDArray[np.floating]],
    rate_hz: int,
    model_rate_hz: int,
    *,
    should_stop: ShouldStop = never,
) -> list[Slice]:
    """Cut recordings, all of one rate, into slices.

    A recording is scaled to a peak of 0.9 before it is cut at -42 dB: without that a quiet one
    would be taken for silence.

    Raises:
        VoxfleetError: ``AUDIO_SILENT`` where nothing is louder than the threshold, ``CANCELLED``.
    """
    slices: list[Slice] = []
    for number, clip in enumerate(clips):
        if should_stop():
            raise stopped("preparing audio")
        samples = high_pass(resample(mono(clip), rate_hz, model_rate_hz), model_rate_hz)
        peak = float(np.abs(samples).max())
        if peak < _MIN_PEAK:
            continue
        samples = samples * np.float32(PEAK / peak)
        for first, last in speech_spans(samples, model_rate_hz):
            for begin, end in piece_spans(last - first, model_rate_hz):
                piece = level_peak(samples[first + begin : first + end])
                slices.append(
                    Slice(
                        piece,
                        resample(piece, model_rate_hz, CONTENT_RATE_HZ),
                        number,
                        (first + begin) / model_rate_hz,
                    )
                )
    if not slices:
        raise invalid(
            Reason.AUDIO_SILENT,
            f"no recording holds {_MIN_SPEECH_S} s of sound above {SILENCE_DB:.0f} dB; record again, closer",
            field="clips",
        )
    return slices


def speech_spans(samples: Floats, rate_hz: int) -> list[tuple[int, int]]:
    """Sample ranges between silences of 0.4 s and more; a quarter of a second of silence is kept on."""
    hop = round(_FRAME_S * rate_hz)
    levels = frame_levels(samples, round(_WINDOW_S * rate_hz), hop)
    loud = np.flatnonzero(levels > 10 ** (SILENCE_DB / 20))
    if loud.size == 0:
        return []
    breaks = np.flatnonzero(np.diff(loud) > round(_MIN_SILENCE_S / _FRAME_S))
    firsts = np.concatenate([loud[:1], loud[breaks + 1]])
    lasts = np.concatenate([loud[breaks], loud[-1:]])
    kept = round(_KEPT_SILENCE_S * rate_hz)
    spans: list[tuple[int, int]] = []
    for first, last in zip(firsts, lasts, strict=True):
        if (last + 1 - first) * _FRAME_S < _MIN_SPEECH_S:
            # A click or a breath.
            continue
        begin = max(int(first) * hop - kept, spans[-1][1] if spans else 0)
        spans.append((begin, min(int(last + 1) * hop + kept, len(samples))))
    return spans


def piece_spans(length: int, rate_hz: int) -> list[tuple[int, int]]:
    """Cut ``length`` samples into pieces of 3.7 s that overlap by 0.3 s; the last may reach 4.0 s."""
    piece, step = round(PIECE_S * rate_hz), round((PIECE_S - OVERLAP_S) * rate_hz)
    tail = round((PIECE_S + OVERLAP_S) * rate_hz)
    spans: list[tuple[int, int]] = []
    begin = 0
    while length - begin > tail:
        spans.append((begin, begin + piece))
        begin += step
    return [*spans, (begin, length)]


def level_peak(samples: Floats) -> Floats:
    """Move the peak three quarters of the way to 0.9."""
    peak = float(np.abs(samples).max())
    if peak == 0.0:
        return samples
    return samples * np.float32(_PEAK_SHARE * PEAK / peak + (1 - _PEAK_SHARE))
