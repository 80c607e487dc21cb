"""Conversion: exact lengths, bounded chunks, the knobs."""

import dataclasses
import itertools

import numpy as np
import pytest

from services.common.errors import Reason, VoxfleetError
from services.engines.rvc import conversion
from services.engines.rvc.content import ContentSources
from services.engines.rvc.conversion import ConvertParams, chunk_spans, convert, mix_envelopes
from services.engines.rvc.pipeline import build_index, save_voice
from services.engines.rvc.state import new_state
from services.engines.rvc.training import train
from services.engines.rvc.voice import load_voice

from .conftest import BandEncoder, LoudnessF0, voiced_tone


@pytest.fixture(scope="module")
def voice(tmp_path_factory):
    from services.engines.rvc.features import extract
    from services.engines.rvc.preprocess import prepare
    from services.engines.rvc.state import TrainParams

    from .conftest import NANO

    encoder = BandEncoder()
    features = extract(
        prepare([voiced_tone(3, 16_000)] * 4, 16_000, NANO.rate_hz), encoder, LoudnessF0(), NANO
    )
    state = new_state(NANO, TrainParams(epochs=4, batch_size=2, learning_rate=5e-3))
    train(state, features)
    directory = tmp_path_factory.mktemp("voices") / "voice"
    save_voice(directory, state, features, build_index(features))
    return load_voice(directory, ContentSources(directory.parent), encoder=encoder)


@pytest.fixture(autouse=True)
def loudness_f0(monkeypatch):
    monkeypatch.setattr(conversion.pitch, "f0_method", lambda name, device: LoudnessF0())


@pytest.mark.parametrize(
    ("samples", "rate_hz"), [(1, 16_000), (333, 48_000), (44_100, 44_100), (50_001, 22_050)]
)
def test_output_is_as_long_as_the_input(voice, samples, rate_hz):
    out, out_rate_hz = convert(voice, voiced_tone(3, rate_hz)[:samples], rate_hz)
    assert out_rate_hz == 8000
    assert len(out) == int(samples * 8000 / rate_hz + 0.5)
    assert out.dtype == np.float32
    assert np.isfinite(out).all()
    assert np.abs(out).max(initial=0.0) <= 0.99 + 1e-6


def test_speech_gives_sound(voice):
    out, _ = convert(voice, voiced_tone(2, 16_000), 16_000)
    assert np.sqrt(np.mean(out**2)) > 1e-3


def test_seeds_repeat(voice):
    audio = voiced_tone(1, 16_000)
    one, two, other = (convert(voice, audio, 16_000, ConvertParams(seed=seed))[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    "change", [{"pitch_shift": 5}, {"index_rate": 0}, {"protect": 0.0}, {"rms_mix_rate": 1}]
)
def test_every_knob_turns_something(voice, change):
    # Half of it unvoiced, for protect.
    audio = np.concatenate([voiced_tone(1, 16_000), 0.005 * np.sin(np.arange(16_000)).astype(np.float32)])
    one, two = (convert(voice, audio, 16_000, ConvertParams(**knobs))[0] for knobs in ({}, change))
    assert np.abs(one - two).max() > 1e-5


def test_a_voice_without_an_index_converts(voice):
    bare = dataclasses.replace(voice, retrieval=None)
    audio = voiced_tone(0.5, 16_000)
    expected, _ = convert(voice, audio, 16_000, ConvertParams(index_rate=0))
    np.testing.assert_array_equal(convert(bare, audio, 16_000)[0], expected)


def test_long_input_goes_in_bounded_chunks(voice, monkeypatch):
    windows = []
    encode = voice.encoder.encode
    monkeypatch.setattr(
        voice.encoder, "encode", lambda samples: windows.append(len(samples)) or encode(samples)
    )
    progress = []
    out, _ = convert(voice, voiced_tone(70, 16_000), 16_000, on_progress=progress.append)
    assert len(out) == 70 * 8000
    assert max(windows) <= 30 * 16_000
    assert len(windows) == len(progress) == 4
    assert progress == sorted(progress)
    assert progress[-1] == 1.0


def test_chunks_join_without_a_seam(voice, monkeypatch):
    """With the randomness of the model out, cutting must not show: compare with one chunk."""
    audio = voiced_tone(12, 16_000)
    monkeypatch.setattr("services.engines.rvc.synthesizer.INFERENCE_TEMPERATURE", 0.0)
    monkeypatch.setattr("services.engines.rvc.generator.VOICED_NOISE", 0.0)
    params = ConvertParams(rms_mix_rate=1.0)
    whole, _ = convert(voice, audio, 16_000, params)
    monkeypatch.setattr(conversion, "CHUNK_FRAMES", 200)
    monkeypatch.setattr(conversion, "_SEARCH_FRAMES", 50)
    parts, _ = convert(voice, audio, 16_000, params)
    # The excitation's phase starts anew in each chunk, so samples differ; levels may not jump.
    frame = 160

    def levels(out):
        return np.sqrt((out[: len(out) // frame * frame].reshape(-1, frame) ** 2).mean(axis=1))

    assert np.abs(levels(parts) - levels(whole)).max() < 0.25 * levels(whole).max()
    assert np.abs(np.diff(parts)).max() < 1.5 * np.abs(np.diff(whole)).max()


def test_spans_tile_and_cut_where_it_is_quiet():
    audio = voiced_tone(65, 16_000)
    audio[19 * 16_000 : 19 * 16_000 + 3200] = 0.0
    frames = len(audio) // 320
    spans = chunk_spans(audio, frames)
    assert spans[0][0] == 0
    assert spans[-1][1] == frames
    assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(spans))
    assert all(end - begin <= 1200 for begin, end in spans)
    assert 19 * 50 <= spans[0][1] <= 19.2 * 50


def test_after_a_lack_of_memory_chunks_are_shorter_and_still_tile():
    audio = voiced_tone(65, 16_000)
    frames = len(audio) // 320
    spans = chunk_spans(audio, frames, scale=0.5)
    assert (spans[0][0], spans[-1][1]) == (0, frames)
    assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(spans))
    assert all(end - begin <= 600 for begin, end in spans)
    assert len(chunk_spans(audio, frames, scale=1e-9)) <= frames / 80, "never down to nothing"


def test_conversion_stops_when_asked(voice):
    calls = []
    with pytest.raises(VoxfleetError) as caught:
        convert(
            voice,
            voiced_tone(50, 16_000),
            16_000,
            on_progress=calls.append,
            should_stop=lambda: len(calls) >= 1,
        )
    assert caught.value.reason is Reason.CANCELLED
    assert len(calls) == 1


def test_it_stops_in_the_middle_of_a_chunk_too(voice):
    polls, calls = itertools.count(), []
    with pytest.raises(VoxfleetError) as caught:
        convert(
            voice,
            voiced_tone(2, 16_000),
            16_000,
            on_progress=calls.append,
            should_stop=lambda: next(polls) >= 1,
        )
    assert (caught.value.reason, calls) == (Reason.CANCELLED, [])


@pytest.mark.parametrize(
    "change",
    [
        {"pitch_shift": 25},
        {"index_rate": 1.1},
        {"filter_radius": 8},
        {"rms_mix_rate": -0.1},
        {"protect": 0.6},
        {"chunk_scale": 1.1},
    ],
)
def test_knobs_out_of_range_are_refused(change):
    with pytest.raises(VoxfleetError) as caught:
        ConvertParams(**change)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
    assert caught.value.violations[0].field == next(iter(change))


def test_an_unknown_speaker_is_refused(voice):
    with pytest.raises(VoxfleetError) as caught:
        convert(voice, voiced_tone(1, 16_000), 16_000, ConvertParams(speaker=1))
    assert caught.value.violations[0].field == "speaker"


def test_weights_that_give_no_numbers_fail_the_conversion(voice, monkeypatch):
    import torch

    monkeypatch.setattr(
        type(voice.synthesizer),
        "convert",
        lambda self, *_, only: torch.full((1, 1, (only[1] - only[0]) * 80), float("nan")),
    )
    with pytest.raises(VoxfleetError) as caught:
        convert(voice, voiced_tone(1, 16_000), 16_000)
    assert caught.value.reason is Reason.CONVERSION_FAILED


def test_envelopes():
    source = np.concatenate([np.full(16_000, 0.1), np.full(16_000, 0.4)]).astype(np.float32)
    made = np.full(16_000, 0.2, np.float32)
    assert mix_envelopes(source, made, 8000, 1.0) is made
    followed = mix_envelopes(source, made, 8000, 0.0)
    assert followed[2000] == pytest.approx(0.1, rel=0.05)
    assert followed[-2000] == pytest.approx(0.4, rel=0.05)
    half = mix_envelopes(source, made, 8000, 0.5)
    assert half[2000] == pytest.approx(np.sqrt(0.1 * 0.2), rel=0.05)
