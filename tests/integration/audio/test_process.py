"""The service as a process of its own, with the real metadata service, Postgres and S3."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.artifacts.minio_store import MinioArtifactStore
from services.stack.config import inherited
from tests.integration.audio.client import TEAM, TOKEN, Client, reason_of, sha256, speech_file
from voxfleet.v1 import audio_pb2, audio_pb2_grpc

ROOT = Path(__file__).parents[3]
PART_BYTES = 64 * 1024


class Process:
    """``python -m services.NAME`` on a port of its own."""

    def __init__(self, name: str, port: int, log: Path, env: dict[str, str]) -> None:
        self.address = f"127.0.0.1:{port}"
        self.log = log
        own = {
            "VOXFLEET_LISTEN": self.address,
            "VOXFLEET_METRICS_LISTEN": "127.0.0.1:0",
            "VOXFLEET_SERVICE_TOKEN": TOKEN,
            "PYTHONPATH": f"{ROOT}/protos/gen:{ROOT}",
            "OMP_NUM_THREADS": "1",
        }
        with log.open("ab") as file:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", f"services.{name}"],
                env={**inherited(os.environ), **own, **env},
                cwd=ROOT,
                stdout=file,
                stderr=file,
            )

    async def health(self) -> str:
        """What it says of itself: SERVING, NOT_SERVING, or that it does not answer."""
        async with grpc.aio.insecure_channel(self.address) as channel:
            try:
                stub = health_pb2_grpc.HealthStub(channel)
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
            except grpc.aio.AioRpcError:
                return "SILENT"
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

    async def wait(self, state: str) -> None:
        """Until its health is so."""
        deadline = time.monotonic() + 60
        while await self.health() != state:
            assert self.popen.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            await asyncio.sleep(0.05)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal; its exit code."""
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        return self.popen.wait(timeout=30)


class Fleet:
    """Metadata and audio, side by side."""

    def __init__(self, ports, env: dict[str, str], folder: Path) -> None:
        self.folder = folder
        self.env = env
        self.ports = {name: ports.port(f"audio-test-{name}") for name in ("metadata", "audio")}
        self.running: list[Process] = []

    def start(self, name: str) -> Process:
        """Starts one of them."""
        process = Process(name, self.ports[name], self.folder / f"{name}.log", self.env)
        self.running.append(process)
        return process

    def stop(self) -> None:
        """Ends whatever runs."""
        for process in self.running:
            process.end(signal.SIGKILL)


@pytest.fixture
def fleet(embedded_home, fresh_database, s3_settings, tmp_path) -> Iterator[Fleet]:
    ports = embedded_home.ports()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    made = Fleet(
        ports,
        {
            **s3_settings.to_environ(),
            "VOXFLEET_DATABASE_URL": fresh_database(),
            "VOXFLEET_MIGRATE": "true",
            "VOXFLEET_BOOTSTRAP_TEAM": TEAM,
            "VOXFLEET_BOOTSTRAP_TOKEN": "vf_alpha_token",
            "VOXFLEET_SCRATCH_DIR": str(scratch),
            "VOXFLEET_UPLOAD_PART_BYTES": str(PART_BYTES),
            "VOXFLEET_DRAIN_S": "2",
        },
        tmp_path,
    )
    made.env["VOXFLEET_METADATA_ADDRESS"] = f"127.0.0.1:{made.ports['metadata']}"
    MinioArtifactStore(s3_settings).delete_prefix(f"teams/{TEAM}/")
    yield made
    made.stop()


def stored(s3_settings) -> list[str]:
    return [found.key for found in MinioArtifactStore(s3_settings).list_prefix(f"teams/{TEAM}/")]


async def test_killed_in_mid_upload_it_goes_on_where_it_was(fleet, s3_settings):
    speech = speech_file()
    audio = fleet.start("audio")
    await audio.wait("NOT_SERVING")
    metadata = fleet.start("metadata")
    await metadata.wait("SERVING")
    await audio.wait("SERVING")

    client = Client(audio.address)
    name = client.upload_name("killed")
    sent = asyncio.Event()

    async def messages():
        yield client.opening("killed", size_bytes=len(speech), purpose=audio_pb2.AUDIO_PURPOSE_TRAINING)
        yield audio_pb2.UploadAudioRequest(chunk=speech[: 3 * PART_BYTES + 10])
        sent.set()
        await asyncio.Event().wait()

    call = asyncio.ensure_future(client.stub.UploadAudio(messages(), metadata=client.headers))
    await sent.wait()
    await client.until_durable(name, 3 * PART_BYTES)
    audio.end(signal.SIGKILL)
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await call
    await client.channel.close()

    audio = fleet.start("audio")
    await audio.wait("SERVING")
    client = Client(audio.address)
    assert (await client.state(name)).durable_offset == 3 * PART_BYTES
    found = await client.send(client.resuming("killed", 3 * PART_BYTES), speech[3 * PART_BYTES :])
    assert found.sha256 == sha256(speech)
    assert found.assessment.trainable
    assert (await client.download(found.name))[1] == speech
    digest = sha256(speech)
    assert stored(s3_settings) == [f"teams/{TEAM}/sha256/{digest[:2]}/{digest}"]

    # The row is metadata's, as any client would read it; a repeat of the resume answers the same.
    again = await client.send(client.resuming("killed", len(speech)), b"")
    assert again.name == found.name
    async with grpc.aio.insecure_channel(metadata.address) as channel:
        stub = audio_pb2_grpc.AudioServiceStub(channel)
        row = await stub.GetAudio(audio_pb2.GetAudioRequest(name=found.name), metadata=client.headers)
    assert (row.sha256, row.size_bytes, row.purpose) == (
        digest,
        len(speech),
        audio_pb2.AUDIO_PURPOSE_TRAINING,
    )
    assert row.measures.duration_s == pytest.approx(11.0)
    assert row.assessment.grade == found.assessment.grade

    error = await reason_of(client.upload(b"not audio" * 9000))
    assert error.reason.value == "INVALID_FORMAT"
    assert len(stored(s3_settings)) == 1
    await client.channel.close()

    assert audio.end() == 0
    assert list((fleet.folder / "scratch").iterdir()) == []


async def test_told_to_stop_it_keeps_what_a_stream_has_sent(fleet):
    speech = speech_file()
    metadata, audio = fleet.start("metadata"), fleet.start("audio")
    await metadata.wait("SERVING")
    await audio.wait("SERVING")
    client = Client(audio.address)
    name = client.upload_name("stopped")
    sent = asyncio.Event()

    async def messages():
        yield client.opening("stopped")
        yield audio_pb2.UploadAudioRequest(chunk=speech[: PART_BYTES + 777])
        sent.set()
        await asyncio.Event().wait()

    call = asyncio.ensure_future(client.stub.UploadAudio(messages(), metadata=client.headers))
    await sent.wait()
    await client.until_durable(name, PART_BYTES)
    assert await asyncio.to_thread(audio.end) == 0
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await call
    await client.channel.close()
    audio = fleet.start("audio")
    await audio.wait("SERVING")
    client = Client(audio.address)
    assert (await client.state(name)).durable_offset == PART_BYTES + 777
    await client.channel.close()
