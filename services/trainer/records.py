"""The small JSON files by which a later attempt finds what an earlier one stored."""

from __future__ import annotations

import json

from services.common.jobs.model import Checkpoint
from services.common.jobs.tasks import Blob
from services.trainer.model import Point
from services.trainer.stage import Prepared

_CHECKPOINT_SUFFIX = ".safetensors"
_CURVE_SUFFIX = ".curve.json"


def slices_name(key: str) -> str:
    """The file of slices with their F0."""
    return f"slices-{key}.safetensors"


def prepared_name(key: str) -> str:
    """The record beside the slices, written after them."""
    return f"slices-{key}.json"


def features_name(key: str) -> str:
    """The file of features."""
    return f"features-{key}.safetensors"


def features_record_name(key: str) -> str:
    """The record beside the features, written after them."""
    return f"features-{key}.json"


def checkpoint_name(step: int) -> str:
    """The file of a checkpoint."""
    return f"ckpt-{step}{_CHECKPOINT_SUFFIX}"


def curve_key(checkpoint_key: str) -> str:
    """The key of the curve that goes with a checkpoint."""
    return checkpoint_key.removesuffix(_CHECKPOINT_SUFFIX) + _CURVE_SUFFIX


def curve_name(checkpoint: Checkpoint) -> str:
    """The name, in its attempt's folder, of the curve that goes with a checkpoint."""
    return curve_key(checkpoint.blob.key).rsplit("/", 1)[-1]


def dump_prepared(prepared: Prepared) -> bytes:
    """The record of slices."""
    data = {"blob": prepared.blob.model_dump(), "slices": prepared.slices, "audio_s": prepared.audio_s}
    return json.dumps(data).encode()


def load_prepared(data: bytes | None) -> Prepared | None:
    """The record that :func:`dump_prepared` wrote; None where it is none, for it can be made anew."""
    try:
        found = json.loads(data or b"null")
        return Prepared(Blob.model_validate(found["blob"]), int(found["slices"]), float(found["audio_s"]))
    except (ValueError, KeyError, TypeError):
        return None


def dump_blob(blob: Blob) -> bytes:
    """The record of features."""
    return blob.model_dump_json().encode()


def load_blob(data: bytes | None) -> Blob | None:
    """The record that :func:`dump_blob` wrote; None where it is none."""
    try:
        return Blob.model_validate_json(data or b"null")
    except ValueError:
        return None


def dump_curve(points: tuple[Point, ...]) -> bytes:
    """A curve."""
    return json.dumps([[step, dict(metrics)] for step, metrics in points]).encode()


def load_curve(data: bytes | None) -> tuple[Point, ...]:
    """The curve that :func:`dump_curve` wrote; empty where it is none: a curve is never worth a failure."""
    try:
        return tuple(
            (int(step), {str(name): float(value) for name, value in metrics.items()})
            for step, metrics in json.loads(data or b"[]")
        )
    except (ValueError, TypeError, AttributeError):
        return ()
