"""Runs one call: the work in a thread, its events in a stream, a flag that asks it to end."""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from services.common import telemetry
from services.common.errors import FailureClass, Kind, Reason, VoxfleetError
from services.engines.memory import is_out_of_memory
from services.inference.calls import Advance, EngineFacts, Event, Request

Emit = Callable[[Event], None]
Stopped = Callable[[], bool]

_END: Final = object()
_STEPS: Final = 0.02
"""Shares of a phase are sent in steps of this size: an engine may count every step of its own."""
_REMEMBERED = 1024


class Body(Protocol):
    """An engine with its weights loaded."""

    @property
    def facts(self) -> EngineFacts:
        """What it is."""

    def run(self, request: Request, emit: Emit, stopped: Stopped) -> None:
        """Does what is asked; polls ``stopped`` and then raises CANCELLED. Several threads may call it."""


class Calls:
    """The calls that run on a body.

    Args:
        body: what does the work.
        failed: the reason of an unexpected error.
    """

    def __init__(self, body: Body, failed: Reason) -> None:
        self._body = body
        self._failed = failed
        self._stops: OrderedDict[str, threading.Event] = OrderedDict()
        self._lock = threading.Lock()

    def stop(self, call: str) -> None:
        """Asks a call to end; it may not even have begun."""
        self._flag(call).set()

    def run(self, call: str, request: Request, traceparent: str) -> Iterator[Event]:
        """The call's events as they happen; ends with the call, or raises what it raised."""
        stop = self._flag(call)
        events: queue.SimpleQueue[object] = queue.SimpleQueue()

        def work() -> None:
            try:
                with telemetry.span(f"engine {type(request).__name__}", traceparent=traceparent):
                    self._body.run(request, _Sparse(events), stop.is_set)
                events.put(_END)
            except BaseException as error:  # noqa: BLE001 - raised again by whoever reads the events
                events.put(error)

        thread = threading.Thread(target=work, name=f"call-{call}", daemon=True)
        thread.start()
        try:
            while (event := events.get()) is not _END:
                if isinstance(event, BaseException):
                    raise self._known(event) from None
                assert isinstance(event, Event)
                yield event
        finally:
            stop.set()
            thread.join()
            with self._lock:
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


class _Sparse:
    """Passes events on, and of many small advances only some."""

    def __init__(self, events: queue.SimpleQueue[object]) -> None:
        self._events = events
        self._sent: Advance | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Advance):
            sent = self._sent
            if sent is not None and sent.phase == event.phase and event.share - sent.share < _STEPS:
                return
            self._sent = event
        self._events.put(event)


def stopped_error() -> VoxfleetError:
    """What work raises that was asked to end."""
    return VoxfleetError(
        Reason.CANCELLED, "stopped as asked", kind=Kind.CANCELLED, failure=FailureClass.TRANSIENT
    )
