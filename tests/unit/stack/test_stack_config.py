"""Which process is given what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.common.artifacts.settings import S3Settings
from services.stack import __main__ as command
from services.stack.config import SERVICE_NAMES, StackConfig, Surroundings, service_processes

S3 = S3Settings.model_validate(
    {"endpoint": "http://127.0.0.1:9000", "access_key": "the-key", "secret_key": "s3-secret"}
)


def around() -> Surroundings:
    return Surroundings(
        database_url="postgresql://database-secret@127.0.0.1/voxfleet",
        s3=S3,
        ray_address="127.0.0.2:6379",
        ray_env={"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "ray-secret"},
        service_token="between-services",
        bootstrap_token="first-key",
        cache_dir=Path("/var/cache/voxfleet"),
        grpc_ports={name: 20000 + number for number, name in enumerate(SERVICE_NAMES)},
        metrics_ports={name: 21000 + number for number, name in enumerate(SERVICE_NAMES)},
    )


def holders(config: StackConfig, secret: str) -> set[str]:
    """The services whose environment holds ``secret`` anywhere."""
    processes = service_processes(config, around())
    return {process.name for process in processes if secret in json.dumps(dict(process.env))}


def test_each_secret_goes_to_those_who_need_it() -> None:
    config = StackConfig()
    assert holders(config, "database-secret") == {"metadata"}
    assert holders(config, "first-key") == {"metadata"}
    assert holders(config, "s3-secret") == {"metadata", "audio", "trainer", "inference"}
    assert holders(config, "ray-secret") == {"trainer", "inference"}
    assert holders(config, "between-services") == set(SERVICE_NAMES)


def test_an_outside_database_is_not_inherited_by_the_others() -> None:
    environ = {
        "VOXFLEET_DATABASE_URL": "postgresql://outside-secret@db/voxfleet",
        "VOXFLEET_S3_ENDPOINT": "https://s3.example.org",
        "VOXFLEET_S3_ACCESS_KEY": "key",
        "VOXFLEET_S3_SECRET_KEY": "outside-s3-secret",
        "VOXFLEET_BOOTSTRAP_TOKEN": "outside-token",
        "VOXFLEET_TRAINER_WORKERS": "3",
        "PATH": "/bin",
    }
    config = StackConfig.from_environ(environ, virtual_gpus=4)
    assert config.database_url == environ["VOXFLEET_DATABASE_URL"]
    assert config.s3 is not None
    assert (config.s3.endpoint, config.s3.secure) == ("s3.example.org", True)
    assert (config.bootstrap_token, config.virtual_gpus) == ("outside-token", 4)
    for secret in ("outside-secret", "outside-s3-secret", "outside-token"):
        assert holders(config, secret) == set()
    assert holders(config, "VOXFLEET_TRAINER_WORKERS") == set(SERVICE_NAMES)


def test_addresses_agree() -> None:
    processes = {process.name: process for process in service_processes(StackConfig(), around())}
    gateway = processes["gateway"]
    assert gateway.env["VOXFLEET_LISTEN"] == gateway.grpc_address
    for name in ("metadata", "audio", "inference"):
        assert gateway.env[f"VOXFLEET_{name.upper()}_ADDRESS"] == processes[name].env["VOXFLEET_LISTEN"]
    assert processes["trainer"].env["VOXFLEET_RAY_ADDRESS"] == "127.0.0.2:6379"
    assert (
        processes["audio"].metrics_url
        == f"http://{processes['audio'].env['VOXFLEET_METRICS_LISTEN']}/metrics"
    )
    assert processes["audio"].argv[1:] == ("-m", "services.audio")


def test_only_an_embedded_database_is_migrated_unasked() -> None:
    assert holders(StackConfig(), "VOXFLEET_MIGRATE") == {"metadata"}
    assert holders(StackConfig(database_url="postgresql://db/voxfleet"), "VOXFLEET_MIGRATE") == set()


def test_extra_environment_wins() -> None:
    config = StackConfig(extra_env={"VOXFLEET_LOG_LEVEL": "DEBUG"})
    assert {process.env["VOXFLEET_LOG_LEVEL"] for process in service_processes(config, around())} == {"DEBUG"}


def test_only_the_chosen_services_run() -> None:
    config = StackConfig(services=("metadata", "audio"))
    assert [process.name for process in service_processes(config, around())] == ["metadata", "audio"]


@pytest.mark.parametrize("text", ["", "NAME", "=value"])
def test_an_assignment_needs_a_name_and_a_value(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.parser().parse_args(["up", "--set", text])
    assert "NAME=VALUE" in capsys.readouterr().err


def test_assignments_add_up() -> None:
    arguments = command.parser().parse_args(["up", "--set", "A=1", "--set", "B=x=y"])
    assert dict(arguments.extra_env) == {"A": "1", "B": "x=y"}


def test_help_names_what_it_starts_and_how_to_replace_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["up", "--help"])
    text = capsys.readouterr().out
    for word in (
        "PostgreSQL",
        "client.json",
        "VOXFLEET_DATABASE_URL",
        "VOXFLEET_S3_ENDPOINT",
        "--virtual-gpus",
    ):
        assert word in text


def test_status_of_a_directory_that_never_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["status", "--json", "--home", str(tmp_path / "none")]) == command.EXIT_NOT_RUNNING
    assert json.loads(capsys.readouterr().out) == {"running": False}
    assert not (tmp_path / "none").exists()
