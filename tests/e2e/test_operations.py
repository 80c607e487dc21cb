"""Metrics everywhere, two stacks side by side, the command against a running stack."""

import json
import os
import subprocess
import sys
import urllib.request

import pytest

from services.stack.config import StackConfig
from services.stack.stack import running_stack
from tests.e2e.conftest import SPEECH, TEST_SETTINGS
from voxfleet.client import Client


def test_every_service_has_metrics(stack, alpha, target):
    wanted = {
        "gateway": "voxfleet_rpcs_total",
        "metadata": "voxfleet_rpc_duration_seconds_bucket",
        "audio": "voxfleet_",
        "trainer": "voxfleet_",
        "inference": "voxfleet_",
    }
    for name, metric in wanted.items():
        with urllib.request.urlopen(stack.metrics[name], timeout=10) as answer:
            text = answer.read().decode()
        assert metric in text, name


@pytest.mark.timeout(400)
def test_two_stacks_side_by_side(stack, alpha, target, tmp_path_factory):
    config = StackConfig.from_environ(
        os.environ,
        home=tmp_path_factory.mktemp("second"),
        virtual_gpus=1,
        team="alpha",
        durable=False,
        extra_env=TEST_SETTINGS,
    )
    with running_stack(config) as second:
        with Client(endpoint=second.endpoint, token=second.token, team="alpha") as client:
            assert list(client.audio.list()) == []
            audio = client.audio.upload(SPEECH / "clip_ru.flac")
            assert audio.name not in {each.name for each in alpha.client.audio.list()}
            assert sum(node.gpus for node in client.fleet.get().nodes) == 1
        assert {child.pid for child in (second.service("ray"), stack.service("ray"))} != {None}
        assert second.service("ray").pid != stack.service("ray").pid
    assert alpha.client.audio.get(target.name).name == target.name, "the first goes on"


def voxfleet(stack, *words: str) -> subprocess.CompletedProcess[str]:
    """The command, as a user runs it in a pipe, finding the stack by its home."""
    return subprocess.run(
        [sys.executable, "-m", "voxfleet.cli.main", *words],
        env={**os.environ, "VOXFLEET_HOME": str(stack.home), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_the_command_finds_the_stack_and_speaks_json(stack, clone, tmp_path):
    shown = voxfleet(stack, "audio", "upload", str(SPEECH / "clip_es.flac"), "--json")
    assert shown.returncode == 0, shown.stderr
    (audio,) = json.loads(shown.stdout)["audios"]
    name = audio["name"]
    assert json.loads(voxfleet(stack, "audio", "show", name, "--json").stdout)["name"] == name

    said = voxfleet(stack, "say", "Hello there.", "--voice", "clone", "-o", str(tmp_path / "hello.wav"))
    assert said.returncode == 0, said.stderr
    assert "untrained weights" in said.stdout + said.stderr
    assert (tmp_path / "hello.wav").stat().st_size > 10_000

    missing = voxfleet(stack, "audio", "show", "none-such", "--json")
    assert missing.returncode == 3
    assert "AUDIO_NOT_FOUND" in missing.stderr + missing.stdout
