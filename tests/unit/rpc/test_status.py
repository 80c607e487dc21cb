import pickle

import grpc
import pytest

from services.common.errors import FieldViolation, Kind, Reason, VoxfleetError
from services.common.rpc import status


class FakeRpcError(grpc.aio.AioRpcError):
    def __init__(self, code, trailing, details="details"):
        super().__init__(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details)


ERROR = VoxfleetError(
    Reason.QUEUE_FULL,
    "too many wait",
    kind=Kind.EXHAUSTED,
    metadata={"max_waiting": 32},
    violations=[FieldViolation("text", "is long")],
    retry_after_s=2.5,
    user_message="Please try again.",
)


def test_an_error_crosses_the_wire_whole():
    found = status.from_rpc_error(
        FakeRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, status.trailers(ERROR, trace_id="t1"))
    )
    assert (found.reason, found.kind, found.message) == (ERROR.reason, ERROR.kind, ERROR.message)
    assert found.metadata == {"max_waiting": "32", "trace_id": "t1"}
    assert found.violations == ERROR.violations
    assert found.retry_after_s == 2.5
    assert found.user_message == "Please try again."


def test_an_error_crosses_processes_whole():
    found = pickle.loads(pickle.dumps(ERROR))
    assert found.to_dict() == ERROR.to_dict()
    assert VoxfleetError.from_dict(ERROR.to_dict()).to_dict() == ERROR.to_dict()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, Reason.SERVICE_UNAVAILABLE),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Reason.DEADLINE_EXCEEDED),
        (grpc.StatusCode.UNKNOWN, Reason.INTERNAL),
    ],
)
def test_a_failure_of_the_transport_has_a_documented_reason(code, reason):
    found = status.from_rpc_error(FakeRpcError(code, (), "ipv4:10.0.0.7:443 refused"))
    assert found.reason is reason
    if code is grpc.StatusCode.UNAVAILABLE:
        assert "10.0.0.7" not in found.message, "addresses are the operator's business"
        assert found.retry_after_s is not None


def test_every_kind_has_its_own_code():
    assert set(status.CODE_OF_KIND) == set(Kind)
    assert len(set(status.CODE_OF_KIND.values())) == len(Kind)
