"""A real Ray head, a real S3 and the real service as processes; metadata is a stand-in."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
import pytest
import torch

from services.common.artifacts.minio_store import MinioArtifactStore
from services.common.artifacts.model import content_key
from services.common.jobs.tasks import Blob, F5Voice, RvcVoice, SourceAudio
from services.common.jobs.wire import blob_to_proto
from services.common.rpc.caller import Caller
from services.common.rpc.channel import identity_headers
from services.engines.rvc.config import preset
from services.engines.rvc.package import pack_voice
from services.engines.rvc.synthesizer import Synthesizer
from services.engines.rvc.voice import VoiceFacts, save_voice
from services.stack.config import inherited, python_env
from services.stack.health import serves
from services.stack.home import Home
from services.stack.ray_head import RayHead, RayPorts
from services.stack.seaweed import EmbeddedSeaweed, SeaweedPorts
from tests.integration.inference.metadata_stand_in import MetadataStandIn
from tests.polling import until
from voxfleet.v1 import synthesis_pb2_grpc

SPEECH = Path(__file__).parents[2] / "fixtures" / "speech"
TOKEN = "a-service-token-of-some-length"
F5_NAME = "teams/blue/voices/speaker"
RVC_NAME = "teams/blue/voices/singer"
REFERENCE_TEXT = "There is currently one other participant in the conference."


@dataclass
class Fleet:
    """What a test talks to."""

    metadata: MetadataStandIn
    store: MinioArtifactStore
    address: str
    log: Path
    process: subprocess.Popen[bytes]
    f5: F5Voice
    rvc: RvcVoice
    source: SourceAudio

    def stub(self) -> synthesis_pb2_grpc.SynthesisServiceStub:
        return synthesis_pb2_grpc.SynthesisServiceStub(grpc.insecure_channel(self.address))

    @staticmethod
    def headers(*, operator: bool = False) -> tuple[tuple[str, str], ...]:
        return identity_headers(TOKEN, Caller(team="blue", key="key-1", operator=operator, request_id="r-1"))

    def pids(self, role: str) -> list[int]:
        """The processes that the service said were ready, oldest first."""
        return [int(pid) for pid in re.findall(rf"{role} replica \d+ is ready on \S+ pid (\d+)", self.said())]

    def said(self) -> str:
        return self.log.read_text()

    def is_idle(self, role: str) -> bool:
        """Whether the pool of that role has a free slot for every slot."""
        return self.metadata.free.get({"f5": "f5.item", "rvc": "rvc.convert"}[role], 0) > 0


def put(store: MinioArtifactStore, data: bytes, media_type: str) -> Blob:
    sha256 = hashlib.sha256(data).hexdigest()
    kept = store.put_bytes(content_key("blue", sha256), data, media_type=media_type, sha256=sha256)
    return Blob(key=kept.key, sha256=sha256, size_bytes=len(data), media_type=media_type)


def tiny_voice(folder: Path) -> bytes:
    """An RVC voice of random weights, packed."""
    torch.manual_seed(5)
    config = preset("tiny_40k", content_width=512)
    facts = VoiceFacts(config, "whisper-base", "swift", {"steps": 0})
    save_voice(folder / "voice", facts, Synthesizer(config).state_dict(), None)
    pack_voice(folder / "voice", folder / "voice.zip")
    return (folder / "voice.zip").read_bytes()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    home = Home(tmp_path_factory.mktemp("inference"))
    base_env = python_env(inherited(os.environ) | {"OMP_NUM_THREADS": "1"})
    ray = RayHead(
        session_root=home.runtime_dir() / "ray",
        ports=RayPorts.choose(home.ports()),
        token=home.secrets().ray_token,
        log_path=home.logs / "ray.log",
        base_env=base_env,
        virtual_gpus=1,
        cpus=4,
        object_store_bytes=100 * 2**20,
    )
    s3 = EmbeddedSeaweed(
        directory=home.path / "s3",
        runtime_dir=home.runtime_dir(),
        ports=SeaweedPorts.choose(home.ports()),
        access_key="an-access-key",
        secret_key="a-secret-key-of-some-length",
        log_path=home.logs / "s3.log",
        base_env=base_env,
    )
    metadata = MetadataStandIn()
    process: subprocess.Popen[bytes] | None = None
    try:
        ray.start()
        s3.start()
        store = MinioArtifactStore(s3.settings)
        reference = put(store, (SPEECH / "clip_en_1.flac").read_bytes(), "audio/flac")
        source = put(store, (SPEECH / "clip_en_3.flac").read_bytes(), "audio/flac")
        package = put(store, tiny_voice(tmp_path_factory.mktemp("voice")), "application/zip")
        metadata.add_voice(F5_NAME, "f5", reference=blob_to_proto(reference), reference_text=REFERENCE_TEXT)
        metadata.add_voice(
            RVC_NAME,
            "rvc",
            package=blob_to_proto(package),
            reference=blob_to_proto(source),
            reference_audio="teams/blue/audios/weasels",
        )
        port = home.ports().port("inference")
        env = base_env | {
            **ray.joiner_env,
            **s3.settings.to_environ(),
            "VOXFLEET_LISTEN": f"127.0.0.1:{port}",
            "VOXFLEET_SERVICE_TOKEN": TOKEN,
            "VOXFLEET_METADATA_ADDRESS": f"127.0.0.1:{metadata.port}",
            "VOXFLEET_RAY_ADDRESS": ray.address,
            "VOXFLEET_CACHE_DIR": str(home.path / "cache"),
            "VOXFLEET_HUB_URL": "http://127.0.0.1:9",
            "VOXFLEET_STOP_GRACE_S": "5",
            "VOXFLEET_QUEUE_LIMIT": "1",
            "VOXFLEET_F5_SLOTS": "1",
            "VOXFLEET_BUNDLE_REFRESH_S": "1",
        }
        log = home.logs / "inference.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", "services.inference"], env=env, stdout=sink, stderr=subprocess.STDOUT
            )
        running = process
        address = f"127.0.0.1:{port}"

        def is_up() -> bool:
            assert running.poll() is None, log.read_text()[-3000:]
            return serves(address)

        until(is_up, 180.0)
        yield Fleet(
            metadata,
            store,
            address,
            log,
            running,
            F5Voice(name=F5_NAME, reference=reference, reference_text=REFERENCE_TEXT, languages=("en",)),
            RvcVoice(name=RVC_NAME, package=package),
            SourceAudio(name="teams/blue/audios/weasels", blob=source, duration_s=2.951),
        )
    finally:
        if process is not None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        metadata.stop()
        s3.stop()
        ray.stop()
        home.remove_runtime_dir()


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid)
