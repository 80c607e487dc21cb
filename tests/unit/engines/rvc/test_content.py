"""The table of content encoders, and ContentVec's frames."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from services.common.errors import Reason, VoxfleetError
from services.engines import torchaudio_shim
from services.engines.rvc.content import ContentSources, content_encoder, encoder_spec, repeat_frames


def test_unknown_and_absent_encoders(tmp_path):
    with pytest.raises(VoxfleetError, match="whisper-base") as caught:
        content_encoder("hubert-large", ContentSources(tmp_path))
    assert caught.value.reason is Reason.UNSUPPORTED_ENGINE
    with pytest.raises(VoxfleetError, match="content-vec-best") as caught:
        content_encoder("contentvec", ContentSources(tmp_path, contentvec_dir=tmp_path / "none"))
    assert caught.value.reason is Reason.MODEL_NOT_FOUND


def test_widths_are_known_before_loading():
    assert [encoder_spec(name).width for name in ("whisper-base", "contentvec", "contentvec-v1")] == [
        512,
        768,
        256,
    ]


def test_features_are_repeated_to_frames():
    features = np.arange(3, dtype=np.float32)[:, None]
    assert repeat_frames(features, 7)[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 2]


@pytest.fixture(scope="module")
def hubert_dir(tmp_path_factory):
    """HuBERT's shape with random weights, thin where width does not matter."""
    torchaudio_shim.install()
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("contentvec")
    config = HubertConfig(
        num_hidden_layers=9, intermediate_size=8, conv_dim=[16] * 7, num_conv_pos_embeddings=16
    )
    HubertModel(config).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights |= {"final_proj.weight": torch.randn(256, 768), "final_proj.bias": torch.randn(256)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(("name", "width"), [("contentvec", 768), ("contentvec-v1", 256)])
def test_contentvec_gives_a_frame_each_20_ms(hubert_dir, tmp_path, name, width):
    encoder = content_encoder(name, ContentSources(tmp_path, contentvec_dir=hubert_dir))
    assert (encoder.name, encoder.width) == (name, width)
    audio = np.random.default_rng(0).standard_normal(16_100).astype(np.float32) * 0.1
    features = encoder.encode(audio)
    assert features.shape == (51, width)
    assert np.isfinite(features).all()
    assert features.std(axis=0).max() > 0
    assert len(encoder.encode(audio[:100])) == 1


def test_contentvec_hears_what_upstreams_encoder_hears(hubert_dir, tmp_path):
    """Frame i is of samples 320 i to 320 i + 400, none of them padding; the last one is held."""
    from transformers import HubertModel

    audio = np.random.default_rng(1).standard_normal(16_100).astype(np.float32) * 0.1
    with torch.inference_mode():
        plain = HubertModel.from_pretrained(hubert_dir)(torch.from_numpy(audio)[None]).last_hidden_state[0]
    features = content_encoder("contentvec", ContentSources(tmp_path, contentvec_dir=hubert_dir)).encode(
        audio
    )
    assert len(plain) == 50
    np.testing.assert_allclose(features[:50], plain.numpy(), atol=1e-5)
    np.testing.assert_array_equal(features[50], features[49])


def test_a_folder_that_is_no_hubert_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(VoxfleetError) as caught:
        content_encoder("contentvec", ContentSources(tmp_path, contentvec_dir=tmp_path))
    assert caught.value.reason is Reason.MODEL_CORRUPT
