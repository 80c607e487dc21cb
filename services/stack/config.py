"""What one stack is made of: its settings, and the processes that follow from them.

Everything here is pure: the processes' command lines and environments are computed from the
settings, the ports and the secrets, and nothing is started.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import services
from services.common.artifacts.settings import S3Settings

DEFAULT_HOME = Path(".voxfleet")
CODE_ROOT = Path(services.__file__).resolve().parent.parent

SERVICE_NAMES = ("metadata", "audio", "trainer", "inference", "gateway")

_AFTER: Mapping[str, tuple[str, ...]] = {
    "metadata": ("postgres", "s3"),
    "audio": ("metadata", "s3"),
    "trainer": ("metadata", "s3", "ray"),
    "inference": ("metadata", "s3", "ray"),
    # The gateway is last to start, so that its endpoint means a whole stack, and first to stop,
    # so that nothing new comes in while the others drain.
    "gateway": ("metadata", "audio", "trainer", "inference"),
}
_USES_S3 = frozenset({"metadata", "audio", "trainer", "inference"})
USES_RAY = frozenset({"trainer", "inference"})
_STOP_GRACE_S: Mapping[str, float] = {"trainer": 30.0, "inference": 30.0}
_DEFAULT_STOP_GRACE_S = 15.0

MANAGED_NAMES = frozenset(
    {
        "VOXFLEET_LISTEN",
        "VOXFLEET_METRICS_LISTEN",
        "VOXFLEET_DATABASE_URL",
        "VOXFLEET_METADATA_ADDRESS",
        "VOXFLEET_AUDIO_ADDRESS",
        "VOXFLEET_INFERENCE_ADDRESS",
        "VOXFLEET_SERVICE_TOKEN",
        "VOXFLEET_S3_ENDPOINT",
        "VOXFLEET_S3_ACCESS_KEY",
        "VOXFLEET_S3_SECRET_KEY",
        "VOXFLEET_S3_BUCKET",
        "VOXFLEET_S3_SECURE",
        "VOXFLEET_S3_PUBLIC_ENDPOINT",
        "VOXFLEET_S3_REGION",
        "VOXFLEET_RAY_ADDRESS",
        "VOXFLEET_CACHE_DIR",
        "VOXFLEET_BOOTSTRAP_TOKEN",
        "VOXFLEET_BOOTSTRAP_TEAM",
        "VOXFLEET_LOG_LEVEL",
    }
)
"""What the stack alone gives to a service: never inherited from the caller's environment, so that a
service sees only the secrets that are its own."""


@dataclass(frozen=True, slots=True)
class StackConfig:
    """The settings of one stack.

    Args:
        home: the state directory; two stacks side by side use two.
        base_env: the environment that every child starts from.
        virtual_gpus: GPUs for Ray to pretend to have; None leaves it to Ray to find real ones.
        ray_cpus: CPUs for Ray to offer, as a scheduling number.
        gateway_port: the public endpoint's port; None takes the last one, or a free one.
        database_url: an outside Postgres; empty runs the embedded one.
        s3: an outside S3; None runs the embedded one.
        team: the first team's name.
        bootstrap_token: its API key; empty generates one.
        service_modules: the words after ``python -m`` for a service, where they are not ``services.NAME``.
        services: which services to run.
        extra_env: added to every service's environment, after everything else.
        durable: False lets the embedded Postgres lose data when the machine dies; for tests.
        ready_deadline_s: how long each service may take to answer its health check.
    """

    home: Path = DEFAULT_HOME
    base_env: Mapping[str, str] = field(default_factory=dict)
    virtual_gpus: int | None = 2
    ray_cpus: int = max(8, os.cpu_count() or 1)
    ray_object_store_bytes: int = 256 * 2**20
    gateway_port: int | None = None
    database_url: str = ""
    s3: S3Settings | None = None
    team: str = "local"
    bootstrap_token: str = ""
    log_level: str = "INFO"
    service_modules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    services: tuple[str, ...] = SERVICE_NAMES
    extra_env: Mapping[str, str] = field(default_factory=dict)
    durable: bool = True
    ready_deadline_s: float = 90.0

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], **settings: object) -> StackConfig:
        """The settings that an environment implies: an outside Postgres or S3, a token, a log level.

        Args:
            environ: the caller's environment; every child inherits the rest of it.
            settings: fields to set by hand.
        """
        outside_s3 = S3Settings.from_environ(environ) if environ.get("VOXFLEET_S3_ENDPOINT") else None
        implied = cls(
            base_env=inherited(environ),
            database_url=environ.get("VOXFLEET_DATABASE_URL", ""),
            s3=outside_s3,
            team=environ.get("VOXFLEET_BOOTSTRAP_TEAM") or "local",
            bootstrap_token=environ.get("VOXFLEET_BOOTSTRAP_TOKEN", ""),
            log_level=environ.get("VOXFLEET_LOG_LEVEL") or "INFO",
        )
        return replace(implied, **settings)  # type: ignore[arg-type]  # the fields check themselves


@dataclass(frozen=True, slots=True)
class ServiceProcess:
    """One of Voxfleet's services as a process: its command line, environment and ports."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    grpc_port: int
    metrics_port: int
    after: tuple[str, ...] = ()
    stop_grace_s: float = _DEFAULT_STOP_GRACE_S

    @property
    def grpc_address(self) -> str:
        """``host:port`` of its gRPC server."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def metrics_url(self) -> str:
        """Its Prometheus metrics."""
        return f"http://127.0.0.1:{self.metrics_port}/metrics"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the services need of the rest: addresses, ports and secrets."""

    database_url: str
    s3: S3Settings
    ray_address: str
    ray_env: Mapping[str, str]
    service_token: str
    bootstrap_token: str
    cache_dir: Path
    grpc_ports: Mapping[str, int]
    metrics_ports: Mapping[str, int]


def service_processes(config: StackConfig, around: Surroundings) -> tuple[ServiceProcess, ...]:
    """Every service's command line and environment, each with the secrets of its own and no other's."""
    return tuple(
        ServiceProcess(
            name=name,
            argv=(sys.executable, "-m", *config.service_modules.get(name, (f"services.{name}",))),
            env=service_env(name, config, around),
            grpc_port=around.grpc_ports[name],
            metrics_port=around.metrics_ports[name],
            after=_AFTER[name],
            stop_grace_s=_STOP_GRACE_S.get(name, _DEFAULT_STOP_GRACE_S),
        )
        for name in SERVICE_NAMES
        if name in config.services
    )


def service_env(name: str, config: StackConfig, around: Surroundings) -> dict[str, str]:
    """One service's environment: only metadata gets the database, the gateway gets no S3."""

    def address(service: str) -> str:
        return f"127.0.0.1:{around.grpc_ports[service]}"

    own = {
        "VOXFLEET_LISTEN": address(name),
        "VOXFLEET_METRICS_LISTEN": f"127.0.0.1:{around.metrics_ports[name]}",
        "VOXFLEET_SERVICE_TOKEN": around.service_token,
        "VOXFLEET_CACHE_DIR": str(around.cache_dir),
        "VOXFLEET_LOG_LEVEL": config.log_level,
    }
    if name == "metadata":
        own["VOXFLEET_DATABASE_URL"] = around.database_url
        own["VOXFLEET_BOOTSTRAP_TOKEN"] = around.bootstrap_token
        own["VOXFLEET_BOOTSTRAP_TEAM"] = config.team
        if not config.database_url:
            own["VOXFLEET_MIGRATE"] = "true"  # nobody else would; an outside database has its operator
    else:
        own["VOXFLEET_METADATA_ADDRESS"] = address("metadata")
    if name == "gateway":
        own["VOXFLEET_AUDIO_ADDRESS"] = address("audio")
        own["VOXFLEET_INFERENCE_ADDRESS"] = address("inference")
    if name in _USES_S3:
        own |= around.s3.to_environ()
    if name in USES_RAY:
        own |= {"VOXFLEET_RAY_ADDRESS": around.ray_address, **around.ray_env}
    return {**python_env(config.base_env), **own, **config.extra_env}


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """What children may inherit: all but the names that the stack gives out itself."""
    return {key: value for key, value in environ.items() if key not in MANAGED_NAMES}


def python_env(base: Mapping[str, str]) -> dict[str, str]:
    """``base`` with this checkout's import roots in front, also where it was never installed."""
    roots = [CODE_ROOT, CODE_ROOT / "protos" / "gen", CODE_ROOT / "sdk"]
    present = [str(root) for root in roots if root.is_dir()]
    rest = [base["PYTHONPATH"]] if base.get("PYTHONPATH") else []
    return {**inherited(base), "PYTHONPATH": os.pathsep.join([*present, *rest]), "PYTHONUNBUFFERED": "1"}
