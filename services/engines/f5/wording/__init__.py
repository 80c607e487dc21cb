"""Text as it is to be said: a team's lexicons applied, numbers and what goes with them in words.

Pure functions. What is not understood stays as it is written; nothing is ever left out. What the weights'
vocabulary lacks is reported elsewhere (``services.engines.f5.text``). ``docs/reference/text.md`` says what is
read in which language.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from typing import Final

from services.common.jobs.tasks import Pronunciation
from services.common.pronouncing import Pronouncer
from services.engines.f5.wording.amounts import Amounts
from services.engines.f5.wording.facts import FACTS
from services.engines.f5.wording.moments import Moments
from services.engines.f5.wording.numbers import numbers_of
from services.engines.f5.wording.signs import Counts, Signs

__all__ = ["spoken"]

# Addresses and telephone numbers are read by nobody as numbers and dates.
_ADDRESS: Final = re.compile(
    r"(?:[a-zA-Z][a-zA-Z0-9+.-]*://|www\.)\S+|[^\s@]{1,64}@[^\s@.]{1,64}\.\S+|\+[0-9][0-9 ()/-]{5,24}[0-9]"
)
_NOTHING_TO_SAY: Final = re.compile(r"[0-9%‰°№]|[^\W\d_]\.|[$€£¥₽§]|\b(?:Mme|Mlle|Mmes|Dr|Pr|cca)\b")


def spoken(text: str, language: str, *, verbatim: bool, pronunciations: Iterable[Pronunciation]) -> str:
    """A text as it is to be said.

    Args:
        text: as it is written.
        language: BCP-47; with a language that is not known, or none, numbers stay as they are.
        verbatim: leaves numbers and the like as they are; the lexicons still apply.
        pronunciations: of lexicons, the first that has a word first. What they say is taken as it stands.
    """
    entries = tuple(pronunciations)
    if not entries:
        return text if verbatim else _worded(text, language)
    return "".join(
        piece if said or verbatim else _worded(piece, language)
        for piece, said in Pronouncer(entries).split(text)
    )


def _worded(text: str, language: str) -> str:
    # Most lines of most scripts have nothing of all this.
    if not _NOTHING_TO_SAY.search(text):
        return text
    readers = _readers(language)
    if not readers:
        return text
    parts, start = [], 0
    for address in _ADDRESS.finditer(text):
        parts += [_read(text[start : address.start()], readers), address[0]]
        start = address.end()
    return "".join([*parts, _read(text[start:], readers)])


Reader = Callable[[str], str]


def _read(text: str, readers: tuple[Reader, ...]) -> str:
    for reader in readers:
        text = reader(text)
    return text


@functools.lru_cache(maxsize=64)
def _readers(language: str) -> tuple[Reader, ...]:
    """What is done to a text, in this order: each step finds what those before it left."""
    numbers = numbers_of(language.replace("_", "-"))
    if numbers is None:
        return ()
    amounts, counts = Amounts(numbers), Counts(numbers)
    if numbers.language not in FACTS:
        return (amounts.read, counts.read)
    signs, moments = Signs(numbers), Moments(numbers)
    return (
        signs.abbreviations,
        moments.read,
        signs.ordinals,
        amounts.read,
        signs.years,
        counts.read,
    )
