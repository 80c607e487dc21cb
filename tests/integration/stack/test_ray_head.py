"""Real Ray heads: side by side, closed to strangers, gone when they are stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from services.stack.config import inherited
from services.stack.home import Home
from services.stack.process import family
from services.stack.ray_head import RayHead, RayPorts
from tests.polling import until

JOINER = """
import os, sys
import ray
ray.init(address=sys.argv[1], log_to_driver=False)

@ray.remote(num_gpus=1)
class Whole:
    def devices(self):
        return os.environ.get("CUDA_VISIBLE_DEVICES")

@ray.remote(num_gpus=0)
def devices():
    return os.environ.get("CUDA_VISIBLE_DEVICES")

actors = [Whole.remote() for _ in range(int(ray.cluster_resources()["GPU"]))]
print(sorted(ray.get([actor.devices.remote() for actor in actors])), repr(ray.get(devices.remote())))
"""
REFUSED = """
import sys
from ray._raylet import GcsClient
GcsClient(address=sys.argv[1]).internal_kv_keys(b"", None, timeout=10)
print("let in")
"""


@contextmanager
def head_in(folder: Path, virtual_gpus: int) -> Iterator[RayHead]:
    home = Home(folder)
    head = RayHead(
        session_root=home.runtime_dir() / "ray",
        ports=RayPorts.choose(home.ports()),
        token=home.secrets().ray_token,
        log_path=home.logs / "ray.log",
        base_env=inherited(os.environ),
        virtual_gpus=virtual_gpus,
        cpus=4,
        object_store_bytes=100 * 2**20,
    )
    head.start()
    try:
        yield head
    finally:
        head.stop()
        home.remove_runtime_dir()


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RayHead, RayHead]]:
    folder = tmp_path_factory.mktemp("ray")
    with head_in(folder / "one", 2) as one, head_in(folder / "two", 3) as two:
        yield one, two


def python(code: str, address: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-c", code, address],
        env=clean | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_each_head_gives_its_own_gpus_to_those_who_show_its_token(heads: tuple[RayHead, RayHead]) -> None:
    one, two = heads
    for head, expected in ((one, "['0', '1'] ''\n"), (two, "['0', '1', '2'] ''\n")):
        result = python(JOINER, head.address, head.joiner_env)
        assert result.stdout == expected, result.stderr


def test_strangers_are_refused(heads: tuple[RayHead, RayHead]) -> None:
    one, two = heads
    no_token = {"RAY_AUTH_MODE": "disabled"}
    for env in (no_token, two.joiner_env, one.joiner_env | {"RAY_AUTH_TOKEN": "0" * 64}):
        result = python(REFUSED, one.address, env)
        assert result.returncode != 0
        assert "let in" not in result.stdout
        assert "nauthenticated" in result.stderr or "nvalid" in result.stderr, result.stderr
    assert python(REFUSED, one.address, one.joiner_env).stdout == "let in\n"


def test_the_token_is_not_on_any_command_line(heads: tuple[RayHead, RayHead]) -> None:
    one, _ = heads
    assert one.pid is not None
    for process in family(one.pid):
        assert not any(one.token in word for word in process.cmdline())


def test_sessions_are_closed_to_other_users(heads: tuple[RayHead, RayHead]) -> None:
    for head in heads:
        # Ray itself opens its folder to everyone: the one above is what closes it.
        assert head.session_root.parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_nothing_is_left_of_one_head_and_the_other_goes_on(
    heads: tuple[RayHead, RayHead], tmp_path: Path, how: str
) -> None:
    one, _ = heads
    with head_in(tmp_path / "third", 1) as third:
        assert python(JOINER, third.address, third.joiner_env).stdout == "['0'] ''\n"
        assert third.pid is not None
        processes = family(third.pid)
        assert len(processes) > 4
        if how == "stop":
            third.stop()
        else:
            processes[0].kill()
        until(lambda: not any(each.is_running() and each.status() != "zombie" for each in processes))
        mentioning = [
            each.info["pid"]
            for each in psutil.process_iter(["pid", "cmdline"])
            if any(str(third.session_root) in word for word in each.info["cmdline"] or ())
        ]
        assert mentioning == []
    assert python(REFUSED, one.address, one.joiner_env).stdout == "let in\n"


PARENT = """
import sys, time
sys.path[:0] = {path!r}
from pathlib import Path
from tests.integration.stack.test_ray_head import head_in
with head_in(Path(sys.argv[1]), 1) as head:
    print(head.pid, flush=True)
    time.sleep(600)
"""


def test_nothing_is_left_when_the_parent_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT.format(path=sys.path), str(tmp_path / "home")]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    try:
        processes = family(int(parent.stdout.readline()))
        assert len(processes) > 4
        parent.kill()
        until(lambda: not any(each.is_running() and each.status() != "zombie" for each in processes), 15)
    finally:
        parent.kill()
        parent.communicate()
        Home(tmp_path / "home").remove_runtime_dir()
