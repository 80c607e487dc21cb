"""The ``voxfleet`` command as shell scripts meet it: a process with pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.unit.sdk.server import TEAM, Double, change, heartbeat, job
from voxfleet.v1 import job_pb2

ROOT = Path(__file__).resolve().parents[3]
RUNNING = job_pb2.JOB_STATE_RUNNING


def environment(endpoint: str, home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VOXFLEET_")}
    path = os.pathsep.join([str(ROOT / "sdk"), str(ROOT / "protos" / "gen")])
    found = {"VOXFLEET_ENDPOINT": endpoint, "VOXFLEET_TEAM": "acme"} if endpoint else {}
    return {**kept, **found, "PYTHONPATH": path, "HOME": str(home)}


def start(endpoint: str, home: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "voxfleet.cli.main", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=environment(endpoint, home),
        cwd=home,
    )


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("job", "show", "j-none", "--json"), 3, "JOB_NOT_FOUND"),
        (("job", "shwo", "--json"), 2, "USAGE"),
    ],
)
def test_errors_are_json_on_standard_error(
    endpoint: str, tmp_path: Path, words: tuple[str, ...], code: int, reason: str
) -> None:
    returned, out, err = finished(start(endpoint, tmp_path, *words))
    assert (returned, out) == (code, "")
    assert json.loads(err)["error"]["reason"] == reason


def test_nothing_configured(tmp_path: Path) -> None:
    code, out, err = finished(start("", tmp_path, "audio", "list"))
    assert (code, out) == (2, "")
    assert "VOXFLEET_ENDPOINT" in err


def test_nobody_there(tmp_path: Path) -> None:
    # Port 9 of the loopback: refused at once.
    code, _, err = finished(start("127.0.0.1:9", tmp_path, "fleet", "show", "--timeout", "1"))
    assert code == 6
    assert err.startswith("error: cannot reach Voxfleet at 127.0.0.1:9"), err
    assert "Traceback" not in err


def test_one_document_and_plain_lines(endpoint: str, double: Double, tmp_path: Path) -> None:
    double.jobs[f"{TEAM}/jobs/j-0001"] = job(job_pb2.JOB_STATE_SUCCEEDED)
    code, out, err = finished(start(endpoint, tmp_path, "job", "list", "--json"))
    assert (code, err) == (0, "")
    assert json.loads(out)["jobs"][0]["name"] == f"{TEAM}/jobs/j-0001"
    double.watches.append([change(1, RUNNING, phase="train"), change(2, job_pb2.JOB_STATE_SUCCEEDED)])
    code, out, err = finished(start(endpoint, tmp_path, "job", "watch", "j-0001"))
    assert (code, out, err) == (0, "RUNNING  train\nSUCCEEDED\n", "")


def test_interrupting_a_watch_leaves_the_job_alone(endpoint: str, double: Double, tmp_path: Path) -> None:
    # A stream that never ends: the double hands out heartbeats until its client has gone.
    gone = threading.Event()
    double.jobs[f"{TEAM}/jobs/j-0001"] = job(RUNNING)

    class Endless(list[job_pb2.WatchJobResponse]):
        def __iter__(self):  # type: ignore[no-untyped-def]
            yield change(1, RUNNING, phase="train")
            while not gone.wait(0.05):
                yield heartbeat(1, RUNNING)

    double.watches.append(Endless())
    process = start(endpoint, tmp_path, "job", "wait", "j-0001")
    assert process.stderr is not None
    assert process.stderr.readline() == "RUNNING  train\n"
    process.send_signal(signal.SIGINT)
    code, out, err = finished(process)
    gone.set()
    assert (code, out) == (130, "")
    assert "the job goes on: `voxfleet job watch j-0001`" in err
    assert "Traceback" not in err
    assert double.asked("CancelJob") == []
