"""A real S3 server: loopback, keys, and what survives a kill."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import urllib3

from services.common.artifacts import model
from services.common.artifacts.minio_store import MinioArtifactStore
from services.stack.config import inherited
from services.stack.home import Home
from services.stack.seaweed import EmbeddedSeaweed, SeaweedPorts
from tests.polling import until


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedSeaweed]:
    home = Home(tmp_path / "home")
    made = EmbeddedSeaweed(
        directory=home.path / "s3",
        runtime_dir=home.runtime_dir(),
        ports=SeaweedPorts.choose(home.ports()),
        access_key="an-access-key",
        secret_key="a-secret-key-of-some-length",
        log_path=home.logs / "s3.log",
        base_env=inherited(os.environ),
    )
    made.start()
    yield made
    made.stop()
    home.remove_runtime_dir()


def test_artefacts_survive_a_kill_and_a_change_of_ports(server: EmbeddedSeaweed) -> None:
    store = MinioArtifactStore(server.settings)
    blobs = [
        store.put_bytes(model.work_key("blue", "job-1", 0, f"f{number}"), os.urandom(300_000))
        for number in range(20)
    ]
    process = psutil.Process(server.pid)
    process.kill()
    until(lambda: not process.is_running())
    home = Home(server.directory.parent)
    (home.path / "ports.json").unlink()
    moved = replace(server, ports=SeaweedPorts.choose(home.ports()))
    assert moved.ports.s3 != server.ports.s3
    moved.start()
    try:
        again = MinioArtifactStore(moved.settings)
        for blob in blobs:
            again.get_bytes(blob.key, sha256=blob.sha256)
        fresh = again.put_bytes(model.work_key("blue", "job-1", 1, "new"), b"after the move")
        assert again.get_bytes(fresh.key) == b"after the move"
        assert len(list(again.list_prefix(model.team_prefix("blue")))) == 21
    finally:
        moved.stop()


def test_it_listens_on_loopback_alone(server: EmbeddedSeaweed) -> None:
    process = psutil.Process(server.pid)
    http_ports = set(server.ports.by_part().values())
    wanted = {("127.0.0.1", port) for port in http_ports | {port + 10_000 for port in http_ports}}

    def listening() -> set[tuple[str, int]]:
        sockets = process.net_connections(kind="inet")
        return {(each.laddr.ip, each.laddr.port) for each in sockets if each.status == psutil.CONN_LISTEN}

    until(lambda: len(listening()) >= len(wanted))  # some open a moment after S3 answers
    assert listening() == wanted


def test_nobody_gets_in_without_a_key(server: EmbeddedSeaweed) -> None:
    base = f"http://127.0.0.1:{server.ports.s3}"
    for url in (base, f"{base}/voxfleet", f"{base}/voxfleet/teams/blue"):
        assert urllib3.request("GET", url).status == 403


def test_the_keys_are_the_owners_alone_and_not_on_the_command_line(server: EmbeddedSeaweed) -> None:
    assert (server.directory / "s3-keys.json").stat().st_mode & 0o077 == 0
    assert not any(server.secret_key in word for word in psutil.Process(server.pid).cmdline())


def test_nothing_is_left_after_a_stop(server: EmbeddedSeaweed) -> None:
    process = psutil.Process(server.pid)
    server.stop()
    assert not process.is_running()
    for part, port in server.ports.by_part().items():
        assert not Path(f"/tmp/seaweedfs-{part}-grpc-{port + 10_000}.sock").exists()
