"""The state directory of one stack: its lock, secrets, ports, logs and data.

The directory is private (0700) and survives a stop; two stacks use two directories.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from services.common.errors import Kind, Reason, VoxfleetError
from services.stack.free_ports import PortBook

_LONGEST_RUNTIME_PARENT = 24


@dataclass(frozen=True, slots=True)
class Secrets:
    """Everything secret that one stack generates, once."""

    postgres_password: str
    s3_access_key: str
    s3_secret_key: str
    ray_token: str
    service_token: str
    bootstrap_token: str


class Home:
    """One stack's directory, and the lock on it.

    Args:
        path: created where it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.logs = self.path / "logs"
        self.logs.mkdir(exist_ok=True)
        self.cache = self.path / "cache"
        self.cache.mkdir(exist_ok=True)
        self._lock_fd: int | None = None

    @property
    def client_path(self) -> Path:
        """What the ``voxfleet`` command reads: endpoint, token and team."""
        return self.path / "client.json"

    @property
    def state_path(self) -> Path:
        """What ``status`` reads: the running stack's processes and addresses."""
        return self.path / "stack.json"

    def lock(self) -> None:
        """Take the directory for this process, until :meth:`unlock` or the process's end.

        Errors: SERVICE_UNAVAILABLE (conflict) where a live stack holds it.
        """
        fd = os.open(self.path / "stack.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise VoxfleetError(
                Reason.SERVICE_UNAVAILABLE,
                f"{self.path} is in use by a running stack (pid {holder}); stop it, or choose another --home",
                kind=Kind.CONFLICT,
                metadata={"home": self.path, "pid": holder},
            ) from None
        os.ftruncate(fd, 0)
        os.write(fd, str(os.getpid()).encode())
        self._lock_fd = fd

    def unlock(self) -> None:
        """Let the directory go."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def is_locked(self) -> bool:
        """Whether some live stack holds this directory."""
        if self._lock_fd is not None:
            return True
        fd = os.open(self.path / "stack.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def secrets(self, *, bootstrap_token: str = "") -> Secrets:
        """The stack's secrets: read back, or generated at the first start (0600).

        Args:
            bootstrap_token: used in place of a generated one at the first start.
        """
        path = self.path / "secrets.json"
        if path.exists():
            return Secrets(**json.loads(path.read_text()))
        made = Secrets(
            postgres_password=secrets.token_urlsafe(24),
            s3_access_key=secrets.token_hex(10),
            s3_secret_key=secrets.token_urlsafe(30),
            ray_token=secrets.token_hex(32),
            service_token=secrets.token_urlsafe(32),
            bootstrap_token=bootstrap_token or "vf_" + secrets.token_urlsafe(32),
        )
        write_private(path, asdict(made))
        return made

    def ports(self) -> PortBook:
        """The ports this stack used last time."""
        return PortBook(self.path / "ports.json")

    def runtime_dir(self) -> Path:
        """A private directory with a short path, for unix sockets (their paths end at 107 bytes)."""
        parent = Path(tempfile.gettempdir())
        if len(str(parent)) > _LONGEST_RUNTIME_PARENT:
            parent = Path("/tmp")  # noqa: S108  # the folder inside is private, and checked below
        digest = hashlib.sha256(str(self.path).encode()).hexdigest()[:10]
        path = parent / f"vf-{os.geteuid()}-{digest}"
        path.mkdir(mode=0o700, exist_ok=True)
        facts = path.lstat()
        if path.is_symlink() or facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
            raise VoxfleetError(
                Reason.SERVICE_UNAVAILABLE,
                f"{path} belongs to someone else or is open to others; remove it, or set TMPDIR",
                kind=Kind.PRECONDITION,
                metadata={"path": path},
            )
        return path

    def remove_runtime_dir(self) -> None:
        """Remove the sockets and Ray's session files; the state under :attr:`path` stays."""
        shutil.rmtree(self.runtime_dir(), ignore_errors=True)


def write_private(path: Path, document: Mapping[str, object]) -> None:
    """Write JSON that only the owner may read, so that a reader sees all of it or none."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as file:
        json.dump(document, file, indent=2)
        file.write("\n")
    partial.replace(path)
