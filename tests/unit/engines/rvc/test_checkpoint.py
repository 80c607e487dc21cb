"""Checkpoints: whole, or refused with a reason."""

import pytest
import torch
from safetensors.torch import load_file

from services.common.errors import Reason, VoxfleetError
from services.engines.rvc.checkpoint import load_checkpoint, save_checkpoint
from services.engines.rvc.state import new_state
from services.engines.rvc.tensors import load_tensors, save_tensors
from services.engines.rvc.training import train


@pytest.fixture
def saved(nano, features, params, tmp_path):
    state = new_state(nano, params)
    train(state, features, should_stop=lambda: state.step >= 1)
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, state)
    return path, state


def test_everything_comes_back(saved):
    path, state = saved
    loaded = load_checkpoint(path)
    assert (loaded.config, loaded.params) == (state.config, state.params)
    assert (loaded.epoch, loaded.position, loaded.step) == (0, 2, 1)
    for mine, theirs in (
        (loaded.optimizer_g, state.optimizer_g),
        (loaded.optimizer_d, state.optimizer_d),
    ):
        for number, moments in theirs.state_dict()["state"].items():
            for name, tensor in moments.items():
                assert torch.equal(mine.state_dict()["state"][number][name], tensor)


def test_any_tool_reads_its_tensors(saved):
    path, state = saved
    assert torch.equal(load_file(path)["g/emb_g.weight"], state.synthesizer.emb_g.weight)


@pytest.mark.parametrize("place", [0, 9, 40, 700, 0.3, 0.6, 0.999999])
def test_a_flipped_bit_anywhere_is_found(saved, place):
    path, _ = saved
    data = bytearray(path.read_bytes())
    data[place if isinstance(place, int) else int(place * len(data))] ^= 4
    path.write_bytes(data)
    with pytest.raises(VoxfleetError) as caught:
        load_checkpoint(path)
    assert caught.value.reason is Reason.CHECKPOINT_CORRUPT


@pytest.mark.parametrize("kept", [0, 7, 0.5, 0.99999])
def test_a_file_cut_short_is_found(saved, kept):
    path, _ = saved
    data = path.read_bytes()
    path.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    with pytest.raises(VoxfleetError) as caught:
        load_checkpoint(path)
    assert caught.value.reason is Reason.CHECKPOINT_CORRUPT


def test_a_missing_or_foreign_file_is_refused(tmp_path):
    foreign = tmp_path / "other.safetensors"
    save_tensors(foreign, {"a": torch.zeros(2)}, {"format": "something else"})
    for path in (foreign, tmp_path / "none.safetensors"):
        with pytest.raises(VoxfleetError) as caught:
            load_checkpoint(path)
        assert caught.value.reason is Reason.CHECKPOINT_CORRUPT


def test_a_header_that_lies_about_tensors_is_refused(saved, tmp_path):
    path, _ = saved
    tensors, header = load_tensors(path)
    other = tmp_path / "lies.safetensors"
    tensors.pop("g/emb_g.weight")
    save_tensors(other, tensors, header)
    with pytest.raises(VoxfleetError) as caught:
        load_checkpoint(other)
    assert caught.value.reason is Reason.CHECKPOINT_CORRUPT


def test_a_failed_write_leaves_the_old_checkpoint(saved, monkeypatch):
    path, state = saved
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("services.engines.rvc.tensors.save_file", full)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(path, state)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_sixteen_bit_tensors_and_empty_ones(tmp_path):
    tensors = {"b": torch.randn(3, dtype=torch.bfloat16), "e": torch.zeros(0), "s": torch.tensor(2.0)}
    save_tensors(tmp_path / "t.safetensors", tensors, {"x": [1, "é"]})
    loaded, header = load_tensors(tmp_path / "t.safetensors")
    assert header == {"x": [1, "é"]}
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
