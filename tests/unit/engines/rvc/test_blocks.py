"""Conversion piece by piece: lengths, joins, what is heard around a block."""

import numpy as np
import pytest

from services.common.errors import Reason, VoxfleetError
from services.engines.rvc.blocks import SPEECH, BlockConverter, BlockPlan
from services.engines.rvc.conversion import ConvertParams, convert

from .conftest import voiced_tone
from .test_conversion import loudness_f0, voice  # noqa: F401 - fixtures


def pushed(converter, samples, sizes):
    """What comes of pieces of these sizes, the rest last."""
    out, at = [], 0
    for size in sizes:
        out.append(converter.push(samples[at : at + size]))
        at += size
    out.append(converter.push(samples[at:], last=True))
    return out


@pytest.mark.parametrize(
    ("samples", "rate_hz", "sizes"),
    [
        (1, 16_000, []),
        (0, 24_000, []),
        (333, 48_000, [100, 100]),
        (70_000, 24_000, [24_000, 24_000]),
        (66_150, 22_050, [1, 7, 30_000]),
    ],
)
def test_as_long_as_what_came(voice, samples, rate_hz, sizes):  # noqa: F811
    parts = pushed(BlockConverter(voice, rate_hz), voiced_tone(3, rate_hz)[:samples], sizes)
    out = np.concatenate(parts)
    assert len(out) == int(samples * 8000 / rate_hz + 0.5)
    assert np.abs(out).max(initial=0.0) <= 0.99 + 1e-6
    assert np.isfinite(out).all()


def test_one_piece_is_what_convert_makes_of_it(voice):  # noqa: F811
    audio = voiced_tone(4, 24_000)
    params = ConvertParams(seed=3, rms_mix_rate=1.0)
    (out,) = pushed(BlockConverter(voice, 24_000, params), audio, [])
    whole, _ = convert(voice, audio, 24_000, params)
    np.testing.assert_allclose(out, whole, atol=1e-4)


def test_the_first_piece_is_answered_at_once(voice):  # noqa: F811
    converter = BlockConverter(voice, 24_000)
    first = converter.push(voiced_tone(2, 24_000))
    behind_s = 2 - len(first) / 8000
    assert 0 < behind_s <= (SPEECH.ahead + 3) * 0.02
    assert len(first) + len(converter.push(voiced_tone(1, 24_000), last=True)) == 3 * 8000


def test_joins_are_as_smooth_as_the_rest(voice):  # noqa: F811
    audio = voiced_tone(6, 24_000)
    parts = pushed(BlockConverter(voice, 24_000), audio, [48_000, 48_000])
    out = np.concatenate(parts)
    steps = np.abs(np.diff(out))
    joins = np.cumsum([len(part) for part in parts[:-1]])
    assert all(0 < at < len(out) for at in joins)
    around = np.concatenate([steps[at - 20 : at + 20] for at in joins])
    assert around.max() <= steps.max(), "no click"
    levels = np.sqrt(np.mean(out[: len(out) // 160 * 160].reshape(-1, 160) ** 2, axis=1))
    at_joins = [levels[at // 160 - 1 : at // 160 + 2].min() for at in joins]
    assert min(at_joins) > 0.3 * np.median(levels), "no gap"


def test_memory_does_not_grow_with_what_came(voice):  # noqa: F811
    converter = BlockConverter(voice, 16_000)
    held = []
    for number in range(8):
        converter.push(voiced_tone(2, 16_000, seed=number))
        held.append(len(converter._source))
    assert held[-1] == held[1]


def test_a_piece_of_any_length_is_worked_on_in_chunks(voice, monkeypatch):  # noqa: F811
    from services.engines.rvc import blocks

    windows = []
    real = blocks.convert_window

    def noting(*args, **kwargs):
        windows.append(len(args[2]) / 16_000)
        return real(*args, **kwargs)

    monkeypatch.setattr(blocks, "convert_window", noting)
    BlockConverter(voice, 16_000).push(voiced_tone(60, 16_000), last=True)
    assert len(windows) >= 3
    assert max(windows) <= 26.5


def test_a_small_block_waits_for_its_least(voice):  # noqa: F811
    converter = BlockConverter(voice, 16_000, plan=BlockPlan(ahead=2, least=10))
    assert len(converter.push(voiced_tone(0.2, 16_000))) == 0
    assert len(converter.push(voiced_tone(0.2, 16_000))) > 0


def test_it_stops_when_it_is_told(voice):  # noqa: F811
    converter = BlockConverter(voice, 16_000, should_stop=lambda: True)
    with pytest.raises(VoxfleetError) as caught:
        converter.push(voiced_tone(1, 16_000))
    assert caught.value.reason is Reason.CANCELLED


def test_a_speaker_that_the_voice_lacks_is_refused(voice):  # noqa: F811
    with pytest.raises(VoxfleetError) as caught:
        BlockConverter(voice, 16_000, ConvertParams(speaker=10_000))
    assert caught.value.reason is Reason.INVALID_ARGUMENT
