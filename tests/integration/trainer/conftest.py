"""A real Ray head, a real S3 and the real trainer as processes; the ledger is a stand-in."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from services.common.artifacts.minio_store import MinioArtifactStore
from services.common.artifacts.model import content_key
from services.common.artifacts.settings import S3Settings
from services.common.jobs.tasks import Blob, SourceAudio, TrainingParameters, TrainTask
from services.stack.config import inherited, python_env
from services.stack.health import serves
from services.stack.home import Home
from services.stack.ray_head import RayHead, RayPorts
from tests.integration.trainer.ledger_stand_in import LedgerStandIn
from tests.polling import until

SPEECH = Path(__file__).parents[2] / "fixtures" / "speech"
TOKEN = "a-service-token-of-some-length"


@dataclass
class Site:
    """A Ray head and a trainer on it."""

    ledger: LedgerStandIn
    store: MinioArtifactStore
    ray: RayHead
    log: Path
    process: subprocess.Popen[bytes]
    metrics_port: int
    clips: dict[str, SourceAudio] = field(default_factory=dict)

    def task(self, clip: str = "clip_en_1", **parameters: object) -> TrainTask:
        """A training on a short clip, with what is quickest."""
        quick = {"batch_size": 4, "f0_method": "swift", "max_steps": 20}
        return TrainTask(
            team="blue",
            voice="teams/blue/voices/v",
            audios=(self._source(clip),),
            parameters=TrainingParameters.model_validate(quick | parameters),
        )

    def actors(self) -> list[int]:
        """Pids of processes that stages run in."""
        found = []
        assert self.ray.pid is not None
        for process in psutil.Process(self.ray.pid).children(recursive=True):
            try:
                if process.status() != psutil.STATUS_ZOMBIE and "StageRunner" in process.cmdline()[0]:
                    found.append(process.pid)
            except (psutil.NoSuchProcess, IndexError):
                continue
        return found

    def until(self, condition, timeout_s: float = 60.0) -> None:
        """Waits, and shows the trainer's log where it waited in vain."""
        try:
            until(condition, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log.read_text()[-6000:]}") from None

    def end_of(self, job: str, attempt: int = 1, timeout_s: float = 90.0):
        self.until(lambda: (job, attempt) in self.ledger.ended, timeout_s)
        return self.ledger.ended[(job, attempt)]

    def _source(self, clip: str) -> SourceAudio:
        data = (SPEECH / f"{clip}.flac").read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        kept = self.store.put_bytes(content_key("blue", sha256), data, sha256=sha256)
        stored = Blob(key=kept.key, sha256=sha256, size_bytes=len(data))
        return SourceAudio(name="teams/blue/audios/a", blob=stored, duration_s=4.0)


@pytest.fixture(scope="module")
def site(s3_settings: S3Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = Home(tmp_path_factory.mktemp("trainer"))
    base_env = python_env(inherited(os.environ) | {"OMP_NUM_THREADS": "1"})
    ray = RayHead(
        session_root=home.runtime_dir() / "ray",
        ports=RayPorts.choose(home.ports()),
        token=home.secrets().ray_token,
        log_path=home.logs / "ray.log",
        base_env=base_env,
        virtual_gpus=2,
        cpus=2,
        object_store_bytes=100 * 2**20,
    )
    ledger = LedgerStandIn()
    process: subprocess.Popen[bytes] | None = None
    try:
        ray.start()
        store = MinioArtifactStore(s3_settings)
        store.ensure_bucket()
        port, metrics_port = home.ports().port("trainer"), home.ports().port("trainer-metrics")
        env = base_env | {
            **ray.joiner_env,
            **s3_settings.to_environ(),
            "VOXFLEET_LISTEN": f"127.0.0.1:{port}",
            "VOXFLEET_METRICS_LISTEN": f"127.0.0.1:{metrics_port}",
            "VOXFLEET_SERVICE_TOKEN": TOKEN,
            "VOXFLEET_METADATA_ADDRESS": f"127.0.0.1:{ledger.port}",
            "VOXFLEET_RAY_ADDRESS": ray.address,
            "VOXFLEET_CACHE_DIR": str(home.path / "cache"),
            "VOXFLEET_CHECKPOINT_S": "1",
        }
        log = home.logs / "trainer.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", "services.trainer"], env=env, stdout=sink, stderr=subprocess.STDOUT
            )
        running = process

        def is_up() -> bool:
            assert running.poll() is None, log.read_text()[-3000:]
            return serves(f"127.0.0.1:{port}")

        until(is_up, 120.0)
        yield Site(ledger, store, ray, log, running, metrics_port)
    finally:
        if process is not None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        ledger.stop()
        ray.stop()
        home.remove_runtime_dir()
