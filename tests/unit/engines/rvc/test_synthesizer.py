"""The model against upstream: names, sizes, and the arithmetic that must not drift."""

import hashlib

import librosa
import numpy as np
import pytest
import torch

from services.common.errors import Reason, VoxfleetError
from services.engines.rvc.config import PRESETS, TINY_40K, V2_32K, V2_40K, V2_48K, ModelConfig, preset
from services.engines.rvc.discriminator import Discriminator
from services.engines.rvc.generator import Generator, sine_source
from services.engines.rvc.layers import (
    ATTENTION_WINDOW,
    NormConv1d,
    _band_to_square,
    _square_to_band,
    fold_weight_norm,
    length_mask,
)
from services.engines.rvc.mel import linear_spectrogram, mel_filters
from services.engines.rvc.synthesizer import Flow, Synthesizer, cut_frames

# SHA-256 over "name shape" lines of the state dicts of an independent implementation of upstream's
# classes (huggingface-hub-rvc 0.1.4), at the 40k configuration.
UPSTREAM_SYNTHESIZER_V2 = "af04e6b02b81783515deea2abeb17bda385e9daa4bd73b903d25b4ea7898b5ff"
UPSTREAM_SYNTHESIZER_V1 = "6ecf658662406554d8ce044c1c41c8500d79ad1bdea9c9fcad3f82e2ceea4f48"
UPSTREAM_DISCRIMINATOR_V2 = "2a78ab7c9ba71868debb2c0921c8f141fee773cef70f74f0391638c25dbd11fd"


def on_meta(build):
    with torch.device("meta"):
        return build()


def names_digest(model):
    lines = sorted(f"{name} {list(tensor.shape)}" for name, tensor in model.state_dict().items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_names_and_shapes_are_upstreams():
    assert names_digest(on_meta(lambda: Synthesizer(V2_40K))) == UPSTREAM_SYNTHESIZER_V2
    v1 = preset("v2_40k", content_width=256)
    assert names_digest(on_meta(lambda: Synthesizer(v1))) == UPSTREAM_SYNTHESIZER_V1
    assert names_digest(on_meta(lambda: Discriminator(V2_40K))) == UPSTREAM_DISCRIMINATOR_V2


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(V2_32K, 36_880_706), (V2_40K, 36_458_818), (V2_48K, 37_638_466), (TINY_40K, 554_898)],
)
def test_synthesizer_sizes(config, parameters):
    assert size(on_meta(lambda: Synthesizer(config))) == parameters


def test_discriminator_sizes():
    assert size(on_meta(lambda: Discriminator(V2_40K))) == 71_410_594
    assert size(on_meta(lambda: Discriminator(TINY_40K))) < 1_000_000


@pytest.mark.parametrize("name", PRESETS)
def test_config_survives_its_list_and_its_dict(name):
    config = preset(name, content_width=512)
    values = config.to_list()
    assert len(values) == 18
    assert values[-1] == config.rate_hz
    assert values[-3] == config.speakers
    restored = ModelConfig.from_list(values, content_width=512)
    assert restored.to_list() == values
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_config_takes_a_rate_written_as_the_community_does():
    assert ModelConfig.from_list([*V2_48K.to_list()[:-1], "48k"]).rate_hz == 48_000


@pytest.mark.parametrize(
    "change",
    [
        {"rate_hz": 44_100},
        {"hidden_channels": 0},
        {"heads": 5},
        {"resblock": "3"},
        {"upsample_rates": "many"},
        {"inter_channels": 10**9},
    ],
)
def test_config_refuses_nonsense(change):
    with pytest.raises(VoxfleetError) as caught:
        ModelConfig.from_dict({**V2_40K.to_dict(), **change})
    assert caught.value.reason is Reason.MODEL_CORRUPT


def test_unknown_preset_names_the_known():
    with pytest.raises(VoxfleetError, match="tiny_40k") as caught:
        preset("v3", content_width=768)
    assert caught.value.reason is Reason.INVALID_ARGUMENT


def test_weight_norm_is_torchs_and_folds_to_itself():
    layer = NormConv1d(4, 6, 3, padding=1)
    with torch.no_grad():
        layer.weight_g.mul_(1.7)
    twin = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(4, 6, 3, padding=1))
    with torch.no_grad():
        twin.parametrizations.weight.original0.copy_(layer.weight_g)
        twin.parametrizations.weight.original1.copy_(layer.weight_v)
        twin.bias.copy_(layer.bias)
    x = torch.randn(2, 4, 9)
    torch.testing.assert_close(layer(x), twin(x))
    before = layer(x)
    fold_weight_norm(layer)
    torch.testing.assert_close(layer(x), before)


@pytest.mark.parametrize("frames", [1, 5, 2 * ATTENTION_WINDOW + 1, 40])
def test_attention_bands_lie_on_their_diagonals(frames):
    width = 2 * ATTENTION_WINDOW + 1
    band = torch.randn(2, 3, frames, width)
    square = _band_to_square(band)
    expected = torch.zeros(2, 3, frames, frames)
    for i in range(frames):
        for j in range(frames):
            if abs(j - i) <= ATTENTION_WINDOW:
                expected[..., i, j] = band[..., i, j - i + ATTENTION_WINDOW]
    torch.testing.assert_close(square, expected)
    back = _square_to_band(square)
    torch.testing.assert_close(_band_to_square(back), expected)


def test_flow_inverts(nano):
    torch.manual_seed(0)
    flow = Flow(nano)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, nano.inter_channels, 20)
    mask = length_mask(torch.tensor([20, 13]), 20)
    speaker = torch.randn(2, nano.speaker_channels, 1)
    moved = flow(x * mask, mask, speaker)
    assert (moved - x * mask).abs().max() > 0.1
    torch.testing.assert_close(flow(moved, mask, speaker, reverse=True), x * mask, atol=1e-4, rtol=1e-4)


def test_padding_frames_do_not_leak(nano):
    """A row gives the same latents alone and beside a longer one."""
    torch.manual_seed(0)
    model = Synthesizer(nano).eval()
    content, pitch = torch.randn(1, 30, nano.content_width), torch.randint(1, 255, (1, 30))
    padded = torch.cat([content, torch.randn(1, 12, nano.content_width)], dim=1)
    alone = model.enc_p(content, pitch, length_mask(torch.tensor([30]), 30))
    beside = model.enc_p(padded, torch.nn.functional.pad(pitch, (0, 12)), length_mask(torch.tensor([30]), 42))
    for one, two in zip(alone, beside, strict=True):
        torch.testing.assert_close(two[..., :30], one, atol=1e-5, rtol=1e-4)
        assert two[..., 30:].abs().max() == 0


def test_sine_source_keeps_its_phase_and_is_noise_where_unvoiced():
    generator = torch.Generator().manual_seed(0)
    f0_hz = torch.full((1, 3000), 220.0)
    f0_hz[:, 2000:] = 0.0
    wave = sine_source(f0_hz, 80, 8000, generator)[0, 0].numpy()
    time = np.arange(1, 2000 * 80 + 1)
    ideal = 0.1 * np.sin(2 * np.pi * 220.0 * time / 8000)
    assert np.abs(wave[: 2000 * 80] - ideal).max() < 0.03
    assert np.std(wave[: 2000 * 80] - ideal) == pytest.approx(0.003, rel=0.05)
    assert np.std(wave[2000 * 80 :]) == pytest.approx(0.1 / 3, rel=0.05)


def test_a_fresh_decoder_hears_its_pitch(nano):
    """Training from scratch never finds the pitch where the excitation starts out too faint."""
    torch.manual_seed(0)
    decoder = Generator(nano).eval()
    latent, speaker = torch.zeros(1, nano.inter_channels, 100), torch.zeros(1, nano.speaker_channels, 1)
    for hz in (150, 230):
        with torch.no_grad():
            made = decoder(latent, torch.full((1, 100), float(hz)), speaker, torch.Generator().manual_seed(0))
        spectrum = np.abs(np.fft.rfft(made[0, 0].numpy()))
        # One second: bin k is k Hz.
        assert 50 + np.argmax(spectrum[50:1000]) == hz
        assert spectrum[hz] > 30 * np.median(spectrum[50:])


@pytest.mark.parametrize("only", [(0, 30), (20, 61), (70, 120)])
def test_frames_decoded_alone_are_those_of_the_whole(nano, only):
    """What is left out lies beyond what a sample hears, and not by much: less context would show."""
    torch.manual_seed(3)
    decoder = Synthesizer(nano).eval().dec
    latent, f0 = torch.randn(1, nano.inter_channels, 120), torch.full((1, 120), 110.0)
    speaker = torch.randn(1, nano.speaker_channels, 1)
    first, last = only

    def made(wanted=None):
        return decoder(latent, f0, speaker, torch.Generator().manual_seed(0), only=wanted)

    with torch.inference_mode():
        expected = made()[..., first * nano.hop : last * nano.hop]
        torch.testing.assert_close(made(only), expected, atol=1e-6, rtol=0)
        decoder.reach_frames = 3
        assert (made(only) - expected).abs().max() > 1e-6


def test_forward_decodes_the_segment_it_names(nano):
    torch.manual_seed(0)
    model = Synthesizer(nano).eval()
    lengths = torch.tensor([40, 17])
    wave, starts, gaussians = model(
        torch.randn(2, 40, nano.content_width),
        torch.randint(1, 255, (2, 40)),
        torch.full((2, 40), 120.0),
        spectrogram=torch.rand(2, nano.spec_channels, 40),
        lengths=lengths,
        speaker_ids=torch.zeros(2, dtype=torch.long),
        generator=torch.Generator().manual_seed(3),
    )
    assert wave.shape == (2, 1, nano.segment_samples)
    assert (starts >= 0).all()
    assert (starts + nano.segment_frames <= lengths).all()
    assert gaussians.flowed.shape == (2, nano.inter_channels, 40)
    assert wave.abs().max() <= 1


def test_cut_frames():
    x = torch.arange(24.0).reshape(2, 2, 6)
    got = cut_frames(x, torch.tensor([0, 3]), 2)
    torch.testing.assert_close(got, torch.stack([x[0, :, 0:2], x[1, :, 3:5]]))


@pytest.mark.parametrize("config", [V2_32K, V2_40K, V2_48K])
def test_mel_filters_are_librosas(config):
    expected = librosa.filters.mel(sr=config.rate_hz, n_fft=config.fft_size, n_mels=config.mel_bands)
    got = mel_filters(config.rate_hz, config.fft_size, config.mel_bands)
    np.testing.assert_allclose(got, expected, atol=1e-7)


def test_spectrogram_has_a_column_a_frame_and_finds_a_tone():
    time = torch.arange(40_000) / 40_000
    spectrum = linear_spectrogram(torch.sin(2 * torch.pi * 1000 * time)[None], V2_40K)
    assert spectrum.shape == (1, 1025, 100)
    assert int(spectrum[0, :, 50].argmax()) == round(1000 / 40_000 * 2048)


def test_discriminator_judges_a_pair_as_it_judges_each(nano):
    torch.manual_seed(0)
    critic = Discriminator(nano)
    real, made = torch.randn(2, 1, 1280), torch.randn(2, 1, 1280)
    both_real, both_made = critic.compare(real, made)
    for together, alone in ((both_real, critic(real)), (both_made, critic(made))):
        assert len(together) == 1 + len(nano.discriminator_periods)
        for (scores, maps), (expected_scores, expected_maps) in zip(together, alone, strict=True):
            torch.testing.assert_close(scores, expected_scores)
            for got, expected in zip(maps, expected_maps, strict=True):
                torch.testing.assert_close(got, expected)
