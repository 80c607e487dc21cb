"""A real PostgreSQL server: who may run it, what survives, who gets in."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from services.stack import postgres as module
from services.stack.config import inherited
from services.stack.free_ports import PortBook
from services.stack.postgres import EmbeddedPostgres
from tests.polling import until

NOBODY = 65534


def server_in(folder: Path) -> EmbeddedPostgres:
    folder.mkdir(exist_ok=True)
    return EmbeddedPostgres(
        directory=folder / "postgres",
        port=PortBook(folder / "ports.json").port("postgres"),
        password="p@ss/word with: marks",
        log_path=folder / "postgres.log",
        base_env=inherited(os.environ),
        durable=False,
    )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    made = server_in(tmp_path)
    made.start()
    yield made
    made.stop()


def count(server: EmbeddedPostgres) -> int:
    with psycopg.connect(server.url) as connection:
        row = connection.execute("SELECT count(*) FROM kept").fetchone()
    assert row is not None
    return int(row[0])


def write_rows(server: EmbeddedPostgres) -> None:
    with psycopg.connect(server.url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000)")


def test_rows_survive_a_stop(server: EmbeddedPostgres) -> None:
    write_rows(server)
    url = server.url
    server.stop()
    assert not (server.data / "postmaster.pid").exists()  # a clean shutdown
    server.start()
    assert server.url == url
    assert count(server) == 1000


def test_rows_survive_a_kill(server: EmbeddedPostgres) -> None:
    write_rows(server)
    assert server.pid is not None
    process = psutil.Process(server.pid)
    backends = process.children()
    process.kill()
    until(lambda: not process.is_running())
    assert (server.data / "postmaster.pid").exists()
    server.start()
    assert count(server) == 1000
    until(lambda: not any(backend.is_running() for backend in backends))


def test_a_pid_file_that_names_a_stranger_is_no_obstacle(server: EmbeddedPostgres) -> None:
    write_rows(server)
    server.stop()
    (server.data / "postmaster.pid").write_text(f"{os.getpid()}\n{server.data}\n")
    server.start()
    assert count(server) == 1000
    assert psutil.pid_exists(os.getpid())


def test_an_orphan_on_the_same_data_is_ended_first(server: EmbeddedPostgres) -> None:
    write_rows(server)
    assert server.pid is not None
    orphan = psutil.Process(server.pid)
    successor = server_in(server.directory.parent)
    successor.prepare()
    assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
    successor.start()
    try:
        assert count(successor) == 1000
    finally:
        successor.stop()


def test_nobody_gets_in_without_the_password(server: EmbeddedPostgres) -> None:
    for password in ("", "wrong"):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(
                host="127.0.0.1", port=server.port, user="voxfleet", password=password, dbname="voxfleet"
            )


def test_it_listens_on_loopback_alone(server: EmbeddedPostgres) -> None:
    sockets = psutil.Process(server.pid).net_connections(kind="all")
    listening = [each.laddr for each in sockets if each.status == psutil.CONN_LISTEN]
    assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", server.port)]
    assert [each for each in psutil.Process(server.pid).net_connections(kind="unix") if each.laddr] == []


def test_the_data_is_the_owners_alone_and_holds_no_password(server: EmbeddedPostgres) -> None:
    assert server.data.stat().st_mode & 0o077 == 0
    assert server.data.stat().st_uid == os.geteuid()
    assert [path.name for path in server.directory.iterdir()] == ["data"]


def test_a_clone_has_the_templates_rows_and_goes_its_own_way(
    postgres_server: EmbeddedPostgres, fresh_database: Callable[..., str]
) -> None:
    template = fresh_database()
    with psycopg.connect(template) as connection:
        connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 3)")
    name = template.rpartition("/")[2]
    one, two = fresh_database(name), fresh_database(name)
    with psycopg.connect(one) as connection:
        connection.execute("DELETE FROM kept")
    with psycopg.connect(two) as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (3,)
    postgres_server.drop_database(name)
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(template)


@pytest.fixture
def nobodys_folder() -> Iterator[Path]:
    """A folder of an ordinary user's, where that user can reach it (a test's own folder is root's alone)."""
    if os.geteuid() != 0:
        pytest.skip("only root can act as another user; this run is the ordinary user's path already")
    folder = Path(tempfile.mkdtemp(prefix="vf-nobody-"))
    folder.chmod(0o755)
    os.chown(folder, NOBODY, NOBODY)
    yield folder
    shutil.rmtree(folder)


def test_where_user_namespaces_are_forbidden_root_steps_down(
    nobodys_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "unprivileged_identity", lambda: f"uid:{NOBODY}")
    server = server_in(nobodys_folder)
    server.start()
    try:
        assert psutil.Process(server.pid).uids().effective == NOBODY
        write_rows(server)
        assert count(server) == 1000
    finally:
        server.stop()


def test_a_folder_that_the_other_user_cannot_enter_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nobodys_folder: Path
) -> None:
    monkeypatch.setattr(module, "unprivileged_identity", lambda: f"uid:{NOBODY}")
    closed = nobodys_folder / "closed"
    closed.mkdir(mode=0o700)  # root's
    with pytest.raises(Exception, match=f"{closed}|Permission denied"):
        server_in(closed).start()


ORDINARY_USER = """
import os, sys
sys.path[:0] = {path!r}
from pathlib import Path
from tests.integration.stack.test_embedded_postgres import server_in, write_rows, count
server = server_in(Path(sys.argv[1]))
server.start()
write_rows(server)
server.stop()
server.start()
print("rows", count(server), "uid", os.geteuid(), flush=True)
server.stop()
"""


def nobodys_python() -> str:
    """A Python of this version that another user may run."""
    for program in (sys.executable, f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"):
        with contextlib.suppress(OSError):
            subprocess.run([program, "-c", "pass"], user=NOBODY, group=NOBODY, extra_groups=[], check=True)
            return program
    pytest.skip("no Python here that another user may run")


def test_an_ordinary_user_can_run_it(nobodys_folder: Path) -> None:
    result = subprocess.run(
        [nobodys_python(), "-c", ORDINARY_USER.format(path=sys.path), str(nobodys_folder)],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        env={"PATH": os.environ["PATH"], "HOME": str(nobodys_folder)},
        cwd=nobodys_folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout == f"rows 1000 uid {NOBODY}\n", result.stderr
