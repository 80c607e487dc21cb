"""How a team's lexicons are matched: whole words, the longest first, the first lexicon that has one.

A grapheme with a capital beyond its first letter (``NASA``, ``iOS``) is matched as it is written, any other
whatever its capitals. Both sides are compared in composed form (Unicode NFC).
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from services.common.errors import FieldViolation
from services.common.jobs.tasks import Pronunciation

MAX_ENTRIES: Final = 10_000
MAX_CHARACTERS: Final = 200
MAX_BYTES: Final = 3_000_000
"""Of all entries of a lexicon together, in UTF-8: it travels in one message."""

_SHOWN: Final = 20
# Where a word may begin, roughly: _begins judges.
_CANDIDATE: Final = re.compile(r"(?<!\w)\w|[^\w\s]")


def matches_exactly(grapheme: str) -> bool:
    """Whether a grapheme's capitals count."""
    return any(char.isupper() for char in grapheme[1:])


def key_of(grapheme: str) -> tuple[bool, str]:
    """What two graphemes that are one and the same word have in common."""
    composed = unicodedata.normalize("NFC", grapheme)
    exact = matches_exactly(composed)
    return exact, composed if exact else composed.lower()


def faults(entries: Sequence[tuple[str, str]], *, field: str) -> list[FieldViolation]:
    """What is wrong with the entries of a lexicon, (grapheme, alias) each; up to twenty of them."""
    if len(entries) > MAX_ENTRIES:
        return [FieldViolation(field, f"has at most {MAX_ENTRIES} words, not {len(entries)}")]
    size_bytes = sum(len(grapheme.encode()) + len(alias.encode()) for grapheme, alias in entries)
    if size_bytes > MAX_BYTES:
        return [FieldViolation(field, f"has at most {MAX_BYTES} bytes in all, not {size_bytes}")]
    found: list[FieldViolation] = []
    seen: dict[tuple[bool, str], int] = {}
    for number, (grapheme, alias) in enumerate(entries):
        for part, text in (("grapheme", grapheme), ("alias", alias)):
            if wrong := _wrong_with(text):
                found.append(FieldViolation(f"{field}[{number}].{part}", wrong))
        first = seen.setdefault(key_of(grapheme), number)
        if first != number:
            found.append(
                FieldViolation(
                    f"{field}[{number}].grapheme", f"{grapheme[:40]!r} is there already, at {first}"
                )
            )
        if len(found) >= _SHOWN:
            break
    return found[:_SHOWN]


def _wrong_with(text: str) -> str:
    if not any(unicodedata.category(char)[0] in "LNPS" for char in text):
        return "is empty"
    if len(text) > MAX_CHARACTERS:
        return f"has at most {MAX_CHARACTERS} characters, not {len(text)}"
    if text != text.strip():
        return "begins or ends with a space"
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in text):
        return "holds a control character"
    return ""


@dataclass(frozen=True, slots=True)
class _Entry:
    rank: int
    pronunciation: Pronunciation


class Pronouncer:
    """Finds the words of lexicons in texts.

    Args:
        entries: the first lexicon's first; of two for one word, the first counts.
    """

    def __init__(self, entries: Sequence[Pronunciation]) -> None:
        self._entries: dict[tuple[bool, str], _Entry] = {}
        lengths: dict[str, set[int]] = {}
        for rank, entry in enumerate(entries):
            exact, word = key_of(entry.grapheme)
            if word:
                self._entries.setdefault((exact, word), _Entry(rank, entry))
                lengths.setdefault(word[0].lower(), set()).add(len(word))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}

    @property
    def entries(self) -> tuple[Pronunciation, ...]:
        """Each word once, in order."""
        return tuple(entry.pronunciation for entry in self._entries.values())

    def split(self, text: str) -> Iterator[tuple[str, bool]]:
        """The text in pieces: (as it is written, False), or (as a lexicon says it, True)."""
        if not self._entries:
            yield text, False
            return
        composed = unicodedata.normalize("NFC", text)
        start = 0
        for at, length, entry in self._find(composed):
            if at > start:
                yield composed[start:at], False
            yield entry.alias, True
            start = at + length
        if start < len(composed):
            yield composed[start:], False

    def needed(self, text: str) -> tuple[Pronunciation, ...]:
        """The entries that :meth:`split` uses for this text, in their order: no other matters to it."""
        if not self._entries:
            return ()
        found = self._find(unicodedata.normalize("NFC", text))
        ranks = {key_of(entry.grapheme): entry for _, _, entry in found}
        return tuple(sorted(ranks.values(), key=lambda entry: self._entries[key_of(entry.grapheme)].rank))

    def _find(self, text: str) -> Iterator[tuple[int, int, Pronunciation]]:
        lowered = text.lower()
        if len(lowered) != len(text):
            # A few letters are longer in lower case; each stands for itself then.
            lowered = "".join(low if len(low := char.lower()) == 1 else char for char in text)
        end = 0
        for candidate in _CANDIDATE.finditer(text):
            at = candidate.start()
            lengths = self._lengths.get(lowered[at])
            if lengths is None or at < end or not _begins(text, at):
                continue
            length, entry = self._longest(text, lowered, at, lengths)
            if entry is not None:
                yield at, length, entry
                end = at + length

    def _longest(
        self, text: str, lowered: str, at: int, lengths: Sequence[int]
    ) -> tuple[int, Pronunciation | None]:
        for length in lengths:
            end = at + length
            if end > len(text) or not _ends(text, end):
                continue
            exact = self._entries.get((True, text[at:end]))
            loose = self._entries.get((False, lowered[at:end]))
            found = [entry for entry in (exact, loose) if entry is not None]
            if found:
                return length, min(found, key=lambda entry: entry.rank).pronunciation
        return 0, None


def _begins(text: str, at: int) -> bool:
    """Whether a word may begin here: not within a word, nor within a number such as 1.5."""
    if at == 0:
        return True
    before, here = text[at - 1], text[at]
    if here.isdigit() and before in ".,:" and at > 1 and text[at - 2].isdigit():
        return False
    return not (_wordly(before) and _wordly(here))


def _ends(text: str, end: int) -> bool:
    if end == len(text):
        return True
    last, after = text[end - 1], text[end]
    if last.isdigit() and after in ".,:" and end + 1 < len(text) and text[end + 1].isdigit():
        return False
    return not (_wordly(last) and _wordly(after))


@functools.lru_cache(maxsize=4096)
def _wordly(char: str) -> bool:
    """Whether a character is of a word: a letter, a digit, or a mark on one."""
    return char == "_" or unicodedata.category(char)[0] in "LMN"
