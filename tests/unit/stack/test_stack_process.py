"""One child process under supervision, and several."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from services.common.errors import Reason, VoxfleetError
from services.stack.process import Child, ProcessSpec, State
from services.stack.supervisor import Supervisor, stop_waves
from tests.polling import until

WAITS = "import pathlib,sys,time; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"


@dataclass(frozen=True)
class Script:
    """A Python one-liner as a component; ready once it has made its file (unless told otherwise)."""

    folder: Path
    code: str = WAITS
    name: str = "script"
    stop_grace_s: float = 10.0
    ready_deadline_s: float = 30.0
    first_starts: int = 1
    prepared: list[int] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return self.folder / f"{self.name}.ready"

    @property
    def spec(self) -> ProcessSpec:
        return ProcessSpec(
            name=self.name,
            argv=(sys.executable, "-I", "-S", "-c", self.code, str(self.file)),
            env={"PATH": os.environ["PATH"]},
            cwd=self.folder,
            log_path=self.folder / f"{self.name}.log",
            stop_grace_s=self.stop_grace_s,
            ready_deadline_s=self.ready_deadline_s,
            first_starts=self.first_starts,
        )

    def prepare(self) -> None:
        self.prepared.append(1)
        self.file.unlink(missing_ok=True)

    def clean_up(self) -> None:
        self.file.unlink(missing_ok=True)

    def is_ready(self) -> bool:
        return self.file.exists()


def test_a_child_runs_until_it_is_stopped(tmp_path: Path) -> None:
    child = Child(Script(tmp_path))
    child.start()
    child.wait_ready(30)
    assert child.pid is not None
    process = psutil.Process(child.pid)
    assert os.getsid(child.pid) == child.pid  # Ctrl-C in the terminal does not reach it
    child.stop()
    assert not process.is_running()
    assert (child.state, child.pid, child.restarts) == (State.STOPPED, None, 0)


def test_a_crash_is_followed_by_another_start(tmp_path: Path) -> None:
    script = Script(tmp_path)
    child = Child(script)
    child.start()
    try:
        child.wait_ready(30)
        first = child.pid
        child.kill()
        child.wait_ready(30, times=2)
        assert child.pid not in (None, first)
        assert (child.restarts, len(script.prepared)) == (1, 2)
    finally:
        child.stop()


def test_without_restart_a_crash_is_the_end(tmp_path: Path) -> None:
    child = Child(Script(tmp_path), restart=False)
    child.start()
    child.wait_ready(30)
    child.kill()
    until(lambda: child.state is State.FAILED)
    assert child.failure is not None
    assert "SIGKILL" in child.failure.message


def test_a_child_that_dies_at_its_start_says_why(tmp_path: Path) -> None:
    code = "import sys; sys.exit('cannot find the frobnicator')"
    child = Child(Script(tmp_path, code))
    child.start()
    with pytest.raises(VoxfleetError, match=r"script ended \(exit status 1\)") as caught:
        child.wait_ready(30)
    assert "cannot find the frobnicator" in caught.value.message
    assert caught.value.reason is Reason.SERVICE_UNAVAILABLE
    child.stop()
    assert child.restarts == 0


def test_what_may_fail_at_first_is_tried_again_and_then_no_more(tmp_path: Path) -> None:
    second_time_lucky = (
        "import pathlib,sys,time; first=pathlib.Path(sys.argv[1]+'.tried'); known=first.exists();"
        "first.touch(); known or sys.exit(3); pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"
    )
    child = Child(Script(tmp_path, second_time_lucky, first_starts=2))
    child.start()
    child.wait_ready(30)
    child.stop()
    hopeless = Script(tmp_path, "import sys; sys.exit(3)", name="hopeless", first_starts=3)
    child = Child(hopeless)
    child.start()
    with pytest.raises(VoxfleetError):
        child.wait_ready(30)
    assert len(hopeless.prepared) == 3


def test_only_the_present_log_is_shown(tmp_path: Path) -> None:
    (tmp_path / "script.log").write_text("from last week\n")
    child = Child(Script(tmp_path, "import sys; sys.exit('today')"))
    child.start()
    with pytest.raises(VoxfleetError) as caught:
        child.wait_ready(30)
    assert "today" in caught.value.message
    assert "last week" not in caught.value.message


def test_a_child_that_never_answers_is_ended(tmp_path: Path) -> None:
    code = "import time; print('listening to nobody', flush=True); time.sleep(600)"
    child = Child(Script(tmp_path, code, ready_deadline_s=0.5))
    child.start()
    with pytest.raises(VoxfleetError, match=r"does not answer after 0\.5 s"):
        child.wait_ready(30)
    assert child.pid is None


def test_a_program_that_is_not_there_is_an_error_not_a_hang(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Missing(Script):
        @property
        def spec(self) -> ProcessSpec:
            return ProcessSpec("missing", ("/nowhere/weed",), {}, self.folder, self.folder / "missing.log")

    child = Child(Missing(tmp_path))
    child.start()
    with pytest.raises(VoxfleetError, match="cannot run /nowhere/weed: No such file"):
        child.wait_ready(30)


def test_a_stubborn_child_and_its_own_children_are_killed(tmp_path: Path) -> None:
    code = (
        "import pathlib,signal,subprocess,sys,time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "words = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "child = subprocess.Popen(words, start_new_session=True)\n"
        "pathlib.Path(sys.argv[1]).write_text(str(child.pid))\n"
        "time.sleep(600)"
    )
    script = Script(tmp_path, code, stop_grace_s=0.3)
    child = Child(script)
    child.start()
    child.wait_ready(30)
    until(lambda: script.file.read_text() != "")
    processes = [psutil.Process(child.pid), psutil.Process(int(script.file.read_text()))]
    child.stop()
    assert [process for process in processes if process.is_running() and process.status() != "zombie"] == []


def test_stopping_what_was_never_started_is_nothing(tmp_path: Path) -> None:
    child = Child(Script(tmp_path))
    child.stop()
    assert child.state is State.STOPPED


def test_children_start_after_what_they_need_and_stop_before_it(tmp_path: Path) -> None:
    events: list[tuple[str, State]] = []
    supervisor = Supervisor(lambda child: events.append((child.name, child.state)))
    supervisor.add(Script(tmp_path, name="database"))
    supervisor.add(Script(tmp_path, name="ledger"), after=("database", "an outside S3"))
    supervisor.add(Script(tmp_path, name="gateway"), after=("ledger",))
    supervisor.start()
    supervisor.stop()
    assert [name for name, state in events if state is State.READY] == ["database", "ledger", "gateway"]
    assert [name for name, state in events if state is State.STOPPED] == ["gateway", "ledger", "database"]
    started = [event for event in events if event[1] in (State.STARTING, State.READY)]
    assert started == [
        (name, state) for name in ("database", "ledger", "gateway") for state in (State.STARTING, State.READY)
    ]


def test_what_needs_a_failed_child_is_never_started(tmp_path: Path) -> None:
    supervisor = Supervisor()
    supervisor.add(Script(tmp_path, "import sys; sys.exit('no disk')", name="database"))
    ledger = Script(tmp_path, name="ledger")
    supervisor.add(ledger, after=("database",))
    with pytest.raises(VoxfleetError, match="database ended"):
        supervisor.start()
    supervisor.stop()
    assert ledger.prepared == []


def test_a_failure_is_told_before_slower_children_are_ready(tmp_path: Path) -> None:
    supervisor = Supervisor()
    slow = supervisor.add(Script(tmp_path, "import time; time.sleep(600)", name="slow"))
    supervisor.add(Script(tmp_path, "import sys; sys.exit('no disk')", name="database"))
    with pytest.raises(VoxfleetError, match="database ended"):
        supervisor.start()
    assert slow.state in (State.WAITING, State.STARTING)
    supervisor.stop()
    assert slow.pid is None


def test_stop_waves_end_with_what_everything_needs(tmp_path: Path) -> None:
    supervisor = Supervisor()
    for name, after in (
        ("postgres", ()),
        ("ray", ()),
        ("metadata", ("postgres",)),
        ("trainer", ("metadata", "ray")),
        ("gateway", ("metadata", "trainer")),
    ):
        supervisor.add(Script(tmp_path, name=name), after=after)
    waves = [[child.name for child in wave] for wave in stop_waves(list(supervisor.children.values()))]
    assert waves == [["gateway"], ["trainer"], ["ray", "metadata"], ["postgres"]]


def test_a_child_dies_with_its_killed_parent(tmp_path: Path) -> None:
    parent_code = (
        "import pathlib, time\n"
        "from services.stack.process import Child\n"
        "from tests.unit.stack.test_stack_process import Script\n"
        f"child = Child(Script(pathlib.Path({str(tmp_path)!r})))\n"
        "child.start(); child.wait_ready(30); print(child.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", parent_code],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    assert child.is_running()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    until(lambda: not child.is_running() or child.status() == "zombie")


def test_waiting_in_another_thread_sees_the_failure(tmp_path: Path) -> None:
    child = Child(Script(tmp_path, "import sys; sys.exit(3)"))
    seen: list[str] = []

    def wait() -> None:
        try:
            child.wait_ready(30)
        except VoxfleetError as error:
            seen.append(error.message)

    waiter = threading.Thread(target=wait)
    waiter.start()
    child.start()
    waiter.join(30)
    assert "exit status 3" in seen[0]
