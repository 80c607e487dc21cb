"""Text as F5 reads it: cleaned, tokenised, checked against the vocabulary, and cut into chunks.

F5's own code maps a character that it does not know to the space and says nothing, and speaks past
30 s without sense. Here the first is an error that lists the characters, and the second is prevented.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.common.errors import Reason, invalid
from services.common.limits import MAX_TEXT
from services.engines.bundles.manifest import corrupt
from services.engines.f5 import upstream

_REPORTED = 40
_SPACES = re.compile(r"\s+")
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’»)\]]*\s+|(?<=[。！？])[”’」』）]*")
_CLAUSE_END = re.compile(r"(?<=[,;:—–])\s+|(?<=[，；：、])")
# As f5-tts translates them before it looks them up (f5_tts/model/utils.py).
_TRANSLATED = str.maketrans({";": ",", "“": '"', "”": '"', "‘": "'", "’": "'"})


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens that a set of F5 weights knows, by index.

    Args:
        indices: token to index; the space is 0, which F5 also uses for what it does not know.
    """

    indices: dict[str, int]

    @classmethod
    def from_file(cls, path: Path) -> Vocabulary:
        """Read ``vocab.txt``: one token a line, in order; the official file's lines end in CRLF.

        Raises:
            VoxfleetError: MODEL_CORRUPT where it cannot be a vocabulary of F5.
        """
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise corrupt(path.parent.name, path.name, f"it cannot be read ({error})") from error
        if lines and lines[-1] == "":
            lines.pop()
        if not lines or lines[0] != " ":
            raise corrupt(
                path.parent.name, path.name, "its first token is not the space, which F5 needs at index 0"
            )
        return cls({token: index for index, token in enumerate(lines)})

    def __len__(self) -> int:
        return len(self.indices)

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """The tokens' indices.

        Raises:
            VoxfleetError: UNSUPPORTED_CHARACTERS with metadata ``characters`` (each once, in order)
                and ``count``.
        """
        tokens = list(tokens)
        unknown = list(dict.fromkeys(token for token in tokens if token not in self.indices))
        if unknown:
            shown = " ".join(unknown[:_REPORTED])
            raise invalid(
                Reason.UNSUPPORTED_CHARACTERS,
                f"this voice's weights do not know {len(unknown)} character(s) of the text: {shown}",
                field="text",
                user_message=f"The text has characters that this voice cannot speak: {shown}",
                characters=shown,
                count=len(unknown),
            )
        return [self.indices[token] for token in tokens]


def clean(text: str) -> str:
    """The text with composed characters, single spaces and nothing invisible."""
    composed = unicodedata.normalize("NFC", text)
    spaced = _SPACES.sub(" ", composed)
    visible = (
        char for char in spaced if char == " " or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co")
    )
    return "".join(visible).strip()


def checked(text: str, *, max_characters: int = MAX_TEXT, field: str = "text") -> str:
    """The cleaned text, if there is something in it to speak and not too much.

    Raises:
        VoxfleetError: TEXT_EMPTY, or TEXT_TOO_LONG with metadata ``characters`` and ``max_characters``.
    """
    # Before cleaning, so that a huge text costs nothing.
    if len(text) > max_characters:
        raise invalid(
            Reason.TEXT_TOO_LONG,
            f"{field} has {len(text)} characters; at most {max_characters} are spoken in one request",
            field=field,
            characters=len(text),
            max_characters=max_characters,
        )
    cleaned = clean(text)
    if not any(unicodedata.category(char)[0] in "LN" for char in cleaned):
        raise invalid(Reason.TEXT_EMPTY, f"{field} has no letter or digit to speak", field=field)
    return cleaned


def reference_text(text: str) -> str:
    """A reference clip's transcript with the ending that F5 wants before the new text begins.

    From ``preprocess_ref_audio_text`` in ``f5_tts/infer/utils_infer.py``.
    """
    if text.endswith("。"):
        return text
    return text + (" " if text.endswith(".") else ". ")


def tokens(prompt: str, text: str) -> list[str]:
    """The tokens of a reference's transcript and the text to speak after it, as one."""
    return upstream.tokens_of([prompt + text])[0]


def unknown_characters(vocabulary: Vocabulary, text: str) -> tuple[str, ...]:
    """The text's tokens that the vocabulary lacks, each once, in order."""
    found = upstream.tokens_of([clean(text)])[0]
    return tuple(dict.fromkeys(token for token in found if token not in vocabulary.indices))


def size_of(text: str) -> int:
    """The text's length in UTF-8 bytes, which F5's durations are linear in."""
    return len(text.translate(_TRANSLATED).encode())


def chunks(text: str, max_bytes: int) -> list[str]:
    """Cut a text into as few pieces of at most ``max_bytes`` as there can be, at the best places.

    Sentence ends first, then clause ends, then spaces, then between characters. Nothing but white
    space at the cuts is lost. The pieces are of like size where the text allows it: F5 speaks a
    remnant of two words badly.
    """
    pieces = _pieces(text.strip(), max_bytes, (_SENTENCE_END, _CLAUSE_END, _SPACES))
    whole = _joined(pieces, max_bytes)
    even = sum(size_of(piece) for _, piece in whole) / max(1, len(whole))
    for limit in (max_bytes * share // 8 for share in range(1, 8)):
        balanced = _joined(pieces, limit) if limit >= even else []
        if len(balanced) == len(whole):
            return [piece for _, piece in balanced]
    return [piece for _, piece in whole]


def growing_chunks(text: str, limits: Sequence[int], least_bytes: int) -> list[str]:
    """Cut a text into chunks of which each may be longer than the one before, for a stream.

    Sentences stay whole where they fit into the last limit; only the first is cut at a clause's end where
    it is longer than the first limit, since somebody waits for it. Nothing but white space at the cuts is
    lost.

    Args:
        text: what to cut.
        limits: bytes of each chunk in turn, rising; the last holds for all further ones.
        least_bytes: a chunk of less takes what follows, and at the end goes with what is before.
    """
    units: list[tuple[str, str]] = []
    for gap, sentence in _cut(text.strip(), _SENTENCE_END):
        whole = _joined(_pieces(sentence, limits[-1], (_CLAUSE_END, _SPACES)), limits[-1])
        units += [(gap, whole[0][1]), *whole[1:]]
    if units and size_of(units[0][1]) > limits[0]:
        clauses = _joined(_cut(units[0][1], _CLAUSE_END), limits[0])
        units[:1] = [clauses[0], (clauses[1][0], _text_of(clauses[1:]))] if clauses[1:] else clauses
    found: list[tuple[str, str]] = []
    for gap, piece in units:
        limit = limits[min(len(found), len(limits)) - 1] if found else 0
        last = found[-1][1] if found else ""
        if found and (size_of(last) < least_bytes or size_of(last + gap + piece) <= limit):
            found[-1] = (found[-1][0], last + gap + piece)
        else:
            found.append((gap, piece))
    if len(found) > 1 and size_of(found[-1][1]) < least_bytes:
        gap, piece = found.pop()
        found[-1] = (found[-1][0], found[-1][1] + gap + piece)
    return [piece for _, piece in found]


def _text_of(pieces: Sequence[tuple[str, str]]) -> str:
    """The pieces as one, without the white space before the first."""
    return pieces[0][1] + "".join(gap + piece for gap, piece in pieces[1:])


def _pieces(text: str, max_bytes: int, cuts: Sequence[re.Pattern[str]]) -> list[tuple[str, str]]:
    """(piece, the white space before it), each piece within the limit."""
    if size_of(text) <= max_bytes:
        return [("", text)] if text else []
    if not cuts:
        return [("", part) for part in _split_characters(text, max_bytes)]
    pieces: list[tuple[str, str]] = []
    for gap, part in _cut(text, cuts[0]):
        inner = _joined(_pieces(part, max_bytes, cuts[1:]), max_bytes)
        if inner:
            pieces.append((gap, inner[0][1]))
            pieces.extend(inner[1:])
    return pieces


def _cut(text: str, boundary: re.Pattern[str]) -> list[tuple[str, str]]:
    """(white space before, part) for the parts between the boundaries; closing marks stay in front."""
    parts, start, gap = [], 0, ""
    for match in boundary.finditer(text):
        marks = match.group().rstrip()
        end = match.start() + len(marks)
        if end > start:
            parts.append((gap, text[start:end]))
        gap, start = match.group()[len(marks) :], match.end()
    if start < len(text):
        parts.append((gap, text[start:]))
    return parts


def _split_characters(text: str, max_bytes: int) -> list[str]:
    parts, current = [], ""
    for char in text:
        if current and size_of(current + char) > max_bytes:
            parts.append(current)
            current = ""
        current += char
    return [*parts, current] if current else parts


def _joined(pieces: Sequence[tuple[str, str]], max_bytes: int) -> list[tuple[str, str]]:
    joined: list[tuple[str, str]] = []
    for gap, piece in pieces:
        if joined and size_of(joined[-1][1] + gap + piece) <= max_bytes:
            joined[-1] = (joined[-1][0], joined[-1][1] + gap + piece)
        else:
            joined.append((gap, piece))
    return joined
