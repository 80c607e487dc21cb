"""Texts of the lengths that subtitles have.

``subtitle_lengths.json`` counts the lines of a given length (UTF-8 bytes) among the 1,869 English lines of
dialogue of the game "Fish Fillets NG" (Debian's ``fillets-ng-data`` 1.0.1): lengths only, no text of it.
"""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

_LENGTHS = Path(__file__).with_name("subtitle_lengths.json")
_STORY = (
    "the harbour was quiet when she came back and nobody asked where the others had gone so late in the year"
    " because it had rained for days and every road to the old mill stood under water again"
)
_WORDS = _STORY.split()
_LEAST_BYTES = 4


def subtitle_lengths(count: int, seed: int) -> list[int]:
    """So many lengths in bytes, drawn from those of real lines."""
    counted: list[tuple[int, int]] = json.loads(_LENGTHS.read_text(encoding="utf-8"))
    lengths, weights = zip(*counted, strict=True)
    drawn: list[int] = random.Random(seed).choices(lengths, weights=weights, k=count)  # noqa: S311 - a sample
    return drawn


def subtitle_texts(count: int, seed: int) -> list[str]:
    """So many texts of those lengths, to the byte."""
    return [text_of(length, start) for start, length in enumerate(subtitle_lengths(count, seed))]


def text_of(size_bytes: int, start: int = 0) -> str:
    """A sentence of exactly so many bytes (at least 4), beginning at some word."""
    size_bytes = max(size_bytes, _LEAST_BYTES)
    words = itertools.cycle(_WORDS)
    text = " ".join(itertools.islice(words, start % len(_WORDS), start % len(_WORDS) + size_bytes))
    return f"{text[: size_bytes - 1].rstrip():e<{size_bytes - 1}}."
