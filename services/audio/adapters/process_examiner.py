"""Files examined in child processes: one that crashes or hangs harms nobody."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Final, cast

from services.audio import metrics
from services.audio.adapters.examine_child import READY, Answer, ExamineTask, OutlineTask, Task, serve
from services.audio.records import Examined
from services.common.errors import Reason, VoxfleetError, unavailable
from services.common.media import refusals

log = logging.getLogger(__name__)

START_S: Final = 60.0
TASKS_PER_CHILD: Final = 200
"""After so many files a child is replaced: whatever its libraries leak goes with it."""


class ProcessExaminer:
    """The port ``Examiner`` on a few child processes, started as they are needed.

    Args:
        workers: how many files are examined at once; further ones wait.
        time_limit_s: a file that takes longer is refused, its process killed.
        memory_bytes: bound of a child's address space; 0 for none.
    """

    def __init__(self, *, workers: int, time_limit_s: float, memory_bytes: int) -> None:
        self._time_limit_s = time_limit_s
        self._children = [ExaminerChild(memory_bytes) for _ in range(workers)]
        self._idle: asyncio.Queue[ExaminerChild] = asyncio.Queue()
        for child in self._children:
            self._idle.put_nowait(child)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="examiner")

    async def examine(self, path: Path, *, max_duration_s: float, max_channels: int) -> Examined:
        """See the port."""
        return cast("Examined", await self._run(ExamineTask(path, max_duration_s, max_channels)))

    async def outline(self, path: Path, points: int) -> tuple[float, ...]:
        """See the port."""
        return cast("tuple[float, ...]", await self._run(OutlineTask(path, points)))

    async def warm(self) -> None:
        """Starts a child, so that the first upload does not wait for its imports."""
        await asyncio.get_running_loop().run_in_executor(self._threads, self._children[0].start)

    def close(self) -> None:
        """Kills the children; what they do is given up."""
        for child in self._children:
            child.kill()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, task: Task) -> Examined | tuple[float, ...]:
        began = time.perf_counter()
        child = await self._idle.get()
        # A task of its own: a child goes back to the idle ones when it is, whoever gave up waiting.
        work = asyncio.get_running_loop().run_in_executor(self._threads, child.ask, task, self._time_limit_s)
        work.add_done_callback(lambda _: self._idle.put_nowait(child))
        try:
            answer = await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            raise
        metrics.EXAMINE_SECONDS.labels(task.name).observe(time.perf_counter() - began)
        if isinstance(answer, VoxfleetError):
            raise answer
        return answer


class ExaminerChild:
    """One child process; its methods block, and only :meth:`kill` may overlap with another."""

    def __init__(self, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None
        self._tasks = 0

    @property
    def pid(self) -> int | None:
        """The process, where there is one."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Has a process ready. Errors: SERVICE_UNAVAILABLE where it does not start."""
        with self._lock:
            self._ensure()

    def ask(self, task: Task, limit_s: float) -> Answer:
        """The answer to a task.

        A child that dies is tried once more: it may have been killed for another's memory. A file that
        kills two is refused with INVALID_FORMAT, as is one that takes longer than ``limit_s``.
        """
        with self._lock:
            for _ in range(2):
                connection = self._ensure()
                try:
                    connection.send((task, limit_s))
                    if not connection.poll(limit_s):
                        self._end("time")
                        return refusals.invalid_format(f"measuring it took more than {limit_s:g} s")
                    answer = cast("Answer", connection.recv())
                except (EOFError, OSError):
                    self._end("crash")
                    continue
                self._tasks += 1
                if self._tasks >= TASKS_PER_CHILD:
                    self._end("")
                return answer
        return refusals.invalid_format("its content makes the decoder crash")

    def kill(self) -> None:
        """Ends the process at once."""
        process = self._process
        if process is not None:
            process.kill()

    def _ensure(self) -> Connection:
        if self._connection is not None and self._process is not None and self._process.is_alive():
            return self._connection
        if self._process is not None:
            self._end("idle")
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(
            target=serve, args=(theirs, self._memory_bytes), name="audio-examiner", daemon=True
        )
        self._process.start()
        theirs.close()
        self._connection, self._tasks = ours, 0
        try:
            if ours.poll(START_S) and ours.recv() == READY:
                return ours
        except (EOFError, OSError):
            pass
        self._end("start")
        raise unavailable(Reason.SERVICE_UNAVAILABLE, "the measuring process does not start: see the log")

    def _end(self, cause: str) -> None:
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if connection is not None:
            connection.close()
        if process is not None:
            process.kill()
            process.join()
            if cause:
                metrics.EXAMINER_DEATHS.labels(cause).inc()
                log.warning(
                    "measuring process %s ended (%s), exit code %s", process.pid, cause, process.exitcode
                )
            process.close()
