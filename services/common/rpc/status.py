"""Errors to gRPC's rich status and back: the one table from kinds to codes (AIP-193)."""

from __future__ import annotations

import datetime as dt
import logging
from typing import Final

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from services.common.errors import FieldViolation, Kind, Reason, VoxfleetError
from voxfleet.v1 import error_pb2

log = logging.getLogger(__name__)

DOMAIN: Final = "voxfleet"
DETAILS_KEY: Final = "grpc-status-details-bin"

CODE_OF_KIND: Final[dict[Kind, grpc.StatusCode]] = {
    Kind.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Kind.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Kind.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    Kind.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Kind.CONFLICT: grpc.StatusCode.ALREADY_EXISTS,
    Kind.PRECONDITION: grpc.StatusCode.FAILED_PRECONDITION,
    Kind.EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Kind.ABORTED: grpc.StatusCode.ABORTED,
    Kind.OUT_OF_RANGE: grpc.StatusCode.OUT_OF_RANGE,
    Kind.UNIMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
    Kind.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Kind.DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
    Kind.CANCELLED: grpc.StatusCode.CANCELLED,
    Kind.DATA_LOSS: grpc.StatusCode.DATA_LOSS,
    Kind.INTERNAL: grpc.StatusCode.INTERNAL,
}
KIND_OF_CODE: Final = {code: kind for kind, code in CODE_OF_KIND.items()}


# Clients take 8 KiB of trailers, in which a status stands in base64 beside its message, percent-encoded:
# an error that quotes too much of a request would reach them as RESOURCE_EXHAUSTED of the transport.
_MAX_MESSAGE_BYTES = 600
_MAX_PART_BYTES = 160
_MAX_FACT_BYTES = 256
_MAX_PARTS = 6


def cut(text: str, max_bytes: int = _MAX_MESSAGE_BYTES) -> str:
    """A text of at most so many bytes of UTF-8; where it was longer, its end says so."""
    data = text.encode(errors="replace")
    if len(data) <= max_bytes:
        return text
    return f"{data[: max_bytes - 3].decode(errors='ignore')}..."


def to_status(error: VoxfleetError, *, trace_id: str = "") -> status_pb2.Status:
    """The rich status of an error: ErrorInfo and LocalizedMessage always, the others where they apply.

    Of an error with more facts or violations than a status can carry, the first are kept.
    """
    facts = list(error.metadata.items())[:_MAX_PARTS]
    metadata = {cut(key, 40): cut(value, _MAX_FACT_BYTES) for key, value in facts}
    if trace_id:
        metadata["trace_id"] = trace_id
    details: list[any_pb2.Any] = []
    _add(details, error_details_pb2.ErrorInfo(reason=error.reason.value, domain=DOMAIN, metadata=metadata))
    if error.violations:
        _add(
            details,
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(
                        field=cut(v.field, 80), description=cut(v.description, _MAX_PART_BYTES)
                    )
                    for v in error.violations[:_MAX_PARTS]
                ]
            ),
        )
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromTimedelta(dt.timedelta(seconds=error.retry_after_s))
        _add(details, error_details_pb2.RetryInfo(retry_delay=delay))
    _add(details, error_details_pb2.LocalizedMessage(locale="en", message=cut(error.user_message)))
    code = CODE_OF_KIND[error.kind].value[0]
    return status_pb2.Status(code=code, message=cut(error.message), details=details)


def trailers(error: VoxfleetError, *, trace_id: str = "") -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata that carries the rich status."""
    return ((DETAILS_KEY, to_status(error, trace_id=trace_id).SerializeToString()),)


def from_status(data: bytes) -> VoxfleetError:
    """The error that :func:`to_status` put into words."""
    found = status_pb2.Status.FromString(data)
    kind = next((kind for code, kind in KIND_OF_CODE.items() if code.value[0] == found.code), Kind.INTERNAL)
    return _from_status(found, kind) or VoxfleetError(Reason.INTERNAL, found.message, kind=kind)


def from_rpc_error(error: grpc.aio.AioRpcError) -> VoxfleetError:
    """The error that another service raised; a transport failure becomes SERVICE_UNAVAILABLE."""
    kind = KIND_OF_CODE.get(error.code(), Kind.INTERNAL)
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            parsed = _from_status(status_pb2.Status.FromString(value), kind)
            if parsed is not None:
                return parsed
    reasons = {
        Kind.UNAVAILABLE: Reason.SERVICE_UNAVAILABLE,
        Kind.DEADLINE: Reason.DEADLINE_EXCEEDED,
        Kind.CANCELLED: Reason.CANCELLED,
        Kind.EXHAUSTED: Reason.MESSAGE_TOO_LARGE,
        Kind.UNAUTHENTICATED: Reason.UNAUTHENTICATED,
        Kind.UNIMPLEMENTED: Reason.FEATURE_NOT_BUILT,
    }
    message = error.details() or error.code().name
    if kind is Kind.UNAVAILABLE:
        # The transport's own words name addresses, which are the operator's business.
        log.warning("a service does not answer: %s", message)
        message = "a service behind this one does not answer just now: try again shortly"
    return VoxfleetError(
        reasons.get(kind, Reason.INTERNAL),
        message,
        kind=kind,
        retry_after_s=1.0 if kind is Kind.UNAVAILABLE else None,
    )


def _from_status(status: status_pb2.Status, kind: Kind) -> VoxfleetError | None:
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    local = error_details_pb2.LocalizedMessage()
    for detail in status.details:
        for message in (info, bad, retry, local):
            if detail.Is(message.DESCRIPTOR):
                detail.Unpack(message)
    if info.domain != DOMAIN or info.reason not in Reason.__members__:
        return None
    retry_after_s = retry.retry_delay.ToTimedelta().total_seconds() if retry.HasField("retry_delay") else None
    return VoxfleetError(
        Reason(info.reason),
        status.message,
        kind=kind,
        metadata=dict(info.metadata),
        violations=[FieldViolation(v.field, v.description) for v in bad.field_violations],
        retry_after_s=retry_after_s,
        user_message=local.message,
    )


def to_proto(error: VoxfleetError, *, trace_id: str = "") -> error_pb2.Error:
    """The error as it is kept with a resource."""
    return error_pb2.Error(
        reason=error.reason.value,
        message=error.message,
        user_message=error.user_message,
        metadata=error.metadata,
        trace_id=trace_id,
    )


def _add(
    details: list[any_pb2.Any],
    message: error_details_pb2.ErrorInfo
    | error_details_pb2.BadRequest
    | error_details_pb2.RetryInfo
    | error_details_pb2.LocalizedMessage,
) -> None:
    packed = any_pb2.Any()
    packed.Pack(message)
    details.append(packed)
