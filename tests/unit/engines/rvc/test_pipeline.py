"""From a recording to a voice and back to sound, on real speech with real listeners."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from services.engines.rvc.pipeline import (
    ContentSources,
    FeatureSet,
    TrainParams,
    build_index,
    content_encoder,
    convert,
    encoder_spec,
    extract,
    f0_method,
    load_voice,
    new_state,
    prepare,
    preset,
    save_voice,
    train,
)

SPEECH = Path(__file__).parents[3] / "fixtures" / "speech"


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return ContentSources(tmp_path_factory.mktemp("models"))


def test_real_speech_trains_a_voice_that_converts(sources, tmp_path):
    samples, rate_hz = soundfile.read(SPEECH / "clip_en_1.flac", dtype="float32")
    config = preset("tiny_40k", content_width=encoder_spec("whisper-base").width)
    slices = prepare([samples], rate_hz, config)
    features = extract(slices, content_encoder("whisper-base", sources), f0_method("fcpe"), config)
    voiced = np.concatenate([part.f0_hz for part in features.slices])
    assert 0.5 < (voiced > 0).mean() < 1.0
    assert 120 < np.median(voiced[voiced > 0]) < 300
    features.save(tmp_path / "features.safetensors")

    state = new_state(config, TrainParams(epochs=2, batch_size=1))
    result = train(state, FeatureSet.load(tmp_path / "features.safetensors"))
    assert result.step == 2 * len(features.slices)
    facts = save_voice(tmp_path / "voice", state, features, build_index(features), last=result.last)
    assert facts.training["last"]["step"] == result.step

    voice = load_voice(tmp_path / "voice", sources)
    source = samples[: 3 * rate_hz // 2]
    out, out_rate_hz = convert(voice, source, rate_hz)
    assert out_rate_hz == 40_000
    assert len(out) == 60_000
    assert np.isfinite(out).all()
    assert np.sqrt(np.mean(out**2)) > 1e-3
