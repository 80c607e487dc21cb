"""Retries, deadlines, headers, errors."""

from __future__ import annotations

import grpc
import pytest

from services.common.errors import FieldViolation, Kind, Reason, VoxfleetError, unavailable
from tests.unit.sdk.conftest import QUICK, Face
from tests.unit.sdk.server import TEAM, Double, job
from voxfleet.client import AsyncClient, Client, ConfigurationError, RetryPolicy
from voxfleet.client.errors import AlreadyExists, Cancelled, InvalidArgument, NotFound, Unavailable
from voxfleet.v1 import job_pb2

DOWN = grpc.StatusCode.UNAVAILABLE


async def test_request_id_is_made_once_and_kept_through_retries(face: Face, double: Double) -> None:
    double.failures["CreateVoice"].extend([DOWN, DOWN])
    await face.call(face.client.voices.create, reference="a-0001", text="Hello.")
    requests = double.asked("CreateVoice")
    assert len(requests) == 3
    assert len({request.request_id for request in requests}) == 1
    assert requests[0].request_id
    await face.call(face.client.voices.create, reference="a-0001", text="Hello.")
    assert double.asked("CreateVoice")[-1].request_id != requests[0].request_id


async def test_what_is_not_safe_is_not_repeated(face: Face, double: Double) -> None:
    double.jobs[f"{TEAM}/jobs/j-0001"] = job(job_pb2.JOB_STATE_FAILED)
    for method, call in {
        "CreateApiKey": (face.client.trust.create_key,),
        "RetryJob": (face.client.jobs.retry, "j-0001"),
        "DeleteAudio": (face.client.audio.delete, "a-0001"),
    }.items():
        double.failures[method].append(DOWN)
        with pytest.raises(Unavailable):
            await face.call(*call)
        assert len(double.asked(method)) == 1


async def test_retries_are_bounded(face: Face, double: Double) -> None:
    double.failures["GetFleet"].extend([DOWN] * 10)
    with pytest.raises(Unavailable) as caught:
        await face.call(face.client.fleet.get)
    assert len(double.asked("GetFleet")) == QUICK.attempts
    assert face.client.config.endpoint in caught.value.message


async def test_only_unavailable_is_repeated(face: Face, double: Double) -> None:
    double.failures["GetFleet"].append(
        VoxfleetError(Reason.QUEUE_FULL, "full", kind=Kind.EXHAUSTED, retry_after_s=0.001)
    )
    with pytest.raises(Exception, match="QUEUE_FULL"):
        await face.call(face.client.fleet.get)
    assert len(double.asked("GetFleet")) == 1


async def test_a_wait_beyond_the_deadline_is_not_begun(face: Face, double: Double) -> None:
    double.failures["CreateVoice"].append(
        unavailable(Reason.SERVICE_UNAVAILABLE, "down for an hour", retry_after_s=3600)
    )
    with pytest.raises(Unavailable) as caught:
        await face.call(face.client.voices.create, reference="a-0001", text="Hello.")
    assert caught.value.retry_after_s == 3600
    assert len(double.asked("CreateVoice")) == 1


async def test_errors_carry_all_that_the_gateway_says(face: Face, double: Double) -> None:
    double.failures["CreateVoice"].append(
        VoxfleetError(
            Reason.AUDIO_TOO_SHORT,
            "the clip is 1.2 s long, at least 3 s are needed",
            kind=Kind.INVALID,
            metadata={"duration_s": 1.2, "min_duration_s": 3},
            violations=[FieldViolation("voice.references[0].audio", "too short")],
            user_message="Please record at least three seconds.",
        )
    )
    with pytest.raises(InvalidArgument) as caught:
        await face.call(face.client.voices.create, reference="a-0001", text="Hello.")
    error = caught.value
    assert error.to_dict() == {
        "reason": "AUDIO_TOO_SHORT",
        "message": "the clip is 1.2 s long, at least 3 s are needed",
        "code": "INVALID_ARGUMENT",
        "metadata": {"duration_s": "1.2", "min_duration_s": "3"},
        "violations": [{"field": "voice.references[0].audio", "description": "too short"}],
        "retry_after_s": None,
        "user_message": "Please record at least three seconds.",
        "trace_id": "trace-1",
    }


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(Kind.NOT_FOUND, NotFound), (Kind.CONFLICT, AlreadyExists), (Kind.INVALID, InvalidArgument)],
)
async def test_each_code_has_its_class(
    face: Face, double: Double, kind: Kind, expected: type[Exception]
) -> None:
    double.failures["GetFleet"].append(VoxfleetError(Reason.INVALID_ARGUMENT, "no", kind=kind))
    with pytest.raises(expected):
        await face.call(face.client.fleet.get)


async def test_a_reset_by_the_other_side_is_an_error_and_not_a_cancelled_task(
    face: Face, double: Double
) -> None:
    double.failures["GetFleet"].append(grpc.StatusCode.CANCELLED)
    with pytest.raises(Cancelled):
        await face.call(face.client.fleet.get)


async def test_calls_carry_the_key_and_the_active_trace(face: Face, double: Double) -> None:
    from opentelemetry import trace
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

    context = SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1))
    with trace.use_span(NonRecordingSpan(context)):
        await face.call(face.client.fleet.get)
    assert double.metadata[-1]["authorization"] == "Bearer vf-test"
    assert double.metadata[-1]["traceparent"] == f"00-{0xABC:032x}-{0xDEF:016x}-01"
    await face.call(face.client.fleet.get)
    assert "traceparent" not in double.metadata[-1]


async def test_bare_ids_are_of_the_clients_team(face: Face, double: Double) -> None:
    with pytest.raises(NotFound):
        await face.call(face.client.voices.get, "v-anna")
    assert double.asked("GetVoice")[0].name == "teams/acme/voices/v-anna"
    with pytest.raises(NotFound):
        await face.call(face.client.voices.get, "teams/acme/voices/v-anna")
    assert double.asked("GetVoice")[1].name == "teams/acme/voices/v-anna"
    with pytest.raises(InvalidArgument):
        await face.call(face.client.voices.get, "teams/acme/jobs/j-0001")


async def test_updates_name_only_what_was_given(face: Face, double: Double) -> None:
    await face.call(face.client.voices.update, "v-anna", labels={}, display_name="Anna")
    assert sorted(double.asked("UpdateVoice")[0].update_mask.paths) == ["display_name", "labels"]
    await face.call(face.client.fleet.update_quota, max_gpus=0.0)
    request = double.asked("UpdateQuota")[0]
    assert list(request.update_mask.paths) == ["max_gpus"]
    assert request.quota.name == "teams/acme/quota"


def test_a_team_is_needed_only_for_bare_names(endpoint: str, double: Double) -> None:
    with Client(endpoint, team="acme") as client:
        client.config.sources  # noqa: B018 - it was configured
    with Client(endpoint, retry=QUICK) as nobody:
        assert nobody.fleet.get().version == "0.1.0"
        with pytest.raises(ConfigurationError, match="VOXFLEET_TEAM"):
            nobody.voices.get("v-anna")


def test_an_async_client_outside_of_a_loop_says_so() -> None:
    with pytest.raises(ConfigurationError, match="Client"):
        AsyncClient("127.0.0.1:1")


def test_backoff_grows_within_its_bounds_and_honours_the_server() -> None:
    policy = RetryPolicy(initial_backoff_s=0.2, max_backoff_s=1.0)
    assert [policy.backoff_s(n, draw=lambda: 1.0) for n in (1, 2, 3, 4, 50)] == [0.2, 0.4, 0.8, 1.0, 1.0]
    assert [policy.backoff_s(n, draw=lambda: 0.0) for n in (1, 2)] == [0.1, 0.2]
    assert policy.backoff_s(1, 7.0, draw=lambda: 0.0) == 7.0
    assert policy.backoff_s(4, 7.0, draw=lambda: 1.0) == pytest.approx(7.7)
