from __future__ import annotations

import dataclasses
import importlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.speech.exactness import half_errors
from services.common import limits
from services.common.errors import Reason, VoxfleetError
from services.engines.f5 import model, planning, reference, schedule, upstream
from services.engines.f5.flow import Evaluator, Flow, sample
from services.engines.f5.packing import Budget
from services.engines.f5.planning import Reference, Streaming, SynthesisItem
from services.engines.f5.synthesis import F5Model

from .conftest import ALONE, RATE_HZ, TOGETHER, babble

FIVE = Streaming(first_s=5.0, growth=1.5, most_s=5.0)
LONG = "This is a sentence of some length, spoken slowly. " * 8
WORDS = ["Hello", "there,", "my", "old", "friend.", "你好，", "Numbers:", "12", "and", "seven!", "Why?"]


def error(left, right):
    assert left.shape == right.shape
    return float(np.linalg.norm(left - right) / np.linalg.norm(right))


# ---- exactness


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(WORDS), min_size=1, max_size=14).map(" ".join),
            st.integers(0, 2**63 - 1),
            st.sampled_from([1.0, 2.0, 3.5]),
            st.sampled_from([0.8, 1.0, 2.0]),
            st.booleans(),
        ),
        min_size=2,
        max_size=4,
    )
)
def test_a_ragged_batch_equals_each_alone(alone, together, voice, other_voice, requests):
    items = [
        SynthesisItem(text, other_voice if other else voice, 3, strength, speed, seed)
        for text, seed, strength, speed, other in requests
    ]
    for batched, item in zip(together.synthesize(items), items, strict=True):
        assert error(batched, alone.synthesize([item])[0]) < 1e-3


def test_without_the_attention_mask_neighbours_leak(bundle, voice, monkeypatch):
    """Shows that the test above can fail: this is how the official configuration behaves."""
    unmasked = model.load(bundle)
    for block in unmasked.transformer.transformer_blocks:
        monkeypatch.setattr(block.attn.processor, "attn_mask_enabled", False)
    items = [SynthesisItem("Hello there.", voice, 3), SynthesisItem(LONG[:120], voice, 3)]
    batched = F5Model(unmasked, budget=TOGETHER).synthesize(items)[0]
    assert error(batched, F5Model(unmasked, budget=ALONE).synthesize(items[:1])[0]) > 1e-2


@pytest.mark.parametrize(("steps", "strength"), [(7, 2.0), (16, 0.5), (9, 0.0)])
def test_one_alone_is_what_upstream_gives(alone, loaded, voice, steps, strength):
    upstream.prepare()
    cfm = importlib.import_module("f5_tts.model.cfm").CFM(
        transformer=loaded.transformer, vocab_char_map=loaded.vocabulary.indices
    )
    segment = alone.plan(SynthesisItem("Hello there, my friend.", voice)).segments[0]
    expected, _ = cfm.sample(
        cond=voice.mel[None],
        text=upstream.tokens_of([voice.text + segment.text]),
        duration=segment.frames,
        steps=steps,
        cfg_strength=strength,
        sway_sampling_coef=-1.0,
        seed=11,
    )
    flow = Flow(segment.tokens, voice.mel, segment.frames, 11, strength, steps)
    assert error(sample(loaded, [flow])[0].numpy(), expected[0].numpy()) < 1e-4


def test_a_batch_of_equal_lengths_needs_no_mask(together, alone, voice):
    items = [SynthesisItem("Hello there.", voice, 3, seed=seed) for seed in range(3)]
    for batched, item in zip(together.synthesize(items), items, strict=True):
        assert error(batched, alone.synthesize([item])[0]) < 1e-3


def test_guided_and_unguided_and_other_steps_share_a_call(together, alone, voice):
    items = [
        SynthesisItem("Hello there.", voice, 3),
        SynthesisItem("Hello there.", voice, 3, cfg_strength=0.0),
        SynthesisItem("Hello there.", voice, 5),
    ]
    results = together.synthesize(items)
    assert error(results[0], results[1]) > 1e-2
    assert error(results[0], results[2]) > 1e-2
    for batched, item in zip(results, items, strict=True):
        assert error(batched, alone.synthesize([item])[0]) < 1e-3


def test_the_limits_of_a_batch_are_kept_and_change_nothing(loaded, voice, alone, monkeypatch):
    sizes = []
    advance = Evaluator.advance

    def noted(self, states):
        sizes.append((len(states), max(state.flow.frames for state in states)))
        advance(self, states)

    items = [SynthesisItem(" ".join(WORDS[: 1 + i]), voice, 2, seed=i) for i in range(6)]
    expected = alone.synthesize(items)
    monkeypatch.setattr(Evaluator, "advance", noted)
    narrow = F5Model(loaded, budget=Budget(segments=3, frames=700, free_frames=700))
    results = narrow.synthesize(items)
    assert all(count <= 3 and (count == 1 or count * frames <= 700) for count, frames in sizes)
    assert sum(count for count, _ in sizes) == 6 * 2
    assert max(count for count, _ in sizes) > 1
    for batched, single in zip(results, expected, strict=True):
        assert error(batched, single) < 1e-3


def test_bfloat16_stays_near_float32(bundle, alone, voice):
    half = F5Model(model.load(bundle, dtype=torch.bfloat16))
    item = SynthesisItem("Hello there, my friend.", voice, 3)
    segment = alone.plan(item).segments[0]
    flow = Flow(segment.tokens, voice.mel, segment.frames, 0, 2.0, 3)
    exact = sample(alone._loaded, [flow])[0].numpy()
    own = error(sample(half._loaded, [flow])[0].numpy(), exact)
    assert 0 < own < 0.01
    assert half.synthesize([item])[0].dtype == np.float32


def test_a_batch_in_bfloat16_is_nearer_to_the_single_than_that_is_to_float32(bundle, alone):
    half = model.load(bundle, dtype=torch.bfloat16)
    assert half_errors(alone._loaded, half, 4).vs_single <= 1.0


def test_a_compiled_network_speaks_the_same(bundle, alone, voice):
    """Through the compiler's own front end; what a GPU's back end makes of it needs a GPU."""
    loaded = model.load(bundle, compiler="eager")
    assert all(block._compiled_call_impl is not None for block in loaded.transformer.transformer_blocks)
    compiled = F5Model(loaded, budget=TOGETHER)
    items = [SynthesisItem(text, voice, 2, seed=5) for text in ("Hello there.", LONG[:150])]
    for made, item in zip(compiled.synthesize(items), items, strict=True):
        assert error(made, alone.synthesize([item])[0]) < 1e-3


# ---- seeds


def test_a_seed_repeats_and_another_differs(alone, voice):
    item = SynthesisItem(LONG, voice, 2, seed=7)
    first = alone.synthesize([item])[0]
    torch.manual_seed(123)
    np.testing.assert_array_equal(alone.synthesize([item])[0], first)
    assert error(alone.synthesize([dataclasses.replace(item, seed=8)])[0], first) > 0.1


def test_every_chunk_has_a_seed_of_its_own():
    seeds = {planning.seed_of(5, index) for index in range(100)}
    assert len(seeds) == 100
    assert planning.seed_of(5, 0) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_sound_depends_on_text_and_voice(alone, voice, other_voice):
    first = SynthesisItem("Hello there.", voice, 3, duration_s=1.0)
    changed = [
        dataclasses.replace(first, text="Hello where."),
        dataclasses.replace(first, reference=other_voice),
    ]
    base = alone.synthesize([first])[0]
    assert all(error(alone.synthesize([item])[0], base) > 1e-3 for item in changed)


def test_the_level_is_sane_and_follows_the_reference(alone):
    clips = [reference.prepare("v", babble(1.5) * gain, RATE_HZ, "Some call me.") for gain in (1.0, 0.1)]
    loud, quiet = (
        alone.synthesize([SynthesisItem("Hello there.", alone.reference(clip), 3)])[0] for clip in clips
    )
    level = float(np.sqrt(np.mean(loud**2)))
    assert 0.003 < level < 0.5
    assert float(np.sqrt(np.mean(quiet**2))) == pytest.approx(level * 0.1, rel=0.05)


# ---- lengths


@pytest.mark.parametrize("duration_s", [0.61, 1.0, 1.234567, 2.5, 9.999])
def test_a_slot_is_filled_to_the_sample(alone, voice, duration_s):
    audio = alone.synthesize([SynthesisItem("Hello there my friend.", voice, 2, duration_s=duration_s)])[0]
    assert len(audio) == round(duration_s * RATE_HZ)


def test_a_slot_over_several_chunks_is_filled_to_the_sample(alone, voice):
    item = SynthesisItem(LONG * 4, voice, 1, duration_s=61.7)
    plan = alone.plan(item)
    assert len(plan.segments) > 2
    assert len(alone.render([plan])[0].audio) == round(61.7 * RATE_HZ)


def test_a_slot_much_longer_than_its_text_ends_in_silence(alone, voice):
    audio = alone.synthesize([SynthesisItem("Hello there.", voice, 2, duration_s=8.0)])[0]
    assert not audio[-3 * RATE_HZ :].any()
    assert audio[:RATE_HZ].any()


def test_a_slot_that_is_too_short_is_refused_with_what_can_be_had(alone, voice):
    item = SynthesisItem("Hello there my good old friend of many years.", voice, 2, duration_s=0.5)
    with pytest.raises(VoxfleetError) as caught:
        alone.plan(item)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
    assert caught.value.violations[0].field == "duration_s"
    least, most = float(caught.value.metadata["min_s"]), float(caught.value.metadata["max_s"])
    alone.plan(dataclasses.replace(item, duration_s=least))
    alone.plan(dataclasses.replace(item, duration_s=most))
    for outside in (least - 0.02, most + 1, float("nan")):
        with pytest.raises(VoxfleetError):
            alone.plan(dataclasses.replace(item, duration_s=outside))


def test_the_natural_length_follows_text_and_speed(alone, voice):
    def seconds(text, **settings):
        return len(alone.synthesize([SynthesisItem(text, voice, 1, **settings)])[0]) / RATE_HZ

    once, twice = seconds("One two three four. "), seconds("One two three four. One two three four.")
    assert twice / once == pytest.approx(2, rel=0.1)
    assert once / seconds("One two three four. ", speed=2.0) == pytest.approx(2, rel=0.1)


def test_no_pass_is_longer_than_f5_was_trained_for(alone, voice, loaded):
    slow = Reference("slow", torch.zeros(11 * 94, 100), "Eleven seconds. ")
    for ref in (voice, slow):
        for settings_ in ({}, {"speed": 0.3}, {"duration_s": 200.0}):
            plan = planning.plan(SynthesisItem(LONG, ref, **settings_), loaded.vocabulary)
            assert max(segment.frames for segment in plan.segments) <= 30 * 93.75


# ---- streams


def test_a_stream_is_what_a_call_gives_in_pieces(alone, voice):
    item = SynthesisItem(LONG, voice, 2, seed=3)
    pieces = list(alone.stream(item, streaming=FIVE))
    whole = alone.render([alone.plan(item, streaming=FIVE)])[0]
    assert len(pieces) > 3
    np.testing.assert_allclose(np.concatenate([piece.audio for piece in pieces]), whole.audio, atol=1e-6)
    assert all(len(piece.audio) for piece in pieces)


def test_a_stream_fills_a_slot_too(alone, voice):
    pieces = list(alone.stream(SynthesisItem(LONG, voice, 1, duration_s=33.3), streaming=FIVE))
    assert sum(len(piece.audio) for piece in pieces) == round(33.3 * RATE_HZ)


def test_a_stream_computes_no_further_than_it_is_read(alone, voice):
    asked = []
    stream = alone.stream(SynthesisItem(LONG, voice, 1), cancelled=lambda: bool(asked.append(1)))
    next(stream)
    # What it is faded into is computed when somebody wants it.
    assert len(asked) == 1


def test_chunks_meet_without_a_jump():
    from services.engines.f5.synthesis import _joined

    at = np.arange(2 * RATE_HZ) / RATE_HZ
    parts = [np.full(len(at), value, np.float32) for value in (0.5, -0.5, 0.25)]
    joined = np.concatenate([*_joined(parts, [len(part) for part in parts])])
    assert len(joined) == 6 * RATE_HZ - 2 * round(0.15 * RATE_HZ)
    assert np.abs(np.diff(joined)).max() < 1e-3


# ---- requests


@pytest.mark.parametrize(
    ("settings_", "field"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 65}, "steps"),
        ({"cfg_strength": -1.0}, "cfg_strength"),
        ({"cfg_strength": float("nan")}, "cfg_strength"),
        ({"speed": 0.1}, "speed"),
        ({"speed": 3.0}, "speed"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
    ],
)
def test_a_setting_out_of_range_is_named(alone, voice, settings_, field):
    with pytest.raises(VoxfleetError) as caught:
        alone.plan(SynthesisItem("Hello.", voice, **settings_))
    assert caught.value.reason is Reason.INVALID_ARGUMENT
    assert caught.value.violations[0].field == field


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", Reason.TEXT_EMPTY),
        ("a" * 20_001, Reason.TEXT_TOO_LONG),
        ("Hello 🎉", Reason.UNSUPPORTED_CHARACTERS),
    ],
)
def test_a_text_that_cannot_be_spoken_is_refused_before_any_work(alone, voice, text, reason):
    for ask in (alone.plan, alone.stream, lambda item: alone.synthesize([item])):
        with pytest.raises(VoxfleetError) as caught:
            ask(SynthesisItem(text, voice))
        assert caught.value.reason is reason


def test_a_call_stops_between_two_steps(alone, voice):
    answers = iter([False, False, True, True])
    before = alone.loop_stats.evaluations
    with pytest.raises(VoxfleetError) as caught:
        alone.synthesize([SynthesisItem("Hello there.", voice, 32)], cancelled=lambda: next(answers))
    assert caught.value.reason is Reason.CANCELLED
    assert alone.loop_stats.evaluations == before + 2


def test_a_broken_network_is_an_error_and_not_a_file(bundle, voice):
    broken = model.load(bundle)
    with torch.no_grad():
        broken.transformer.proj_out.bias[0] = float("nan")
    with pytest.raises(VoxfleetError) as caught:
        F5Model(broken).synthesize([SynthesisItem("Hello there.", voice, 1)])
    assert caught.value.reason is Reason.SYNTHESIS_FAILED


def test_the_results_say_what_made_them(together, voice):
    plans = [together.plan(SynthesisItem(text, voice, 3, seed=4)) for text in ("Hello there.", LONG)]
    for plan, result in zip(plans, together.render(plans), strict=True):
        assert result.stats.weights == "f5-small-random (untrained weights)"
        assert result.stats.seed == 4
        assert result.stats.steps == 3
        assert result.stats.frames == plan.frames
        assert result.stats.seconds == len(result.audio) / RATE_HZ
        assert result.stats.rtf == pytest.approx(result.stats.wall_s / result.stats.seconds)
        assert result.stats.wall_s > 0


@pytest.mark.parametrize("steps", [1, 5, 6, 7, 8, 10, 12, 16, 32, 64])
def test_the_times_are_upstreams(steps):
    upstream.prepare()
    utils = importlib.import_module("f5_tts.model.utils")
    t = utils.get_epss_timesteps(steps, device="cpu", dtype=torch.float64)
    t = t - (torch.cos(torch.pi / 2 * t) - 1 + t)
    np.testing.assert_allclose(schedule.times(steps), t.numpy(), atol=1e-7)


def test_the_presets_have_tables():
    assert dict(limits.PRESETS) == {"fast": 7, "balanced": 16, "quality": 32}
