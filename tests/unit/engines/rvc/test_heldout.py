"""What is held out: chosen once, judged alike, and what it says is heeded."""

import dataclasses

import numpy as np
import pytest
import torch

from services.engines.rvc.checkpoint import load_checkpoint, save_checkpoint
from services.engines.rvc.features import FeatureSet
from services.engines.rvc.heldout import HeldOut, held_out
from services.engines.rvc.state import new_state
from services.engines.rvc.training import End, train, trained_slices
from tests.unit.engines.rvc.conftest import voiced_tone


@pytest.fixture
def plenty(features, nano):
    """Twelve voiced slices of a second and more, three short ones and a silent one."""
    base = features.slices[0]
    rng = np.random.default_rng(3)
    slices = []
    for number in range(12):
        frames = 100 + 4 * number
        slices.append(
            dataclasses.replace(
                base,
                content=rng.random((frames // 2, 6), dtype=np.float32),
                f0_hz=np.full(frames, 150.0, np.float32),
                samples=voiced_tone(frames / 100, nano.rate_hz, seed=number),
            )
        )
    silent = dataclasses.replace(
        slices[0], f0_hz=np.zeros(100, np.float32), samples=np.zeros_like(slices[0].samples)
    )
    return FeatureSet((*features.slices[:3], silent, *slices), "whisper-base", "fcpe", nano.rate_hz)


def test_a_twentieth_of_what_is_voiced_and_long_enough_is_held_out(plenty):
    chosen = held_out(plenty.slices, 7)
    assert len(chosen) == 1
    assert chosen == held_out(plenty.slices, 7)
    assert all(number >= 4 for seed in range(20) for number in held_out(plenty.slices, seed))
    assert len({held_out(plenty.slices, seed) for seed in range(20)}) > 3
    assert len(held_out(plenty.slices * 20, 7)) == 8
    assert trained_slices(plenty, 7) == 15


def test_little_audio_is_all_trained_on(features):
    assert held_out(features.slices, 7) == ()
    assert trained_slices(features, 7) == 5


def test_the_error_is_of_the_weights_alone(plenty, nano, params):
    state = new_state(nano, params)
    judge = HeldOut(plenty.slices[4:6], nano, torch.device("cpu"))
    torch.manual_seed(1)
    first = judge.mel_error(state.synthesizer)
    torch.manual_seed(2)
    assert judge.mel_error(state.synthesizer) == first > 0
    assert state.synthesizer.training
    with torch.no_grad():
        state.synthesizer.dec.conv_post.weight.mul_(2.0)
    assert judge.mel_error(state.synthesizer) != first


def test_training_lowers_it_and_keeps_the_best(plenty, nano, params, tmp_path):
    recipe = dataclasses.replace(params, epochs=6, learning_rate=5e-3, validate_steps=4)
    seen = []
    state = new_state(nano, recipe)
    train(state, plenty, on_progress=seen.append)
    judged = [p for p in seen if p.step % 4 == 0 or p.step == seen[-1].step]
    assert judged[-1].best_mel_error < judged[0].mel_error
    assert state.best.error == min(p.mel_error for p in judged)
    assert state.best.step in {p.step for p in judged}
    assert all(tensor.dtype == torch.float16 for tensor in state.best.weights.values())
    assert not any(name.startswith("enc_q.") for name in state.best.weights)

    path = tmp_path / "checkpoint"
    save_checkpoint(path, state)
    again = load_checkpoint(path)
    assert (again.best.step, again.best.error, again.unimproved) == (
        state.best.step,
        state.best.error,
        state.unimproved,
    )
    for name, tensor in state.best.weights.items():
        assert torch.equal(again.best.weights[name], tensor)


def test_a_run_that_gets_no_better_ends_by_itself(plenty, nano, params):
    # With no learning at all, the first judgement stays the best.
    recipe = dataclasses.replace(params, epochs=50, learning_rate=1e-8, validate_steps=2, patience=3)
    state = new_state(nano, recipe)
    saved = []
    result = train(state, plenty, on_checkpoint=lambda state: saved.append(state.step))
    assert result.end is End.OVERTRAINED
    assert not result.stopped
    assert result.step == 2 + 3 * 2 == saved[-1]
    assert state.best.step == 2


def test_steps_may_be_bounded(plenty, nano, params):
    recipe = dataclasses.replace(params, epochs=50, max_steps=5, validate_steps=100)
    seen = []
    state = new_state(nano, recipe)
    result = train(state, plenty, on_progress=seen.append)
    assert (result.end, result.step, state.position) == (End.DONE, 5, 10)
    assert {p.total_steps for p in seen} == {5}
    # The last step is judged whatever its number.
    assert state.best.step == 5
    assert train(state, plenty).step == 5
