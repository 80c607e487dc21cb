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
        pcm: signed 16-bit little-endian mono samples.
        rate_hz: samples a second.
        header: what the server said before the first sample.
        summary: what the server said after the last: seed, duration, word timestamps.
    """

    pcm: bytes
    rate_hz: int
    header: synthesis_pb2.SynthesisHeader
    summary: synthesis_pb2.SynthesisSummary

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.pcm) / _SAMPLE_BYTES / self.rate_hz

    @property
    def provenance(self) -> audio_pb2.Provenance:
        """How it was made: voice, weights and whether those were ever trained, licence, seed."""
        return self.summary.provenance if self.summary.HasField("provenance") else self.header.provenance

    def save_wav(self, to: str | Path | BinaryIO) -> None:
        """Writes a WAV file, to a path or to an open binary file."""
        opened = str(to) if isinstance(to, str | Path) else to
        with wave.open(opened, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(_SAMPLE_BYTES)
            file.setframerate(self.rate_hz)
            file.writeframes(self.pcm)
