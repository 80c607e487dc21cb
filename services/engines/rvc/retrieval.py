"""The retrieval index: training features near what is said, mixed in to sound more like the voice.

A community ``added_*.index`` and ours are one format: faiss ``IVF{n},Flat`` with nprobe 1 (upstream
``infer-web.py``, ``train_index``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from services.common.errors import Kind, Reason, VoxfleetError, invalid
from services.engines.rvc.audio import Floats
from services.engines.rvc.files import replaced

NEIGHBOURS = 8
_REDUCE_OVER = 200_000
_REDUCED_TO = 10_000
_KMEANS_ROUNDS = 10
_MIN_SQUARED_DISTANCE = 1e-9
_MOST_VALUES = _REDUCE_OVER * 768
"""Of an index from outside: one with more vectors upstream reduces as it makes it, and so do we."""


@dataclass(frozen=True, slots=True)
class Retrieval:
    """An index with its vectors ``[n, width]`` at hand."""

    index: Any
    vectors: Floats

    @property
    def width(self) -> int:
        """Width of the features it holds."""
        return int(self.vectors.shape[1])


def build_index(features: Floats, *, seed: int = 0) -> Retrieval:
    """Index content features ``[n, width]``; over 200,000 are first reduced to 10,000 centres."""
    vectors = np.ascontiguousarray(features, dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) == 0 or not np.isfinite(vectors).all():
        raise invalid(Reason.INVALID_ARGUMENT, "an index needs finite features, vectors by width")
    if len(vectors) > _REDUCE_OVER:
        centres = faiss.Kmeans(vectors.shape[1], _REDUCED_TO, niter=_KMEANS_ROUNDS, seed=seed)
        centres.train(vectors)
        vectors = np.asarray(centres.centroids, dtype=np.float32)
    vectors = vectors[np.random.default_rng(seed).permutation(len(vectors))]
    index = faiss.index_factory(vectors.shape[1], f"IVF{inverted_lists(len(vectors))},Flat")
    faiss.extract_index_ivf(index).nprobe = 1
    index.train(vectors)
    index.add(vectors)
    return Retrieval(index, vectors)


def inverted_lists(vectors: int) -> int:
    """Lists of the index: the smaller of 16·√n and n/39, at least 1."""
    return max(1, min(int(16 * math.sqrt(vectors)), vectors // 39))


def save_index(path: Path, retrieval: Retrieval) -> None:
    """Write a faiss file, atomically."""
    with replaced(path) as draft:
        faiss.write_index(retrieval.index, str(draft))


def load_index(path: Path) -> Retrieval:
    """Read a faiss file; ``MODEL_CORRUPT`` where faiss does not take it."""
    try:
        index = faiss.read_index(str(path))
        vectors = index.reconstruct_n(0, index.ntotal)
    except RuntimeError as error:
        raise VoxfleetError(
            Reason.MODEL_CORRUPT, f"{path.name} is no index that faiss reads: {error}", kind=Kind.DATA_LOSS
        ) from error
    return Retrieval(index, np.asarray(vectors, dtype=np.float32))


@dataclass(frozen=True, slots=True)
class IndexParts:
    """What an index is made of: vectors ``[n, width]``, and the centres of its lists ``[k, width]``."""

    vectors: Floats
    centres: Floats


def take_apart(data: bytes, name: str) -> IndexParts:
    """The parts of a faiss file from outside; only in a jailed process.

    Raises:
        VoxfleetError: ``MODEL_CORRUPT`` where it is no ``IVF{n},Flat`` by distance, or not of finite numbers.
    """

    def refused(why: str) -> VoxfleetError:
        return invalid(Reason.MODEL_CORRUPT, f"{name} is no index of a voice: {why}", file=name)

    try:
        index = faiss.deserialize_index(np.frombuffer(data, dtype=np.uint8))
        if not isinstance(index, faiss.IndexIVFFlat) or index.metric_type != faiss.METRIC_L2:
            raise refused("it is of another kind than IVF,Flat")
        if not 1 <= index.ntotal <= _MOST_VALUES // max(index.d, 1) or not 1 <= index.nlist <= index.ntotal:
            raise refused(f"{index.ntotal} vectors of {index.d} values in {index.nlist} lists")
        vectors = np.zeros((index.ntotal, index.d), dtype=np.float32)
        index.reconstruct_n(0, index.ntotal, vectors)
        centres = faiss.downcast_index(index.quantizer).reconstruct_n(0, index.nlist)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise refused(f"faiss does not read it: {type(error).__name__}") from error
    if not np.isfinite(vectors).all() or not np.isfinite(centres).all():
        raise refused("some of its values are no numbers")
    return IndexParts(vectors, np.asarray(centres, dtype=np.float32))


def put_together(parts: IndexParts) -> bytes:
    """A faiss file that finds what the one that was taken apart finds: same lists, same vectors."""
    width = parts.vectors.shape[1]
    coarse = faiss.IndexFlatL2(width)
    coarse.add(parts.centres)
    index = faiss.IndexIVFFlat(coarse, width, len(parts.centres), faiss.METRIC_L2)
    index.is_trained = True
    index.nprobe = 1
    index.add(parts.vectors)
    data: bytes = faiss.serialize_index(index).tobytes()
    return data


def blend(retrieval: Retrieval, features: Floats, rate: float) -> Floats:
    """Move features ``[n, width]`` towards their neighbours: 0 leaves them, 1 replaces them.

    Neighbours weigh 1 / distance² of the squared distance that faiss gives, as upstream does; an
    exact hit, which divides by zero there, takes all the weight here. Where the probed list holds
    no vector a feature stays as it is.
    """
    if rate == 0.0 or len(features) == 0:
        return features
    distances, found = retrieval.index.search(np.ascontiguousarray(features), NEIGHBOURS)
    squared = np.maximum(distances.astype(np.float64), _MIN_SQUARED_DISTANCE)
    weights = np.where(found >= 0, 1.0 / np.square(squared), 0.0)
    total = weights.sum(axis=1, keepdims=True)
    weights = weights / np.where(total > 0, total, 1.0)
    near = np.einsum("nk,nkw->nw", weights, retrieval.vectors[np.maximum(found, 0)])
    share = np.where(total > 0, rate, 0.0)
    return np.asarray(share * near + (1 - share) * features, dtype=np.float32)
