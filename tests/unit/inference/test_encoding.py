"""Streamed speech as a file: the bytes, the tags, leaving early, waiting for a slow reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import numpy as np
import pytest

from services.common.jobs.tasks import Output
from services.common.media.decode import decode, probe
from services.common.media.encode import Format, StreamEncoder
from services.inference.app import encoding
from services.inference.app.encoding import Encoded, encoded
from services.inference.app.synthesis import PIECE_BYTES, Header, Part, Summary
from services.inference.calls import Weights
from tests.polling import until

HEADER = Header(24_000, 2, "teams/blue/voices/anna", Weights("small", trained=False, licence="MIT"), 7)
SUMMARY = Summary(HEADER, 2.0, 16, 0.5, 0.0, 1.0)
STREAMED = [Format.FLAC, Format.MP3, Format.OPUS, Format.AAC]


def tone(seconds: float) -> bytes:
    wave = 0.3 * np.sin(2 * np.pi * 220 * np.arange(round(24_000 * seconds)) / 24_000)
    data: bytes = np.rint(wave * 32767).astype("<i2").tobytes()
    return data


class Source:
    """The use case's stream, which counts what was taken of it."""

    def __init__(self, *parts: Part | Exception) -> None:
        self._parts = parts
        self.taken = 0
        self.closed = False

    async def stream(self) -> AsyncGenerator[Part]:
        try:
            for part in self._parts:
                if isinstance(part, Exception):
                    raise part
                self.taken += 1
                yield part
        finally:
            self.closed = True


def watch_encoders(monkeypatch: pytest.MonkeyPatch) -> list[StreamEncoder]:
    made: list[StreamEncoder] = []

    class Watched(StreamEncoder):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)  # type: ignore[arg-type]
            made.append(self)

    monkeypatch.setattr(encoding, "StreamEncoder", Watched)
    return made


async def freed(encoder: StreamEncoder) -> None:
    await asyncio.to_thread(until, lambda: encoder._container is None)


@pytest.mark.parametrize("fmt", STREAMED)
async def test_samples_become_a_file(fmt: Format) -> None:
    halves = [tone(1.0), tone(1.0)]
    source = Source(HEADER, *halves, SUMMARY)
    parts = [part async for part in encoded(source.stream(), Output(format=fmt.value))]
    header = parts[0]
    assert isinstance(header, Header)
    assert parts[-1] is SUMMARY
    assert all(isinstance(part, Encoded) and 0 < len(part.data) <= PIECE_BYTES for part in parts[1:-1])
    data = b"".join(part.data for part in parts[1:-1] if isinstance(part, Encoded))
    found = decode(data)
    assert found.rate_hz == header.rate_hz == (48_000 if fmt is Format.OPUS else 24_000)
    assert len(found.samples) / found.rate_hz == pytest.approx(2.0, abs=0.1)
    assert np.std(found.samples) == pytest.approx(0.3 / 2**0.5, rel=0.1)
    tags = probe(data).tags
    assert (tags["generated"], tags["voice"], tags["seed"]) == ("true", HEADER.voice, "7")
    assert (tags["weights"], tags["licence"]) == ("small (untrained weights)", "MIT")
    assert tags["watermarked"] == "false"
    assert "job" not in tags, "a stream is no job"


async def test_flac_is_the_samples() -> None:
    pcm = tone(1.3)
    source = Source(HEADER, pcm[:20_000], pcm[20_000:], SUMMARY)
    parts = [part async for part in encoded(source.stream(), Output(format="flac"))]
    data = b"".join(part.data for part in parts if isinstance(part, Encoded))
    np.testing.assert_array_equal(np.rint(decode(data).samples * 32768), np.frombuffer(pcm, "<i2"))


async def test_a_bit_rate_reaches_the_encoder() -> None:
    sizes = []
    for kbps in (32, 128):
        source = Source(HEADER, tone(3.0), SUMMARY)
        parts = encoded(source.stream(), Output(format="mp3", bitrate_kbps=kbps))
        sizes.append(sum([len(part.data) async for part in parts if isinstance(part, Encoded)]))
    assert 2 * sizes[0] < sizes[1]


async def test_a_reader_that_waits_makes_the_engine_wait() -> None:
    source = Source(HEADER, *[tone(0.5)] * 50, SUMMARY)
    async with aclosing(encoded(source.stream(), Output(format="flac"))) as parts:
        await anext(parts)
        await anext(parts)
        await asyncio.sleep(0)
        assert source.taken == 2


async def test_a_reader_that_leaves_frees_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    made = watch_encoders(monkeypatch)
    source = Source(HEADER, *[tone(0.5)] * 50, SUMMARY)
    async with aclosing(encoded(source.stream(), Output(format="opus"))) as parts:
        for _ in range(3):
            await anext(parts)
    assert source.closed
    assert source.taken < 6
    await freed(made[0])


async def test_a_reader_that_is_cancelled_in_the_midst_frees_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = watch_encoders(monkeypatch)
    source = Source(HEADER, *[tone(20.0)] * 50, SUMMARY)
    pushing = asyncio.Event()

    async def read() -> None:
        async with aclosing(encoded(source.stream(), Output(format="flac"))) as parts:
            async for _ in parts:
                pushing.set()

    reading = asyncio.create_task(read())
    await pushing.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert source.closed
    await freed(made[0])


async def test_what_the_engine_raises_is_raised_and_frees_the_encoder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = watch_encoders(monkeypatch)
    source = Source(HEADER, tone(0.5), RuntimeError("died"))
    with pytest.raises(RuntimeError, match="died"):
        _ = [part async for part in encoded(source.stream(), Output(format="aac"))]
    assert source.closed
    await freed(made[0])
