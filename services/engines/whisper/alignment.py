"""When each word of a known text is said: Whisper's words and their times, laid over the text's own.

The text is the truth and Whisper only the clock: what it misheard, left out, split or joined still gets
a time. Both sides are compared as letters (edit distance), so that "re-entered" meets "reentered" and
"PBX" meets "P.B.X."; between letters that agree, time runs evenly over what lies there. Words are then
moved out of silence, into which Whisper lets them begin early and end late.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

from services.common.jobs.tasks import TimedWord
from services.common.media.resample import resample
from services.common.media.silence import FRAME_S, audible, frame_levels, silent_runs
from services.engines.whisper.asr import RATE_HZ, Recogniser, whisper_language
from services.engines.whisper.scoring import UNSPACED, words_in

_ANCHOR_LETTERS = 3
_PAUSE_S = 0.08
_SLIVER_S = 0.05
_LONG_PAUSE_S = 0.2
_LATE_S = 0.5
_SHORTEST_S = 0.04
_USUAL_S = 0.3
_TOKEN = re.compile(rf"{UNSPACED}[^\w\s]*|(?:(?!{UNSPACED})\S)+")

Samples = NDArray[np.float32]


def words_of(
    recogniser: Recogniser, samples: Samples, rate_hz: int, text: str, language: str = ""
) -> tuple[TimedWord, ...]:
    """When each word of a text is said.

    Args:
        recogniser: the clock.
        samples: [samples] or [channels, samples].
        rate_hz: theirs.
        text: what is said, as it is written.
        language: BCP-47; detected where empty, or where Whisper does not know it.

    Returns:
        The text's words in order, times in seconds from the first sample, never decreasing, within the
        audio. Something is returned for every word even where nothing was heard: such words share the
        time between their neighbours.
    """
    if samples.ndim == 2:
        samples = samples.mean(axis=0, dtype=np.float32)
    duration_s = len(samples) / rate_hz
    heard = recogniser.hear(
        resample(samples, rate_hz, RATE_HZ), whisper_language(recogniser, language), timed=True
    )
    return timed(text, heard.words, duration_s, silences(samples, rate_hz))


def split(text: str) -> list[str]:
    """The text's words as they are written, with the punctuation at them; a dash alone is no word.

    Of scripts without spaces each character is one.
    """
    return [token for token in _TOKEN.findall(text) if words_in(token)]


def timed(
    text: str,
    heard: Sequence[TimedWord],
    duration_s: float,
    quiet: Sequence[tuple[float, float]] = (),
) -> tuple[TimedWord, ...]:
    """The text's words with times taken from what was heard.

    Args:
        text: what is said.
        heard: what a recogniser heard, in order.
        duration_s: length of the audio.
        quiet: where it is silent: (from, to) in seconds, in order.
    """
    words = split(text)
    if not words:
        return ()
    spans = [_out_of_silence(*span, quiet) for span in _spread(words, heard, duration_s)]
    starts = np.minimum(np.maximum.accumulate([start_s for start_s, _ in spans]), duration_s).tolist()
    found: list[TimedWord] = []
    for word, start_s, (_, end_s), next_s in zip(
        words, starts, spans, [*starts[1:], duration_s], strict=True
    ):
        closed_s = _up_to_silence(start_s, max(start_s, min(end_s, next_s)), next_s, quiet)
        found.append(TimedWord(text=word, start_s=round(start_s, 3), end_s=round(closed_s, 3)))
    return tuple(found)


def silences(samples: Samples, rate_hz: int) -> list[tuple[float, float]]:
    """Where audio is at least 40 dB below its loudest 10 ms for 80 ms or more: (from, to) in seconds."""
    heard = audible(frame_levels(samples, rate_hz))
    return [(first * FRAME_S, last * FRAME_S) for first, last in silent_runs(heard, _PAUSE_S)]


# ---- from letters to times


@dataclass(frozen=True, slots=True)
class _Letters:
    """Words as one run of normalised letters.

    Args:
        text: the letters.
        first: for each word, where its letters begin; one more for the end.
    """

    text: str
    first: list[int]

    @classmethod
    def of(cls, words: Sequence[str]) -> _Letters:
        spelt = ["".join(words_in(word)) for word in words]
        first = [0]
        for word in spelt:
            first.append(first[-1] + len(word))
        return cls("".join(spelt), first)


@dataclass(frozen=True, slots=True)
class _Match:
    """Letters of the text, from ``first`` to before ``last``, and the heard letters that stand for them.

    ``heard`` says whether enough was heard to take the times from; otherwise the letters share the time
    between what was heard before and after.
    """

    first: int
    last: int
    heard_first: int
    heard_last: int
    heard: bool


def _spread(words: Sequence[str], heard: Sequence[TimedWord], duration_s: float) -> list[tuple[float, float]]:
    """(start, end) of each word."""
    wanted, got = _Letters.of(words), _Letters.of([word.text for word in heard])
    begins_s, ends_s = _letter_times(got, heard)
    # Each letter of the text has a beginning and an end of its own: between two words they differ.
    starts, ends = np.zeros(len(wanted.text)), np.zeros(len(wanted.text))
    for match in _matches(wanted, got):
        count = match.last - match.first
        here = slice(match.first, match.last)
        if match.heard:
            edges = np.linspace(match.heard_first, match.heard_last, count + 1)
            opening = np.floor(edges[:-1]).astype(int)
            closing = np.ceil(edges[1:]).astype(int) - 1
            starts[here] = begins_s[opening] + (edges[:-1] - opening) * (ends_s - begins_s)[opening]
            ends[here] = begins_s[closing] + (edges[1:] - closing) * (ends_s - begins_s)[closing]
        else:
            from_s = float(ends_s[match.heard_first - 1]) if match.heard_first else 0.0
            to_s = float(begins_s[match.heard_last]) if match.heard_last < len(begins_s) else duration_s
            edges = np.linspace(from_s, max(to_s, from_s), count + 1)
            starts[here], ends[here] = edges[:-1], edges[1:]
    return [
        (float(starts[first]), float(ends[last - 1]))
        for first, last in zip(wanted.first[:-1], wanted.first[1:], strict=True)
    ]


def _letter_times(
    got: _Letters, heard: Sequence[TimedWord]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """When each heard letter begins and ends: a word's time, evenly."""
    begins_s: list[float] = []
    ends_s: list[float] = []
    for word, first, last in zip(heard, got.first[:-1], got.first[1:], strict=True):
        edges = np.linspace(word.start_s, max(word.end_s, word.start_s), last - first + 1).tolist()
        begins_s += edges[:-1]
        ends_s += edges[1:]
    # Whisper's segments may overlap by a little.
    return np.maximum.accumulate(np.array(begins_s)), np.maximum.accumulate(np.array(ends_s))


def _matches(wanted: _Letters, got: _Letters) -> list[_Match]:
    """The whole text, in order: runs of letters that agree, and what lies between them."""
    matches: list[_Match] = []
    text_at = heard_at = 0
    for anchor in [*_anchors(wanted, got), (len(wanted.text), len(got.text), 0)]:
        text_to, heard_to, letters = anchor
        if text_to > text_at:
            enough = 2 * (heard_to - heard_at) >= text_to - text_at
            matches.append(_Match(text_at, text_to, heard_at, heard_to, enough))
        text_at, heard_at = text_to + letters, heard_to + letters
        if letters:
            matches.append(_Match(text_to, text_at, heard_to, heard_at, heard=True))
    return matches


def _anchors(wanted: _Letters, got: _Letters) -> list[tuple[int, int, int]]:
    """(where in the text, where in what was heard, letters) of what agrees beyond doubt, in order."""
    blocks = [
        (block.src_start, block.dest_start, block.src_end - block.src_start)
        for block in Levenshtein.opcodes(wanted.text, got.text)
        if block.tag == "equal"
    ]
    wanted_edges, got_edges = set(wanted.first), set(got.first)
    # Any two texts share a letter here and there: only a few in a row, or a whole word, mean something.
    trusted = [
        (text_at, heard_at, letters)
        for text_at, heard_at, letters in blocks
        if letters >= _ANCHOR_LETTERS
        or ({text_at, text_at + letters} <= wanted_edges and {heard_at, heard_at + letters} <= got_edges)
    ]
    # Where several shortest edits exist, a run's first letters may have been matched further ahead.
    anchors: list[tuple[int, int, int]] = []
    text_done = heard_done = 0
    for text_from, heard_from, letters in trusted:
        back = 0
        while (
            text_from - back > text_done
            and heard_from - back > heard_done
            and wanted.text[text_from - back - 1] == got.text[heard_from - back - 1]
        ):
            back += 1
        anchors.append((text_from - back, heard_from - back, letters + back))
        text_done, heard_done = text_from + letters, heard_from + letters
    return anchors


def _out_of_silence(
    start_s: float, end_s: float, quiet: Sequence[tuple[float, float]]
) -> tuple[float, float]:
    """The word without the silence that it begins in or runs through.

    Whisper lets a word after a pause begin in the pause, or even in the end of the word before it, and
    words before a pause end early: what follows the silence is the word.
    """
    for from_s, to_s in quiet:
        through = from_s > start_s and to_s - from_s >= _LONG_PAUSE_S and end_s - to_s >= _SLIVER_S
        if through or from_s - _SLIVER_S <= start_s < to_s:
            start_s = to_s
    return start_s, max(start_s, end_s)


def _up_to_silence(
    start_s: float, end_s: float, next_s: float, quiet: Sequence[tuple[float, float]]
) -> float:
    """The word's end: before the first silence in it or shortly after it, and before the next word."""
    for from_s, _ in quiet:
        if from_s > start_s and end_s - _LATE_S <= from_s <= min(end_s + _LATE_S, next_s):
            return from_s
    return min(start_s + _USUAL_S, next_s) if end_s - start_s < _SHORTEST_S else end_s
