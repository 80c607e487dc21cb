"""What a chaos run is fought in: a stack without Ray, a second metadata, workers, a team with voices.

Two metadata processes serve one database, as a cluster has them: the gateway and the workers reach both by
turns, so that claims, ends and sweeps of the two meet.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import psycopg

from services.common.artifacts.minio_store import MinioArtifactStore
from services.common.artifacts.model import content_key
from services.common.jobs.tasks import Blob
from services.metadata.adapters.postgres import PostgresStore
from services.metadata.app.audios import Audios
from services.metadata.app.voices import Voices
from services.metadata.model.catalog import Reference, Voice, VoiceState
from services.stack import process
from services.stack.config import ServiceProcess, StackConfig
from services.stack.home import Home
from services.stack.process import Child, ProcessSpec
from services.stack.stack import ServiceComponent, Stack, running_stack
from services.stack.supervisor import Supervisor

TEAM = "alpha"
SECOND_METADATA = "metadata-b"
_BACK_OFF_S = 0.5


@dataclass(frozen=True)
class ArenaSettings:
    """How a run is set up.

    Args:
        workers: processes.
        lease_s: how long a lease holds without a heartbeat.
        max_attempts: of a job.
        max_gpus: the team's quota; 0 is none.
        mischief: whether workers fail, repeat themselves, and commit when it is too late.
        pace_s: how long an attempt holds its place, at most.
        seed: of the workers.
    """

    workers: int = 3
    lease_s: float = 2.0
    max_attempts: int = 6
    max_gpus: float = 0.0
    mischief: bool = False
    pace_s: float = 0.5
    seed: str = "0"


@dataclass(frozen=True)
class Things:
    """What jobs are made of."""

    audio: str
    speaking_voice: str
    converting_voice: str


@dataclass(frozen=True)
class WorkerComponent:
    """A worker process, as the supervisor runs it."""

    name: str
    directory: Path
    env: Mapping[str, str]
    settings: ArenaSettings

    @property
    def spec(self) -> ProcessSpec:
        """How to run it."""
        options = ["--name", self.name, "--directory", str(self.directory), "--seed", self.settings.seed]
        options += ["--pace", str(self.settings.pace_s), *(["--mischief"] if self.settings.mischief else [])]
        return ProcessSpec(
            name=self.name,
            argv=(sys.executable, "-m", "tests.chaos.worker", *options),
            env=self.env,
            cwd=self.directory,
            log_path=self.directory / f"{self.name}.log",
            stop_grace_s=5.0,
        )

    @property
    def fuse(self) -> Path:
        """The file that makes it die at a place."""
        return self.directory / f"fuse-{self.name}"

    def prepare(self) -> None:
        """Nothing."""

    def clean_up(self) -> None:
        """Nothing: its journal is what it leaves."""

    def is_ready(self) -> bool:
        """At once: it has no server, and nothing waits for it."""
        return True


@dataclass
class Arena:
    """Everything that runs, and how to reach it."""

    stack: Stack
    others: Supervisor
    directory: Path
    things: Things
    settings: ArenaSettings
    metadata: tuple[str, str]
    workers: list[WorkerComponent] = field(default_factory=list)

    @property
    def store(self) -> MinioArtifactStore:
        """The object store."""
        return MinioArtifactStore(self.stack.s3)

    @property
    def url(self) -> str:
        """The database, as its owner."""
        return self.stack.database_url

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """What every public call carries."""
        return (("authorization", f"Bearer {self.stack.token}"),)

    @property
    def service_token(self) -> str:
        """What calls between services carry."""
        return self.stack.services["metadata"].env["VOXFLEET_SERVICE_TOKEN"]

    def child(self, name: str) -> Child:
        """A process by name."""
        return self.others.children[name] if name in self.others.children else self.stack.service(name)

    def journals(self) -> list[Path]:
        """What the workers noted."""
        return sorted(self.directory.glob("journal-*.jsonl"))


@contextmanager
def running_arena(home: Path, settings: ArenaSettings) -> Iterator[Arena]:
    """An arena that is up inside the ``with`` block, and gone after it."""
    # The supervisor's patience with what crashes again and again would leave a run with nothing to kill.
    before, process.LONGEST_BACK_OFF_S = process.LONGEST_BACK_OFF_S, _BACK_OFF_S
    others = Supervisor()
    ports = Home(home).ports()
    first, second = ports.port("metadata-grpc"), ports.port("metadata-b-grpc")
    both = f"ipv4:127.0.0.1:{first},127.0.0.1:{second}"
    config = StackConfig.from_environ(
        os.environ,
        home=home,
        team=TEAM,
        database_url="",
        s3=None,
        durable=False,
        services=("metadata", "gateway"),
        extra_env={
            "VOXFLEET_LEASE_S": str(settings.lease_s),
            "VOXFLEET_SWEEP_S": "0.5",
            "VOXFLEET_CLAIM_POLL_S": "0.5",
            "VOXFLEET_MAX_ATTEMPTS": str(settings.max_attempts),
            "VOXFLEET_METADATA_ADDRESS": both,
        },
    )
    try:
        with running_stack(config) as stack:
            things = asyncio.run(_furnish(stack, settings))
            arena = Arena(
                stack, others, home, things, settings, (f"127.0.0.1:{first}", f"127.0.0.1:{second}")
            )
            try:
                _add_others(arena, both, ports.port("metadata-b-metrics"))
                others.start()
                yield arena
            finally:
                others.stop()
    finally:
        process.LONGEST_BACK_OFF_S = before


def _add_others(arena: Arena, both: str, metrics_port: int) -> None:
    first = arena.stack.services["metadata"]
    second: ServiceProcess = replace(
        first,
        name=SECOND_METADATA,
        grpc_port=int(arena.metadata[1].rpartition(":")[2]),
        metrics_port=metrics_port,
        env={
            **first.env,
            "VOXFLEET_LISTEN": arena.metadata[1],
            "VOXFLEET_METRICS_LISTEN": f"127.0.0.1:{metrics_port}",
        },
    )
    log_path = arena.directory / "logs" / f"{SECOND_METADATA}.log"
    arena.others.add(ServiceComponent(second, log_path, arena.directory, ready_deadline_s=60.0))
    env = {**first.env, **arena.stack.s3.to_environ(), "VOXFLEET_METADATA_ADDRESS": both}
    for name in ("VOXFLEET_DATABASE_URL", "VOXFLEET_LISTEN", "VOXFLEET_METRICS_LISTEN"):
        env.pop(name, None)  # a worker sees no database
    for number in range(arena.settings.workers):
        worker = WorkerComponent(f"w{number}", arena.directory, env, arena.settings)
        arena.workers.append(worker)
        arena.others.add(worker)


async def _furnish(stack: Stack, settings: ArenaSettings) -> Things:
    """An audio, a voice that speaks and one that converts; and the team's quota."""
    objects = MinioArtifactStore(stack.s3)
    store = PostgresStore(stack.database_url, pool_size=2)
    try:
        audios = Audios(store, upload_ttl_s=3600)
        upload = await audios.open_upload(TEAM, "", {"display_name": "clip"})
        clip = _put(objects, b"a clip that no engine hears")
        audio = await audios.commit(
            TEAM, upload.id, clip, {"duration_s": 10.0, "snr_db": 30.0}, {"trainable": True, "grade": "A"}
        )
        speaking = Voice(
            TEAM, "speaker", "Speaker", "f5", VoiceState.READY, references=(Reference(audio.name, "hello"),)
        )
        await Voices(store).create(speaking, request_id="", fingerprint="")
        converting = Voice(TEAM, "singer", "Singer", "rvc", VoiceState.READY, rate_hz=40_000)
        package = _put(objects, b"a package that no engine opens")
        async with store.tenant(TEAM) as tx:
            await tx.put_artifact(TEAM, package)
            await tx.add_voice(converting)
            await tx.update_voice(TEAM, converting.id, {"package_sha256": package.sha256})
    finally:
        await store.close()
    if settings.max_gpus:
        with psycopg.connect(stack.database_url) as connection:
            connection.execute(
                "INSERT INTO team_quotas (team, max_gpus) VALUES (%s, %s)", (TEAM, settings.max_gpus)
            )
    return Things(audio.name, speaking.name, converting.name)


def _put(objects: MinioArtifactStore, data: bytes) -> Blob:
    key = content_key(TEAM, hashlib.sha256(data).hexdigest())
    stored = objects.put_bytes(key, data, media_type="audio/flac")
    return Blob(key=key, sha256=stored.sha256, size_bytes=stored.size_bytes, media_type=stored.media_type)
