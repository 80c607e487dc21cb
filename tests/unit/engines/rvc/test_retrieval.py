"""The retrieval index."""

import numpy as np
import pytest

from services.common.errors import Reason, VoxfleetError
from services.engines.rvc import retrieval
from services.engines.rvc.retrieval import blend, build_index, inverted_lists, load_index, save_index


@pytest.fixture
def vectors():
    return np.random.default_rng(0).standard_normal((400, 6)).astype(np.float32)


@pytest.mark.parametrize(("count", "lists"), [(1, 1), (38, 1), (390, 10), (100_000, 2564), (200_000, 5128)])
def test_lists_follow_the_communitys_rule(count, lists):
    assert inverted_lists(count) == min(lists, int(16 * np.sqrt(count))) or inverted_lists(count) == 1
    assert inverted_lists(count) == max(1, min(int(16 * np.sqrt(count)), count // 39))


def test_an_exact_hit_takes_all_the_weight(vectors):
    index = build_index(vectors)
    mixed = blend(index, vectors[:50], 1.0)
    assert np.isfinite(mixed).all()
    np.testing.assert_allclose(mixed, vectors[:50], atol=1e-4)


def test_features_move_towards_their_neighbours(vectors):
    index = build_index(vectors)
    probe = np.random.default_rng(1).standard_normal((20, 6)).astype(np.float32)
    near, half = blend(index, probe, 1.0), blend(index, probe, 0.5)
    np.testing.assert_allclose(half, (near + probe) / 2, atol=1e-5)
    assert blend(index, probe, 0.0) is probe

    def to_nearest(points):
        return np.linalg.norm(points[:, None] - vectors[None], axis=2).min(axis=1).mean()

    assert to_nearest(near) < to_nearest(probe)


def test_few_vectors_leave_no_gaps():
    """Fewer vectors than neighbours: faiss answers -1, which must not be taken for the last vector."""
    vectors = np.eye(3, 6, dtype=np.float32)
    probe = np.full((2, 6), 0.2, np.float32)
    mixed = blend(build_index(vectors), probe, 1.0)
    np.testing.assert_allclose(mixed, np.tile(vectors.mean(axis=0), (2, 1)), atol=1e-6)


def test_file_round_trip(vectors, tmp_path):
    index = build_index(vectors)
    save_index(tmp_path / "index.faiss", index)
    loaded = load_index(tmp_path / "index.faiss")
    np.testing.assert_array_equal(loaded.vectors, index.vectors)
    assert loaded.width == 6
    probe = vectors[:10] + 0.1
    np.testing.assert_array_equal(blend(loaded, probe, 0.7), blend(index, probe, 0.7))


def test_the_same_features_give_the_same_index(vectors):
    one, two = build_index(vectors, seed=3), build_index(vectors, seed=3)
    np.testing.assert_array_equal(one.vectors, two.vectors)


def test_many_vectors_are_reduced_to_centres(vectors, monkeypatch):
    monkeypatch.setattr(retrieval, "_REDUCE_OVER", 300)
    monkeypatch.setattr(retrieval, "_REDUCED_TO", 40)
    assert build_index(vectors).vectors.shape == (40, 6)


def test_bad_input_is_refused(vectors, tmp_path):
    vectors[3, 3] = np.nan
    with pytest.raises(VoxfleetError):
        build_index(vectors)
    (tmp_path / "bad.faiss").write_bytes(b"IxF2 and then nothing")
    with pytest.raises(VoxfleetError) as caught:
        load_index(tmp_path / "bad.faiss")
    assert caught.value.reason is Reason.MODEL_CORRUPT
