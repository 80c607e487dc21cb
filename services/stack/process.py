"""One child process: how it starts, how one knows that it works, how it restarts, how it ends.

Each child has a thread of its own that spawns it and waits for it. That thread must live as long
as the child: Linux sends the parent-death signal when the *thread* that forked ends.
"""

from __future__ import annotations

import contextlib
import enum
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from services.common.errors import Reason, VoxfleetError, unavailable
from services.stack import launch

LOG_ROTATE_BYTES = 20 * 2**20
TAIL_BYTES = 4096
POLL_S = 0.05
FIRST_BACK_OFF_S = 0.25
LONGEST_BACK_OFF_S = 10.0
HEALTHY_AFTER_S = 30.0
REAP_S = 5.0


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """How to run one program.

    ``death_signal`` is what the kernel sends it when the supervisor dies; ``stop_signal`` is what
    the supervisor sends to stop it, and SIGKILL follows ``stop_grace_s`` later. ``identity`` is
    described in :mod:`services.stack.launch`. ``first_starts`` is how often it may be started until it
    answers for the first time: more than once for what gives up by itself on a busy machine.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    log_path: Path
    identity: str = "same"
    stop_signal: signal.Signals = signal.SIGTERM
    stop_grace_s: float = 15.0
    death_signal: signal.Signals = signal.SIGKILL
    ready_deadline_s: float = 60.0
    first_starts: int = 1


class Component(Protocol):
    """Something that runs as one child process."""

    @property
    def spec(self) -> ProcessSpec:
        """How to run it."""
        ...

    def prepare(self) -> None:
        """Make ready what it needs on disk; called before every start, and may be called again."""
        ...

    def is_ready(self) -> bool:
        """Whether it answers; cheap, and False (not an error) while it does not."""
        ...

    def clean_up(self) -> None:
        """Remove what it leaves lying about and nobody needs again; called when it has ended for good."""
        ...


class State(enum.StrEnum):
    """What a child is doing."""

    NEW = "new"
    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    BACKING_OFF = "backing off"
    FAILED = "failed"
    STOPPED = "stopped"


class Child:
    """A component under supervision.

    Args:
        component: what to run.
        after: the children that must be ready first.
        restart: whether a crash after it was once ready starts it again (with back-off).
        on_change: told of every change of state, from the child's own thread.
    """

    def __init__(
        self,
        component: Component,
        *,
        after: Sequence[Child] = (),
        restart: bool = True,
        on_change: Callable[[Child], None] = lambda child: None,
    ) -> None:
        self._component = component
        self._after = tuple(after)
        self._restart = restart
        self._on_change = on_change
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"stack-{component.spec.name}", daemon=True)
        self.name = component.spec.name
        self.state = State.NEW
        self.restarts = 0
        self.times_ready = 0
        self.start_s = 0.0
        self.failure: VoxfleetError | None = None

    @property
    def pid(self) -> int | None:
        """The pid of the present process, None where there is none."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    @property
    def component(self) -> Component:
        """What runs in it."""
        return self._component

    @property
    def after(self) -> tuple[Child, ...]:
        """The children that start before it and stop after it."""
        return self._after

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def wait_ready(self, timeout_s: float, *, times: int = 1) -> None:
        """Wait until the child has become ready ``times`` times and is so now.

        Errors: SERVICE_UNAVAILABLE with the end of its log where it failed or took too long.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    (self.state is State.READY and self.times_ready >= times)
                    or self.state in (State.FAILED, State.STOPPED)
                ),
                timeout_s,
            )
            if self.state is State.READY and self.times_ready >= times:
                return
            raise self.failure or self._failed(f"is {self.state} after {timeout_s:g} s")

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        """Send a signal to the present process alone, as a crash would."""
        process = self._process
        if process is not None:
            process.send_signal(signal_number)

    def ask_to_stop(self) -> None:
        """Send the stop signal and restart no more; returns at once."""
        self._stopping.set()
        process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(self._component.spec.stop_signal)

    def stop(self) -> None:
        """Stop it and everything it started, within its grace time."""
        if not self._thread.ident:
            self.state = State.STOPPED
            return
        process = self._process
        tree = family(process.pid) if process is not None and process.returncode is None else []
        self.ask_to_stop()
        deadline = time.monotonic() + self._component.spec.stop_grace_s
        while self._thread.is_alive():
            self._thread.join(max(POLL_S, min(0.5, deadline - time.monotonic())))
            process = self._process  # it may have spawned once more before it saw the stop
            if self._thread.is_alive() and time.monotonic() >= deadline and process is not None:
                tree += family(process.pid) if process.returncode is None else []
                process.kill()
        end_leftovers(tree)

    def log_tail(self) -> str:
        """The end of what the present process wrote."""
        path = self._component.spec.log_path
        if not path.exists():
            return ""
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_start if self._log_start < size else 0, size - TAIL_BYTES))
            return file.read().decode(errors="replace").strip()

    def _run(self) -> None:
        ended = State.FAILED
        try:
            self._live()
            ended = State.STOPPED
        except VoxfleetError as error:
            self.failure = error
        except Exception as error:  # noqa: BLE001  # whatever it is, wait_ready raises it
            self.failure = self._failed(f"could not be started: {error!r}")
        finally:
            self._component.clean_up()
            self._become(ended)

    def _live(self) -> None:
        self._become(State.WAITING)
        if not self._await_others():
            return
        back_off_s = FIRST_BACK_OFF_S
        starts = 0
        while not self._stopping.is_set():
            starts += 1
            self._become(State.STARTING)
            began = time.monotonic()
            process = self._spawn()
            if self._await_ready(process, began):
                self.start_s = time.monotonic() - began
                self.times_ready += 1
                self._become(State.READY)
            code = process.wait()
            end_group(process.pid)
            if self._stopping.is_set():
                return
            never_ready = self.times_ready == 0
            if never_ready and starts < self._component.spec.first_starts:
                continue
            if never_ready or not self._restart:
                raise self._failed(f"ended ({ending(code)})")
            if time.monotonic() - began > HEALTHY_AFTER_S:
                back_off_s = FIRST_BACK_OFF_S
            self.restarts += 1
            self._become(State.BACKING_OFF)
            self._stopping.wait(back_off_s)
            back_off_s = min(back_off_s * 2, LONGEST_BACK_OFF_S)

    def _await_others(self) -> bool:
        """Waits for what it needs; False where it is stopped meanwhile."""
        for other in self._after:
            while other.state is not State.READY:
                if self._stopping.wait(POLL_S):
                    return False
                if other.state in (State.FAILED, State.STOPPED):
                    raise self._failed(f"waits for {other.name}, which is {other.state}")
        return True

    def _spawn(self) -> subprocess.Popen[bytes]:
        self._component.prepare()
        spec = self._component.spec
        if spec.log_path.exists() and spec.log_path.stat().st_size > LOG_ROTATE_BYTES:
            spec.log_path.replace(spec.log_path.with_suffix(".log.1"))
        with spec.log_path.open("ab") as log:
            self._log_start = log.tell()
            process = subprocess.Popen(
                [*launch_prefix(spec.death_signal, spec.identity), *spec.argv],
                env=dict(spec.env),
                cwd=spec.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal goes to the supervisor alone, which stops things in order.
                start_new_session=True,
            )
        self._process = process
        if self._stopping.is_set():
            process.send_signal(spec.stop_signal)
        return process

    def _await_ready(self, process: subprocess.Popen[bytes], began: float) -> bool:
        deadline_s = self._component.spec.ready_deadline_s
        while process.poll() is None and not self._stopping.is_set():
            if self._component.is_ready():
                return True
            if time.monotonic() - began > deadline_s:
                tail = self._failed(f"does not answer after {deadline_s:g} s")
                process.kill()
                process.wait()
                end_group(process.pid)
                if self.times_ready == 0:
                    raise tail
                return False
            self._stopping.wait(POLL_S)
        return False

    def _failed(self, what: str) -> VoxfleetError:
        tail = self.log_tail()
        path = self._component.spec.log_path
        shown = f"; the end of {path}:\n{tail}" if tail else f"; {path} is empty"
        return unavailable(Reason.SERVICE_UNAVAILABLE, f"{self.name} {what}{shown}", service=self.name)

    def _become(self, state: State) -> None:
        with self._changed:
            self.state = state
            self._changed.notify_all()
        self._on_change(self)


def launch_prefix(death_signal: int, identity: str) -> list[str]:
    """The start of a command line that runs the rest through :mod:`services.stack.launch`."""
    program = [sys.executable, "-I", "-S", launch.__file__]
    return [*program, str(int(death_signal)), str(os.getpid()), identity]


def ending(code: int) -> str:
    """A process's exit status in words."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def family(pid: int) -> list[psutil.Process]:
    """A process and everything it started that is alive now."""
    try:
        leader = psutil.Process(pid)
        return [leader, *leader.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def end_group(leader_pid: int) -> None:
    """Kill what is left of the process group of a child that has ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader_pid, signal.SIGKILL)


def end_leftovers(processes: Sequence[psutil.Process]) -> None:
    """Kill those of ``processes`` that still run (psutil tells a reused pid by its start time)."""
    _, alive = psutil.wait_procs(processes, timeout=REAP_S / 5)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=REAP_S)
