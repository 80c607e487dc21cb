from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from services.common.errors import Reason, VoxfleetError
from services.engines.bundles import catalogue
from services.engines.bundles.imports import import_dir
from services.engines.bundles.manifest import describe_file, hash_file, read_manifest, verify, write_manifest
from services.engines.f5 import model, small

from .conftest import TINY


@pytest.fixture
def copy(bundle, tmp_path):
    """The bundle in a directory of the test's own."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def restate(directory):
    """Write the manifest anew for files that were changed on purpose."""
    manifest = read_manifest(directory)
    paths = [path for path in directory.rglob("*") if path.is_file() and path.name != "manifest.json"]
    relative = [path.relative_to(directory).as_posix() for path in paths]
    write_manifest(directory, manifest.with_files(describe_file(directory, path) for path in relative))


def corrupt(directory, **settings):
    with pytest.raises(VoxfleetError) as caught:
        model.load(directory, **settings)
    assert caught.value.reason is Reason.MODEL_CORRUPT
    return caught.value


def test_the_small_bundle_is_the_same_every_time(bundle, tmp_path):
    again = small.build(tmp_path / "again", shape=TINY)
    other = small.build(tmp_path / "other", shape=TINY, seed=1)
    assert again.digest == read_manifest(bundle).digest
    assert other.digest != again.digest
    verify(tmp_path / "again", again)
    assert not again.trained
    assert again.label == "f5-small-random (untrained weights)"


def test_the_small_bundle_stays_small(tmp_path):
    assert small.build(tmp_path).size_bytes < 4_000_000


def test_the_small_bundle_can_be_imported_as_it_lies(bundle):
    assert import_dir("f5-small-random", bundle).manifest == read_manifest(bundle)


def test_weights_have_the_official_names(bundle):
    names = load_file(bundle / "model.safetensors").keys()
    assert all(name.startswith("ema_model.transformer.") for name in names)
    assert "ema_model.transformer.transformer_blocks.0.attn_norm.linear.weight" in names


def test_the_official_weights_fit_the_network_by_size():
    """The hub's file is our network's tensors in float32 and a header: no tensor more or less."""
    official = catalogue.F5_V1_BASE
    with torch.device("meta"):
        tensors = model.Architecture.of(official).build(2_545).state_dict()
    size_bytes = 4 * sum(tensor.numel() for tensor in tensors.values())
    header_bytes = official.file("model.safetensors").size_bytes - size_bytes
    assert 100 * len(tensors) < header_bytes < 180 * len(tensors)


def test_loading_checks_the_files(copy):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert corrupt(copy).metadata["path"] == "model.safetensors"


def test_a_missing_and_a_surplus_tensor_are_errors(copy):
    weights = load_file(copy / "model.safetensors")
    name = "ema_model.transformer.proj_out.bias"
    bias = weights.pop(name)
    save_file(weights | {"ema_model.transformer.proj_in.bias": bias}, copy / "model.safetensors")
    restate(copy)
    message = corrupt(copy).message
    assert "proj_out.bias is missing" in message
    assert "proj_in.bias is not of this network" in message


def test_a_tensor_of_another_shape_is_an_error(copy):
    weights = load_file(copy / "model.safetensors")
    weights["ema_model.transformer.proj_out.bias"] = torch.zeros(7)
    save_file(weights, copy / "model.safetensors")
    restate(copy)
    assert "proj_out.bias is (7,), not (100,)" in corrupt(copy).message


def test_what_the_trainer_leaves_beside_the_network_is_passed_over(copy, loaded):
    weights = load_file(copy / "model.safetensors")
    beside = {
        "initted": torch.tensor(True),
        "step": torch.tensor(5),
        "ema_model.mel_spec.mel_stft.x": torch.ones(1),
    }
    save_file(weights | beside, copy / "model.safetensors")
    restate(copy)
    again = model.load(copy)
    for name, tensor in again.transformer.state_dict().items():
        assert torch.equal(tensor, loaded.transformer.state_dict()[name])
    save_file(weights | {"ema_model.vocoder.x": torch.ones(1)}, copy / "model.safetensors")
    restate(copy)
    assert "vocoder.x" in corrupt(copy).message


def test_a_pickled_vocoder_opens_only_where_it_is_known(copy, loaded):
    weights = load_file(copy / "vocos/model.safetensors")
    (copy / "vocos/model.safetensors").unlink()
    torch.save(weights, copy / "vocos/pytorch_model.bin")
    restate(copy)
    assert "pickle" in corrupt(copy).message
    trusted = frozenset({hash_file(copy / "vocos/pytorch_model.bin")})
    again = model.load(copy, trusted_pickles=trusted)
    mel = torch.randn(1, 100, 20)
    assert torch.equal(again.vocoder.decode(mel), loaded.vocoder.decode(mel))


def test_a_vocoder_configuration_names_no_class_of_its_own(copy):
    path = copy / "vocos/config.yaml"
    config = yaml.safe_load(path.read_text())
    config["head"] = {"class_path": "subprocess.Popen", "init_args": {"args": ["false"]}}
    path.write_text(yaml.safe_dump(config))
    restate(copy)
    assert "head is not vocos.heads.ISTFTHead" in corrupt(copy).message


def test_parameters_that_describe_no_network_are_corrupt(copy):
    facts = json.loads((copy / "manifest.json").read_text())
    facts["parameters"]["colour"] = "red"
    (copy / "manifest.json").write_text(json.dumps(facts))
    assert "colour" in corrupt(copy).message


def test_half_precision_leaves_positions_text_and_what_blocks_add_to_in_float32(bundle):
    half = model.load(bundle, dtype=torch.bfloat16).transformer
    assert half.transformer_blocks[0].ff.ff[2].weight.dtype is torch.bfloat16
    assert half.proj_out.weight.dtype is torch.float32
    assert half.rotary_embed.inv_freq.dtype is torch.float32
    assert half.text_embed.freqs_cis.dtype is torch.float32


LIGHT = """
import sys
from services.engines.f5 import upstream
upstream.prepare(); upstream.prepare()
upstream.tokens_of(["a"])
import f5_tts.model.backbones.dit
loaded = [name for name in ("wandb", "datasets", "accelerate", "pandas", "gradio") if name in sys.modules]
assert not loaded, loaded
from f5_tts.model import DiT
import f5_tts.model
assert DiT is f5_tts.model.backbones.dit.DiT
try:
    f5_tts.model.Nothing
except AttributeError:
    print("light")
"""


def test_the_network_is_imported_without_the_trainer():
    checkout = Path(__file__).parents[4]
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], cwd=checkout, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.strip() == "light", done.stderr


def test_torchaudio_is_importable_and_the_shim_repeats():
    from services.engines import torchaudio_shim

    first = torchaudio_shim.install()
    assert torchaudio_shim.install() is first
    import torchaudio

    resampled = torchaudio.transforms.Resample(48_000, 24_000)(torch.zeros(1, 4_800))
    assert resampled.shape == (1, 2_400)
    if first:
        with pytest.raises(RuntimeError, match="forced_align needs its compiled extension"):
            torchaudio.functional.forced_align(torch.zeros(1, 5, 3), torch.ones(1, 1, dtype=torch.int32))
