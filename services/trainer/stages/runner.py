"""The inside of a stage's process: the work in a thread, so that questions are answered meanwhile.

Ray cannot cancel a synchronous actor method that runs. So no method here runs for long: the work polls
a flag, and the controller polls this.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from services.common import telemetry
from services.common.artifacts.ports import ArtifactStore
from services.common.errors import FailureClass, Kind, Reason, VoxfleetError
from services.engines.memory import is_out_of_memory
from services.trainer.model import PHASES_OF, Stage
from services.trainer.stage import Result, Snapshot, StageSpec
from services.trainer.stages.context import StageContext, Telling, stage_folder
from services.trainer.stages.prepare import prepare
from services.trainer.stages.publish import publish
from services.trainer.stages.training import train

log = logging.getLogger(__name__)

_STAGES: dict[Stage, Callable[[StageContext], Result]] = {
    Stage.PREPARE: prepare,
    Stage.TRAIN: train,
    Stage.PUBLISH: publish,
}
_CHILD_GRACE_S = 2.0


@dataclass(frozen=True, slots=True)
class StageKit:
    """What every stage's process is given.

    Args:
        open_store: the artefact store.
        cache: the node's folder for weights and scratch files.
        threads: CPU threads of its work.
        log_level, log_json, otlp_endpoint: as the service's own.
    """

    open_store: Callable[[], ArtifactStore]
    cache: Path
    threads: int = 1
    log_level: str = "INFO"
    log_json: bool = False
    otlp_endpoint: str = ""


@dataclass(frozen=True, slots=True)
class Seat:
    """A process: its id, and the kernel and namespace in which that id means something.

    ``node_id`` is Ray's of the node that it runs on; empty where nobody told.
    """

    pid: int
    space: str
    node_id: str = ""

    def is_gone(self) -> bool:
        """Whether it has ended, as far as it can be seen from here."""
        return self.space != pid_space() or not is_alive(self.pid)


class StageRunner:
    """Runs one stage, once."""

    def __init__(self, kit: StageKit, spec: StageSpec) -> None:
        telemetry.configure_logging(f"trainer-{spec.stage.value}", kit.log_level, as_json=kit.log_json)
        telemetry.configure_tracing("trainer", kit.otlp_endpoint)
        self._kit, self._spec = kit, spec
        self._telling = Telling(PHASES_OF[spec.stage][0])
        self._end: tuple[Result | None, VoxfleetError | None] | None = None
        self._thread = threading.Thread(target=self._run, name=spec.stage.value, daemon=True)

    def begin(self) -> Seat:
        """Begins the work; returns where this process is."""
        if not self._thread.is_alive() and self._end is None:
            self._thread.start()
        return Seat(os.getpid(), pid_space())

    def poll(self, acknowledged: int) -> Snapshot:
        """How far it is, with the checkpoints after number ``acknowledged``."""
        end = self._end  # before the snapshot: an end then comes with everything that it saved
        snapshot = self._telling.snapshot(acknowledged)
        return replace(snapshot, result=end[0], error=end[1]) if end else snapshot

    def ask_stop(self, *, save: bool) -> None:
        """Asks the work to end soon, with a checkpoint first where ``save``."""
        self._telling.ask_stop(save=save)

    def close(self) -> None:
        """Ends every child of this process and sends what traces are held; the process is ended next."""
        end_children(_CHILD_GRACE_S)
        telemetry.flush_traces()

    def _run(self) -> None:
        spec, kit = self._spec, self._kit
        try:
            with (
                telemetry.span(f"actor {spec.stage.value}", traceparent=spec.traceparent, job=spec.job_id),
                stage_folder(kit.cache / "stages") as folder,
            ):
                context = StageContext(spec, kit.open_store(), folder, kit.cache, kit.threads, self._telling)
                self._end = (_STAGES[spec.stage](context), None)
        except VoxfleetError as error:
            self._end = (None, error)
        except BaseException as error:
            log.exception("stage %s of %s failed", spec.stage.value, spec.job_id)
            self._end = (None, unexpected(error, spec))


def unexpected(error: BaseException, spec: StageSpec) -> VoxfleetError:
    """An error that no engine named, as ours."""
    text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    if is_out_of_memory(error):
        # Raised outside of the engine's training loop, or by a library of CUDA's.
        return VoxfleetError(
            Reason.GPU_OUT_OF_MEMORY,
            f"the GPU's memory is full: {text}",
            kind=Kind.EXHAUSTED,
            metadata={"batch_size": spec.recipe.batch_size},
            failure=FailureClass.RESOURCE,
        )
    return VoxfleetError(
        Reason.TRAINING_FAILED,
        f"stage {spec.stage.value} failed: {text}",
        kind=Kind.INTERNAL,
        metadata={"stage": spec.stage.value},
        failure=FailureClass.PERMANENT,
    )


def end_children(grace_s: float, *, parent: int | None = None) -> None:
    """Ends every descendant of a process (this one): SIGTERM, and SIGKILL after ``grace_s`` seconds.

    A child that is left over holds GPU memory after its parent was killed (ray-project/ray issues
    31451, 33976, 42992). Linux only: elsewhere there is no /proc to ask.
    """
    root = parent or os.getpid()
    deadline = time.monotonic() + grace_s
    number = signal.SIGTERM
    while left := _descendants(root):
        if time.monotonic() >= deadline:
            number = signal.SIGKILL
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if number is signal.SIGKILL:
            return
        time.sleep(0.05)


def pid_space() -> str:
    """Which kernel and pid namespace this process is in: equal where pids mean the same."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + str(
            Path("/proc/self/ns/pid").readlink()
        )
    except OSError:
        return ""


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def _descendants(root: int) -> list[int]:
    """Live descendants of a process, from /proc; zombies are none."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name, in parentheses, may itself hold spaces and parentheses.
            state, parent, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
            if state != "Z":
                parents[int(entry.name)] = int(parent)
    found: list[int] = []
    layer = {root}
    while layer:
        layer = {pid for pid, parent in parents.items() if parent in layer}
        found.extend(layer)
    return found
