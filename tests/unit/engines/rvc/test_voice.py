"""Voices on disk, in our format and the community's."""

import dataclasses
import io
import json
import os
from pathlib import Path

import pytest
import torch

from services.common.errors import Reason, VoxfleetError
from services.engines.rvc.community import import_base_pth, read_pth, write_pth
from services.engines.rvc.content import ContentSources
from services.engines.rvc.pipeline import build_index, save_voice
from services.engines.rvc.state import new_state
from services.engines.rvc.voice import inference_weights, load_voice, load_weights_of, read_facts
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


def exported(directory):
    """A voice on disk as a community file."""
    facts, sink = read_facts(directory), io.BytesIO()
    write_pth(facts, load_weights_of(directory, facts), sink)
    return sink


def saved(document):
    sink = io.BytesIO()
    torch.save(document, sink)
    return sink


def loaded(file):
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_export_refuses_an_encoder_that_others_lack(voice_dir):
    with pytest.raises(VoxfleetError, match="whisper-base") as caught:
        exported(voice_dir)
    assert caught.value.reason is Reason.UNSUPPORTED_ENGINE


def test_community_files_go_out_and_come_back(community_voice):
    document = loaded(exported(community_voice))
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
    found = read_pth(saved(document), "voice.pth")
    assert (found.config.speakers, found.content_encoder, found.info) == (3, "contentvec", "12epoch")
    original = load_weights_of(community_voice, read_facts(community_voice))
    assert found.weights.keys() == original.keys()
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in original.items())


def test_a_voice_of_the_first_version_is_read_too(nano, params):
    config = dataclasses.replace(nano, content_width=256)
    weights = inference_weights(new_state(config, params).synthesizer.state_dict())
    document = {"weight": weights, "config": config.to_list(), "info": "", "sr": "8k", "f0": 1}
    found = read_pth(saved(document), "v1.pth")
    assert (found.content_encoder, found.config.content_width) == ("contentvec-v1", 256)


class Exploit:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (self.marker,))


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path):
    marker = str(tmp_path / "ran")
    evil = tmp_path / "evil.pth"
    torch.save({"weight": Exploit(marker), "config": []}, evil)
    with pytest.raises(VoxfleetError) as caught:
        read_pth(io.BytesIO(evil.read_bytes()), "evil.pth")
    assert caught.value.reason is Reason.MODEL_CORRUPT
    with pytest.raises(VoxfleetError) as caught:
        import_base_pth(evil, tmp_path / "out")
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
def test_files_that_do_not_fit_are_refused(community_voice, how, reason):
    document = loaded(exported(community_voice))
    _break(document, how)
    with pytest.raises(VoxfleetError) as caught:
        read_pth(saved(document), "voice.pth")
    assert caught.value.reason is reason


def test_not_even_a_zip_is_refused():
    with pytest.raises(VoxfleetError) as caught:
        read_pth(io.BytesIO(b"junk" * 100), "junk.pth")
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
