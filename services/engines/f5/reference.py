"""A reference clip as F5 wants it: mono, 24 kHz, tight, at most 12 s, at −20 dBFS, with its transcript.

Follows ``preprocess_ref_audio_text`` and ``infer_batch_process`` in ``f5_tts/infer/utils_infer.py``
in the levels and lengths, with two differences: silence is judged against the clip's own loudness,
so that a quiet recording is not all silence; and a clip that is cut takes its transcript with it,
where upstream keeps the whole transcript and the voice then stumbles over the words that are gone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soxr
from numpy.typing import NDArray

from services.common.errors import Reason, invalid
from services.common.jobs.tasks import TimedWord
from services.common.media.silence import FRAME_S, SILENT_DBFS, audible, frame_levels, silent_runs
from services.engines.f5 import text as f5_text

RATE_HZ = 24_000
MAX_S = 12.0
MIN_S = 1.0
TARGET_RMS = 0.1

_TAIL_S = 0.05
_CUT_FROM_S = 6.0
_PAUSE_S = 0.1
_BREATH_S = 0.1
_CLAUSE = re.compile(r"(?<=[.!?…,;:])\s+|(?<=[。！？，；：、])")
_WORD = re.compile(r"\s+")
_ENDS_CLAUSE = re.compile(r"[.!?…,;:。！？，；：、][\"'”’»)\]」』）]*$")

Samples = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ReferenceClip:
    """A prepared clip.

    Args:
        id: the caller's name for it; two clips of one id must be the same.
        audio: [samples] at 24 kHz, at −20 dBFS RMS or louder, float32.
        text: the transcript of exactly this audio, ending as F5 needs.
        gain: what the clip was multiplied by; outputs are divided by it, to sound as loud as the clip.
        cut: whether the clip was longer than F5 takes and was cut at a pause.
    """

    id: str
    audio: Samples
    text: str
    gain: float
    cut: bool

    @property
    def duration_s(self) -> float:
        """The prepared clip's length."""
        return len(self.audio) / RATE_HZ


def prepare(
    reference_id: str,
    audio: Samples,
    rate_hz: int,
    transcript: str,
    *,
    words: Sequence[TimedWord] | None = None,
    max_s: float = MAX_S,
) -> ReferenceClip:
    """Prepare a clip.

    Args:
        reference_id: the caller's name for it.
        audio: [samples] or [channels, samples], full scale 1.0.
        rate_hz: its sample rate.
        transcript: what is said in it.
        words: the transcript's words with their times in the clip as it was given, where known; a long
            clip is then cut between two words exactly, and otherwise at the pause that fits a clause's
            end in the transcript.
        max_s: the longest clip that is kept whole.

    Raises:
        VoxfleetError: AUDIO_EMPTY, AUDIO_SILENT, AUDIO_TOO_SHORT (``duration_s``, ``min_s``);
            AUDIO_TOO_LONG where a long clip has no pause that fits its transcript; TEXT_EMPTY or
            TEXT_TOO_LONG for the transcript.
    """
    transcript = f5_text.checked(transcript, field="reference_text")
    mono, levels, (start, end) = _sound(audio, rate_hz)
    cut = (end - start) * FRAME_S > max_s
    if cut:
        first = start + round(min(_CUT_FROM_S, max_s / 2) / FRAME_S)
        window = _Window(start, end, first, start + round(max_s / FRAME_S))
        end, transcript = _cut(levels, window, transcript, words)
        _check_length((end - start) * FRAME_S)
    frame = round(FRAME_S * RATE_HZ)
    speech = mono[start * frame : end * frame]
    rms = float(np.sqrt(np.mean(np.square(speech, dtype=np.float64))))
    # Upstream raises quiet clips and leaves loud ones as they are.
    gain = max(1.0, TARGET_RMS / rms)
    tail = np.zeros(round(_TAIL_S * RATE_HZ), dtype=np.float32)
    prepared = np.concatenate([speech * np.float32(gain), tail])
    return ReferenceClip(reference_id, prepared, f5_text.reference_text(transcript), gain, cut)


def check_sound(audio: Samples, rate_hz: int) -> None:
    """Whether there is enough sound in a clip for it to be a reference, whatever is said in it.

    Args:
        audio: [samples] or [channels, samples], full scale 1.0.
        rate_hz: its sample rate.

    Raises:
        VoxfleetError: AUDIO_EMPTY, AUDIO_SILENT, AUDIO_TOO_SHORT, INVALID_FORMAT.
    """
    _sound(audio, rate_hz)


def _sound(audio: Samples, rate_hz: int) -> tuple[Samples, NDArray[np.float64], tuple[int, int]]:
    """(the clip at 24 kHz, the level of every 10 ms, the first and one past the last that is no silence)."""
    mono = _mono(audio)
    if mono.size == 0 or rate_hz <= 0:
        raise invalid(Reason.AUDIO_EMPTY, "the reference clip has no samples", field="reference_audio")
    if not np.isfinite(mono).all():
        raise invalid(
            Reason.INVALID_FORMAT, "the reference clip holds NaN or infinity", field="reference_audio"
        )
    if rate_hz != RATE_HZ:
        mono = soxr.resample(mono, rate_hz, RATE_HZ, quality="HQ").astype(np.float32)
    levels = frame_levels(mono, RATE_HZ)
    start, end = _speech_span(levels)
    _check_length((end - start) * FRAME_S)
    return mono, levels, (start, end)


def _mono(audio: Samples) -> Samples:
    samples = np.asarray(audio, dtype=np.float32)
    if samples.ndim == 2:
        samples = samples.mean(axis=0, dtype=np.float32)
    if samples.ndim != 1:
        raise invalid(
            Reason.INVALID_FORMAT,
            f"the reference clip must be [samples] or [channels, samples], not {samples.ndim}-dimensional",
            field="reference_audio",
        )
    return samples


def _speech_span(levels: NDArray[np.float64]) -> tuple[int, int]:
    """(first, one past the last) frame that is not silence."""
    loudest = float(levels.max()) if levels.size else -np.inf
    if levels.size and loudest < SILENT_DBFS:
        raise invalid(
            Reason.AUDIO_SILENT,
            f"the reference clip is silent (its loudest 10 ms are at {loudest:.0f} dBFS)",
            field="reference_audio",
            level_dbfs=round(loudest, 1),
        )
    heard = np.flatnonzero(audible(levels))
    return (int(heard[0]), int(heard[-1]) + 1) if heard.size else (0, 0)


def _check_length(duration_s: float) -> None:
    if duration_s < MIN_S:
        raise invalid(
            Reason.AUDIO_TOO_SHORT,
            f"the reference clip has {duration_s:.2f} s of sound; F5 needs {MIN_S:g} s, better 6 to 12",
            field="reference_audio",
            duration_s=round(duration_s, 3),
            min_s=MIN_S,
        )


# ---- cutting a long clip


@dataclass(frozen=True, slots=True)
class _Window:
    """Frames: the speech from ``start`` to ``end``, to be cut between ``first`` and ``last``."""

    start: int
    end: int
    first: int
    last: int


def _cut(
    levels: NDArray[np.float64], window: _Window, transcript: str, words: Sequence[TimedWord] | None
) -> tuple[int, str]:
    """(one past the last frame kept, the transcript of what is kept)."""
    found = _cut_by_words(words, window, transcript) if words else _cut_by_pauses(levels, window, transcript)
    if found is None:
        duration_s = (window.end - window.start) * FRAME_S
        max_s = (window.last - window.start) * FRAME_S
        raise invalid(
            Reason.AUDIO_TOO_LONG,
            f"the reference clip has {duration_s:.1f} s of sound; F5 takes {max_s:g} s, and no pause before "
            "that fits the end of a clause in its transcript: give a shorter clip with its own transcript",
            field="reference_audio",
            duration_s=round(duration_s, 3),
            max_s=round(max_s, 3),
        )
    return found


def _cut_by_words(words: Sequence[TimedWord], window: _Window, transcript: str) -> tuple[int, str] | None:
    """After the last clause that ends in time, or else the last word."""
    in_time = [
        number for number, word in enumerate(words) if window.first <= _frame_at(word.end_s) <= window.last
    ]
    if not in_time:
        return None
    clauses = [number for number in in_time if _ENDS_CLAUSE.search(words[number].text)]
    last = (clauses or in_time)[-1]
    end_s = words[last].end_s
    if last + 1 < len(words):
        # A breath of what follows keeps the last sound whole; half of the pause is never the next word.
        end_s = min(end_s + _BREATH_S, (end_s + max(words[last + 1].start_s, end_s)) / 2)
    return min(_frame_at(end_s), window.last), _up_to_word(transcript, words, last)


def _frame_at(at_s: float) -> int:
    return round(at_s / FRAME_S)


def _up_to_word(transcript: str, words: Sequence[TimedWord], last: int) -> str:
    """The beginning of the transcript, through a word; spaced as it is there, if its words are there."""
    end = 0
    for word in words[: last + 1]:
        at = transcript.find(word.text, end)
        if at < 0:
            return " ".join(each.text.strip() for each in words[: last + 1])
        end = at + len(word.text)
    return transcript[:end]


def _cut_by_pauses(levels: NDArray[np.float64], window: _Window, transcript: str) -> tuple[int, str] | None:
    """At the latest pause whose place in the speech is that of a clause's (or a word's) end in the text.

    Speech is taken to run evenly over the transcript's bytes, pauses left out.
    """
    heard = audible(levels)[: window.end]
    spoken = np.concatenate([[0], np.cumsum(heard[window.start :])])
    total_bytes = f5_text.size_of(transcript)
    best: tuple[int, str] | None = None
    for pause_start, pause_end in _pauses(heard, window):
        share = float(spoken[pause_start - window.start]) / float(spoken[-1])
        for boundary, tolerance_s in ((_CLAUSE, 1.0), (_WORD, 0.15)):
            text = _ending_near(transcript, boundary, share * total_bytes)
            error_s = abs(f5_text.size_of(text) / total_bytes - share) * float(spoken[-1]) * FRAME_S
            if text and error_s <= tolerance_s:
                best = (min((pause_start + pause_end) // 2, window.last), text)
                break
    return best


def _pauses(heard: NDArray[np.bool_], window: _Window) -> list[tuple[int, int]]:
    """(first frame, one past the last) of the silences of at least 100 ms that begin in the window."""
    runs = silent_runs(heard, _PAUSE_S)
    return [(first, last) for first, last in runs if window.first <= first <= window.last]


def _ending_near(transcript: str, boundary: re.Pattern[str], target_bytes: float) -> str:
    """The beginning of the transcript, up to the boundary whose place is nearest to ``target_bytes``."""
    candidates = [transcript[: match.start()].rstrip() for match in boundary.finditer(transcript)]
    return min(candidates, key=lambda text: abs(f5_text.size_of(text) - target_bytes), default="")
