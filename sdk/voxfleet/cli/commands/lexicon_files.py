"""The files that lexicons are made of: CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from voxfleet.client.errors import InvalidArgument

_HEADINGS = {("grapheme", "alias"), ("word", "alias"), ("word", "spelling")}


def read_entries(source: str) -> dict[str, str]:
    """The words of a file, or of standard input for ``-``, each with its spelling. Raises InvalidArgument."""
    text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8-sig")
    return parse_entries(text)


def parse_entries(text: str) -> dict[str, str]:
    """The words that CSV or JSON describes, told apart by their first character. Raises InvalidArgument."""
    pairs = _from_json(text) if text.lstrip()[:1] in ("{", "[") else _from_csv(text)
    entries: dict[str, str] = {}
    for where, word, said in pairs:
        if word in entries:
            raise _wrong(f"{where}: {word!r} is there already")
        entries[word] = said
    if not entries:
        raise _wrong("there are no words in it")
    return entries


def _from_csv(text: str) -> Iterator[tuple[str, str, str]]:
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        for number, row in enumerate(reader):
            cells = [cell.strip() for cell in row]
            if not any(cells) or (number == 0 and tuple(map(str.lower, cells)) in _HEADINGS):
                continue
            if len(cells) != 2:
                raise _wrong(
                    f"line {reader.line_num} has {len(cells)} columns; a word and its spelling are 2"
                )
            yield f"line {reader.line_num}", cells[0], cells[1]
    except csv.Error as error:
        raise _wrong(f"line {reader.line_num}: {error}") from error


def _from_json(text: str) -> Iterator[tuple[str, str, str]]:
    try:
        found = json.loads(text, object_pairs_hook=_pairs)
    except ValueError as error:
        raise _wrong(str(error)) from error
    if isinstance(found, _Object) and "entries" in (fields := dict(found.pairs)):
        # As `voxfleet lexicon show --json` prints it.
        found = fields["entries"]
    rows: Iterable[Any] = found.pairs if isinstance(found, _Object) else found
    for number, row in enumerate(rows):
        fields = dict(row.pairs) if isinstance(row, _Object) else {}
        word, said = (fields.get("grapheme"), fields.get("alias")) if fields else _two(row)
        if not isinstance(word, str) or not isinstance(said, str):
            raise _wrong(f'entry {number} is neither "word": "spelling" nor {{"grapheme", "alias"}}')
        yield f"entry {number}", word, said


class _Object:
    """A JSON object with its keys in order, those that come twice included."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        self.pairs = pairs


def _pairs(pairs: list[tuple[str, Any]]) -> _Object:
    return _Object(pairs)


def _two(row: object) -> tuple[Any, Any]:
    return (row[0], row[1]) if isinstance(row, list | tuple) and len(row) == 2 else (None, None)


def _wrong(what: str) -> InvalidArgument:
    return InvalidArgument(f"cannot read the lexicon: {what}", reason="INVALID_ARGUMENT")
