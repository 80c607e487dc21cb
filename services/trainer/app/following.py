"""Following one running stage: polls it, has its checkpoints recorded, and stops it when told to."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from services.common.errors import FailureClass, Kind, Reason, VoxfleetError
from services.common.jobs.model import AttemptStopped, Checkpoint, StopKind
from services.common.jobs.worker import Attempt
from services.trainer.model import Phase
from services.trainer.ports import RunningStage
from services.trainer.stage import Result, Snapshot

log = logging.getLogger(__name__)

_STOPPING_POLL_S = 0.2
_STEPPING = (Phase.F0, Phase.FEATURES, Phase.TRAIN)
"""Phases that count what they do: of others, a long silence says nothing."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Limits:
    """How long this side waits.

    Args:
        poll_s: between questions to a running stage.
        place_s: for a stage's process to get its place; then the job is given back.
        cancel_s: for a stage to end after a cancel, before its process is ended.
        yield_s: for a stage to save a checkpoint when it must make room.
        shutdown_s: the same when this process stops, which whoever stops it does not wait for so long.
        silence_s: without an answer, after which a stage counts as lost.
        stall_s: without a step, after which a stage that counts steps counts as hung.
    """

    poll_s: float = 1.0
    place_s: float = 120.0
    cancel_s: float = 3.0
    yield_s: float = 60.0
    shutdown_s: float = 12.0
    silence_s: float = 60.0
    stall_s: float = 600.0


async def unless_stopped(attempt: Attempt, work: Awaitable[_T], timeout_s: float | None = None) -> _T:
    """What ``work`` gives; a stop of the attempt ends the waiting.

    Raises:
        AttemptStopped: the attempt was told to stop first.
        TimeoutError: neither came in time.
    """
    doing = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(attempt.wait_stop())
    try:
        await asyncio.wait({doing, stopping}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        if stopping.done():
            raise AttemptStopped
        raise TimeoutError
    finally:
        doing.cancel()
        stopping.cancel()


class Follower:
    """One stage, followed to its end."""

    def __init__(
        self,
        attempt: Attempt,
        running: RunningStage,
        limits: Limits,
        *,
        observe: Callable[[Snapshot], None],
        record: Callable[[Checkpoint], Awaitable[None]],
        makes_room: bool = True,
    ) -> None:
        """Makes it; :meth:`result` does the work.

        Args:
            attempt: whose stage it is.
            running: the stage, in its place already.
            limits: how long to wait for what.
            observe: is shown every snapshot.
            record: makes a checkpoint's row; what it raises of class TRANSIENT is tried again, for
                training goes on while metadata restarts.
            makes_room: whether it gives way when asked to; else it is let end, within the same time.
        """
        self._attempt, self._running, self._limits = attempt, running, limits
        self._observe, self._record_one = observe, record
        self._makes_room = makes_room
        self._acknowledged = 0
        self._stop_by_s: float | None = None
        self._heeded: StopKind | None = None
        self._stepped_s = time.monotonic()
        self._place: tuple[Phase, int] | None = None

    async def result(self) -> Result:
        """The stage's result, once everything that it saved is recorded.

        Raises:
            VoxfleetError: the stage's own error, or WORKER_LOST.
            AttemptStopped: the attempt was told to stop, and what could be saved is saved.
        """
        while True:
            snapshot = await self._poll()
            if snapshot is not None:
                self._observe(snapshot)
                self._watch_steps(snapshot)
                recorded = await self._record(snapshot)
                if snapshot.error is not None and recorded:
                    raise self._failure(snapshot.error)
                if snapshot.result is not None and recorded:
                    return snapshot.result
            await self._heed_stop()
            await self._pause()

    def _watch_steps(self, snapshot: Snapshot) -> None:
        """Raises WORKER_LOST where a step hangs: a GPU may do so for ever, and its process still answers."""
        now_s, place = time.monotonic(), (snapshot.phase, snapshot.step)
        if place != self._place or snapshot.phase not in _STEPPING or self._stop_by_s is not None:
            self._stepped_s, self._place = now_s, place
        elif now_s - self._stepped_s >= self._limits.stall_s and not (snapshot.result or snapshot.error):
            raise VoxfleetError(
                Reason.WORKER_LOST,
                f"phase {snapshot.phase.value} hangs: no step after {snapshot.step} "
                f"for {self._limits.stall_s:g} s",
                kind=Kind.UNAVAILABLE,
                metadata={"step": snapshot.step},
                failure=FailureClass.NODE,
            )

    def _failure(self, error: VoxfleetError) -> Exception:
        """The stage's error, unless it is but the echo of a stop."""
        asked = self._stop_by_s is not None
        if asked and (error.reason is Reason.CANCELLED or self._attempt.stop_kind is StopKind.CANCEL):
            return AttemptStopped()
        return error

    async def _poll(self) -> Snapshot | None:
        """A snapshot; None where a stop came first, or no answer while stopping."""
        asked = self._running.poll(self._acknowledged)
        if self._stop_by_s is not None:
            try:
                return await asyncio.wait_for(asked, max(self._stop_by_s - time.monotonic(), 0.1))
            except TimeoutError:
                return None
        try:
            return await unless_stopped(self._attempt, asked, self._limits.silence_s)
        except AttemptStopped:
            return None
        except TimeoutError:
            raise VoxfleetError(
                Reason.WORKER_LOST,
                f"the stage's process has not answered for {self._limits.silence_s:g} s",
                kind=Kind.UNAVAILABLE,
                failure=FailureClass.NODE,
            ) from None

    async def _record(self, snapshot: Snapshot) -> bool:
        """Has new checkpoints recorded in order; whether all are."""
        for number, checkpoint in snapshot.checkpoints:
            if number <= self._acknowledged:
                continue
            try:
                await self._record_one(checkpoint)
            except VoxfleetError as error:
                if error.reason is Reason.LEASE_LOST or error.failure is not FailureClass.TRANSIENT:
                    raise
                log.warning(
                    "%s: a checkpoint waits to be recorded: %s", self._attempt.lease.job, error.message
                )
                return False
            self._acknowledged = number
        return True

    async def _heed_stop(self) -> None:
        """Passes a stop on, once; raises AttemptStopped where there is nothing left to wait for."""
        kind, job = self._attempt.stop_kind, self._attempt.lease.job
        if kind is None:
            return
        if kind is StopKind.LOST:
            raise AttemptStopped
        limit_s = {
            StopKind.CANCEL: self._limits.cancel_s,
            StopKind.YIELD: self._limits.yield_s,
            StopKind.SHUTDOWN: self._limits.shutdown_s,
        }[kind]
        now_s = time.monotonic()
        if self._heeded is None:
            self._stop_by_s = now_s + limit_s
        elif self._heeded is not kind:
            # Cancelled while it makes room: there is nothing to save any more.
            self._stop_by_s = min(self._stop_by_s or now_s, now_s + limit_s)
        elif self._stop_by_s is not None and now_s >= self._stop_by_s:
            log.warning("%s: the stage did not stop in time; its process is ended", job)
            raise AttemptStopped
        if self._heeded is not kind:
            self._heeded = kind
            log.info("%s: asked to stop (%s)", job, kind.value)
            if self._makes_room or kind is not StopKind.YIELD:
                try:
                    await asyncio.wait_for(self._running.ask_stop(save=kind is not StopKind.CANCEL), limit_s)
                except TimeoutError:
                    raise AttemptStopped from None

    async def _pause(self) -> None:
        if self._stop_by_s is not None:
            await asyncio.sleep(min(self._limits.poll_s, _STOPPING_POLL_S))
            return
        try:
            await asyncio.wait_for(self._attempt.wait_stop(), self._limits.poll_s)
        except TimeoutError:
            return
