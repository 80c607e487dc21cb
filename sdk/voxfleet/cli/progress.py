"""How far something is: a bar on a terminal, lines in a pipe, nothing where JSON is wanted."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TextIO

if TYPE_CHECKING:
    from voxfleet.v1 import job_pb2

LINE_EVERY_S: Final = 2.0

Transfer = Callable[[int, int], None]


class Throttle:
    """Lets one through at most every so many seconds.

    Args:
        every_s: at least so long between two.
        clock: seconds, only going forward.
    """

    def __init__(self, every_s: float = LINE_EVERY_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s = every_s
        self._clock = clock
        self._last_s = float("-inf")

    def is_due(self) -> bool:
        """Whether it is time; if so, the time starts anew."""
        now_s = self._clock()
        if now_s - self._last_s < self._every_s:
            return False
        self._last_s = now_s
        return True

    def begin(self) -> None:
        """Starts the time anew."""
        self._last_s = self._clock()


@contextmanager
def transfer(label: str, *, quiet: bool) -> Iterator[Transfer]:
    """Progress of bytes, on standard error."""
    if quiet:
        yield lambda done, total: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        throttle = Throttle()
        # A transfer that is over at once needs no line.
        throttle.begin()

        def tell(done: int, total: int) -> None:
            if throttle.is_due():
                share = f"{100 * done / total:.0f} %" if total else f"{done} bytes"
                sys.stderr.write(f"{label}: {share}\n")

        yield tell


@contextmanager
def job_progress(stream: TextIO, *, quiet: bool) -> Iterator[Callable[[job_pb2.WatchJobResponse], None]]:
    """What happens to a job, told to a function, shown on a stream."""
    if quiet:
        yield lambda message: None
    elif stream.isatty():
        with _terminal(stream) as tell:
            yield tell
    else:
        throttle = Throttle()

        def line(message: job_pb2.WatchJobResponse) -> None:
            kind = message.WhichOneof("event")
            if kind == "change":
                throttle.begin()
                stream.write(change_line(message) + "\n")
                stream.flush()
            elif kind == "progress" and throttle.is_due():
                stream.write(progress_line(message) + "\n")
                stream.flush()

        yield line


@contextmanager
def _terminal(stream: TextIO) -> Iterator[Callable[[job_pb2.WatchJobResponse], None]]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(file=stream, highlight=False), transient=True) as bar:
        task = bar.add_task("", total=100)

        def tell(message: job_pb2.WatchJobResponse) -> None:
            kind = message.WhichOneof("event")
            if kind == "change":
                bar.console.print(escape(change_line(message)))
            progress: Any = message.progress if kind == "progress" else message.job.progress
            if kind == "progress" or message.job.HasField("progress"):
                bar.update(task, completed=progress.percent, description=escape(_steps(progress)))

        yield tell


def change_line(message: job_pb2.WatchJobResponse) -> str:
    """A change of state or phase, for people."""
    change = message.change
    parts = [_state(change.state), change.phase, change.message]
    if change.attempt > 1:
        parts.append(f"(attempt {change.attempt})")
    if _state(change.state) == "QUEUED":
        reason = _reason(message.job.waiting_reason)
        parts += [reason, f"position {message.job.queue_position}" if message.job.queue_position else ""]
    return "  ".join(part for part in parts if part)


def progress_line(message: job_pb2.WatchJobResponse) -> str:
    """Progress within a phase, for people."""
    return f"{_state(message.job.state)}  {message.progress.percent:.1f} %  {_steps(message.progress)}"


def _steps(progress: job_pb2.JobProgress) -> str:
    parts = [progress.phase]
    if progress.step:
        of = f"/{progress.total_steps}" if progress.total_steps else ""
        parts.append(f"step {progress.step}{of}")
    parts += [f"{key}={value:.4g}" for key, value in sorted(progress.metrics.items())]
    if progress.remaining_s:
        parts.append(f"about {progress.remaining_s:.0f} s left")
    parts.append(progress.message)
    return "  ".join(part for part in parts if part)


def _state(number: int) -> str:
    from voxfleet.v1 import job_pb2

    name: str = job_pb2.JobState.Name(number)  # type: ignore[arg-type]
    return name.removeprefix("JOB_STATE_")


def _reason(number: int) -> str:
    from voxfleet.v1 import job_pb2

    name: str = job_pb2.WaitingReason.Name(number)  # type: ignore[arg-type]
    return name.removeprefix("WAITING_REASON_") if number else ""
