"""Files that are written while their samples are made."""

from __future__ import annotations

import contextlib
import gc
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.media.decode import decode, probe
from services.common.media.encode import Format, StreamEncoder, encode, written_rate_hz

SPEECH = Path(__file__).resolve().parents[2] / "fixtures" / "speech"
STREAMED = [Format.FLAC, Format.MP3, Format.OPUS, Format.AAC]
TAGS = {"generated": "true", "voice": "teams/blue/voices/å", "weights": "small (untrained weights)"}


def speech() -> np.ndarray:
    return decode(SPEECH / "clip_fr.flac").samples


def pieces_of(encoder: StreamEncoder, samples: np.ndarray, size: int) -> list[bytes]:
    found = [encoder.push(samples[at : at + size]) for at in range(0, len(samples), size)]
    return [*found, encoder.finish()]


@pytest.mark.parametrize("fmt", STREAMED)
def test_it_is_the_file_that_encode_writes(fmt: Format) -> None:
    samples = speech()
    data = b"".join(pieces_of(StreamEncoder(16_000, fmt, metadata=TAGS), samples, 1999))
    streamed, whole = decode(data), decode(encode(samples, 16_000, fmt))
    assert streamed.rate_hz == whole.rate_hz == written_rate_hz(fmt, 16_000)
    assert {key: streamed.info.tags.get(key) for key in TAGS} == TAGS
    assert probe(data).container is fmt.container
    # An MP3 without an index does not say what its encoder put in front; MP3 and M4A end with whole frames.
    extra = {Format.FLAC: 0, Format.OPUS: 0, Format.MP3: 2400, Format.AAC: 1024}[fmt]
    assert 0 <= len(streamed.samples) - len(whole.samples) <= extra
    shift = 1105 if fmt is Format.MP3 else 0
    streamed_part = streamed.samples[shift : shift + len(whole.samples)]
    error = streamed_part - whole.samples
    assert (
        np.abs(error).max() <= 1e-3 if fmt is not Format.AAC else np.std(error) < 0.05 * np.std(streamed_part)
    )


def test_flac_loses_nothing() -> None:
    samples = speech()
    data = b"".join(pieces_of(StreamEncoder(16_000, Format.FLAC), samples, 4096))
    np.testing.assert_array_equal(decode(data).samples, samples)


@pytest.mark.parametrize("fmt", STREAMED)
def test_bytes_come_steadily(fmt: Format) -> None:
    """Tenths of a second in; a listener never waits a second for what was said."""
    sizes = [len(piece) for piece in pieces_of(StreamEncoder(16_000, fmt), speech(), 1600)]
    silent = longest = 0
    for size in sizes:
        silent = 0 if size else silent + 1
        longest = max(longest, silent)
    assert longest <= 8
    assert max(sizes) < 0.4 * sum(sizes), "the end does not bring it all at once"


@pytest.mark.parametrize("fmt", STREAMED)
def test_a_rate_that_the_format_lacks_becomes_the_next_one(fmt: Format) -> None:
    tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(30_000) / 10_000)).astype(np.float32)
    encoder = StreamEncoder(10_000, fmt)
    data = b"".join(pieces_of(encoder, tone, 700))
    found = decode(data)
    assert found.rate_hz == encoder.rate_hz == written_rate_hz(fmt, 10_000)
    spectrum = np.abs(np.fft.rfft(found.samples * np.hanning(len(found.samples))))
    assert np.argmax(spectrum) * found.rate_hz / len(found.samples) == pytest.approx(440, abs=1)


@pytest.mark.parametrize("fmt", [Format.MP3, Format.OPUS, Format.AAC])
def test_the_bit_rate_is_heeded(fmt: Format) -> None:
    samples = np.tile(speech(), 2)
    small, large = (
        len(b"".join(pieces_of(StreamEncoder(16_000, fmt, bitrate_kbps=kbps), samples, 8000)))
        for kbps in (32, 64)
    )
    assert 1.4 * small < large


@pytest.mark.parametrize("fmt", STREAMED)
def test_the_same_samples_give_the_same_bytes(fmt: Format) -> None:
    first, second = (b"".join(pieces_of(StreamEncoder(16_000, fmt), speech(), 5000)) for _ in range(2))
    assert first == second


def test_what_does_not_apply_is_refused() -> None:
    with pytest.raises(ValueError, match="WAV"):
        StreamEncoder(16_000, Format.WAV)
    with pytest.raises(ValueError, match="bit rate"):
        StreamEncoder(16_000, Format.FLAC, bitrate_kbps=64)
    encoder = StreamEncoder(16_000, Format.MP3)
    encoder.close()
    encoder.close()
    with pytest.raises(ValueError, match="closed"):
        encoder.push(np.zeros(100, np.float32))


@settings(max_examples=25, deadline=None)
@given(
    fmt=st.sampled_from(STREAMED),
    sizes=st.lists(st.integers(0, 5000), max_size=8),
    rate_hz=st.sampled_from([8000, 12_345, 24_000, 48_000]),
)
def test_any_pieces_make_a_file(fmt: Format, sizes: list[int], rate_hz: int) -> None:
    rng = np.random.default_rng(len(sizes))
    encoder = StreamEncoder(rate_hz, fmt)
    data = b"".join(encoder.push((0.1 * rng.standard_normal(size)).astype(np.float32)) for size in sizes)
    data += encoder.finish()
    if sum(sizes) > 1000:
        found = decode(data)
        assert len(found.samples) / found.rate_hz >= sum(sizes) / rate_hz - 2e-4
        if fmt is Format.FLAC:
            assert len(found.samples) == sum(sizes)


@pytest.mark.parametrize("fmt", STREAMED)
def test_closing_in_the_middle_of_a_push_waits_and_frees(fmt: Format) -> None:
    encoder = StreamEncoder(24_000, fmt)
    noise = (0.1 * np.random.default_rng(0).standard_normal(240_000)).astype(np.float32)

    def push() -> None:
        with contextlib.suppress(ValueError):
            encoder.push(noise)

    pushing = threading.Thread(target=push)
    pushing.start()
    encoder.close()
    pushing.join()


def test_a_long_stream_is_never_held() -> None:
    encoder = StreamEncoder(24_000, Format.FLAC)
    second = (0.1 * np.random.default_rng(0).standard_normal(24_000)).astype(np.float32)
    encoder.push(second)
    gc.collect()
    tracemalloc.start()
    for _ in range(120):
        encoder.push(second)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    encoder.finish()
    assert held < 1 << 20, "two minutes of FLAC are 6 MB"
