"""From what a gRPC call raised to the SDK's errors (AIP-193: ``google.rpc.Status`` and its details)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from voxfleet.client.errors import FieldViolation, VoxfleetError, of_code

_DETAILS_KEY = "grpc-status-details-bin"


def error_of(failure: grpc.RpcError, *, endpoint: str = "") -> VoxfleetError:
    """The error that a failed call carries.

    Args:
        failure: what the call raised, of either kind of channel.
        endpoint: where it went, to say so when it could not be reached.
    """
    code = failure.code().name
    details = failure.details() or ""
    trailers = cast("Iterable[tuple[str, str | bytes]]", failure.trailing_metadata() or ())
    for key, value in trailers:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return _of_status(status_pb2.Status.FromString(value), code)
            except DecodeError:
                break
    if code == "UNAVAILABLE":
        details = f"cannot reach Voxfleet at {endpoint}: {details}" if endpoint else details
    if code == "DEADLINE_EXCEEDED":
        details = f"no answer in time from {endpoint or 'the server'}; a longer timeout_s may help"
    return of_code(code)(details or code, code=code)


def _of_status(status: status_pb2.Status, code: str) -> VoxfleetError:
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    local = error_details_pb2.LocalizedMessage()
    for detail in status.details:
        for message in (info, bad, retry, local):
            if detail.Is(message.DESCRIPTOR):
                detail.Unpack(message)
    metadata = dict(info.metadata)
    delay = retry.retry_delay
    return of_code(code)(
        status.message or code,
        reason=info.reason,
        code=code,
        trace_id=metadata.pop("trace_id", ""),
        metadata=metadata,
        violations=[FieldViolation(v.field, v.description) for v in bad.field_violations],
        retry_after_s=delay.seconds + delay.nanos / 1e9 if retry.HasField("retry_delay") else None,
        user_message=local.message,
    )
