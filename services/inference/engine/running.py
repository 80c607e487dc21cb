"""Runs one call: the work in a thread, its events for who asks for them, a flag that asks it to end."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Protocol

from services.common import telemetry
from services.common.errors import FailureClass, Kind, Reason, VoxfleetError
from services.engines.memory import is_out_of_memory
from services.inference.calls import Advance, EngineFacts, Event, Request

Emit = Callable[[Event], None]
Stopped = Callable[[], bool]

_STEPS: Final = 0.02
"""Shares of a phase are sent in steps of this size: an engine may count every step of its own."""
_REMEMBERED = 1024
_MOST_AT_ONCE = 256
_HELD = 16
"""Events that a reader may be behind by."""
_LAST_WORD_S = 0.001


class Body(Protocol):
    """An engine with its weights loaded."""

    @property
    def facts(self) -> EngineFacts:
        """What it is."""

    def run(self, request: Request, emit: Emit, stopped: Stopped) -> None:
        """Does what is asked; polls ``stopped`` and then raises CANCELLED. Several threads may call it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What a call has sent since it was last asked; ``over`` where that was all."""

    events: tuple[Event, ...]
    over: bool


class Calls:
    """The calls that run on a body. Who asked for one also asks for what it sends, and it waits for that.

    Args:
        body: what does the work.
        failed: the reason of an unexpected error.
    """

    def __init__(self, body: Body, failed: Reason) -> None:
        self._body = body
        self._failed = failed
        self._stops: OrderedDict[str, threading.Event] = OrderedDict()
        self._running: dict[str, _Work] = {}
        self._lock = threading.Lock()
        # Kept: to make a thread takes longer than a short call.
        self._threads = ThreadPoolExecutor(_MOST_AT_ONCE, thread_name_prefix="call")

    def stop(self, call: str) -> None:
        """Asks a call to end; it may not even have begun."""
        self._flag(call).set()
        with self._lock:
            work = self._running.get(call)
        if work is not None:
            work.wake()

    def begin(self, call: str, request: Request, traceparent: str) -> Batch:
        """Begins a call; its first events. Errors: see :meth:`more`."""
        work = _Work(self._body, request, traceparent, self._flag(call))
        with self._lock:
            self._running[call] = work
        self._threads.submit(work.run)
        return self._next(call, work)

    def more(self, call: str) -> Batch:
        """A call's next events, once there are any.

        Errors: what it raised, once all that it sent before has been told; the call is over then.
        """
        with self._lock:
            work = self._running.get(call)
        return Batch((), over=True) if work is None else self._next(call, work)

    def ended(self, call: str) -> None:
        """Waits until a call has ended, in whatever way; nobody asks for what it sends any more."""
        with self._lock:
            work = self._running.pop(call, None)
        if work is not None:
            self._flag(call).set()
            work.wake()
            work.join()
            self._forget(call)

    def _next(self, call: str, work: _Work) -> Batch:
        try:
            batch = work.take()
        except BaseException as error:  # noqa: BLE001 - as callers know it
            self._forget(call)
            raise self._known(error) from None
        if batch.over:
            self._forget(call)
        return batch

    def _forget(self, call: str) -> None:
        with self._lock:
            self._running.pop(call, None)
            self._stops.pop(call, None)

    def _flag(self, call: str) -> threading.Event:
        with self._lock:
            flag = self._stops.setdefault(call, threading.Event())
            while len(self._stops) > _REMEMBERED:
                self._stops.popitem(last=False)
            return flag

    def _known(self, error: BaseException) -> VoxfleetError:
        """The error as callers know it; one that an engine did not foresee fails this call alone."""
        if isinstance(error, VoxfleetError):
            return error
        if is_out_of_memory(error):
            return VoxfleetError(
                Reason.GPU_OUT_OF_MEMORY,
                f"the GPU's memory is full: {str(error)[:200]}",
                kind=Kind.EXHAUSTED,
                failure=FailureClass.RESOURCE,
            )
        return VoxfleetError(
            self._failed,
            f"{type(error).__name__}: {str(error)[:500]}",
            kind=Kind.INTERNAL,
            failure=FailureClass.PERMANENT,
        )


class _Work:
    """One call's work in a thread, and what it has sent that nobody has taken yet."""

    def __init__(self, body: Body, request: Request, traceparent: str, stop: threading.Event) -> None:
        self._body = body
        self._request = request
        self._traceparent = traceparent
        self._stop = stop
        self._changed = threading.Condition()
        self._events: list[Event] = []
        self._advance: Advance | None = None
        self._over = False
        self._error: BaseException | None = None

    def join(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._over)

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def take(self) -> Batch:
        """What was sent, as soon as there is something; raises what the work raised once that is all."""
        with self._changed:
            self._changed.wait_for(lambda: self._events or self._over)
            # The last event and the end come together, or nearly so: that spares a question.
            self._changed.wait_for(lambda: self._over, _LAST_WORD_S)
            events, self._events = tuple(self._events), []
            self._changed.notify_all()
            if not events and self._error is not None:
                raise self._error
            return Batch(events, self._over and self._error is None)

    def run(self) -> None:
        error: BaseException | None = None
        try:
            with telemetry.span(f"engine {type(self._request).__name__}", traceparent=self._traceparent):
                self._body.run(self._request, self._emit, self._stop.is_set)
        except BaseException as caught:  # noqa: BLE001 - raised again for whoever asks
            error = caught
        with self._changed:
            self._over, self._error = True, error
            self._changed.notify_all()

    def _emit(self, event: Event) -> None:
        """Passes an event on, of many small advances only some; waits for a reader who is far behind."""
        if isinstance(event, Advance):
            sent = self._advance
            if sent is not None and sent.phase == event.phase and event.share - sent.share < _STEPS:
                return
            self._advance = event
        with self._changed:
            self._changed.wait_for(lambda: len(self._events) < _HELD or self._stop.is_set())
            self._events.append(event)
            self._changed.notify_all()


def stopped_error() -> VoxfleetError:
    """What work raises that was asked to end."""
    return VoxfleetError(
        Reason.CANCELLED, "stopped as asked", kind=Kind.CANCELLED, failure=FailureClass.TRANSIENT
    )
