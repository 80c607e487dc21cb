"""The trainer's decisions, one by one."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from services.common.jobs.model import NodeFacts
from services.trainer import model
from services.trainer.model import Curve, Facts, Phase, Schedule, Stage, Wish


def settled(**wish):
    flags = {"virtual_gpus": wish.pop("virtual", False), "has_contentvec": wish.pop("contentvec", False)}
    return model.settle(Wish(**wish), **flags)


def test_percent_grows_through_the_phases_to_100():
    marks = [model.percent(phase, share) for phase in Phase for share in (0.0, 0.5, 1.0)]
    assert marks == sorted(marks)
    assert marks[0] == 0.0
    assert marks[-1] == 100.0
    assert model.percent(Phase.TRAIN, 7.0) == model.percent(Phase.INDEX, 0.0)
    assert model.percent(Phase.TRAIN, -1.0) == model.percent(Phase.FEATURES, 1.0)


def test_every_phase_belongs_to_one_stage_in_order():
    assert [phase for stage in Stage for phase in model.PHASES_OF[stage]] == list(Phase)


def test_what_remains_is_unknown_before_the_first_step():
    assert model.remaining_s(0, 100, 0.0) == 0.0
    assert model.remaining_s(50, 100, 2.0) == 25.0 + model.PUBLISH_S


def test_virtual_gpus_train_the_tiny_preset_and_bounded():
    recipe = settled(virtual=True)
    assert (recipe.preset, recipe.max_steps, recipe.bounded) == (model.TINY_PRESET, model.TINY_STEPS, True)
    assert recipe.checkpoint_s == 15.0
    assert (recipe.batch_size, recipe.learning_rate) == (model.TINY_BATCH, model.TINY_LEARNING_RATE)
    assert model.schedule(recipe, 23) == Schedule(30, model.TINY_STEPS, 6)
    assert model.schedule(recipe, 23).total_steps == model.TINY_STEPS


def test_real_gpus_train_the_full_preset_by_length_of_audio():
    recipe = settled()
    assert (recipe.preset, recipe.max_steps, recipe.checkpoint_s) == (model.FULL_PRESET, 0, 60.0)
    assert model.schedule(recipe, 8).epochs == 800  # a handful of slices: the most passes
    assert model.schedule(recipe, 160).epochs == 300  # ten minutes: 6,000 steps of 8
    assert model.schedule(recipe, 8000).epochs == 100


@pytest.mark.parametrize("wish", [{"epochs": 500}, {"max_steps": 900}])
def test_a_request_that_says_how_long_is_not_bounded(wish):
    recipe = settled(virtual=True, **wish)
    assert not recipe.bounded
    assert recipe.max_steps == wish.get("max_steps", 0)
    assert model.schedule(recipe, 23).epochs == wish.get("epochs", 800)


def test_the_content_encoder_follows_the_weights_in_the_store():
    assert settled().content_encoder == "whisper-base"
    assert settled(contentvec=True).content_encoder == "contentvec"
    assert settled(contentvec=True, content_encoder="whisper-base").content_encoder == "whisper-base"


def test_a_schedule_ends_by_epochs_or_by_steps():
    plan = Schedule(epochs=10, max_steps=25, steps_per_epoch=3)
    assert plan.total_steps == 25
    assert not plan.finished(epoch=8, step=24)
    assert plan.finished(epoch=8, step=25)
    assert plan.finished(epoch=10, step=3)
    assert Schedule(10, 0, 3).total_steps == 30
    assert not Schedule(10, 0, 3).finished(epoch=9, step=10**6)


def test_the_ledger_scales_what_is_taken_at_once_never_to_nothing_and_never_the_batch():
    recipe = settled(batch_size=8)
    assert [model.scaled(recipe, scale).micro_batch for scale in (3.0, 1.0, 0.5, 0.25, 1 / 64)] == [
        *(0, 0, 4, 2, 1),
    ]
    assert model.scaled(settled(batch_size=5), 0.5).micro_batch == 2
    assert model.scaled(replace(recipe, gpus=4), 0.5).micro_batch == 1
    assert replace(model.scaled(recipe, 0.5), micro_batch=0) == recipe


def test_what_is_held_out_is_judged_about_forty_times():
    assert model.judging(6000) == model.Judging(150, 14)
    assert model.judging(160).every == 25


def test_content_keys_name_what_matters_and_nothing_else():
    recipe = settled()
    key = model.slices_key(["aa", "bb"], recipe)
    assert key == model.slices_key(["aa", "bb"], settled(batch_size=2, epochs=9, learning_rate=0.1))
    assert key != model.slices_key(["bb", "aa"], recipe)
    assert key != model.slices_key(["aa", "bb"], settled(f0_method="dio"))
    assert key != model.slices_key(["aa", "bb"], settled(preset="v2_48k"))
    assert model.features_key(key, recipe) != model.features_key(key, settled(contentvec=True))


@pytest.mark.parametrize(
    ("facts", "stage"),
    [
        (Facts(), Stage.PREPARE),
        (Facts(features=True, finished=True), Stage.PREPARE),
        (Facts(prepared=True), Stage.TRAIN),
        (Facts(prepared=True, features=True), Stage.TRAIN),
        (Facts(prepared=True, finished=True), Stage.TRAIN),
        (Facts(prepared=True, features=True, finished=True), Stage.PUBLISH),
        (Facts(prepared=True, features=True, finished=True, published=True), None),
    ],
)
def test_what_comes_next(facts, stage):
    assert model.next_stage(facts) is stage


@pytest.mark.parametrize(
    ("free", "total", "waiting", "held", "places"),
    [
        ([2.0, 1.0], 3, 0, 0, 3),
        ([0.5, 0.5], 2, 0, 0, 0),  # two halves are no whole GPU
        ([1.5, 0.999999999], 3, 0, 0, 2),  # but a rounding error is one
        ([2.0], 2, 1, 0, 1),
        ([2.0], 2, 0, 2, 0),  # Ray's word is from before two were taken
        ([1.0], 4, 0, 1, 1),  # pools hold the others
        ([0.0], 2, 3, 0, 0),
    ],
)
def test_free_places(free, total, waiting, held, places):
    assert model.free_places(free, total, waiting=waiting, held=held) == places


def test_a_curve_of_any_length_stays_short_and_keeps_its_ends():
    curve = Curve(limit=100)
    for step in range(1, 10_001):
        curve.add(step, {"loss_mel": float(step)})
    steps = [step for step, _ in curve.points()]
    assert 50 <= len(steps) <= 101
    assert (steps[0], steps[-1]) == (1, 10_000)
    gaps = [b - a for a, b in itertools.pairwise(steps[:-1])]
    assert len(set(gaps)) == 1


def test_a_resumed_curve_forgets_the_steps_that_are_trained_again():
    curve = Curve([(step, {"loss_mel": 1.0}) for step in range(1, 8)])
    curve.add(5, {"loss_mel": 2.0})
    assert [step for step, _ in curve.points()] == [1, 2, 3, 4, 5]
    assert curve.points()[-1][1] == {"loss_mel": 2.0}


def test_the_ends_of_a_curve_are_means():
    points = [(step, {"loss_mel": float(step)}) for step in range(1, 21)]
    assert model.curve_ends(points, "loss_mel") == (3.0, 18.0)
    assert model.curve_ends(points[:1], "loss_mel") == (1.0, 1.0)
    assert model.curve_ends([], "loss_mel") == (0.0, 0.0)


@pytest.mark.parametrize(
    ("granted", "waiting", "held", "places"),
    [
        (None, 0, 0, 4),
        (4.0, 0, 0, 4),
        (2.0, 0, 0, 2),
        (2.0, 1, 0, 1),
        (2.0, 1, 1, 0),
        (0.0, 0, 0, 0),
        (1.9, 0, 0, 1),
    ],
)
def test_no_more_places_than_are_granted(granted, waiting, held, places):
    found = model.free_places([4.0], 4.0 + held, waiting=waiting, held=held, granted=granted)
    assert found == places


def node(name, gpus=2.0, free=2.0, *, gpu_type="", state="alive"):
    return NodeFacts(f"nodes/{name}", state, gpus, free, 8.0, False, gpu_type)


FLEET = (
    node("a", gpu_type="T4"),
    node("b", gpu_type="H200"),
    node("big", 8.0, 8.0, gpu_type="H200"),
    node("cpus", 0.0, 0.0),
    node("dead", 8.0, 8.0, state="dead"),
)


def places(nodes=FLEET, **asked):
    return {name.removeprefix("nodes/") for name in model.nodes_for(nodes, **asked)}


def test_a_stage_goes_where_it_fits():
    assert places(gpus=0) == {"a", "b", "big", "cpus"}
    assert places(gpus=1) == {"a", "b", "big"}
    assert places(gpus=4) == {"big"}
    assert places(gpus=9) == set()
    assert places(gpus=1, gpu_type="H200") == {"b", "big"}
    assert places(gpus=1, gpu_type="H100") == set()
    # What needs no GPU cares for none.
    assert places(gpus=0, gpu_type="H100") == {"a", "b", "big", "cpus"}


def test_a_drained_node_is_never_used_even_where_there_is_no_other():
    assert places(gpus=1, drained={"nodes/b"}) == {"a", "big"}
    assert places(gpus=4, drained={"nodes/big"}) == set()
    assert places(gpus=0, drained={"nodes/cpus", "nodes/a", "nodes/b", "nodes/big"}) == set()


def test_a_node_to_avoid_is_used_where_no_other_will_do():
    assert places(gpus=1, avoid={"nodes/b"}) == {"a", "big"}
    assert places(gpus=4, avoid={"nodes/big"}) == {"big"}
    # A name of something else, such as a controller's host, is no node.
    assert places(gpus=1, avoid={"b"}) == {"a", "b", "big"}
    # Full ones are waited for where the one to be avoided is full as well; else it is taken.
    full = (node("a", free=0.5), node("b"))
    assert places(full, gpus=1, avoid={"nodes/b"}) == {"a", "b"}
    both = (node("a", free=0.5), node("b", free=0.0))
    assert places(both, gpus=1, avoid={"nodes/b"}) == {"a"}
    assert places(full, gpus=1, avoid={"nodes/b"}, drained={"nodes/b"}) == {"a"}
