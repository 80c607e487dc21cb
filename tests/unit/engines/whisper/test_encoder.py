"""Content features of Whisper's encoder."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from services.engines.whisper.encoder import WhisperEncoder, window_spans

SPEECH = Path(__file__).parents[3] / "fixtures" / "speech"


@pytest.fixture(scope="module")
def encoder(whisper_dir):
    return WhisperEncoder(whisper_dir)


@pytest.fixture(scope="module")
def speech():
    samples, rate_hz = soundfile.read(SPEECH / "clip_en_1.flac", dtype="float32")
    assert rate_hz == 16_000
    return samples


def cosine(one, two):
    return (one * two).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)


@pytest.mark.parametrize("samples", [0, 1, 320, 321, 5000, 16_000])
def test_a_frame_each_20_ms(encoder, speech, samples):
    features = encoder.encode(speech[:samples])
    assert features.shape == (-(-samples // 320), 512)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()


def test_the_same_audio_gives_the_same_features(encoder, speech):
    np.testing.assert_array_equal(encoder.encode(speech[:16_000]), encoder.encode(speech[:16_000]))


def test_frames_are_where_the_sound_is(encoder, speech):
    """Delayed by 10 frames, speech gives its features 10 frames later, and matches nowhere else as well."""
    plain = encoder.encode(speech)
    late = encoder.encode(np.concatenate([np.zeros(3200, np.float32), speech]))
    match = {shift: cosine(plain[20:120], late[20 + shift : 120 + shift]).mean() for shift in range(7, 14)}
    assert max(match, key=match.get) == 10
    assert match[10] > 0.85


def test_windows_tile_and_fit_the_encoder():
    for frames in (1, 1500, 1501, 2800, 10_007):
        spans = window_spans(frames)
        assert spans[0][0] == 0
        assert spans[-1][1] == frames
        assert all(end == begin for (_, end), (begin, _) in zip(spans, spans[1:], strict=False))
        assert all(min(end + 50, frames) - max(begin - 50, 0) <= 1500 for begin, end in spans)


def test_long_audio_has_no_seam(encoder, speech):
    """Past 30 s windows overlap: the frames around the cut are those of a window that holds both sides."""
    audio = np.tile(speech, 11)[: 31 * 16_000]
    features = encoder.encode(audio)
    assert len(features) == 31 * 50
    cut = window_spans(len(features))[0][1]
    around = encoder.encode(audio[(cut - 250) * 320 : (cut + 250) * 320])
    assert cosine(features[cut - 25 : cut + 25], around[225:275]).mean() > 0.85
