"""A step in parts: on one device that is too small for the whole, or on several at once."""

import dataclasses
import json
import subprocess
import sys
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from services.common.errors import Reason, VoxfleetError
from services.engines.rvc.discriminator import Discriminator
from services.engines.rvc.parallel import share_of
from services.engines.rvc.state import new_state
from services.engines.rvc.synthesizer import Synthesizer
from services.engines.rvc.training import train
from tests.unit.engines.rvc.ranked import alike


@pytest.fixture
def recipe(params):
    # With a small epsilon what has no gradient but rounding (a key's bias) would move as far as the rest.
    return dataclasses.replace(params, epochs=2, batch_size=4, epsilon=1e-2)


@pytest.fixture
def whole(nano, recipe, features):
    with alike():
        state = new_state(nano, recipe)
        return state, train(state, features)


def assert_close(got, wanted):
    for name, tensor in wanted.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_parts_of_a_batch_train_as_the_whole(nano, recipe, features, whole, micro_batch):
    wanted, result = whole
    with alike():
        state = new_state(nano, dataclasses.replace(recipe, micro_batch=micro_batch))
        got = train(state, features)
    assert_close(state.synthesizer.state_dict(), wanted.synthesizer.state_dict())
    assert_close(state.discriminator.state_dict(), wanted.discriminator.state_dict())
    for name in ("loss_g", "loss_d", "loss_mel", "loss_kl", "loss_fm"):
        assert getattr(got.last, name) == pytest.approx(getattr(result.last, name), rel=1e-4)
    assert got.last.at_once == micro_batch


@pytest.mark.parametrize("model", [Synthesizer, Discriminator])
def test_a_full_memory_halves_what_is_done_at_once_and_nothing_else(nano, recipe, features, whole, model):
    forward, most = model.forward, 2

    def crowded(self, rows, *args, **named):
        # The critic is asked for real and made together, and for either alone.
        if len(rows) > most and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, rows, *args, **named)

    with alike(), mock.patch.object(model, "forward", crowded):
        state = new_state(nano, recipe)
        result = train(state, features)
    assert state.micro_batch == result.last.at_once == (2 if model is Synthesizer else 1)
    assert result.step == 4
    assert_close(state.synthesizer.state_dict(), whole[0].synthesizer.state_dict())
    assert_close(state.discriminator.state_dict(), whole[0].discriminator.state_dict())


def test_a_memory_that_holds_no_row_ends_it(nano, recipe, features, monkeypatch):
    def full(self, *args, **named):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Synthesizer, "forward", full)
    state = new_state(nano, recipe)
    with pytest.raises(VoxfleetError) as caught:
        train(state, features)
    assert caught.value.reason is Reason.GPU_OUT_OF_MEMORY
    assert state.step == 0
    assert all(parameter.requires_grad for parameter in state.discriminator.parameters())


@pytest.mark.parametrize("ranks", [(2, ""), (3, ""), (2, "1")])
def test_ranks_train_as_one(recipe, features, whole, tmp_path, ranks):
    size, full = ranks
    features.save(tmp_path / "features")
    (tmp_path / "params.json").write_text(json.dumps(recipe.to_dict()))
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.unit.engines.rvc.ranked", str(tmp_path), str(rank), str(size), full]
        )
        for rank in range(size)
    ]
    assert [process.wait(240) for process in processes] == [0] * size
    told = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(size)]
    wanted, result = whole
    for rank in range(size):
        assert_close(load_file(tmp_path / f"rank-{rank}.safetensors"), wanted.synthesizer.state_dict())
        assert told[rank]["step"] == 4
        assert told[rank]["micro_batch"] == (1 if full else 0)
    assert told[0]["loss_g"] == pytest.approx(result.last.loss_g, rel=1e-4)
    assert [told[rank]["loss_g"] for rank in range(1, size)] == [None] * (size - 1)
    # Five slices in batches of four: the second batch is one row, which is the first rank's.
    if size == 2 and not full:
        assert [part["rows"] for part in told] == [[2, 1, 2, 1], [2, 2]]


@pytest.mark.parametrize("rows", range(10))
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_are_even_and_whole(rows, size):
    shares = [share_of(rows, rank, size) for rank in range(size)]
    assert [row for share in shares for row in share] == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
