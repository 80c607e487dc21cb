"""A single (virtual) GPU for trainings and the pools: who waits, who yields, who goes on where it was."""

import datetime as dt
import os
import threading
import time
from collections.abc import Iterator

import pytest

from services.stack.config import StackConfig
from services.stack.stack import Stack, running_stack
from tests.e2e.conftest import SPEECH, TEST_SETTINGS
from tests.e2e.test_crash import until
from voxfleet.client import Client
from voxfleet.v1 import job_pb2, voice_pb2

pytestmark = pytest.mark.timeout(1200)

GUARANTEED = dt.timedelta(seconds=10)
SETTINGS = TEST_SETTINGS | {
    "VOXFLEET_GUARANTEED_RUN_S": str(GUARANTEED.total_seconds()),
    # A replica that had to go is started again for the request: on two cores that takes a while.
    "VOXFLEET_QUEUE_WAIT_S": "240",
}


@pytest.fixture(scope="module")
def lone_gpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    config = StackConfig.from_environ(
        os.environ,
        home=tmp_path_factory.mktemp("lone"),
        virtual_gpus=1,
        team="alpha",
        durable=False,
        extra_env=SETTINGS,
    )
    with running_stack(config) as found:
        yield found


@pytest.fixture(scope="module")
def client(lone_gpu: Stack) -> Iterator[Client]:
    with Client(endpoint=lone_gpu.endpoint, token=lone_gpu.token, team="alpha") as found:
        yield found


def trains(client: Client, job: str) -> bool:
    progress = client.jobs.get(job).progress
    return progress.phase == "train" and progress.step > 0


def test_a_training_makes_room_for_speech_and_goes_on_from_its_checkpoint(client, clips):
    target = client.audio.upload(SPEECH / "target_en.flac", purpose="training")
    reference = client.audio.upload(SPEECH / "reference_en.flac", purpose="reference")
    clone = client.voices.create(
        reference=reference.name, text=clips["reference_en.flac"]["text"], voice_id="clone"
    )
    # The pools, idle, give it the GPU that they hold.
    job = client.voices.train(
        [target.name], voice_id="patient", parameters=voice_pb2.RvcTrainingParameters(max_steps=60)
    )
    until(lambda: trains(client, job.name), timeout_s=240, what="the first step")

    spoken: list[tuple[float, int]] = []

    def speak() -> None:
        said = client.synthesis.say("Good morning to you.", clone.name)
        spoken.append((time.monotonic(), len(said.pcm)))

    speaker = threading.Thread(target=speak)
    speaker.start()
    until(lambda: client.jobs.get(job.name).attempt == 2 or spoken, timeout_s=240, what="the speech")
    speaker.join(timeout=240)
    assert spoken, "the speech has come"
    assert spoken[0][1] > 10_000
    middle = client.jobs.get(job.name)
    assert middle.state in (job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RUNNING), "it came before the end"

    done = client.jobs.wait(job.name, timeout_s=500)
    assert done.state == job_pb2.JOB_STATE_SUCCEEDED
    first, *_, last = done.attempts
    assert (first.outcome, last.outcome) == ("RELEASED", "SUCCEEDED")
    # It ran its guaranteed time before it was asked, and lost no step by it.
    assert first.end_time.ToDatetime() - first.start_time.ToDatetime() >= GUARANTEED
    assert done.result.metrics["steps"] == 60
    assert 0 < done.result.metrics["resumed_step"] < 60
    said = [m.change.message for m in client.jobs.watch(job.name) if m.HasField("change")]
    assert any("yield: saved at step" in message for message in said), said
