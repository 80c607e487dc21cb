"""Whether the weights in use can read what a reference clip's transcript says."""

from __future__ import annotations

import unicodedata

from services.common.errors import Reason, invalid
from services.inference.calls import EngineFacts
from services.inference.languages import speakers

# Typographic forms that F5's reader turns into plain ones before it looks them up.
_FOLDED = frozenset(";“”‘’")


def check_transcript(text: str, language: str, facts: EngineFacts | None, *, field: str) -> None:
    """Refuses a transcript with characters that the weights which would read it do not know.

    Chinese characters are read through their pinyin and are judged when they are spoken. Where no replica
    is ready, so is everything.

    Args:
        text: the transcript.
        language: BCP-47, of the voice; the default weights read what is in none that any speak.
        facts: of a replica.
        field: that the text stands in.

    Errors: UNSUPPORTED_CHARACTERS with ``characters`` and ``count``.
    """
    if facts is None:
        return
    speaking = next(iter(speakers(language, facts) or facts.speaking), None)
    if speaking is None or not speaking.characters:
        return
    unknown = dict.fromkeys(
        char
        for char in unicodedata.normalize("NFC", text)
        if char not in speaking.characters and char not in _FOLDED and not _unspoken(char) and not _han(char)
    )
    if unknown:
        shown = " ".join(list(unknown)[:40])
        raise invalid(
            Reason.UNSUPPORTED_CHARACTERS,
            f"the weights {speaking.weights.label} do not know {len(unknown)} character(s) of it: {shown}",
            field=field,
            user_message=f"The transcript has characters that cannot be spoken: {shown}",
            characters=shown,
            count=len(unknown),
        )


def _unspoken(char: str) -> bool:
    return unicodedata.category(char)[0] in "ZC"


def _han(char: str) -> bool:
    return unicodedata.name(char, "").startswith("CJK UNIFIED IDEOGRAPH")
