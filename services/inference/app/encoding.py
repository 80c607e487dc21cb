"""Streamed speech as the bytes of a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from services.common.errors import internal
from services.common.jobs.tasks import Output
from services.common.media.encode import Format, StreamEncoder
from services.inference.app.synthesis import PIECE_BYTES, Header, Part, Summary
from services.inference.tags import file_tags, provenance_tags, speaker_tags


@dataclass(frozen=True, slots=True)
class Encoded:
    """The next bytes of the file."""

    data: bytes


async def encoded(parts: AsyncGenerator[Part], output: Output) -> AsyncGenerator[Part | Encoded]:
    """The parts of a stream with the bytes of a file in place of its samples.

    The header names the file's own rate. A part is taken only once the one before it has been given on, and
    is encoded in a thread; whoever leaves early ends the stream behind it and frees the encoder.

    Args:
        parts: of :meth:`~services.inference.app.synthesis.Synthesis.stream`; they are closed.
        output: what file; not WAV, whose samples need no encoder.
    """
    encoder: StreamEncoder | None = None
    try:
        async with aclosing(parts):
            async for part in parts:
                match part:
                    case Header():
                        encoder = await asyncio.to_thread(_encoder, part, output)
                        yield replace(part, rate_hz=encoder.rate_hz)
                    case bytes():
                        data = await asyncio.to_thread(_of(encoder).push, _samples(part))
                        for piece in _pieces(data):
                            yield piece
                    case Summary():
                        for piece in _pieces(await asyncio.to_thread(_of(encoder).finish)):
                            yield piece
                        yield part
    finally:
        if encoder is not None:
            # In a thread, as it waits for a push that was cancelled in the midst; nobody waits for it.
            asyncio.get_running_loop().run_in_executor(None, encoder.close)


def _encoder(header: Header, output: Output) -> StreamEncoder:
    fmt = Format(output.format)
    said = provenance_tags(header.engine, header.voice)
    if header.speaker is not None:
        said |= speaker_tags(header.speaker)
    tags = file_tags(said, header.weights, header.seed, watermarked=header.watermarked)
    return StreamEncoder(
        header.rate_hz,
        fmt,
        bitrate_kbps=None if fmt.lossless else (output.bitrate_kbps or None),
        metadata=tags,
    )


def _of(encoder: StreamEncoder | None) -> StreamEncoder:
    if encoder is None:
        raise internal("the engine sent samples before it said what they are")
    return encoder


def _samples(pcm: bytes) -> NDArray[np.float32]:
    return np.frombuffer(pcm, "<i2").astype(np.float32) / np.float32(32768.0)


def _pieces(data: bytes) -> Iterator[Encoded]:
    for start in range(0, len(data), PIECE_BYTES):
        yield Encoded(data[start : start + PIECE_BYTES])
