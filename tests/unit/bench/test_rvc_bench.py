import numpy as np
import pytest

from bench.failures import UnmeasurableError
from bench.peers.rvc import reference
from bench.peers.rvc.material import near_vectors
from bench.rvc import PARTS, Bench, Sizes

SMALL = Sizes(steps=1, rounds=1, conversions=1, long_s=1, resumed_steps=6)


def test_a_step_of_the_stock_recipe_and_ours_are_raced(tmp_path):
    said = []
    figures = PARTS["training"](Bench(tmp_path, SMALL, 1, said.append))
    assert figures["train_steps_vs_reference"] > 0.1
    assert "stock recipe" in said[0]


def test_a_training_is_killed_and_resumed(tmp_path):
    said = []
    figures = PARTS["resume"](Bench(tmp_path, SMALL, 1, said.append))
    # On a CPU the two are one and the same.
    assert figures == {"resume_loss_gap": 0.0}
    assert "resumed at step" in said[0]


def test_without_upstreams_packages_no_figure_is_printed(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "REFERENCE", tmp_path / "nowhere")
    with pytest.raises(UnmeasurableError, match="make rvc-reference"):
        PARTS["conversion"](Bench(tmp_path, SMALL, 1, print))


def test_vectors_lie_near_the_features_and_none_is_one_of_them():
    features = np.random.default_rng(1).standard_normal((20, 8)).astype(np.float32)
    vectors = near_vectors(features, copies=3)
    distances = np.linalg.norm(vectors[:, None] - features[None], axis=2).min(axis=1)
    assert vectors.shape == (60, 8)
    assert distances.min() > 0
    assert distances.max() < 1.0
