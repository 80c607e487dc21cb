"""Voices on disk, in our format and the community's."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from services.common.errors import Reason, VoxfleetError
from services.engines.rvc.community import export_pth, import_base_pth, import_pth
from services.engines.rvc.content import ContentSources
from services.engines.rvc.pipeline import build_index, save_voice
from services.engines.rvc.retrieval import save_index
from services.engines.rvc.state import new_state
from services.engines.rvc.voice import load_voice, read_facts
from services.engines.rvc.voice import save_voice as write_voice

from .conftest import NANO

CONTENTVEC_NANO = {"content_width": 768, "speakers": 3}


@pytest.fixture
def voice_dir(nano, features, params, tmp_path):
    directory = tmp_path / "voice"
    save_voice(directory, new_state(nano, params), features, build_index(features))
    return directory


@pytest.fixture
def community_voice(nano, params, tmp_path):
    config = dataclasses.replace(nano, **CONTENTVEC_NANO)
    state = new_state(config, params)
    directory = tmp_path / "contentvec-voice"
    facts = dataclasses.replace(_facts(config), content_encoder="contentvec")
    write_voice(directory, facts, state.synthesizer.state_dict(), None)
    return directory


def _facts(config):
    from services.engines.rvc.voice import VoiceFacts

    return VoiceFacts(config, "contentvec", training={"epochs": 12})


def test_a_voice_comes_back_whole(voice_dir, params, features, encoder, tmp_path):
    facts = read_facts(voice_dir)
    nano = facts.config
    assert nano == NANO
    assert facts.training["slices"] == 5
    assert set(facts.files) == {"model.safetensors", "index.faiss"}
    voice = load_voice(voice_dir, ContentSources(tmp_path), encoder=encoder)
    original = new_state(nano, params).synthesizer.state_dict()
    loaded = voice.synthesizer.state_dict()
    assert set(loaded) == {name for name in original if not name.startswith("enc_q.")}
    for name, tensor in loaded.items():
        torch.testing.assert_close(tensor, original[name], atol=1e-3, rtol=1e-3)
    assert len(voice.retrieval.vectors) == len(features.content_vectors())
    assert [path.name for path in voice_dir.parent.iterdir()] == ["voice"]


@pytest.mark.parametrize("name", ["model.safetensors", "index.faiss"])
def test_an_altered_file_is_refused(voice_dir, encoder, tmp_path, name):
    data = bytearray((voice_dir / name).read_bytes())
    data[len(data) // 2] ^= 1
    (voice_dir / name).write_bytes(data)
    with pytest.raises(VoxfleetError, match=name) as caught:
        load_voice(voice_dir, ContentSources(tmp_path), encoder=encoder)
    assert caught.value.reason is Reason.MODEL_CORRUPT


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"format": "other"},
        {"config": {}},
        {"files": {}},
        {"files": {"model.safetensors": "0", "../elsewhere": "0"}},
    ],
)
def test_facts_that_do_not_hold_are_refused(voice_dir, encoder, tmp_path, change):
    path = voice_dir / "voice.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(VoxfleetError) as caught:
        load_voice(voice_dir, ContentSources(tmp_path), encoder=encoder)
    assert caught.value.reason is Reason.MODEL_CORRUPT


def test_an_absent_voice_is_not_found(tmp_path):
    with pytest.raises(VoxfleetError) as caught:
        read_facts(tmp_path)
    assert caught.value.reason is Reason.MODEL_NOT_FOUND


def test_saving_never_replaces_a_voice(voice_dir, nano, params, features):
    with pytest.raises(OSError):
        save_voice(voice_dir, new_state(nano, params), features, None)
    assert (voice_dir / "index.faiss").is_file()


def test_export_refuses_an_encoder_that_others_lack(voice_dir, tmp_path):
    with pytest.raises(VoxfleetError, match="whisper-base") as caught:
        export_pth(voice_dir, tmp_path / "voice.pth")
    assert caught.value.reason is Reason.UNSUPPORTED_ENGINE
    assert not (tmp_path / "voice.pth").exists()


def test_community_files_go_out_and_come_back(community_voice, tmp_path):
    target = tmp_path / "voice.pth"
    export_pth(community_voice, target)
    document = torch.load(target, weights_only=True)
    assert list(document) == ["weight", "config", "info", "sr", "f0", "version"]
    assert (document["sr"], document["f0"], document["version"], document["info"]) == (
        "8k",
        1,
        "v2",
        "12epoch",
    )
    assert len(document["config"]) == 18
    assert document["weight"]["emb_g.weight"].dtype == torch.float16
    assert not [name for name in document["weight"] if name.startswith("enc_q")]

    # Upstream writes 109 speakers whatever the table holds, and some files keep the posterior encoder.
    document["config"][-3] = 109
    document["weight"]["enc_q.pre.bias"] = torch.zeros(3)
    torch.save(document, target)
    vectors = np.random.default_rng(0).standard_normal((50, 768)).astype(np.float32)
    from services.engines.rvc.retrieval import build_index as index_of

    save_index(tmp_path / "added.index", index_of(vectors))
    facts = import_pth(target, tmp_path / "imported", index=tmp_path / "added.index")
    assert facts.config.speakers == 3
    assert facts.content_encoder == "contentvec"
    original, imported = read_facts(community_voice), read_facts(tmp_path / "imported")
    assert imported.files["model.safetensors"] == original.files["model.safetensors"]
    assert "index.faiss" in imported.files


class Exploit:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (self.marker,))


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path):
    marker = str(tmp_path / "ran")
    torch.save({"weight": Exploit(marker), "config": []}, tmp_path / "evil.pth")
    for load in (import_pth, import_base_pth):
        with pytest.raises(VoxfleetError) as caught:
            load(tmp_path / "evil.pth", tmp_path / "out")
        assert caught.value.reason is Reason.MODEL_CORRUPT
    assert not Path(marker).exists()
    assert not (tmp_path / "out").exists()


def _break(document, how):
    if how == "f0":
        document["f0"] = 0
    elif how == "config":
        document["config"] = document["config"][:-1]
    elif how == "size":
        document["config"][3] = 16
    elif how == "width":
        document["weight"]["enc_p.emb_phone.weight"] = torch.zeros(8, 100)
    elif how == "missing":
        document["weight"].pop("dec.conv_post.weight")
    elif how == "object":
        document["weight"]["emb_g.weight"] = "text"
    else:
        document.clear()


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("f0", Reason.UNSUPPORTED_ENGINE),
        ("config", Reason.MODEL_CORRUPT),
        ("size", Reason.MODEL_CORRUPT),
        ("width", Reason.MODEL_CORRUPT),
        ("missing", Reason.MODEL_CORRUPT),
        ("object", Reason.MODEL_CORRUPT),
        ("empty", Reason.MODEL_CORRUPT),
    ],
)
def test_files_that_do_not_fit_are_refused(community_voice, tmp_path, how, reason):
    target = tmp_path / "voice.pth"
    export_pth(community_voice, target)
    document = torch.load(target, weights_only=True)
    _break(document, how)
    torch.save(document, target)
    with pytest.raises(VoxfleetError) as caught:
        import_pth(target, tmp_path / "imported")
    assert caught.value.reason is reason
    assert not (tmp_path / "imported").exists()


def test_not_even_a_zip_is_refused(tmp_path):
    (tmp_path / "junk.pth").write_bytes(b"junk" * 100)
    with pytest.raises(VoxfleetError) as caught:
        import_pth(tmp_path / "junk.pth", tmp_path / "out")
    assert caught.value.reason is Reason.MODEL_CORRUPT


def test_base_weights_become_safetensors(nano, params, tmp_path):
    from safetensors.torch import load_file

    state = new_state(nano, params)
    torch.save({"model": state.discriminator.state_dict(), "iteration": 3}, tmp_path / "f0D.pth")
    import_base_pth(tmp_path / "f0D.pth", tmp_path / "f0D.safetensors")
    weights = load_file(tmp_path / "f0D.safetensors")
    again = new_state(nano, dataclasses.replace(params, seed=1), pretrained_d=weights)
    for name, tensor in again.discriminator.state_dict().items():
        assert torch.equal(tensor, state.discriminator.state_dict()[name])
