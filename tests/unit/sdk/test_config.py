"""Where the client looks for its endpoint, key and team."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from voxfleet.client import ConfigurationError, find_config
from voxfleet.client.config import ClientConfig


def write(folder: Path, **values: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "client.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def test_the_order_of_places(tmp_path: Path) -> None:
    home, work, own = tmp_path / "home", tmp_path / "work" / "deep", tmp_path / "own"
    work.mkdir(parents=True)
    environ = {"HOME": str(home)}

    def found() -> ClientConfig:
        return find_config(environ=environ, cwd=work)

    with pytest.raises(ConfigurationError, match="VOXFLEET_ENDPOINT"):
        found()
    config = write(home / ".config" / "voxfleet", endpoint="home:1", token="t-home", team="of-home")
    assert (found().endpoint, found().token, found().team) == ("home:1", "t-home", "of-home")
    assert found().sources == dict.fromkeys(("endpoint", "token", "team"), str(config))
    write(tmp_path / "work" / ".voxfleet", endpoint="up:1", token="t-up")
    # The first file counts, whole: a team of another place would be another place's.
    assert (found().endpoint, found().token, found().team) == ("up:1", "t-up", "")
    write(work / ".voxfleet", endpoint="here:1")
    assert found().endpoint == "here:1"
    write(own, endpoint="own:1")
    environ["VOXFLEET_HOME"] = str(own)
    assert found().endpoint == "own:1"
    environ["VOXFLEET_ENDPOINT"] = "env:1"
    assert (found().endpoint, found().sources["endpoint"]) == ("env:1", "environment (VOXFLEET_ENDPOINT)")
    assert find_config("arg:1", environ=environ, cwd=work).endpoint == "arg:1"


def test_a_files_token_goes_to_that_files_endpoint_only(tmp_path: Path) -> None:
    write(tmp_path / ".voxfleet", endpoint="mine:1", token="secret", team="acme")
    environ = {"HOME": str(tmp_path / "none")}
    assert find_config("mine:1", environ=environ, cwd=tmp_path).token == "secret"
    other = find_config("other:1", environ=environ, cwd=tmp_path)
    assert (other.token, other.team) == ("", "")
    assert find_config(team="beta", environ=environ, cwd=tmp_path).token == "secret"


def test_a_token_is_not_shown(tmp_path: Path) -> None:
    assert "secret" not in repr(find_config("a:1", "secret", environ={}, cwd=tmp_path))


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / ".voxfleet").mkdir()
    (tmp_path / ".voxfleet" / "client.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"\.voxfleet/client\.json"):
        find_config(environ={"HOME": str(tmp_path)}, cwd=tmp_path)


@pytest.mark.parametrize(
    ("endpoint", "target", "tls"),
    [
        ("host:8443", "host:8443", False),
        ("http://host:80", "host:80", False),
        ("https://voxfleet.example/", "voxfleet.example:443", True),
        ("https://[::1]:7443", "[::1]:7443", True),
        ("https://[::1]", "[::1]:443", True),
        ("dns:///gateway:50051", "dns:///gateway:50051", False),
    ],
)
def test_endpoints(endpoint: str, target: str, tls: bool, tmp_path: Path) -> None:
    config = find_config(endpoint, environ={}, cwd=tmp_path)
    assert (config.target, config.tls) == (target, tls)
    assert find_config(endpoint, environ={}, cwd=tmp_path, tls=True).tls
