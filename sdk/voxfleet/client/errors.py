"""What the SDK raises: one hierarchy, by gRPC code, with the facts of ``google.rpc`` details.

Switch on ``error.reason``; the list of reasons and of their metadata is ``docs/reference/errors.md``.
This module imports no gRPC; ``voxfleet.client.decode`` makes these from what a call raised.
"""

# ruff: noqa: N818 - the classes bear the names of the gRPC codes that they stand for

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

if TYPE_CHECKING:
    from voxfleet.v1 import job_pb2


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that is wrong, and why."""

    field: str
    description: str


class VoxfleetError(Exception):
    """An error that says what to do.

    Args:
        message: for a developer, in English.
        reason: one of the documented reasons, such as ``AUDIO_TOO_SHORT``; empty where the failure came
            from the connection and not from Voxfleet.
        code: the gRPC code's name, such as ``NOT_FOUND``; the class's own where empty.
        metadata: the reason's documented facts.
        violations: which request fields are wrong.
        retry_after_s: seconds after which a repeat may succeed, where waiting helps.
        user_message: one sentence for an end user; the message where not given.
        trace_id: what to quote when asking an operator.
    """

    CODE: ClassVar[str] = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        code: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[FieldViolation] = (),
        retry_after_s: float | None = None,
        user_message: str = "",
        trace_id: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.code = code or self.CODE
        self.metadata: dict[str, str] = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after_s = retry_after_s
        self.user_message = user_message or message
        self.trace_id = trace_id

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}" if self.reason else self.message

    def to_dict(self) -> dict[str, object]:
        """As plain data, for JSON."""
        return {
            "reason": self.reason,
            "message": self.message,
            "code": self.code,
            "metadata": dict(self.metadata),
            "violations": [{"field": v.field, "description": v.description} for v in self.violations],
            "retry_after_s": self.retry_after_s,
            "user_message": self.user_message,
            "trace_id": self.trace_id,
        }


class ConfigurationError(VoxfleetError):
    """The client was not told where to call, or in whose name. Nothing was sent."""

    CODE = "CLIENT_CONFIGURATION"


class InvalidArgument(VoxfleetError):
    """The request is wrong, however often it is repeated."""

    CODE = "INVALID_ARGUMENT"


class Unauthenticated(VoxfleetError):
    """The token is missing, wrong or revoked."""

    CODE = "UNAUTHENTICATED"


class PermissionDenied(VoxfleetError):
    """The token may not do this."""

    CODE = "PERMISSION_DENIED"


class NotFound(VoxfleetError):
    """It does not exist, or is another team's."""

    CODE = "NOT_FOUND"


class AlreadyExists(VoxfleetError):
    """The id is taken, or the request id was used for another request."""

    CODE = "ALREADY_EXISTS"


class FailedPrecondition(VoxfleetError):
    """Right in itself, but not in the present state of things."""

    CODE = "FAILED_PRECONDITION"


class ResourceExhausted(VoxfleetError):
    """A quota, a queue or a limit of size is full."""

    CODE = "RESOURCE_EXHAUSTED"


class Aborted(VoxfleetError):
    """Another change came first; read again and repeat."""

    CODE = "ABORTED"


class OutOfRange(VoxfleetError):
    """A range that lies outside of the data."""

    CODE = "OUT_OF_RANGE"


class Unimplemented(VoxfleetError):
    """The server does not know this method, or has not built it."""

    CODE = "UNIMPLEMENTED"


class Unavailable(VoxfleetError):
    """The server cannot be reached, or is down for now."""

    CODE = "UNAVAILABLE"


class DeadlineExceeded(VoxfleetError):
    """No answer within the call's deadline."""

    CODE = "DEADLINE_EXCEEDED"


class Cancelled(VoxfleetError):
    """The call was cancelled."""

    CODE = "CANCELLED"


class DataLoss(VoxfleetError):
    """The bytes are not the ones that were promised."""

    CODE = "DATA_LOSS"


class Internal(VoxfleetError):
    """A defect of the server; quote ``trace_id`` to an operator."""

    CODE = "INTERNAL"


class JobFailed(VoxfleetError):
    """A job that was waited for did not succeed; ``job`` tells all of it."""

    CODE = "JOB_FAILED"

    def __init__(self, job: job_pb2.Job, message: str = "") -> None:
        error = job.error
        super().__init__(
            message or error.message or f"{job.name} failed",
            reason=error.reason,
            metadata=error.metadata,
            user_message=error.user_message,
            trace_id=error.trace_id or job.trace_id,
        )
        self.job = job


class JobCancelled(JobFailed):
    """A job that was waited for was cancelled."""

    CODE = "JOB_CANCELLED"

    def __init__(self, job: job_pb2.Job) -> None:
        super().__init__(job, job.error.message or f"{job.name} was cancelled")
        self.reason = self.reason or "JOB_CANCELLED"


BY_CODE: Final[dict[str, type[VoxfleetError]]] = {
    kind.CODE: kind
    for kind in (
        InvalidArgument,
        Unauthenticated,
        PermissionDenied,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        ResourceExhausted,
        Aborted,
        OutOfRange,
        Unimplemented,
        Unavailable,
        DeadlineExceeded,
        Cancelled,
        DataLoss,
        Internal,
    )
}


def of_code(code: str) -> type[VoxfleetError]:
    """The class of a gRPC code's name; the base class where there is none of its own."""
    return BY_CODE.get(code, VoxfleetError)


def is_cut(error: VoxfleetError) -> bool:
    """Whether the connection failed and the server, had it been asked, might have answered.

    UNAVAILABLE always. A proxy or a dying server also resets streams with CANCELLED, INTERNAL or UNKNOWN;
    such a reset carries no reason, as an answer of Voxfleet would.
    """
    return error.code == "UNAVAILABLE" or (
        error.code in ("CANCELLED", "INTERNAL", "UNKNOWN") and not error.reason
    )
