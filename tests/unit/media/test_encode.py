"""Every format, there and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from services.common.media.decode import decode, probe
from services.common.media.encode import Format, encode
from services.common.media.levels import rms_dbfs

SPEECH = Path(__file__).resolve().parents[2] / "fixtures" / "speech"


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return decode(SPEECH / "clip_en_1.flac").samples


@pytest.mark.parametrize("fmt", list(Format))
@pytest.mark.parametrize("rate_hz", [16_000, 44_100, 48_000])
def test_round_trip_keeps_length_place_and_level(fmt: Format, rate_hz: int) -> None:
    original = decode(SPEECH / "clip_en_1.flac", rate_hz=rate_hz).samples
    data = encode(original, rate_hz, fmt)
    back = decode(data, rate_hz=rate_hz)
    assert back.samples.size == pytest.approx(original.size, abs=2)
    size = min(back.samples.size, original.size)
    # At no lag: padding of the encoder that were left in would show as a shift.
    correlation = np.corrcoef(back.samples[:size], original[:size])[0, 1]
    assert correlation > (0.9999 if fmt.lossless else 0.985)
    assert rms_dbfs(back.samples) == pytest.approx(rms_dbfs(original), abs=0.5)


@pytest.mark.parametrize("bit_depth", [16, 24])
@pytest.mark.parametrize("fmt", [Format.WAV, Format.FLAC])
def test_lossless_is_exact_to_half_a_step(fmt: Format, bit_depth: int) -> None:
    rng = np.random.default_rng(5)
    samples = rng.uniform(-1, 1, (2, 9000)).astype(np.float32)
    back = decode(encode(samples, 48_000, fmt, bit_depth=bit_depth), mono=False)  # type: ignore[arg-type]
    assert back.info.bit_depth == bit_depth
    # Half a step of rounding, a whole one at the top, where +1 has no integer.
    assert np.abs(back.samples - samples).max() <= 1.01 / 2 ** (bit_depth - 1)
    inner = np.abs(samples) < 0.999
    assert np.abs(back.samples - samples)[inner].max() <= 0.51 / 2 ** (bit_depth - 1)


def test_decoded_sixteen_bits_encode_to_the_same_again(speech: np.ndarray) -> None:
    assert np.array_equal(decode(encode(speech, 16_000, Format.WAV)).samples, speech)
    assert np.array_equal(decode(encode(speech, 16_000, Format.FLAC)).samples, speech)


@pytest.mark.parametrize("fmt", list(Format))
def test_tags_survive(fmt: Format, speech: np.ndarray) -> None:
    tags = {
        "title": "Grüße, 世界",
        "comment": "hello",
        "voxfleet_voice": "teams/a/voices/b",
        "voxfleet_licence": "CC-BY-NC-4.0",
    }
    data = encode(speech, 16_000, fmt, metadata=tags)
    kept = {key: value for key, value in probe(data).tags.items() if key != "encoder"}
    assert kept == tags


@pytest.mark.parametrize("fmt", list(Format))
def test_same_input_same_bytes(fmt: Format, speech: np.ndarray) -> None:
    assert encode(speech, 16_000, fmt) == encode(speech, 16_000, fmt)


@pytest.mark.parametrize("fmt", [Format.MP3, Format.OPUS, Format.AAC])
def test_compressed_is_less_than_half_of_wav(fmt: Format) -> None:
    speech = decode(SPEECH / "clip_en_1.flac", rate_hz=48_000).samples
    assert len(encode(speech, 48_000, fmt)) < 0.5 * len(encode(speech, 48_000, Format.WAV))
    small = encode(speech, 48_000, fmt, bitrate_kbps=32)
    assert len(small) < 0.7 * len(encode(speech, 48_000, fmt, bitrate_kbps=64))


def test_louder_than_full_scale_is_clipped_not_wrapped() -> None:
    samples = np.array([2.0, -2.0, 0.0] * 500, dtype=np.float32)
    back = decode(encode(samples, 16_000, Format.WAV)).samples
    assert back.max() == pytest.approx(1.0, abs=1e-4)
    assert back.min() == -1.0


def test_rates_that_a_format_lacks_are_raised() -> None:
    samples = np.zeros(22_050, np.float32)
    assert decode(encode(samples, 22_050, Format.OPUS)).rate_hz == 48_000
    assert decode(encode(np.zeros(96_000, np.float32), 96_000, Format.MP3)).rate_hz == 48_000
    assert decode(encode(np.zeros(40_000, np.float32), 40_000, Format.MP3)).rate_hz == 44_100


@pytest.mark.parametrize(
    ("samples", "arguments"),
    [
        (np.zeros(0, np.float32), {}),
        (np.zeros((3, 100), np.float32), {}),
        (np.zeros(100, np.float32), {"bit_depth": 12}),
        (np.zeros(100, np.float32), {"bitrate_kbps": 64}),
    ],
)
def test_what_does_not_apply_is_a_value_error(samples: np.ndarray, arguments: dict) -> None:
    with pytest.raises(ValueError):
        encode(samples, 16_000, Format.WAV, **arguments)
