"""What is said in a recording, and when: Whisper over the stretches in which somebody speaks.

Whisper finds words in noise, in music and in long silence that nobody said. So Silero's detector says
first where there is speech, and only that is read, in stretches of a few sentences: between two of them
the work can be stopped, and what is invented in one cannot run on into the next.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from faster_whisper.vad import VadOptions, get_speech_timestamps
from numpy.typing import NDArray

from services.common.errors import Reason, invalid
from services.common.jobs.tasks import TimedWord
from services.common.media.resample import resample
from services.engines.whisper.alignment import silences, timed
from services.engines.whisper.asr import RATE_HZ, Recogniser, whisper_language

STRETCH_S = 15.0
"""What is read in one go, which nothing can stop: seconds of work on a CPU."""
_GAP_S = 3.0
_EDGE_S = 0.2
_VOICED = VadOptions(min_silence_duration_ms=300, speech_pad_ms=50, max_speech_duration_s=STRETCH_S)

Samples = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Heard:
    """The words of a recording, in order, with times in seconds, and their language (ISO 639-1)."""

    words: tuple[TimedWord, ...]
    language: str


def listen(
    recogniser: Recogniser,
    samples: Samples,
    rate_hz: int,
    *,
    language: str = "",
    check: Callable[[str], None] = lambda _: None,
    advance: Callable[[float], None] = lambda _: None,
) -> Heard:
    """What is said in a recording.

    Args:
        recogniser: who listens.
        samples: [samples].
        rate_hz: theirs.
        language: BCP-47; heard in the longest stretch where empty, or where Whisper does not know it.
        check: told the language as soon as it is known; may raise.
        advance: told the share that is done, 0 to 1, between stretches; may raise.

    Raises:
        VoxfleetError: SPEECH_NOT_HEARD where nobody says a word.
    """
    audio = resample(samples, rate_hz, RATE_HZ)
    spans = get_speech_timestamps(audio, _VOICED, sampling_rate=RATE_HZ) if len(audio) else []
    voiced = [(int(span["start"]), int(span["end"])) for span in spans]
    parts = stretches(voiced, len(audio))
    spoken = whisper_language(recogniser, language)
    if spoken is not None:
        check(spoken)
    total, done = sum(last - first for first, last in parts), 0
    found: dict[int, tuple[TimedWord, ...]] = {}
    # The longest first: it tells the language best.
    for first, last in sorted(parts, key=lambda part: part[0] - part[1]):
        advance(done / total)
        heard = recogniser.transcribe(audio[first:last], spoken, timed=True)
        if spoken is None and heard.words:
            spoken = heard.language
            check(spoken)
        quiet = silences(audio[first:last], RATE_HZ)
        words = timed(heard.text, heard.words, (last - first) / RATE_HZ, quiet)
        found[first] = tuple(_later(word, first / RATE_HZ) for word in words)
        done += last - first
    words = tuple(itertools.chain.from_iterable(found[first] for first in sorted(found)))
    if not words:
        raise invalid(
            Reason.SPEECH_NOT_HEARD,
            "nobody is heard to say a word in the recording: there is nothing to speak anew",
            field="audios",
            user_message="No words were heard in the recording.",
            voiced_s=f"{sum(last - first for first, last in voiced) / RATE_HZ:.2f}",
        )
    return Heard(words, spoken or "")


def stretches(spans: Sequence[tuple[int, int]], samples: int) -> list[tuple[int, int]]:
    """Spans of speech, joined to stretches of up to 15 s where short pauses part them.

    Args:
        spans: (first, one past the last) sample at 16 kHz, in order.
        samples: of the recording.

    Returns:
        the same for each stretch; its edges take up to 0.2 s of the silence around it, and never overlap.
    """
    joined: list[tuple[int, int]] = []
    for first, last in spans:
        near = joined and first - joined[-1][1] <= _GAP_S * RATE_HZ
        if near and last - joined[-1][0] <= STRETCH_S * RATE_HZ:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    edge = round(_EDGE_S * RATE_HZ)
    middles = [(before[1] + after[0]) // 2 for before, after in itertools.pairwise(joined)]
    bounds = itertools.pairwise([0, *middles, samples])
    return [
        (max(first - edge, low), min(last + edge, high))
        for (first, last), (low, high) in zip(joined, bounds, strict=False)
    ]


def _later(word: TimedWord, by_s: float) -> TimedWord:
    return word.model_copy(update={"start_s": word.start_s + by_s, "end_s": word.end_s + by_s})
