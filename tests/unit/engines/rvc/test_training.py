"""The training loop: it learns, repeats itself, resumes exactly and stops when told."""

import dataclasses

import numpy as np
import pytest
import torch

from services.common.errors import Reason, VoxfleetError
from services.engines.rvc.checkpoint import load_checkpoint, save_checkpoint
from services.engines.rvc.pipeline import default_epochs
from services.engines.rvc.state import TrainParams, new_state
from services.engines.rvc.training import train


def weights(state):
    return {
        **{f"g/{name}": tensor for name, tensor in state.synthesizer.state_dict().items()},
        **{f"d/{name}": tensor for name, tensor in state.discriminator.state_dict().items()},
    }


def assert_same(one, two):
    assert (one.epoch, one.position, one.step) == (two.epoch, two.position, two.step)
    expected = weights(two)
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, expected[name]), name


def test_it_learns(nano, features, params):
    seen = []
    state = new_state(nano, dataclasses.replace(params, epochs=20, batch_size=5, learning_rate=5e-3))
    result = train(state, features, on_progress=seen.append)
    assert result.step == 20
    first, last = (np.mean([p.loss_mel for p in part]) for part in (seen[:4], seen[-4:]))
    assert last < 0.8 * first


def test_progress_says_where_it_is(nano, features, params):
    seen = []
    result = train(new_state(nano, params), features, on_progress=seen.append)
    assert [(p.epoch, p.step) for p in seen] == [
        (1, 1),
        (1, 2),
        (1, 3),
        (2, 4),
        (2, 5),
        (2, 6),
        (3, 7),
        (3, 8),
        (3, 9),
    ]
    assert {p.total_steps for p in seen} == {9}
    assert {p.epochs for p in seen} == {3}
    assert seen[0].lr == pytest.approx(1e-3)
    assert seen[-1].lr == pytest.approx(1e-3 * 0.999875**2)
    assert seen[-1].steps_per_s > 0
    assert result.last == seen[-1]
    assert not result.stopped
    assert result.epochs_done == 3


def test_the_same_seed_gives_the_same_weights(nano, features, params):
    states = [new_state(nano, params) for _ in range(2)]
    torch.manual_seed(1)
    train(states[0], features)
    torch.manual_seed(2)
    train(states[1], features)
    assert_same(*states)
    other = new_state(nano, dataclasses.replace(params, seed=8))
    assert not torch.equal(other.synthesizer.emb_g.weight, new_state(nano, params).synthesizer.emb_g.weight)


@pytest.mark.parametrize("stop_after", [0, 2, 3, 7])
def test_a_resumed_run_is_bit_for_bit_the_unbroken_one(nano, features, params, tmp_path, stop_after):
    unbroken = new_state(nano, params)
    train(unbroken, features)

    path = tmp_path / "checkpoint.safetensors"
    broken = new_state(nano, params)
    result = train(
        broken,
        features,
        on_checkpoint=lambda state: save_checkpoint(path, state),
        should_stop=lambda: broken.step >= stop_after,
    )
    assert result.stopped
    assert result.step == stop_after
    resumed = load_checkpoint(path)
    assert_same(resumed, broken)
    assert not train(resumed, features).stopped
    assert_same(resumed, unbroken)


def test_dropout_repeats_too(nano, features, params):
    config = dataclasses.replace(nano, dropout=0.2)
    states = [new_state(config, dataclasses.replace(params, epochs=1)) for _ in range(2)]
    for state in states:
        train(state, features)
    assert_same(*states)


def test_a_resumed_run_may_use_another_batch_size(nano, features, params, tmp_path):
    state = new_state(nano, params)
    train(state, features, should_stop=lambda: state.step >= 1)
    assert state.position == 2
    result = train(state, features, dataclasses.replace(params, batch_size=1, epochs=1))
    assert result.step == 1 + 3


def test_checkpoints_are_due_by_steps_and_by_time(nano, features, params):
    steps = []
    by_steps = dataclasses.replace(params, checkpoint_steps=4)
    train(new_state(nano, by_steps), features, on_checkpoint=lambda state: steps.append(state.step))
    assert steps == [4, 8]
    steps.clear()
    ticks = iter(range(1000))
    by_time = dataclasses.replace(params, checkpoint_s=3.0)
    train(
        new_state(nano, by_time),
        features,
        on_checkpoint=lambda state: steps.append(state.step),
        clock=lambda: float(next(ticks)),
    )
    assert steps == [3, 6]


def test_a_loss_that_is_no_number_ends_the_run_without_a_checkpoint(nano, features, params):
    state = new_state(nano, dataclasses.replace(params, checkpoint_steps=1))
    with torch.no_grad():
        state.synthesizer.dec.conv_pre.weight[0, 0, 0] = float("nan")
    saved = []
    with pytest.raises(VoxfleetError) as caught:
        train(state, features, on_checkpoint=saved.append)
    assert caught.value.reason is Reason.TRAINING_DIVERGED
    assert saved == []


def test_features_of_another_model_are_refused(nano, features, params):
    state = new_state(dataclasses.replace(nano, content_width=7), params)
    with pytest.raises(VoxfleetError) as caught:
        train(state, features)
    assert caught.value.reason is Reason.INVALID_ARGUMENT


def test_base_weights_may_have_another_content_width_and_nothing_else(nano, params):
    base = new_state(nano, params).synthesizer.state_dict()
    wider = dataclasses.replace(nano, content_width=9)
    state = new_state(wider, dataclasses.replace(params, seed=1), pretrained_g=base)
    assert torch.equal(
        state.synthesizer.state_dict()["flow.flows.0.pre.weight"], base["flow.flows.0.pre.weight"]
    )
    assert state.synthesizer.enc_p.emb_phone.weight.shape == (8, 9)
    with pytest.raises(VoxfleetError) as caught:
        new_state(wider, params, pretrained_g={**base, "enc_p.proj.weight": torch.zeros(3)})
    assert caught.value.reason is Reason.MODEL_CORRUPT
    base.pop("emb_g.weight")
    with pytest.raises(VoxfleetError):
        new_state(nano, params, pretrained_g=base)


@pytest.mark.parametrize(
    "change", [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"precision": "int8"}]
)
def test_a_recipe_that_cannot_work_is_refused(change):
    with pytest.raises(VoxfleetError) as caught:
        TrainParams(**change)
    assert caught.value.reason is Reason.INVALID_ARGUMENT


def test_default_epochs_shrink_with_the_length_of_the_audio():
    assert default_epochs(3, 8) == 800
    assert default_epochs(160, 8) == 300
    assert default_epochs(5000, 8) == 100
