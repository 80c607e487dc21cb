"""Which stretch of a recording a voice can speak from: some seconds of whole sentences with their words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from services.common.jobs.tasks import TimedWord

LEAST_S = 2.0
BEST_S = 9.0
MOST_S = 11.0
_GAP_S = 1.0
"""A longer silence parts two stretches."""
_BREATH_S = 0.15
_ENDS_CLAUSE = re.compile(r"[.!?…。！？][\"'”’»)\]]*$")


@dataclass(frozen=True, slots=True)
class Stretch:
    """Words that follow one another, with their times in the recording, and where to cut it around them."""

    words: tuple[TimedWord, ...]
    start_s: float
    end_s: float

    @property
    def text(self) -> str:
        """What is said in it."""
        return " ".join(word.text.strip() for word in self.words)


def best_stretch(words: Sequence[TimedWord], duration_s: float) -> Stretch | None:
    """The stretch to speak from: near 9 s, at most 11, of whole sentences where it can be.

    Args:
        words: of the recording, in order.
        duration_s: of the recording.

    Returns:
        None where no 2 s are spoken without a pause of a second.
    """
    best: tuple[float, int, int] | None = None
    for first, word in enumerate(words):
        for last in range(first, len(words)):
            length_s = words[last].end_s - word.start_s
            if length_s > MOST_S or (last > first and words[last].start_s - words[last - 1].end_s > _GAP_S):
                break
            if length_s < LEAST_S:
                continue
            begins = first == 0 or _ends(words, first - 1)
            # A sentence that is whole is worth two seconds of length.
            worth = min(length_s, BEST_S) + 2.0 * begins + 2.0 * _ends(words, last)
            if best is None or worth > best[0]:
                best = (worth, first, last)
    if best is None:
        return None
    _, first, last = best
    before_s = words[first - 1].end_s if first else 0.0
    after_s = words[last + 1].start_s if last + 1 < len(words) else duration_s
    start_s, end_s = words[first].start_s, words[last].end_s
    # A breath keeps the outer sounds whole; half of a pause is never the next word.
    return Stretch(
        tuple(words[first : last + 1]),
        max(start_s - min(_BREATH_S, max(start_s - before_s, 0.0) / 2), 0.0),
        min(end_s + min(_BREATH_S, max(after_s - end_s, 0.0) / 2), duration_s),
    )


def _ends(words: Sequence[TimedWord], number: int) -> bool:
    """Whether a sentence ends with a word."""
    if _ENDS_CLAUSE.search(words[number].text.strip()):
        return True
    return number + 1 == len(words) or words[number + 1].start_s - words[number].end_s > _GAP_S
