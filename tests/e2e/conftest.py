"""A whole stack, once a session, spoken to through the public API alone."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.stack.config import StackConfig
from services.stack.stack import Stack, running_stack
from tests.plugins import collector as collectors
from tests.plugins.collector import Collector
from voxfleet.client import Client
from voxfleet.v1 import audio_pb2, voice_pb2

SPEECH = Path(__file__).parents[1] / "fixtures" / "speech"

# Short leases and frequent checkpoints: a test of crashes waits for them.
TEST_SETTINGS = {
    "VOXFLEET_LEASE_S": "4",
    "VOXFLEET_CHECKPOINT_S": "2",
    "VOXFLEET_UPLOAD_PART_BYTES": str(256 * 1024),
    # A test's receiver is on loopback.
    "VOXFLEET_WEBHOOK_ALLOW_PRIVATE": "true",
}


@dataclass(frozen=True)
class Team:
    """A team on the stack: its client, and what a raw call needs."""

    client: Client
    endpoint: str
    token: str
    name: str

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token}"),)

    @property
    def parent(self) -> str:
        return f"teams/{self.name}"


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """Where the stack sends its traces."""
    found, server = collectors.start()
    yield found
    server.stop(0)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Stack]:
    config = StackConfig.from_environ(
        os.environ,
        home=tmp_path_factory.mktemp("stack"),
        virtual_gpus=2,
        team="alpha",
        durable=False,
        extra_env=TEST_SETTINGS | {"VOXFLEET_OTLP_ENDPOINT": collector.endpoint},
    )
    with running_stack(config) as found:
        yield found


@pytest.fixture(scope="session")
def alpha(stack: Stack) -> Iterator[Team]:
    """The first team, an operator's."""
    with Client(endpoint=stack.endpoint, token=stack.token, team="alpha") as client:
        yield Team(client, stack.endpoint, stack.token, "alpha")


@pytest.fixture(scope="session")
def beta(stack: Stack, alpha: Team) -> Iterator[Team]:
    """Another team, with an ordinary key."""
    alpha.client.trust.create_team("beta")
    token = alpha.client.trust.create_key(team="beta").token
    with Client(endpoint=stack.endpoint, token=token, team="beta") as client:
        yield Team(client, stack.endpoint, token, "beta")


@pytest.fixture(scope="session")
def channel(stack: Stack) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(stack.endpoint) as found:
        yield found


@pytest.fixture(scope="session")
def clips() -> dict[str, dict[str, Any]]:
    manifest = json.loads((SPEECH / "manifest.json").read_text())
    return {clip["file"]: clip for clip in manifest["files"]}


@pytest.fixture(scope="session")
def target(alpha: Team) -> audio_pb2.Audio:
    """A minute of a real speaker."""
    return alpha.client.audio.upload(SPEECH / "target_en.flac", purpose="training")


@pytest.fixture(scope="session")
def reference(alpha: Team) -> audio_pb2.Audio:
    """Ten seconds to clone from."""
    return alpha.client.audio.upload(SPEECH / "reference_en.flac", purpose="reference")


@pytest.fixture(scope="session")
def clone(alpha: Team, reference: audio_pb2.Audio, clips: dict[str, dict[str, Any]]) -> voice_pb2.Voice:
    """A zero-shot voice."""
    text = clips["reference_en.flac"]["text"]
    return alpha.client.voices.create(reference=reference.name, text=text, voice_id="clone")


@pytest.fixture(scope="session")
def trained(alpha: Team, target: audio_pb2.Audio) -> voice_pb2.Voice:
    """An RVC voice, briefly trained for real."""
    short = voice_pb2.RvcTrainingParameters(max_steps=6)
    job = alpha.client.voices.train([target.name], voice_id="trained", parameters=short)
    done = alpha.client.jobs.wait(job.name, timeout_s=240)
    return alpha.client.voices.get(done.result.voice)


@pytest.fixture(scope="session")
def left_behind(alpha: Team, stack: Stack) -> Callable[[], tuple[set[str], set[str]]]:
    """What rows and objects there are: (audio names, object keys outside of caches)."""
    from services.common.artifacts.minio_store import MinioArtifactStore

    store = MinioArtifactStore(stack.s3)

    def look() -> tuple[set[str], set[str]]:
        names = {audio.name for audio in alpha.client.audio.list()}
        return names, {blob.key for blob in store.list_prefix("teams/alpha/")}

    return look
