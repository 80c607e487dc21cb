"""Features of slices, their file, and batches."""

import numpy as np
import pytest

from services.common.errors import Reason, VoxfleetError
from services.engines.rvc.features import FeatureSet, extract
from services.engines.rvc.preprocess import prepare

from .conftest import voiced_tone


def test_extract_keeps_whole_frames_of_long_enough_slices(nano, encoder, tracker):
    slices = prepare([voiced_tone(1.337, 16_000), voiced_tone(0.4, 16_000)], 16_000, nano.rate_hz)
    features = extract(slices, encoder, tracker, nano)
    assert features.content_width == encoder.width
    for part in features.slices:
        assert part.frames > nano.segment_frames
        assert len(part.samples) == part.frames * nano.hop
        assert len(part.content) == (part.frames + 1) // 2
    assert features.duration_s == pytest.approx(sum(part.frames for part in features.slices) / 100)


def test_too_little_speech_is_an_error(nano, encoder, tracker):
    slices = prepare([voiced_tone(1.0, 16_000)], 16_000, nano.rate_hz)
    short = [type(slices[0])(slices[0].samples[:800], slices[0].samples_16k[:1600], 0, 0.0)]
    with pytest.raises(VoxfleetError) as caught:
        extract(short, encoder, tracker, nano)
    assert caught.value.reason is Reason.AUDIO_TOO_SHORT


def test_larger_sets_hear_some_silence(nano, encoder, tracker):
    slices = prepare([voiced_tone(1.0, 16_000)], 16_000, nano.rate_hz) * 40
    features = extract(slices, encoder, tracker, nano)
    assert [not part.samples.any() for part in features.slices] == [False] * 40 + [True] * 2


def test_file_round_trip_and_damage(features, tmp_path):
    path = tmp_path / "features.safetensors"
    features.save(path)
    loaded = FeatureSet.load(path)
    assert (loaded.content_encoder, loaded.f0_method, loaded.rate_hz) == ("whisper-base", "fcpe", 8000)
    for got, expected in zip(loaded.slices, features.slices, strict=True):
        np.testing.assert_array_equal(got.content, expected.content)
        np.testing.assert_array_equal(got.f0_hz, expected.f0_hz)
        np.testing.assert_array_equal(got.samples, expected.samples)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(VoxfleetError) as caught:
        FeatureSet.load(path)
    assert caught.value.reason is Reason.ARTIFACT_CORRUPT
