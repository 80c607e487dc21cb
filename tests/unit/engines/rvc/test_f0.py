"""Pitch methods and the bins that the model embeds."""

import importlib.util

import numpy as np
import pytest

from services.common.errors import Reason, VoxfleetError
from services.engines.rvc import f0

from .conftest import voiced_tone


@pytest.mark.parametrize("name", ["fcpe", "swift"])
def test_methods_find_the_pitch_and_the_silence(name):
    tone = voiced_tone(1.0, 16_000, hz=220.0)
    audio = np.concatenate([tone, np.zeros(16_000, np.float32)])
    track = f0.f0_method(name).track(audio, 200)
    assert track.shape == (200,)
    assert track.dtype == np.float32
    voiced = track[10:90]
    assert (voiced > 0).mean() > 0.95
    assert 1200 * abs(np.log2(np.median(voiced[voiced > 0]) / 220.0)) < 15
    assert (track[115:] == 0).mean() > 0.95


@pytest.mark.parametrize("name", ["fcpe", "swift"])
def test_methods_give_as_many_frames_as_asked_for(name):
    method = f0.f0_method(name)
    for samples, frames in ((16, 1), (1601, 11), (5000, 30)):
        assert method.track(np.zeros(samples, np.float32), frames).tolist() == [0.0] * frames


def test_a_method_is_loaded_once():
    assert f0.f0_method("swift") is f0.f0_method("swift")


@pytest.mark.parametrize("name", ["rmvpe", "autotune"])
def test_methods_that_are_not_offered_say_so(name):
    with pytest.raises(VoxfleetError, match="fcpe") as caught:
        f0.f0_method(name)
    assert caught.value.reason is Reason.UNSUPPORTED_ENGINE


@pytest.mark.parametrize(("name", "package"), [("harvest", "pyworld-prebuilt"), ("pm", "praat-parselmouth")])
def test_a_method_without_its_package_says_what_to_install(name, package, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(VoxfleetError, match=package) as caught:
        f0.f0_method(name)
    assert caught.value.reason is Reason.MODEL_NOT_FOUND


def test_bins_are_even_steps_of_mel():
    bins = f0.coarse(np.array([0.0, 50.0, 49.0, 1100.0, 2000.0], np.float32))
    assert bins.tolist() == [1, 1, 1, 255, 255]
    rising = f0.coarse(np.geomspace(50, 1100, 1000).astype(np.float32))
    assert (np.diff(rising) >= 0).all()
    # 440 Hz by hand: mel 549.64, between 77.75 and 1064.41.
    assert f0.coarse(np.array([440.0], np.float32)).tolist() == [122]


def test_shift_moves_voiced_frames_alone():
    np.testing.assert_allclose(f0.shift(np.array([0.0, 100.0], np.float32), 12), [0.0, 200.0])


def test_smoothing_takes_out_single_frames():
    track = np.full(9, 100.0, np.float32)
    track[4] = 400.0
    assert f0.smooth(track, 3)[4] == 100.0
    assert f0.smooth(track, 2)[4] == 400.0
