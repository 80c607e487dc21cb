"""Speech that was asked for as a whole."""

from __future__ import annotations

import wave
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from voxfleet.v1 import audio_pb2, synthesis_pb2

_SAMPLE_BYTES = 2


@dataclass(frozen=True, slots=True)
class Speech:
    """What ``say`` returns.

    Args:
        data: signed 16-bit little-endian mono samples; the bytes of the file where a format was asked for.
        header: what the server said before the first sample.
        summary: what the server said after the last: seed, duration, and where asked for word timestamps and
            quality.
    """

    data: bytes
    header: synthesis_pb2.SynthesisHeader
    summary: synthesis_pb2.SynthesisSummary

    @property
    def is_file(self) -> bool:
        """Whether ``data`` is a file's bytes and not plain samples."""
        return is_file(self.header)

    @property
    def pcm(self) -> bytes:
        """The samples. Raises ValueError where a file was asked for."""
        if self.is_file:
            raise ValueError("this speech came as the bytes of a file: save it, or ask for no format")
        return self.data

    @property
    def rate_hz(self) -> int:
        """Samples a second."""
        return self.header.rate_hz

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        if self.is_file:
            return self.summary.duration_s
        return len(self.data) / _SAMPLE_BYTES / self.rate_hz

    @property
    def provenance(self) -> audio_pb2.Provenance:
        """How it was made: voice, weights and whether those were ever trained, licence, seed."""
        return self.summary.provenance if self.summary.HasField("provenance") else self.header.provenance

    def save(self, to: str | Path | BinaryIO) -> None:
        """Writes the file that was asked for, WAV where none was, to a path or to an open binary file."""
        if not self.is_file:
            self.save_wav(to)
        elif isinstance(to, str | Path):
            Path(to).write_bytes(self.data)
        else:
            to.write(self.data)

    def save_wav(self, to: str | Path | BinaryIO) -> None:
        """Writes a WAV file, to a path or to an open binary file. Raises ValueError as :attr:`pcm` does."""
        opened = str(to) if isinstance(to, str | Path) else to
        pcm = self.pcm
        with wave.open(opened, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(_SAMPLE_BYTES)
            file.setframerate(self.rate_hz)
            file.writeframes(pcm)


def is_file(header: synthesis_pb2.SynthesisHeader) -> bool:
    """Whether what follows a header is the bytes of a file and not plain samples."""
    return header.format not in (synthesis_pb2.AUDIO_FORMAT_UNSPECIFIED, synthesis_pb2.AUDIO_FORMAT_WAV)
