"""Tags of files: what provenance is written in, so that it survives every container.

A WAV file can name only the dozen fields of RIFF's INFO list. The rest travel as one JSON object in its
comment, and are put back on reading.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from services.common.media.formats import Container

_RIFF_KEYS = frozenset({"artist", "comment", "copyright", "date", "genre", "language", "title", "track"})
_MARK = "voxfleet_tags"
_BOOKKEEPING = frozenset(
    {"major_brand", "minor_version", "compatible_brands", "handler_name", "vendor_id", "duration"}
)
"""What muxers write for themselves and FFmpeg reports as tags."""


def pack(tags: Mapping[str, str], container: Container) -> dict[str, str]:
    """The tags as the container can hold them; keys become lower case."""
    lower = {key.lower(): value for key, value in tags.items()}
    if container is not Container.WAV or lower.keys() <= _RIFF_KEYS:
        return lower
    named = {key: value for key, value in lower.items() if key in _RIFF_KEYS and key != "comment"}
    folded = {key: value for key, value in lower.items() if key not in named}
    return {**named, "comment": json.dumps({_MARK: folded}, ensure_ascii=False, separators=(",", ":"))}


def unpack(tags: Mapping[str, str]) -> dict[str, str]:
    """The inverse, on tags as they were read from a file."""
    lower = {key.lower(): value for key, value in tags.items() if key.lower() not in _BOOKKEEPING}
    if lower.get("language") == "und":
        del lower["language"]
    comment = lower.get("comment", "")
    if not comment.startswith('{"' + _MARK):
        return lower
    try:
        folded = json.loads(comment)[_MARK]
    except ValueError:
        return lower
    if not isinstance(folded, dict):
        return lower
    del lower["comment"]
    return {**lower, **{str(key): str(value) for key, value in folded.items()}}
