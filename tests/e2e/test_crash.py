"""``kill -9`` in mid-training: the next attempt resumes from its checkpoint, the stale one is refused."""

import time

import grpc
import psycopg
import pytest
from google.rpc import status_pb2

from services.common.rpc.caller import TOKEN_HEADER
from voxfleet.internal.v1 import work_pb2, work_pb2_grpc
from voxfleet.v1 import job_pb2, voice_pb2


def until(condition, *, timeout_s: float, what: str):
    """Polls a condition; its first true answer."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited {timeout_s:g} s in vain for {what}")


def test_a_killed_trainer_loses_nothing_and_its_stale_attempt_commits_nothing(stack, alpha, target):
    voice_id = "survivor"
    job = alpha.client.voices.train(
        [target.name], voice_id=voice_id, parameters=voice_pb2.RvcTrainingParameters(max_steps=40)
    )
    saved = until(lambda: list(alpha.client.voices.checkpoints(voice_id)), timeout_s=150, what="a checkpoint")
    stale = _fence(stack, job.name)
    restarts = stack.service("trainer").restarts
    stack.kill("trainer")
    until(lambda: alpha.client.jobs.get(job.name).attempt == 2, timeout_s=120, what="a second attempt")

    # The stale attempt wakes up and tries everything it might.
    service_token = stack.services["trainer"].env["VOXFLEET_SERVICE_TOKEN"]
    with grpc.insecure_channel(stack.services["metadata"].grpc_address) as channel:
        work = work_pb2_grpc.WorkServiceStub(channel)
        headers = ((TOKEN_HEADER, service_token),)
        for request in (
            work_pb2.AttemptEnd(fence=stale, succeeded=work_pb2.AttemptSucceeded()),
            work_pb2.AttemptEnd(fence=stale, failed=work_pb2.AttemptFailed()),
            work_pb2.AttemptEnd(fence=stale, cancelled=work_pb2.AttemptCancelled()),
            work_pb2.AttemptEnd(fence=stale, released=work_pb2.AttemptReleased()),
        ):
            asked = work_pb2.EndAttemptsRequest(ends=[request])
            (ended,) = work.EndAttempts(asked, metadata=headers, timeout=10).ended
            assert status_pb2.Status.FromString(ended.status).code == grpc.StatusCode.ABORTED.value[0]
        with pytest.raises(grpc.RpcError):
            work.RecordCheckpoint(work_pb2.RecordCheckpointRequest(fence=stale), metadata=headers, timeout=10)

    done = alpha.client.jobs.wait(job.name, timeout_s=240)
    assert stack.service("trainer").restarts > restarts
    assert done.attempt == 2
    assert done.state == job_pb2.JOB_STATE_SUCCEEDED
    assert [attempt.error.reason for attempt in done.attempts] == ["WORKER_LOST", ""]
    assert alpha.client.voices.get(voice_id).state == voice_pb2.VOICE_STATE_READY
    # It went on where it was: the second attempt's first step is after the checkpoint's.
    resumed_at = done.result.metrics["resumed_step"]
    assert resumed_at >= saved[0].step > 0
    assert done.result.metrics["steps"] == 40


def test_cancelling_a_training_frees_its_gpu(stack, alpha, target):
    job = alpha.client.voices.train([target.name], voice_id="cancelled-one")
    until(lambda: alpha.client.jobs.get(job.name).progress.phase == "train", timeout_s=150, what="training")
    held = _free_gpus(alpha)
    alpha.client.jobs.cancel(job.name)
    until(
        lambda: alpha.client.jobs.get(job.name).state == job_pb2.JOB_STATE_CANCELLED,
        timeout_s=60,
        what="the cancellation",
    )
    until(lambda: _free_gpus(alpha) > held, timeout_s=60, what="the GPU")
    assert alpha.client.voices.get("cancelled-one").state == voice_pb2.VOICE_STATE_FAILED


def _free_gpus(alpha) -> float:
    return sum(node.gpus_free for node in alpha.client.fleet.get().nodes)


def _fence(stack, job: str) -> work_pb2.Fence:
    """The present fence of a job, as only its worker knows it."""
    with psycopg.connect(stack.database_url) as connection:
        row = connection.execute(
            "SELECT id, attempt, lease_token::text FROM jobs WHERE id = %s", (job.rpartition("/")[2],)
        ).fetchone()
    assert row is not None
    return work_pb2.Fence(job_id=row[0], attempt=row[1], lease_token=row[2])
