"""The whole stack: Postgres, S3, Ray and the services, put together and run.

::

    with running_stack(StackConfig.from_environ(os.environ, home=path)) as stack:
        channel = grpc.insecure_channel(stack.endpoint)
        …
        stack.kill("metadata")            # as a crash would
        stack.wait_ready("metadata", restarts=1)
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from services.common.artifacts.minio_store import MinioArtifactStore
from services.common.artifacts.settings import S3Settings
from services.stack.config import (
    SERVICE_NAMES,
    USES_RAY,
    ServiceProcess,
    StackConfig,
    Surroundings,
    python_env,
    service_processes,
)
from services.stack.health import serves
from services.stack.home import Home, Secrets, write_private
from services.stack.postgres import EmbeddedPostgres
from services.stack.process import Child, ProcessSpec, State
from services.stack.ray_head import RayHead, RayPorts
from services.stack.seaweed import EmbeddedSeaweed, SeaweedPorts
from services.stack.supervisor import Supervisor

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ServiceComponent:
    """One of the services, as the supervisor runs it."""

    process: ServiceProcess
    log_path: Path
    cwd: Path
    ready_deadline_s: float

    @property
    def spec(self) -> ProcessSpec:
        """How to run it."""
        return ProcessSpec(
            name=self.process.name,
            argv=self.process.argv,
            env=self.process.env,
            cwd=self.cwd,
            log_path=self.log_path,
            stop_grace_s=self.process.stop_grace_s,
            ready_deadline_s=self.ready_deadline_s,
        )

    def prepare(self) -> None:
        """Nothing: a service prepares itself."""

    def clean_up(self) -> None:
        """Nothing: a service cleans up after itself."""

    def is_ready(self) -> bool:
        """Whether its server says SERVING."""
        return serves(self.process.grpc_address)


class Stack:
    """A stack that is up (between :meth:`start` and :meth:`stop`).

    Args:
        config: its settings.
        say: told, in a sentence, of each step and of each crash.
    """

    def __init__(self, config: StackConfig, say: Say = lambda line: None) -> None:
        self._config = config
        self._say = say
        self._home = Home(config.home)
        self._supervisor = Supervisor(self._on_change)
        self._services: dict[str, ServiceProcess] = {}
        self._secrets: Secrets | None = None
        self._last_state: dict[str, State] = {}
        self._began = time.monotonic()
        self._postgres: EmbeddedPostgres | None = None
        self._ray: RayHead | None = None
        self._s3: S3Settings | None = None

    @property
    def home(self) -> Path:
        """The state directory."""
        return self._home.path

    @property
    def endpoint(self) -> str:
        """``host:port`` of the public API."""
        return self._services["gateway"].grpc_address

    @property
    def token(self) -> str:
        """The first team's API key."""
        assert self._secrets is not None, "the stack was not started"
        return self._secrets.bootstrap_token

    @property
    def team(self) -> str:
        """The first team's name."""
        return self._config.team

    @property
    def database_url(self) -> str:
        """The database that metadata uses."""
        if self._postgres is not None:
            return self._postgres.url
        return self._config.database_url

    @property
    def s3(self) -> S3Settings:
        """The object store that the services use."""
        assert self._s3 is not None, "the stack was not started"
        return self._s3

    @property
    def ray_address(self) -> str:
        """``host:port`` for ``ray.init(address=…)`` with :attr:`ray_env` in the environment."""
        assert self._ray is not None, "the stack was not started"
        return self._ray.address

    @property
    def ray_env(self) -> Mapping[str, str]:
        """What a process needs in its environment to join Ray."""
        assert self._ray is not None, "the stack was not started"
        return self._ray.joiner_env

    @property
    def services(self) -> Mapping[str, ServiceProcess]:
        """The services by name: addresses, environment, command line."""
        return self._services

    @property
    def metrics(self) -> Mapping[str, str]:
        """The Prometheus address of every service, and of Ray."""
        urls = {name: service.metrics_url for name, service in self._services.items()}
        if self._ray is not None:
            urls["ray"] = f"http://127.0.0.1:{self._ray.ports.metrics}/metrics"
        return urls

    def service(self, name: str) -> Child:
        """The child process called so (``postgres``, ``s3`` and ``ray`` too): pid, state, restarts."""
        return self._supervisor.children[name]

    def kill(self, name: str, signal_number: int = signal.SIGKILL) -> None:
        """Signal one process, as a crash or an operator would; the supervisor restarts it."""
        self.service(name).kill(signal_number)

    def wait_ready(self, name: str, *, restarts: int = 0, timeout_s: float = 120.0) -> None:
        """Wait until a child is ready, having been restarted at least ``restarts`` times."""
        self.service(name).wait_ready(timeout_s, times=restarts + 1)

    def start(self) -> None:
        """Bring everything up.

        Errors: SERVICE_UNAVAILABLE: the directory is in use, or something does not start (with the
        end of its log). What had been started is stopped again.
        """
        self._home.lock()
        try:
            self._build()
            self._supervisor.start()
            write_private(
                self._home.client_path,
                {"endpoint": self.endpoint, "token": self.token, "team": self.team}
                if "gateway" in self._services
                else {"token": self.token, "team": self.team},
            )
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Bring everything down in order; the state stays."""
        self._supervisor.stop()
        self._home.state_path.unlink(missing_ok=True)
        self._home.remove_runtime_dir()
        self._home.unlock()

    def document(self) -> dict[str, object]:
        """The stack as plain data, secrets left out."""
        return {
            "pid": os.getpid(),
            "home": str(self.home),
            "endpoint": self.endpoint if "gateway" in self._services else "",
            "team": self.team,
            "metrics": dict(self.metrics),
            "processes": {
                name: {
                    "pid": child.pid,
                    "state": child.state.value,
                    "restarts": child.restarts,
                    "start_s": round(child.start_s, 2),
                    "address": self._services[name].grpc_address if name in self._services else "",
                    "log": str(child.component.spec.log_path),
                }
                for name, child in self._supervisor.children.items()
            },
        }

    def _build(self) -> None:
        config, home = self._config, self._home
        self._secrets = home.secrets(bootstrap_token=config.bootstrap_token)
        ports = home.ports()
        if not config.database_url:
            self._postgres = EmbeddedPostgres(
                directory=home.path / "postgres",
                port=ports.port("postgres"),
                password=self._secrets.postgres_password,
                log_path=home.logs / "postgres.log",
                base_env=config.base_env,
                durable=config.durable,
            )
            self._supervisor.add(self._postgres)
        if config.s3 is None:
            seaweed = EmbeddedSeaweed(
                directory=home.path / "s3",
                runtime_dir=home.runtime_dir(),
                ports=SeaweedPorts.choose(ports),
                access_key=self._secrets.s3_access_key,
                secret_key=self._secrets.s3_secret_key,
                log_path=home.logs / "s3.log",
                base_env=config.base_env,
            )
            self._s3 = seaweed.settings
            self._supervisor.add(seaweed)
        else:
            self._s3 = config.s3
            MinioArtifactStore(self._s3).ensure_bucket()
        if USES_RAY & set(config.services):
            self._ray = RayHead(
                session_root=home.runtime_dir() / "ray",
                ports=RayPorts.choose(ports),
                token=self._secrets.ray_token,
                log_path=home.logs / "ray.log",
                base_env=python_env(config.base_env),
                virtual_gpus=config.virtual_gpus,
                cpus=config.ray_cpus,
                object_store_bytes=config.ray_object_store_bytes,
            )
            self._supervisor.add(self._ray)
        grpc_ports = {
            name: ports.port(f"{name}-grpc", wanted=config.gateway_port if name == "gateway" else None)
            for name in SERVICE_NAMES
        }
        around = Surroundings(
            database_url=self.database_url,
            s3=self._s3,
            ray_address=self._ray.address if self._ray else "",
            ray_env=self._ray.joiner_env if self._ray else {},
            service_token=self._secrets.service_token,
            bootstrap_token=self._secrets.bootstrap_token,
            cache_dir=home.cache,
            grpc_ports=grpc_ports,
            metrics_ports={name: ports.port(f"{name}-metrics") for name in grpc_ports},
        )
        for process in service_processes(config, around):
            self._services[process.name] = process
            self._supervisor.add(
                ServiceComponent(
                    process,
                    log_path=home.logs / f"{process.name}.log",
                    cwd=home.path,
                    ready_deadline_s=config.ready_deadline_s,
                ),
                after=process.after,
            )
        self._say(
            f"state in {home.path}, logs in {home.logs}; starting {', '.join(self._supervisor.children)}"
        )

    def _on_change(self, child: Child) -> None:
        before = self._last_state.get(child.name)
        self._last_state[child.name] = child.state
        elapsed = f"[{time.monotonic() - self._began:6.1f} s]"
        if child.state is State.READY:
            again = f" again (restart {child.restarts})" if child.restarts else ""
            self._say(f"{elapsed} {child.name} is ready{again}, after {child.start_s:.1f} s")
        elif child.state is State.BACKING_OFF:
            self._say(f"{elapsed} {child.name} ended unexpectedly and is started again; see its log")
        elif child.state is State.FAILED:
            self._say(f"{elapsed} {child.name} failed")
        elif child.state is State.STOPPED and before not in (None, State.WAITING):
            self._say(f"{elapsed} {child.name} has stopped")
        if child.state is not State.STOPPED:
            write_private(self._home.state_path, self.document())


@contextmanager
def running_stack(config: StackConfig, say: Say = lambda line: None) -> Iterator[Stack]:
    """A stack that is up inside the ``with`` block, and gone, all of it, after it.

    Args:
        config: its settings; give every test a ``home`` of its own.
        say: told, in a sentence, of each step and of each crash.

    Errors: as :meth:`Stack.start`.
    """
    stack = Stack(config, say)
    stack.start()
    try:
        yield stack
    finally:
        stack.stop()
