"""The state directory: lock, secrets, ports."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from services.common.errors import Kind, VoxfleetError
from services.stack.free_ports import HIGHEST_PORT, LOWEST_PORT, PortBook, is_free
from services.stack.home import Home, write_private


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_directory_serves_one_stack_at_a_time(tmp_path: Path) -> None:
    first, second = Home(tmp_path / "home"), Home(tmp_path / "home")
    first.lock()
    with pytest.raises(VoxfleetError, match="in use by a running stack") as caught:
        second.lock()
    assert caught.value.kind is Kind.CONFLICT
    assert second.is_locked()
    first.unlock()
    assert not second.is_locked()
    second.lock()
    second.unlock()


def test_secrets_are_made_once_and_are_the_owners(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    made = home.secrets()
    assert Home(tmp_path / "home").secrets(bootstrap_token="later") == made
    assert len({made.postgres_password, made.s3_secret_key, made.ray_token, made.service_token}) == 4
    assert made.bootstrap_token.startswith("vf_")
    assert mode(home.path / "secrets.json") == 0o600
    assert mode(home.path) == 0o700
    assert Home(tmp_path / "other").secrets(bootstrap_token="given").bootstrap_token == "given"
    assert Home(tmp_path / "other").secrets().ray_token != made.ray_token


def test_a_private_file_is_private_also_when_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "client.json"
    path.write_text("{}")
    path.chmod(0o644)
    write_private(path, {"token": "x"})
    assert mode(path) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["client.json"]


def test_the_runtime_directory_is_short_private_and_ones_own(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / "home"
    one, two = Home(deep), Home(tmp_path / "two")
    path = one.runtime_dir()
    try:
        assert len(str(path)) < 45
        assert mode(path) == 0o700
        assert path == Home(deep).runtime_dir() != two.runtime_dir()
        path.chmod(0o777)
        with pytest.raises(VoxfleetError, match="open to others"):
            one.runtime_dir()
    finally:
        path.chmod(0o700)
        one.remove_runtime_dir()
        two.remove_runtime_dir()
    assert not path.exists()


def test_ports_stay_the_same_while_they_are_free(tmp_path: Path) -> None:
    book = PortBook(tmp_path / "ports.json")
    ports = {name: book.port(name) for name in ("a", "b", "c")}
    assert len(set(ports.values())) == 3
    assert all(LOWEST_PORT <= port <= HIGHEST_PORT for port in ports.values())
    again = PortBook(tmp_path / "ports.json")
    assert {name: again.port(name) for name in ports} == ports


def test_a_taken_port_is_given_up(tmp_path: Path) -> None:
    book = PortBook(tmp_path / "ports.json")
    port = book.port("a")
    with socket.create_server(("127.0.0.1", port)):
        assert not is_free(port)
        assert PortBook(tmp_path / "ports.json").port("a") != port
        with pytest.raises(VoxfleetError, match=f"port {port} .* is taken"):
            book.port("a", wanted=port)


def test_a_second_port_above_the_first_is_kept_free_as_well(tmp_path: Path) -> None:
    book = PortBook(tmp_path / "ports.json")
    port = book.port("a", offset=10_000)
    with socket.create_server(("127.0.0.1", port + 10_000)):
        assert book.port("a", offset=10_000) != port
