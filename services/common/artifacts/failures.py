"""The errors that every artefact store raises, in the same words."""

from __future__ import annotations

from services.common.errors import FailureClass, Kind, Reason, VoxfleetError, not_found


def missing(key: str) -> VoxfleetError:
    """Nothing is stored under this key."""
    return not_found(Reason.ARTIFACT_NOT_FOUND, key)


def corrupt(key: str, expected: str, actual: str) -> VoxfleetError:
    """The bytes are not the ones that the hash names; a repeat reads or sends them afresh."""
    return VoxfleetError(
        Reason.ARTIFACT_CORRUPT,
        f"{key} has SHA-256 {actual}, not {expected}",
        kind=Kind.DATA_LOSS,
        metadata={"name": key, "expected_sha256": expected, "actual_sha256": actual},
        failure=FailureClass.TRANSIENT,
    )


def out_of_range(key: str, offset_bytes: int, size_bytes: int) -> VoxfleetError:
    """A range that begins outside the artefact."""
    return VoxfleetError(
        Reason.RANGE_NOT_SATISFIABLE,
        f"{key} has {size_bytes} bytes; offset {offset_bytes} is outside it",
        kind=Kind.OUT_OF_RANGE,
        metadata={"name": key, "offset_bytes": offset_bytes, "size_bytes": size_bytes},
    )
