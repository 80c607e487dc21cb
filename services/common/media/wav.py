"""What a WAV file's own header claims, against what the file holds.

FFmpeg reads a WAV to the end of the file and says nothing of a missing half; a cut-short upload must
not pass for a short recording.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

_UNKNOWN_SIZES = frozenset({0, 0x7FFF_F000, 0xFFFF_FFFF})
"""Sizes that writers to a pipe leave, having no way back to the header (0x7FFFF000 is sox's)."""
_SLACK_BYTES = 1024
"""Writers miscount by a header or a padding byte; that is not a truncation."""


@dataclass(frozen=True, slots=True)
class WavLayout:
    """Where the samples are: ``declared_bytes`` is None where the writer left the size open."""

    declared_bytes: int | None
    present_bytes: int
    bytes_per_s: int

    @property
    def truncated(self) -> bool:
        """Whether samples that the header declares are missing."""
        return self.declared_bytes is not None and self.declared_bytes > self.present_bytes + _SLACK_BYTES

    @property
    def duration_s(self) -> float | None:
        """Length of what is present; None where the header gives no byte rate."""
        return self.present_bytes / self.bytes_per_s if self.bytes_per_s else None


def read_layout(source: BinaryIO, size_bytes: int) -> WavLayout | None:
    """Walk the chunks up to ``data``; None if there is none. The stream is left at its start."""
    try:
        return _walk(source, size_bytes)
    finally:
        source.seek(0)


def _walk(source: BinaryIO, size_bytes: int) -> WavLayout | None:
    bytes_per_s = 0
    long_size: int | None = None
    position = 12
    # A file of empty chunks would be walked eight bytes at a time for ever: no honest one has so many.
    for _ in range(256):
        source.seek(position)
        header = source.read(8)
        if len(header) < 8:
            return None
        name, length = struct.unpack("<4sI", header)
        if name == b"fmt ":
            body = source.read(12)
            if len(body) == 12:
                bytes_per_s = struct.unpack("<HHII", body)[3]
        elif name == b"ds64":
            body = source.read(16)
            if len(body) == 16:
                long_size = struct.unpack("<QQ", body)[1]
        elif name == b"data":
            present = max(0, size_bytes - position - 8)
            declared = long_size if length == 0xFFFF_FFFF and long_size else length
            # Zero with bytes behind it is an unfinished header; zero with none is an empty recording.
            if declared in _UNKNOWN_SIZES and (declared or present):
                return WavLayout(None, present, bytes_per_s)
            return WavLayout(declared, min(declared, present), bytes_per_s)
        position += 8 + length + (length & 1)
    return None
