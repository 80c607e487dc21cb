"""One Ray head as a process of its own, which the trainer and the inference service join.

Two ``ray.init(address="local")`` would make two clusters that each offer the same GPU. Ray listens
on every interface whatever it is told, so token authentication is always on. ``ray stop`` ends
every Ray on the machine and is never called: the head's own process is signalled, and its
children share its fate.
"""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.stack.free_ports import PortBook
from services.stack.process import ProcessSpec
from services.stack.standalone import Standalone

HEAD_HOST = "127.0.0.2"
"""Loopback. Ray replaces 127.0.0.1 by the machine's outward address (``resolve_ip_for_localhost`` in
``ray/_private/services.py``), which a laptop loses when it changes networks; it leaves 127.0.0.2 be."""

_PORT_FLAGS = (
    "port",
    "ray-client-server-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
)


@dataclass(frozen=True, slots=True)
class RayPorts:
    """Where Ray's parts listen; what is not named here takes a random port."""

    flags: tuple[tuple[str, int], ...]
    dashboard_metrics: int

    @classmethod
    def choose(cls, book: PortBook) -> RayPorts:
        """The ports this stack had last time, or free ones."""
        flags = tuple((flag, book.port(f"ray-{flag}")) for flag in _PORT_FLAGS)
        return cls(flags, book.port("ray-dashboard-metrics"))

    @property
    def head(self) -> int:
        """The port that joiners connect to."""
        return dict(self.flags)["port"]

    @property
    def metrics(self) -> int:
        """Prometheus metrics of the node."""
        return dict(self.flags)["metrics-export-port"]


@dataclass(frozen=True, kw_only=True)
class RayHead(Standalone):
    """A Ray cluster of one node.

    Args:
        session_root: Ray's files; at most about 40 characters, for unix socket paths.
        token: the shared secret that every joiner must show.
        virtual_gpus: GPUs to pretend to have; None leaves it to Ray to find real ones.
        cpus: CPUs to offer, as a scheduling number.
        object_store_bytes: shared memory for objects.
    """

    session_root: Path
    ports: RayPorts
    token: str
    log_path: Path
    base_env: Mapping[str, str]
    virtual_gpus: int | None = 2
    cpus: int = 8
    object_store_bytes: int = 256 * 2**20
    name: str = "ray"

    @property
    def address(self) -> str:
        """``host:port`` for ``ray.init(address=…)``."""
        return f"{HEAD_HOST}:{self.ports.head}"

    @property
    def joiner_env(self) -> dict[str, str]:
        """What a process needs in its environment to join."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            # Without it an actor that asks for no GPU sees every GPU.
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
        }

    @property
    def spec(self) -> ProcessSpec:
        """How to run it."""
        numbers = [item for flag, port in self.ports.flags for item in (f"--{flag}", str(port))]
        gpus = [] if self.virtual_gpus is None else ["--num-gpus", str(self.virtual_gpus)]
        inherited = {key: value for key, value in self.base_env.items() if not key.startswith("RAY_")}
        return ProcessSpec(
            name=self.name,
            argv=(
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                *("--node-ip-address", HEAD_HOST, *numbers),
                *("--object-manager-port", "0", "--node-manager-port", "0"),
                *("--min-worker-port", "0", "--max-worker-port", "0"),
                *("--include-dashboard", "false", "--no-monitor", "--disable-usage-stats"),
                *("--num-cpus", str(self.cpus), *gpus),
                *("--object-store-memory", str(self.object_store_bytes)),
                *("--temp-dir", str(self.session_root), "--log-style", "record", "--log-color", "false"),
            ),
            env={
                **inherited,
                **self.joiner_env,
                "DASHBOARD_METRIC_PORT": str(self.ports.dashboard_metrics),
                # No idle Python workers ahead of need: one per CPU, at 70 MB each.
                "RAY_enable_worker_prestart": "0",
                "RAY_prestart_worker_first_driver": "0",
            },
            cwd=Path("/"),
            log_path=self.log_path,
            # SIGTERM makes the head end all of its processes; after a SIGKILL the agents among them
            # take half a minute to notice.
            death_signal=signal.SIGTERM,
            stop_grace_s=15.0,
            ready_deadline_s=120.0,
            # Ray gives its own raylet 30 s to register, which a loaded machine can exceed.
            first_starts=3,
        )

    def prepare(self) -> None:
        """Clear the session files of an earlier head."""
        self.clean_up()
        self.session_root.mkdir(parents=True, mode=0o700, exist_ok=True)

    def clean_up(self) -> None:
        """Remove the session files."""
        shutil.rmtree(self.session_root, ignore_errors=True)

    def is_ready(self) -> bool:
        """Whether the head has written its address, the last thing it does when it starts."""
        try:
            return (self.session_root / "ray_current_cluster").read_text().strip() == self.address
        except OSError:
            return False
