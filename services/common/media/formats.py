"""Which file formats are taken, told from their first bytes and never from their names."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import BinaryIO


class Container(enum.StrEnum):
    """A file format that is accepted; the value is what callers see."""

    WAV = "wav"
    MP3 = "mp3"
    FLAC = "flac"
    OGG = "ogg"
    WEBM = "webm"
    M4A = "m4a"


SUPPORTED_FORMATS = "WAV, MP3, FLAC, OGG (Vorbis or Opus), WebM, M4A"
"""The sentence fragment that goes into ``ErrorInfo.metadata["supported_formats"]``."""

DEMUXERS: dict[Container, str] = {
    Container.WAV: "wav",
    Container.MP3: "mp3",
    Container.FLAC: "flac",
    Container.OGG: "ogg",
    Container.WEBM: "matroska,webm",
    Container.M4A: "mov,mp4,m4a,3gp,3g2,mj2",
}
"""FFmpeg's demuxer for each: it is forced, so no file can pick a playlist or a device."""

CODECS = frozenset(
    {
        "mp3",
        "mp3float",
        "flac",
        "vorbis",
        "opus",
        "libopus",
        "aac",
        "alac",
        "adpcm_ms",
        "adpcm_ima_wav",
        "pcm_alaw",
        "pcm_mulaw",
        "pcm_u8",
        "pcm_s16le",
        "pcm_s16be",
        "pcm_s24le",
        "pcm_s24be",
        "pcm_s32le",
        "pcm_s32be",
        "pcm_f32le",
        "pcm_f32be",
        "pcm_f64le",
        "pcm_f64be",
    }
)
"""Decoders that may run: the attack surface of FFmpeg is its odd codecs."""

_HEAD_BYTES = 16
_MP3_KBPS = {
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
}
_MP3_RATES_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def sniff(source: BinaryIO) -> Container | None:
    """Tell the format from a seekable stream's content; None if it is none of ours.

    The stream is left at its start. An ID3 tag is stepped over, whatever its length (cover art
    makes tags of megabytes).
    """
    source.seek(0)
    head = source.read(_HEAD_BYTES)
    start = 0
    if head[:3] == b"ID3" and len(head) >= 10:
        start = 10 + _syncsafe(head[6:10])
        source.seek(start)
        head = source.read(_HEAD_BYTES)
    found = next((container for container, test in _MAGIC if test(head)), None)
    if found is None and _is_mp3(source, start):
        found = Container.MP3
    source.seek(0)
    return found


_MAGIC: tuple[tuple[Container, Callable[[bytes], bool]], ...] = (
    (Container.WAV, lambda head: head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE"),
    (Container.FLAC, lambda head: head[:4] == b"fLaC"),
    (Container.OGG, lambda head: head[:4] == b"OggS"),
    (Container.WEBM, lambda head: head[:4] == b"\x1aE\xdf\xa3"),
    (Container.M4A, lambda head: head[4:8] == b"ftyp"),
)


def _syncsafe(four: bytes) -> int:
    return (four[0] & 127) << 21 | (four[1] & 127) << 14 | (four[2] & 127) << 7 | four[3] & 127


def _is_mp3(source: BinaryIO, start: int) -> bool:
    """Whether a Layer III frame stands at ``start``, followed by another or by the end of the file.

    Eleven set bits alone occur in any binary; two headers a frame's length apart hardly do.
    """
    source.seek(start)
    window = source.read(8192)
    # Some writers pad an ID3 tag with zeros that its length does not count.
    offset = len(window) - len(window.lstrip(b"\x00"))
    size = _mp3_frame_bytes(window[offset : offset + 4])
    if size == 0:
        return False
    after = window[offset + size : offset + size + 4]
    return len(after) < 4 or _mp3_frame_bytes(after) > 0 or after[:3] == b"TAG"


def _mp3_frame_bytes(header: bytes) -> int:
    """The length of the frame that this header opens (ISO 11172-3, 2.4.1.3); 0 if it is no header."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return 0
    version = header[1] >> 3 & 3
    kbps = _MP3_KBPS[1 if version == 3 else 2][header[2] >> 4]
    rate_index = header[2] >> 2 & 3
    if version == 1 or kbps == 0 or rate_index == 3:
        return 0
    scale = 144_000 if version == 3 else 72_000
    return scale * kbps // _MP3_RATES_HZ[version][rate_index] + (header[2] >> 1 & 1)
