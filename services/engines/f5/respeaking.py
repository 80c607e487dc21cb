"""When what was said in a recording is said again: its words in phrases, each with a slot of its own.

Pure: words with their times in, slots in samples out. How long a text takes at least is asked of the
caller, who knows the voice; nothing here knows a network.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.common.errors import Reason, VoxfleetError, invalid
from services.common.jobs.tasks import TimedWord
from services.common.limits import MAX_RESPOKEN_S

"""The longest recording that is spoken anew."""
PAUSE_S = 0.35
"""A silence of this length parts two phrases."""
LONGEST_S = 12.0
"""Of a phrase: F5 speaks no longer in one go beside a reference of usual length."""
SENTENCE_S = 1.0
"""A sentence that ends sooner takes the next one with it where no pause parts them: it may be `Dr.`."""
FADE_S = 0.008

_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’»)\]」』]*$")
_CLAUSE_END = re.compile(r"[,;:—–，；：、][\"'”’»)\]」』]*$")
# Written without spaces: Thai, Lao, Burmese, Khmer, kana, bopomofo, Han. Hangul has spaces.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3001-\u30ff\u3100-\u312f\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff01-\uff9f\U00020000-\U0003134f]"
)
# What a recogniser parts from the word that it belongs to: `re` `-entered`, `l` `'ordine`.
_JOINED = tuple("-'’%,.;:!?)]}…")

Samples = NDArray[np.float32]
Words = tuple[TimedWord, ...]
Least = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Phrase:
    """What is spoken in one go, and when.

    Args:
        words: as they were said.
        text: the words as one text.
        first: the first sample of its slot.
        last: one past the last.
    """

    words: Words
    text: str
    first: int
    last: int

    @property
    def samples(self) -> int:
        """The slot's length."""
        return self.last - self.first


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where a group of words could be spoken, and how many samples that takes at least."""

    first: int
    last: int
    least: int

    @property
    def missing(self) -> int:
        return max(0, self.least - (self.last - self.first))


def phrases(words: Sequence[TimedWord], samples: int, rate_hz: int, least: Least) -> tuple[Phrase, ...]:
    """The phrases of a recording, in order, with slots that do not overlap.

    A slot is the time in which its words were said. Where they cannot be said so fast it takes of the
    pause after it, then of the pause before it; where that is not enough the phrase is spoken together with
    one beside it that has time to spare.

    Args:
        words: what was said, in order; what has no letter or digit is not spoken and left out.
        samples: of the recording.
        rate_hz: samples a second.
        least: how many samples a text takes when it is spoken as fast as can be.

    Raises:
        VoxfleetError: SLOT_TOO_SHORT with ``phrase``, ``start_s``, ``duration_s``, ``min_s``, ``max_s``.
    """
    least = functools.cache(least)
    groups = _groups(_tidied(words, samples / rate_hz))
    while True:
        slots = _laid(groups, samples, rate_hz, least)
        short = next((index for index, slot in enumerate(slots) if slot.missing), None)
        if short is None:
            return tuple(
                Phrase(group, text_of(group), slot.first, slot.last)
                for group, slot in zip(groups, slots, strict=True)
            )
        partner = _partner(groups, short, least, rate_hz)
        if partner is None:
            raise _too_short(groups[short], slots[short], rate_hz)
        groups[partner : partner + 2] = [groups[partner] + groups[partner + 1]]


def assemble(phrased: Sequence[tuple[Phrase, Samples]], samples: int, rate_hz: int) -> Samples:
    """A track of exactly ``samples`` with every phrase in its slot and silence between.

    Args:
        phrased: phrases with their audio, [samples]; what is longer than its slot is cut off.
        samples: of the track.
        rate_hz: of all of them.
    """
    track = np.zeros(samples, dtype=np.float32)
    for phrase, audio in phrased:
        kept = audio[: max(0, min(phrase.samples, samples - phrase.first))].astype(np.float32)
        fade = min(round(FADE_S * rate_hz), len(kept) // 2)
        rising = np.linspace(0.0, 1.0, fade, endpoint=False, dtype=np.float32)
        kept[:fade] *= rising
        kept[len(kept) - fade :] *= rising[::-1]
        track[phrase.first : phrase.first + len(kept)] = kept
    return track


def text_of(words: Sequence[TimedWord]) -> str:
    """The words as one text, with spaces where their script has them."""
    text = ""
    for word in words:
        piece = word.text.strip()
        glued = not text or piece.startswith(_JOINED) or _unspaced(text[-1], piece[:1])
        text += piece if glued else f" {piece}"
    return text


def _unspaced(before: str, after: str) -> bool:
    return bool(_UNSPACED.match(before) and _UNSPACED.match(after))


def _tidied(words: Sequence[TimedWord], duration_s: float) -> list[TimedWord]:
    """What can be spoken, one after another and within the recording, whatever a recogniser says."""
    found: list[TimedWord] = []
    before_s = 0.0
    for word in words:
        if not any(char.isalnum() for char in word.text):
            continue
        start_s = min(max(word.start_s, before_s), duration_s)
        end_s = min(max(word.end_s, start_s), duration_s)
        found.append(word.model_copy(update={"start_s": start_s, "end_s": end_s}))
        before_s = end_s
    return found


def _groups(words: Sequence[TimedWord]) -> list[Words]:
    """The words, parted at pauses and at the ends of sentences, and where a group would be too long."""
    groups: list[list[TimedWord]] = []
    for word in words:
        if groups and not _ends(groups[-1], word):
            groups[-1].append(word)
        else:
            groups.append([word])
    return [part for group in groups for part in _of_bearable_length(tuple(group))]


def _ends(group: Sequence[TimedWord], following: TimedWord) -> bool:
    last = group[-1]
    if following.start_s - last.end_s >= PAUSE_S:
        return True
    return bool(_SENTENCE_END.search(last.text)) and last.end_s - group[0].start_s >= SENTENCE_S


def _of_bearable_length(group: Words) -> list[Words]:
    waiting, done = [group], []
    while waiting:
        part = waiting.pop()
        if len(part) == 1 or _span_s(part) <= LONGEST_S:
            done.append(part)
            continue
        cut = max(range(1, len(part)), key=lambda at: _fitness(part, at))
        waiting += [part[cut:], part[:cut]]
    return done


def _fitness(group: Words, at: int) -> float:
    """How good a place to cut is: at a breath or a clause's end, near the middle."""
    before, after = group[at - 1], group[at]
    middle_s = (group[0].start_s + group[-1].end_s) / 2
    off = abs((before.end_s + after.start_s) / 2 - middle_s) / _span_s(group)
    breath = min((after.start_s - before.end_s) / PAUSE_S, 1.0)
    clause = 1.0 if _CLAUSE_END.search(before.text) or _SENTENCE_END.search(before.text) else 0.0
    return 0.3 * breath + 0.3 * clause - 2.0 * off


def _span_s(group: Sequence[TimedWord]) -> float:
    return group[-1].end_s - group[0].start_s


def _laid(groups: Sequence[Words], samples: int, rate_hz: int, least: Least) -> list[_Slot]:
    """The slots, each with as much of the pauses around it as it needs and can have."""
    starts = [min(round(group[0].start_s * rate_hz), samples) for group in groups]
    ends = [min(round(group[-1].end_s * rate_hz), samples) for group in groups]
    slots: list[_Slot] = []
    before = 0
    for group, first, last, limit in zip(groups, starts, ends, [*starts, samples][1:], strict=True):
        wanted = least(text_of(group))
        if last - first < wanted:
            last = min(first + wanted, limit)  # noqa: PLW2901
        if last - first < wanted:
            first = max(before, last - wanted)  # noqa: PLW2901
        slots.append(_Slot(first, last, wanted))
        before = last
    return slots


def _partner(groups: Sequence[Words], short: int, least: Least, rate_hz: int) -> int | None:
    """Which group is best joined with the one after it, for the short one to fit; None where none can be."""
    spare: dict[int, float] = {}
    for index in (short - 1, short):
        if 0 <= index < len(groups) - 1:
            joined = groups[index] + groups[index + 1]
            if _span_s(joined) <= LONGEST_S:
                spare[index] = _span_s(joined) * rate_hz - least(text_of(joined))
    return max(spare, key=spare.__getitem__, default=None)


def _too_short(group: Words, slot: _Slot, rate_hz: int) -> VoxfleetError:
    text = text_of(group)
    shown = text if len(text) <= 80 else f"{text[:79]}…"
    start_s, available_s = slot.first / rate_hz, (slot.last - slot.first) / rate_hz
    # Rounded up, so that what is offered is enough.
    min_s = math.ceil(slot.least / rate_hz * 100) / 100
    return invalid(
        Reason.SLOT_TOO_SHORT,
        f"“{shown}”, at {start_s:.1f} s, takes this voice between {min_s:g} and {MAX_RESPOKEN_S:g} s; "
        f"the recording has {available_s:.2f} s for it: use a voice whose reference is spoken faster, "
        "or a slower one",
        field="audio",
        user_message=f"The voice cannot say this as fast as the recording does: {shown}",
        phrase=shown,
        start_s=f"{start_s:.3f}",
        duration_s=f"{available_s:.3f}",
        min_s=min_s,
        max_s=MAX_RESPOKEN_S,
    )
