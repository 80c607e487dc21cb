"""Content features of Whisper's encoder."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from services.engines.whisper.encoder import WhisperEncoder

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


def test_a_slice_has_the_features_of_the_whole(encoder, speech):
    """What training sees of a slice must be what conversion sees of the recording."""
    whole = encoder.encode(speech)
    part = encoder.encode(speech[50 * 320 :])
    assert cosine(part[25:], whole[75:]).mean() > 0.95
    elsewhere = encoder.encode(speech[62 * 320 :])
    assert cosine(elsewhere[25:], whole[87:]).mean() > 0.85


def test_blocks_leave_no_seam(encoder, speech, monkeypatch):
    """The spectrogram of long audio is made in pieces; windows at the joints see both sides."""
    # Without the silent edges: a spectrogram's floor follows its loudest column.
    speech = speech[8000:40_000]
    whole = encoder.encode(speech)
    monkeypatch.setattr("services.engines.whisper.encoder._BLOCK_WINDOWS", 2)
    assert cosine(encoder.encode(speech), whole).min() > 0.99
