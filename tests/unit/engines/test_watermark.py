"""The inaudible mark, on real speech."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.media.decode import decode
from services.common.media.encode import Format, encode
from services.common.media.resample import resample
from services.engines.watermark import Marker, detect, mark

SPEECH = Path(__file__).parents[2] / "fixtures" / "speech"
KEY = "of these tests"


def speech(name: str, rate_hz: int) -> np.ndarray:
    return decode(SPEECH / f"{name}.flac", rate_hz=rate_hz).samples


def snr_db(plain: np.ndarray, marked: np.ndarray) -> float:
    return float(10 * np.log10(np.sum(plain**2) / np.sum((marked - plain) ** 2)))


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 24_000, 32_000, 40_000, 44_100, 48_000])
def test_the_mark_keeps_the_length_lies_far_below_and_is_found_at_every_rate(rate_hz: int) -> None:
    plain = speech("reference_en", rate_hz)
    marked = mark(plain, rate_hz, KEY)
    assert marked.shape == plain.shape
    assert marked.dtype == np.float32
    assert snr_db(plain, marked) > 28
    assert detect(marked, rate_hz, KEY).present
    assert not detect(plain, rate_hz, KEY).present
    assert not detect(marked, rate_hz, "another key").present


def test_two_seconds_are_found_after_mp3_at_128_kbps() -> None:
    rate_hz, found = 24_000, []
    plain = np.concatenate([speech(name, rate_hz) for name in ("heldout_en", "source_it", "source_fr")])
    marked = [mark(plain[at : at + 48_000], rate_hz, KEY) for at in range(0, plain.size - 48_000, 48_000)]
    for number, window in enumerate(marked):
        back = decode(encode(window, rate_hz, Format.MP3, bitrate_kbps=128)).samples
        # Cut anywhere within a frame, so that nothing lies where it lay.
        found.append(detect(back[1 + 37 * number % 383 :], rate_hz, KEY))
    assert sum(each.present for each in found) >= 0.95 * len(found) > 20
    assert all(each.present == (each.confidence >= 0.5) for each in found)


def test_unmarked_speech_is_not_found_whatever_the_key() -> None:
    rate_hz = 16_000
    plain = np.concatenate([speech(f"clip_en_{number}", rate_hz) for number in range(1, 6)])
    windows = [plain[at : at + 32_000] for at in range(0, plain.size - 32_000, 16_000)]
    found = [detect(window, rate_hz, f"key {number}") for number in range(10) for window in windows]
    assert len(found) > 100
    # One in five thousand is promised: one of these would be a rare event, two would be a fault.
    assert sum(each.present for each in found) <= 1
    assert np.median([each.confidence for each in found]) < 0.01


@pytest.mark.parametrize("fmt", [Format.OPUS, Format.AAC, Format.FLAC, Format.WAV])
def test_every_format_keeps_it(fmt: Format) -> None:
    marked = mark(speech("clip_ru", 24_000), 24_000, KEY)
    back = decode(encode(marked, 24_000, fmt))
    assert detect(back.samples, back.rate_hz, KEY).present


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 20_000), max_size=12), st.sampled_from([16_000, 24_000, 40_000]))
def test_a_stream_in_blocks_of_any_size_is_the_whole(sizes: list[int], rate_hz: int) -> None:
    plain = speech("clip_en_3", 16_000)
    marker, done, at = Marker(rate_hz, KEY), [], 0
    for size in sizes:
        done.append(marker(plain[at : at + size]))
        at = min(at + size, plain.size)
        waiting = at - sum(len(block) for block in done)
        assert 0 <= waiting <= 0.048 * rate_hz + 1, "no more is held back than three hops"
    done.append(marker(plain[at:], last=True))
    assert np.allclose(np.concatenate(done), mark(plain, rate_hz, KEY), atol=1e-6)


def test_silence_stays_silent_and_little_is_no_trouble() -> None:
    silence = np.zeros(48_000, np.float32)
    assert not np.any(mark(silence, 24_000, KEY))
    assert not detect(silence, 24_000, KEY).present
    for size in (0, 1, 383, 384, 385, 2_000):
        few = speech("clip_en_1", 24_000)[:size]
        assert mark(few, 24_000, KEY).size == size
        found = detect(few, 24_000, KEY)
        assert not found.present
        assert found.confidence < 0.5


def test_a_marked_part_of_a_long_recording_is_found() -> None:
    plain = speech("target_en", 16_000)
    part = slice(20 * 16_000, 32 * 16_000)
    mixed = plain.copy()
    mixed[part] = mark(plain[part], 16_000, KEY)
    assert detect(mixed, 16_000, KEY).present
    assert not detect(plain, 16_000, KEY).present


def test_another_rate_on_the_way_does_not_lose_it() -> None:
    marked = mark(speech("clip_es", 24_000), 24_000, KEY)
    for rate_hz in (8_000, 16_000, 22_050, 48_000):
        assert detect(resample(marked, 24_000, rate_hz), rate_hz, KEY).present


def test_a_stream_whose_frames_would_be_uneven_is_a_fault_of_the_caller() -> None:
    with pytest.raises(ValueError, match="44100"):
        Marker(44_100)
