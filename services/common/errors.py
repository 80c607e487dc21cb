"""The one exception hierarchy and the one documented list of reasons.

Every error that leaves a service is a :class:`VoxfleetError`: a *kind* (which becomes a gRPC
status code), a *reason* from :class:`Reason` (which becomes ``google.rpc.ErrorInfo.reason``,
AIP-193), and metadata whose keys are documented per reason in ``docs/reference/errors.md``.
This module knows nothing of gRPC; ``services.common.rpc.status`` translates.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class Kind(enum.Enum):
    """What sort of failure it is; the table to gRPC codes is in ``services.common.rpc.status``."""

    INVALID = "invalid"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    PRECONDITION = "precondition"
    EXHAUSTED = "exhausted"
    ABORTED = "aborted"
    OUT_OF_RANGE = "out_of_range"
    UNIMPLEMENTED = "unimplemented"
    UNAVAILABLE = "unavailable"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    DATA_LOSS = "data_loss"
    INTERNAL = "internal"


class FailureClass(enum.Enum):
    """How the ledger treats a failed attempt."""

    TRANSIENT = "transient"
    """Try again later: a dropped connection, a busy store."""
    RESOURCE = "resource"
    """Try again with other resources: out of memory halves the batch."""
    NODE = "node"
    """Try again elsewhere: the machine died."""
    INPUT = "input"
    """Never try again: the request or its audio is at fault."""
    PERMANENT = "permanent"
    """Never try again: a bug or a missing thing that waiting does not mend."""

    @property
    def concerns_node(self) -> bool:
        """Whether it is worth knowing on which machine it happened: another one may do."""
        return self in (FailureClass.NODE, FailureClass.RESOURCE, FailureClass.TRANSIENT)


class Reason(enum.StrEnum):
    """Every ``ErrorInfo.reason`` that Voxfleet sends. Documented in ``docs/reference/errors.md``."""

    # audio
    FILE_TOO_LARGE = "FILE_TOO_LARGE"
    INVALID_FORMAT = "INVALID_FORMAT"
    AUDIO_TOO_SHORT = "AUDIO_TOO_SHORT"
    AUDIO_TOO_LONG = "AUDIO_TOO_LONG"
    QUALITY_TOO_LOW = "QUALITY_TOO_LOW"
    AUDIO_EMPTY = "AUDIO_EMPTY"
    AUDIO_SILENT = "AUDIO_SILENT"
    CHECKSUM_MISMATCH = "CHECKSUM_MISMATCH"
    UPLOAD_INCOMPLETE = "UPLOAD_INCOMPLETE"
    UPLOAD_OFFSET_MISMATCH = "UPLOAD_OFFSET_MISMATCH"
    UPLOAD_NOT_FOUND = "UPLOAD_NOT_FOUND"
    UPLOAD_EXPIRED = "UPLOAD_EXPIRED"
    AUDIO_NOT_FOUND = "AUDIO_NOT_FOUND"
    AUDIO_NOT_READY = "AUDIO_NOT_READY"
    AUDIO_IN_USE = "AUDIO_IN_USE"
    RANGE_NOT_SATISFIABLE = "RANGE_NOT_SATISFIABLE"
    # voices and models
    VOICE_NOT_FOUND = "VOICE_NOT_FOUND"
    VOICE_NOT_READY = "VOICE_NOT_READY"
    VOICE_EXISTS = "VOICE_EXISTS"
    LEXICON_NOT_FOUND = "LEXICON_NOT_FOUND"
    LEXICON_EXISTS = "LEXICON_EXISTS"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    MODEL_CORRUPT = "MODEL_CORRUPT"
    HUB_UNREACHABLE = "HUB_UNREACHABLE"
    LICENCE_NOT_ACCEPTED = "LICENCE_NOT_ACCEPTED"
    LICENCE_NOT_ALLOWED = "LICENCE_NOT_ALLOWED"
    UNSUPPORTED_ENGINE = "UNSUPPORTED_ENGINE"
    UNSUPPORTED_LANGUAGE = "UNSUPPORTED_LANGUAGE"
    # text
    TEXT_EMPTY = "TEXT_EMPTY"
    TEXT_TOO_LONG = "TEXT_TOO_LONG"
    UNSUPPORTED_CHARACTERS = "UNSUPPORTED_CHARACTERS"
    SPEECH_NOT_HEARD = "SPEECH_NOT_HEARD"
    TRANSCRIPT_MISMATCH = "TRANSCRIPT_MISMATCH"
    SLOT_TOO_SHORT = "SLOT_TOO_SHORT"
    # jobs and the fleet
    JOB_NOT_FOUND = "JOB_NOT_FOUND"
    JOB_STATE_CONFLICT = "JOB_STATE_CONFLICT"
    JOB_CANCELLED = "JOB_CANCELLED"
    WEBHOOK_NOT_FOUND = "WEBHOOK_NOT_FOUND"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    LEASE_LOST = "LEASE_LOST"
    LEASE_EXPIRED = "LEASE_EXPIRED"
    QUEUE_FULL = "QUEUE_FULL"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    BATCH_ALL_FAILED = "BATCH_ALL_FAILED"
    DEPENDENCY_FAILED = "DEPENDENCY_FAILED"
    GPU_OUT_OF_MEMORY = "GPU_OUT_OF_MEMORY"
    TRAINING_FAILED = "TRAINING_FAILED"
    TRAINING_DIVERGED = "TRAINING_DIVERGED"
    CHECKPOINT_CORRUPT = "CHECKPOINT_CORRUPT"
    CONVERSION_FAILED = "CONVERSION_FAILED"
    SYNTHESIS_FAILED = "SYNTHESIS_FAILED"
    WORKER_LOST = "WORKER_LOST"
    # requests
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    INVALID_PAGE_TOKEN = "INVALID_PAGE_TOKEN"  # noqa: S105 - no password
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    FEATURE_NOT_BUILT = "FEATURE_NOT_BUILT"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    TEAM_NOT_FOUND = "TEAM_NOT_FOUND"
    NODE_NOT_FOUND = "NODE_NOT_FOUND"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    # dependencies
    STORAGE_UNAVAILABLE = "STORAGE_UNAVAILABLE"
    DATABASE_UNAVAILABLE = "DATABASE_UNAVAILABLE"
    SERVICE_UNAVAILABLE = "SERVICE_UNAVAILABLE"
    SCHEMA_OUTDATED = "SCHEMA_OUTDATED"
    ARTIFACT_NOT_FOUND = "ARTIFACT_NOT_FOUND"
    ARTIFACT_CORRUPT = "ARTIFACT_CORRUPT"
    INTERNAL = "INTERNAL"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that is wrong: ``google.rpc.BadRequest.FieldViolation``."""

    field: str
    description: str


class VoxfleetError(Exception):
    """An error that a caller can act on.

    Args:
        reason: one of the documented reasons.
        message: for a developer, in English, says what to do.
        kind: the sort of failure; decides the gRPC code.
        metadata: the reason's documented facts, as strings.
        violations: which request fields are wrong and why.
        retry_after_s: seconds after which a repeat may succeed, where waiting helps.
        user_message: one sentence for an end user; the message where not given.
        failure: how the ledger treats an attempt that ended so.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        kind: Kind,
        metadata: Mapping[str, object] | None = None,
        violations: Sequence[FieldViolation] = (),
        retry_after_s: float | None = None,
        user_message: str = "",
        failure: FailureClass | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.kind = kind
        self.metadata: dict[str, str] = {key: str(value) for key, value in (metadata or {}).items()}
        self.violations = tuple(violations)
        self.retry_after_s = retry_after_s
        self.user_message = user_message or message
        self.failure = failure or _FAILURE_OF_KIND.get(kind, FailureClass.PERMANENT)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle whole: these cross Ray's process borders."""
        return (_rebuild, (self.to_dict(),))

    def to_dict(self) -> dict[str, object]:
        """As plain data, for a job's row and for crossing processes."""
        return {
            "reason": self.reason.value,
            "message": self.message,
            "kind": self.kind.value,
            "metadata": dict(self.metadata),
            "violations": [[v.field, v.description] for v in self.violations],
            "retry_after_s": self.retry_after_s,
            "user_message": self.user_message,
            "failure": self.failure.value,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> VoxfleetError:
        """The error that :meth:`to_dict` wrote."""
        return _rebuild(data)


def _rebuild(data: Mapping[str, object]) -> VoxfleetError:
    violations = data.get("violations") or []
    metadata = data.get("metadata") or {}
    retry_after_s = data.get("retry_after_s")
    assert isinstance(violations, list)
    assert isinstance(metadata, Mapping)
    return VoxfleetError(
        Reason(str(data["reason"])),
        str(data["message"]),
        kind=Kind(str(data["kind"])),
        metadata=metadata,
        violations=[FieldViolation(str(field), str(text)) for field, text in violations],
        retry_after_s=float(retry_after_s) if isinstance(retry_after_s, int | float) else None,
        user_message=str(data.get("user_message") or ""),
        failure=FailureClass(str(data["failure"])) if data.get("failure") else None,
    )


_FAILURE_OF_KIND = {
    Kind.INVALID: FailureClass.INPUT,
    Kind.NOT_FOUND: FailureClass.INPUT,
    Kind.PRECONDITION: FailureClass.INPUT,
    Kind.OUT_OF_RANGE: FailureClass.INPUT,
    Kind.EXHAUSTED: FailureClass.RESOURCE,
    Kind.UNAVAILABLE: FailureClass.TRANSIENT,
    Kind.DEADLINE: FailureClass.TRANSIENT,
    Kind.ABORTED: FailureClass.TRANSIENT,
}


def invalid(
    reason: Reason, message: str, *, field: str = "", user_message: str = "", **metadata: object
) -> VoxfleetError:
    """A request (or the audio in it) that is wrong however often it is repeated."""
    violations = [FieldViolation(field, message)] if field else []
    return VoxfleetError(
        reason,
        message,
        kind=Kind.INVALID,
        metadata=metadata,
        violations=violations,
        user_message=user_message,
    )


def not_found(reason: Reason, name: str) -> VoxfleetError:
    """A resource that does not exist, or is another team's (the two look the same on purpose)."""
    return VoxfleetError(
        reason,
        f"{name} does not exist, or this key may not see it",
        kind=Kind.NOT_FOUND,
        metadata={"name": name},
    )


def precondition(reason: Reason, message: str, **metadata: object) -> VoxfleetError:
    """A request that is right in itself, but not in the present state of things."""
    return VoxfleetError(reason, message, kind=Kind.PRECONDITION, metadata=metadata)


def unavailable(
    reason: Reason, message: str, *, retry_after_s: float = 1.0, **metadata: object
) -> VoxfleetError:
    """Something that is down for now; a repeat may succeed."""
    return VoxfleetError(
        reason, message, kind=Kind.UNAVAILABLE, metadata=metadata, retry_after_s=retry_after_s
    )


def not_built(feature: str) -> VoxfleetError:
    """A method that is declared, but not built yet."""
    return VoxfleetError(
        Reason.FEATURE_NOT_BUILT,
        f"{feature} is declared in the API but not built in this release",
        kind=Kind.UNIMPLEMENTED,
        metadata={"feature": feature},
    )


def internal(message: str) -> VoxfleetError:
    """A defect of ours."""
    return VoxfleetError(Reason.INTERNAL, message, kind=Kind.INTERNAL)
