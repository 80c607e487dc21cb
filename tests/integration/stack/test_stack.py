"""The whole stack: real Postgres, S3 and Ray, and stand-ins for the services."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from services.common.artifacts.minio_store import MinioArtifactStore
from services.common.errors import VoxfleetError
from services.stack.config import SERVICE_NAMES, StackConfig
from services.stack.health import serves
from services.stack.home import Home
from services.stack.process import State, family
from services.stack.stack import Stack, running_stack
from tests.polling import until

WITHOUT_RAY = ("metadata", "audio", "gateway")
STAND_INS = {name: ("tests.integration.stack.stand_in", name) for name in SERVICE_NAMES}


def config(home: Path, **settings: object) -> StackConfig:
    extra = {"STAND_IN_LOG": str(home.parent / "events"), **dict(settings.pop("extra_env", {}))}  # type: ignore[call-overload]
    given: dict[str, object] = {"services": WITHOUT_RAY, "service_modules": STAND_INS, "durable": False}
    return StackConfig.from_environ(os.environ, home=home, extra_env=extra, **(given | settings))


def events(home: Path) -> list[str]:
    path = home.parent / "events"
    return path.read_text().splitlines() if path.exists() else []


def everyone(stack: Stack) -> list[psutil.Process]:
    pids = [stack.service(name).pid for name in ("postgres", "s3", *stack.services)]
    return [process for pid in pids if pid is not None for process in family(pid)]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "home"
    yield path
    Home(path).remove_runtime_dir()


def test_everything_starts_in_order_and_leaves_in_order(home: Path) -> None:
    said: list[str] = []
    with running_stack(config(home, services=SERVICE_NAMES, virtual_gpus=3), said.append) as stack:
        processes = everyone(stack) + family(stack.service("ray").pid or 0)
        assert len(processes) > 12
        assert all(serves(service.grpc_address) for service in stack.services.values())
        with psycopg.connect(stack.database_url) as connection:
            assert connection.execute("SELECT current_database()").fetchone() == ("voxfleet",)
        MinioArtifactStore(stack.s3).put_bytes("bundles/b/file", b"x")
        assert re.fullmatch(r"127\.0\.0\.2:\d+", stack.ray_address)
        assert set(stack.metrics) == {*SERVICE_NAMES, "ray"}
        client = json.loads((home / "client.json").read_text())
        assert client == {"endpoint": stack.endpoint, "token": stack.token, "team": "local"}
        assert (home / "client.json").stat().st_mode & 0o077 == 0
    assert alive(processes) == []
    started = [line.removeprefix("start ") for line in events(home) if line.startswith("start")]
    stopped = [line.removeprefix("stop ") for line in events(home) if line.startswith("stop")]
    assert (started[0], started[-1]) == ("metadata", "gateway")
    assert (stopped[0], stopped[-1]) == ("gateway", "metadata")
    assert set(started) == set(stopped) == set(SERVICE_NAMES)
    order = [match.group(1) for line in said if (match := re.search(r"\] (\w+) has stopped", line))]
    assert max(order.index(name) for name in SERVICE_NAMES) < min(
        order.index(name) for name in ("postgres", "s3")
    )
    ready = [match.group(1) for line in said if (match := re.search(r"\] (\w+) is ready", line))]
    assert set(ready) == {*SERVICE_NAMES, "postgres", "s3", "ray"}


def test_whatever_is_killed_comes_back(home: Path) -> None:
    with running_stack(config(home)) as stack:
        with psycopg.connect(stack.database_url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1")
        blob = MinioArtifactStore(stack.s3).put_bytes("bundles/b/file", b"kept")
        before = {name: stack.service(name).pid for name in ("audio", "postgres", "s3")}
        addresses = {name: service.grpc_address for name, service in stack.services.items()}
        for name in before:
            stack.kill(name)
        for name, pid in before.items():
            stack.wait_ready(name, restarts=1)
            assert stack.service(name).pid != pid
        assert serves(addresses["audio"])
        with psycopg.connect(stack.database_url) as connection:
            assert connection.execute("SELECT * FROM kept").fetchone() == (1,)
        assert MinioArtifactStore(stack.s3).get_bytes(blob.key) == b"kept"
        assert stack.service("metadata").restarts == 0


def test_state_survives_and_addresses_stay(home: Path) -> None:
    with running_stack(config(home)) as stack:
        first = (stack.endpoint, stack.token, stack.database_url, stack.s3)
        with psycopg.connect(stack.database_url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1")
        MinioArtifactStore(stack.s3).put_bytes("bundles/b/file", b"kept")
    with running_stack(config(home)) as stack:
        assert (stack.endpoint, stack.token, stack.database_url, stack.s3) == first
        with psycopg.connect(stack.database_url) as connection:
            assert connection.execute("SELECT * FROM kept").fetchone() == (1,)
        assert MinioArtifactStore(stack.s3).get_bytes("bundles/b/file") == b"kept"


def test_two_stacks_stand_side_by_side(tmp_path: Path, home: Path) -> None:
    other = tmp_path / "elsewhere" / "home"
    with running_stack(config(home)) as one, running_stack(config(other)) as two:
        assert one.endpoint != two.endpoint
        assert one.token != two.token
        with psycopg.connect(one.database_url) as connection:
            connection.execute("CREATE TABLE mine AS SELECT 1")
        with psycopg.connect(two.database_url) as connection:
            assert connection.execute("SELECT to_regclass('mine')").fetchone() == (None,)
        with pytest.raises(VoxfleetError, match="in use by a running stack"), running_stack(config(home)):
            pass
        assert serves(one.endpoint)
        assert serves(two.endpoint)


def test_a_service_that_cannot_start_is_named_with_its_log(home: Path) -> None:
    stack = Stack(config(home, extra_env={"STAND_IN_FAIL": "audio"}))
    with pytest.raises(VoxfleetError, match=r"audio ended \(exit status 7\)") as caught:
        stack.start()
    assert "cannot find the frobnicator" in caught.value.message
    assert {child.pid for child in map(stack.service, ("postgres", "s3", "metadata", "audio"))} == {None}
    assert not Home(home).is_locked()


def test_a_service_that_never_serves_is_named_after_its_deadline(home: Path) -> None:
    refusing = config(home, extra_env={"STAND_IN_DEAF": "audio"}, ready_deadline_s=3.0)
    with pytest.raises(VoxfleetError, match="audio does not answer after 3 s"), running_stack(refusing):
        pass


def test_what_stands_outside_is_not_started(home: Path, tmp_path: Path) -> None:
    with running_stack(config(tmp_path / "provider", services=("metadata",))) as provider:
        environ = {**os.environ, **provider.s3.to_environ(), "VOXFLEET_DATABASE_URL": provider.database_url}
        outside = StackConfig.from_environ(
            environ, home=home, services=("metadata", "audio", "gateway"), service_modules=STAND_INS
        )
        with running_stack(outside) as stack:
            assert stack.database_url == provider.database_url
            for name in ("postgres", "s3"):
                with pytest.raises(KeyError):
                    stack.service(name)
            assert not (home / "postgres").exists()
            assert stack.services["metadata"].env["VOXFLEET_DATABASE_URL"] == provider.database_url


LAUNCH = """
import os, sys
from pathlib import Path
from services.stack import __main__ as command
from services.stack.config import StackConfig
from tests.integration.stack.test_stack import STAND_INS, WITHOUT_RAY
original = StackConfig.from_environ
def with_stand_ins(environ, **settings):
    return original(environ, service_modules=STAND_INS, services=WITHOUT_RAY, durable=False, **settings)
StackConfig.from_environ = with_stand_ins
sys.exit(command.main(sys.argv[1:]))
"""


def launched(home: Path, *words: str) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "STAND_IN_LOG": str(home.parent / "events")}
    command = [sys.executable, "-c", LAUNCH, "up", "--home", str(home), *words]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_stops_cleanly_when_asked(home: Path, number: signal.Signals) -> None:
    command = launched(home, "--json", "--set", "STAND_IN_STUBBORN=nobody")
    assert command.stdout is not None
    document = json.loads(command.stdout.readline())
    assert document["token"] == json.loads((home / "client.json").read_text())["token"]
    processes = psutil.Process(command.pid).children(recursive=True)
    names = {each["pid"] for each in document["processes"].values()}
    assert names <= {process.pid for process in processes}
    command.send_signal(number)
    _, errors = command.communicate(timeout=60)
    assert command.returncode == 0
    assert "stopped; the state stays" in errors
    assert alive(processes) == []
    assert [line for line in events(home) if line.startswith("stop")] == [
        "stop gateway",
        "stop audio",
        "stop metadata",
    ]


def test_a_killed_supervisor_leaves_nothing_and_can_start_again(home: Path) -> None:
    command = launched(home, "--json")
    assert command.stdout is not None
    first = json.loads(command.stdout.readline())
    processes = psutil.Process(command.pid).children(recursive=True)
    assert len(processes) > 6
    command.kill()
    command.communicate(timeout=60)
    until(lambda: alive(processes) == [])
    again = launched(home, "--json")
    assert again.stdout is not None
    second = json.loads(again.stdout.readline())
    assert (second["endpoint"], second["token"]) == (first["endpoint"], first["token"])
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=60)
    assert again.returncode == 0


def test_status_tells_a_running_stack_from_a_stopped_one(home: Path) -> None:
    def status() -> tuple[int, dict[str, object]]:
        words = [sys.executable, "-m", "services.stack", "status", "--json", "--home", str(home)]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        result = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        return result.returncode, json.loads(result.stdout)

    with running_stack(config(home)) as stack:
        code, document = status()
        assert (code, document["running"], document["endpoint"]) == (0, True, stack.endpoint)
        processes = document["processes"]
        assert isinstance(processes, dict)
        assert {each["state"] for each in processes.values()} == {State.READY}
        assert stack.token not in json.dumps(document)
    assert status() == (3, {"running": False})
