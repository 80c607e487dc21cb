"""What ours writes is read by upstream's packages, and what theirs writes by ours."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bench.peers.rvc import material
from services.engines.rvc.community import import_base_pth, read_pth
from services.engines.rvc.config import ModelConfig
from services.engines.rvc.conversion import ConvertParams
from services.engines.rvc.state import load_weights
from services.engines.rvc.synthesizer import Synthesizer
from services.engines.rvc.voice import VoiceFacts, load_voice, load_weights_of, save_voice

PLAIN = ConvertParams(f0_method="pm", index_rate=0.5, rms_mix_rate=1.0, filter_radius=0)


@pytest.mark.parametrize("package", ["rvc-python", "infer-rvc-python"])
def test_an_exported_voice_converts_in_upstreams_packages(package, upstream, voices, clip):
    voice = voices("v2-40k")
    process = upstream(package)
    process.load(voice.pth, voice.index, version="v2")
    converted = process.convert(clip.path, PLAIN)
    assert converted.rate_hz == 40_000
    assert abs(len(converted.made) / 40_000 - len(clip.samples) / 16_000) < 0.05
    assert converted.made.astype(np.float64).std() > 300


def test_upstreams_packages_give_the_same_sound_of_it(upstream, voices, clip):
    voice = voices("v2-40k")
    made = []
    for package in ("rvc-python", "infer-rvc-python"):
        process = upstream(package)
        process.load(voice.pth, voice.index, version="v2")
        made.append(process.convert(clip.path, PLAIN, noise=False).made.astype(np.int64))
    assert np.abs(made[0] - made[1]).max() <= 2


@pytest.mark.parametrize("name", list(material.CONFIGS))
def test_a_voice_of_upstreams_own_class_imports_whole(name, upstream, tmp_path, sources):
    config = material.CONFIGS[name]
    pth, base = tmp_path / "theirs.pth", tmp_path / "base.pth"
    upstream("rvc-python").ask(
        "make",
        config=config.to_list(),
        version="v1" if config.content_width == 256 else "v2",
        seed=1,
        target=str(pth),
        base=str(base),
    )
    with pth.open("rb") as source:
        found = read_pth(source, pth.name)
    facts = save_voice(
        tmp_path / "voice", VoiceFacts(found.config, found.content_encoder), found.weights, None
    )
    assert facts.config == config
    theirs = torch.load(pth, weights_only=True)["weight"]
    kept = load_weights_of(tmp_path / "voice", facts)
    assert kept.keys() == theirs.keys()
    assert all(torch.equal(kept[key], theirs[key]) for key in theirs)
    own = Synthesizer(facts.config, with_posterior=False).state_dict()
    assert own.keys() == theirs.keys()
    assert load_voice(tmp_path / "voice", sources).facts == facts
    # Base weights to train from hold the posterior encoder too.
    import_base_pth(base, tmp_path / "base.safetensors")
    whole = load_file(tmp_path / "base.safetensors")
    model = Synthesizer(facts.config)
    assert model.state_dict().keys() == whole.keys()
    load_weights(model, whole)


def test_the_list_that_upstream_builds_from_is_ours_again(upstream, voices):
    voice = voices("v2-40k")
    document = torch.load(voice.pth, weights_only=True)
    assert ModelConfig.from_list(document["config"]) == material.CONFIGS["v2-40k"]
    assert (document["version"], document["f0"], document["sr"]) == ("v2", 1, "40k")
