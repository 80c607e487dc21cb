"""How far apart two texts are: what was to be said, and what was heard."""

from __future__ import annotations

import re
import unicodedata

from rapidfuzz.distance import Levenshtein

_APOSTROPHE = re.compile(r"(?<=\w)['’ʼ](?=\w)")
_NOT_SPOKEN = re.compile(r"[\W_]+")
UNSPACED = (
    "[\u3040-\u30ff\u3100-\u312f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003134f]"
)
"""A character of a script that is written without spaces (kana, bopomofo, Han): each counts as a word."""
_UNSPACED = re.compile(f"({UNSPACED})")


def normalise(text: str) -> str:
    """Lower case, without punctuation, apostrophes within words dropped, single spaces.

    Combining marks belong to the letter before them and stay.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    joined = _APOSTROPHE.sub("", folded)
    spoken = "".join(char if unicodedata.category(char)[0] == "M" else _spaced(char) for char in joined)
    return " ".join(spoken.split())


def words_in(text: str) -> list[str]:
    """The normalised words; of Chinese and Japanese, which have no spaces, the characters."""
    return _UNSPACED.sub(r" \1 ", normalise(text)).split()


def word_error_rate(reference: str, hypothesis: str) -> float:
    """Insertions, deletions and substitutions per word of the reference; may exceed 1.

    Both texts pass :func:`words_in` first. An empty reference gives 0 against an empty hypothesis,
    otherwise the number of words in the hypothesis.
    """
    expected, got = words_in(reference), words_in(hypothesis)
    return Levenshtein.distance(expected, got) / max(len(expected), 1)


def character_error_rate(reference: str, hypothesis: str) -> float:
    """The same per character, spaces left out: a word that is nearly right counts as nearly right."""
    expected, got = "".join(words_in(reference)), "".join(words_in(hypothesis))
    return Levenshtein.distance(expected, got) / max(len(expected), 1)


def _spaced(char: str) -> str:
    return _NOT_SPOKEN.sub(" ", char)
