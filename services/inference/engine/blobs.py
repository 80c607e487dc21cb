"""Bytes of jobs: inputs verified by their hash, outputs encoded with their provenance and stored."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from services.common import limits
from services.common.artifacts.model import bundle_key, content_key
from services.common.artifacts.ports import ArtifactStore
from services.common.errors import Reason, VoxfleetError, invalid
from services.common.jobs.tasks import Blob, Output
from services.common.media.decode import probe
from services.common.media.encode import Format, encode
from services.common.media.resample import resample
from services.engines.bundles.cache import BundleCache
from services.engines.bundles.manifest import Manifest
from services.inference.calls import Made, Weights
from services.inference.engine.marking import UNMARKED, Marking
from services.inference.tags import file_tags

Samples = NDArray[np.float32]


def fetch(store: ArtifactStore, blob: Blob, missing: Reason) -> bytes:
    """An input's bytes, hashed on the way. Errors: ``missing`` where it is gone, ARTIFACT_CORRUPT."""
    try:
        return store.get_bytes(blob.key, sha256=blob.sha256)
    except VoxfleetError as error:
        raise _gone(error, blob, missing) from None


def fetch_file(store: ArtifactStore, blob: Blob, path: Path, missing: Reason) -> None:
    """The same into a file."""
    try:
        store.get_file(blob.key, path, sha256=blob.sha256)
    except VoxfleetError as error:
        raise _gone(error, blob, missing) from None


def ensure_bundle(store: ArtifactStore, manifest: Manifest, cache_dir: Path) -> Path:
    """A stored bundle's directory on this node, fetched where it is not here. Errors: MODEL_CORRUPT."""

    def open_file(path: str) -> AbstractContextManager[BinaryIO]:
        key = bundle_key(manifest.name, manifest.stored_path(path))
        return closing(cast("BinaryIO", io.BufferedReader(_Chunks(store.open_range(key)), 1 << 20)))

    return BundleCache(cache_dir / "bundles").ensure(manifest, open_file)


def keep_audio(
    store: ArtifactStore,
    team: str,
    samples: Samples,
    rate_hz: int,
    output: Output,
    *,
    tags: dict[str, str],
    weights: Weights,
    seed: int,
    work_s: float,
    advance: Callable[[str, float], None],
    marking: Marking = UNMARKED,
) -> Made:
    """Encodes and stores an output.

    Args:
        store: where to.
        team: whose it is.
        samples: float32, mono.
        rate_hz: theirs.
        output: how it is to come.
        tags: what the file itself says of how it was made.
        weights: what made it.
        seed: with which seed.
        work_s: what it cost.
        advance: told (phase, share).
        marking: whether it carries the inaudible mark.
    """
    wanted_hz = output.rate_hz or rate_hz
    least, most = limits.RATE_HZ
    if not least <= wanted_hz <= most:
        raise invalid(
            Reason.INVALID_ARGUMENT,
            f"rate_hz is {wanted_hz}; {least} to {most} are written",
            field="output.rate_hz",
        )
    advance("encode", 0.0)
    # At the engine's own rate: what is left of it at another is what a listener has.
    marked = marking.whole(samples, rate_hz)
    fmt = Format(output.format)
    data = encode(
        resample(marked, rate_hz, wanted_hz),
        wanted_hz,
        fmt,
        bitrate_kbps=None if fmt.lossless else (output.bitrate_kbps or None),
        metadata=file_tags(tags, weights, seed, watermarked=marking.enabled),
    )
    info = probe(data)
    advance("store", 0.0)
    sha256 = hashlib.sha256(data).hexdigest()
    kept = store.put_bytes(content_key(team, sha256), data, media_type=fmt.content_type, sha256=sha256)
    blob = Blob(key=kept.key, sha256=sha256, size_bytes=len(data), media_type=fmt.content_type)
    duration_s = samples.shape[-1] / rate_hz

    return Made(
        blob,
        duration_s,
        info.rate_hz,
        info.channels,
        fmt.value,
        seed,
        weights,
        work_s,
        watermarked=marking.enabled,
    )


def team_id(team: str) -> str:
    """The id in ``teams/{team}``, or the id itself."""
    return team.removeprefix("teams/")


def pcm16(samples: Samples) -> bytes:
    """Signed 16-bit little-endian samples; beyond ±1 is clipped."""
    data: bytes = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype("<i2").tobytes()
    return data


class _Chunks(io.RawIOBase):
    """A stream over chunks that come from the store."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = chunk
        taken = self._rest[: len(buffer)]
        buffer[: len(taken)] = taken
        self._rest = self._rest[len(taken) :]
        return len(taken)


def _gone(error: VoxfleetError, blob: Blob, missing: Reason) -> VoxfleetError:
    if error.reason is not Reason.ARTIFACT_NOT_FOUND:
        return error
    return VoxfleetError(
        missing, f"{blob.key} is no longer stored", kind=error.kind, metadata={"name": blob.key}
    )
