"""Runs calls: the work, its events for who asks for them meanwhile, and a flag that asks it to end."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Protocol

from services.common import telemetry
from services.common.errors import FailureClass, Kind, Reason, VoxfleetError
from services.engines.memory import is_out_of_memory
from services.inference.calls import Advance, ConvertStream, EngineFacts, Event, Request

Emit = Callable[[Event], None]
Stopped = Callable[[], bool]

_STEPS: Final = 0.02
"""Shares of a phase are sent in steps of this size: an engine may count every step of its own."""
_REMEMBERED = 1024
_HELD = 16
"""Events that a reader may be behind by."""


class Body(Protocol):
    """An engine with its weights loaded."""

    @property
    def facts(self) -> EngineFacts:
        """What it is."""

    def run(self, request: Request, emit: Emit, stopped: Stopped) -> None:
        """Does what is asked; polls ``stopped`` and then raises CANCELLED. Several threads may call it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What a call has sent that nobody had asked for yet.

    Args:
        events: in their order.
        error: what the call ended with, after all of its events; as callers know it.
    """

    events: tuple[Event, ...] = ()
    error: VoxfleetError | None = None


class Calls:
    """The calls that run on a body.

    A call's work is done in :meth:`run`, which tells at its end what has not been asked for. Who wants to
    hear of it earlier asks for :meth:`more` beside it, in another thread; the work waits for a reader who is
    far behind. So a short call takes one question, and one thread.

    Args:
        body: what does the work.
        failed: the reason of an unexpected error.
    """

    def __init__(self, body: Body, failed: Reason) -> None:
        self._body = body
        self._failed = failed
        self._open: dict[str, _Call] = {}
        self._over: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def run(self, call: str, request: Request, traceparent: str) -> Batch:
        """Does a call's work; its last events, and its error if it had one."""
        ours = self._call(call)
        error: VoxfleetError | None = None
        try:
            with telemetry.span(f"engine {type(request).__name__}", traceparent=traceparent):
                if isinstance(request, ConvertStream):
                    request = replace(request, fed=ours.fed())
                self._body.run(request, ours.emit, ours.stopped)
        except BaseException as caught:  # noqa: BLE001 - told to whoever asked for the work
            error = self._known(caught)
        with self._lock:
            self._open.pop(call, None)
            self._over[call] = None
            while len(self._over) > _REMEMBERED:
                self._over.popitem(last=False)
        return Batch(ours.close(), error)

    def more(self, call: str) -> Batch:
        """A call's next events, once there are any; none where the rest is told by :meth:`run`."""
        return Batch(self._call(call).take())

    def stop(self, call: str) -> None:
        """Asks a call to end; it may not even have begun."""
        self._call(call).stop()

    def feed(self, call: str, data: bytes) -> None:
        """Gives a call what it is to work on; it may not even have begun. An empty piece is the end."""
        self._call(call).feed(data)

    def _call(self, call: str) -> _Call:
        """A call that is over, or that runs, or that is still on its way here."""
        with self._lock:
            if call in self._over:
                return _ENDED
            return self._open.setdefault(call, _Call())

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


class _Call:
    """What one call is fed, what it has sent that nobody has taken yet, and whether it is to end."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._events: list[Event] = []
        self._advance: Advance | None = None
        self._fed: deque[bytes] = deque()
        self._stopped = False
        self._over = False

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def stopped(self) -> bool:
        return self._stopped

    def feed(self, data: bytes) -> None:
        """How far ahead of the work it may run is the feeder's to know."""
        with self._changed:
            if not self._over:
                self._fed.append(data)
                self._changed.notify_all()

    def fed(self) -> Iterator[bytes]:
        """What it is fed, as it comes. Errors: CANCELLED where it is told to stop."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._fed or self._stopped)
                if self._stopped:
                    raise stopped_error()
                data = self._fed.popleft()
            if not data:
                return
            yield data

    def close(self) -> tuple[Event, ...]:
        """The rest; there will be no more."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
            return self._taken()

    def take(self) -> tuple[Event, ...]:
        with self._changed:
            self._changed.wait_for(lambda: self._events or self._over)
            self._changed.notify_all()
            return self._taken()

    def _taken(self) -> tuple[Event, ...]:
        events, self._events = tuple(self._events), []
        return events

    def emit(self, event: Event) -> None:
        """Passes an event on, of many small advances only some; waits for a reader who is far behind."""
        if isinstance(event, Advance):
            sent = self._advance
            if sent is not None and sent.phase == event.phase and event.share - sent.share < _STEPS:
                return
            self._advance = event
        with self._changed:
            self._changed.wait_for(lambda: len(self._events) < _HELD or self._stopped)
            self._events.append(event)
            self._changed.notify_all()


_ENDED: Final = _Call()
_ENDED.close()


def stopped_error() -> VoxfleetError:
    """What work raises that was asked to end."""
    return VoxfleetError(
        Reason.CANCELLED, "stopped as asked", kind=Kind.CANCELLED, failure=FailureClass.TRANSIENT
    )
