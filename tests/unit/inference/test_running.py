"""One call in a replica: events as they happen, stops, errors as callers know them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.common import telemetry
from services.common.errors import FailureClass, Reason, VoxfleetError, invalid
from services.inference.calls import Advance, Convert, Pcm
from services.inference.engine.running import _HELD as HELD
from services.inference.engine.running import _REMEMBERED as REMEMBERED
from services.inference.engine.running import Batch, Calls, stopped_error
from tests.polling import until
from tests.unit.inference.fakes import facts

REQUEST = Convert("job", None)  # type: ignore[arg-type]
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Body:
    """Runs a function."""

    facts = facts()

    def __init__(self, work) -> None:
        self._work = work

    def run(self, request, emit, stopped) -> None:
        self._work(emit, stopped)


def read(calls: Calls, call: str, request=REQUEST, traceparent: str = ""):
    """A call's events, asked for batch by batch while it runs, and its error."""
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(calls.run, call, request, traceparent)
        while not running.done():
            yield from calls.more(call).events
    last = running.result()
    yield from last.events
    if last.error is not None:
        raise last.error


def run(work, **settings) -> list:
    return list(read(Calls(Body(work), Reason.CONVERSION_FAILED), "c", **settings))


def test_events_come_while_the_work_goes_on() -> None:
    go_on = threading.Event()

    def work(emit, _stopped) -> None:
        emit(Pcm(b"1", 1, 0.0))
        assert go_on.wait(10)
        emit(Pcm(b"2", 1, 0.0))

    events = read(Calls(Body(work), Reason.CONVERSION_FAILED), "c")
    assert next(events) == Pcm(b"1", 1, 0.0)
    go_on.set()
    assert list(events) == [Pcm(b"2", 1, 0.0)]


def test_what_nobody_asked_for_is_told_at_the_end() -> None:
    def work(emit, _stopped) -> None:
        emit(Pcm(b"1", 1, 0.0))
        emit(Pcm(b"2", 1, 0.0))

    calls = Calls(Body(work), Reason.CONVERSION_FAILED)
    assert calls.run("c", REQUEST, "") == Batch((Pcm(b"1", 1, 0.0), Pcm(b"2", 1, 0.0)))
    assert calls.more("c") == Batch(), "who asks late does not wait"


def test_who_asks_before_it_begins_waits_for_it() -> None:
    calls = Calls(Body(lambda emit, stopped: emit(Pcm(b"1", 1, float(stopped())))), Reason.CONVERSION_FAILED)
    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(calls.more, "c")
        until(lambda: "c" in calls._open)
        assert not asking.done()
        told = calls.run("c", REQUEST, "").events
        assert (*asking.result(10).events, *told) == (Pcm(b"1", 1, 0.0),)


def test_calls_that_are_over_leave_nothing_that_grows() -> None:
    calls = Calls(Body(lambda emit, _: emit(Pcm(b"1", 1, 0.0))), Reason.CONVERSION_FAILED)
    for number in range(REMEMBERED + 100):
        calls.run(f"c{number}", REQUEST, "")
        calls.stop(f"c{number}")
    assert not calls._open
    assert len(calls._over) == REMEMBERED


def test_a_stop_reaches_the_work_even_before_it_begins() -> None:
    def work(_emit, stopped) -> None:
        if stopped():
            raise stopped_error()

    calls = Calls(Body(work), Reason.CONVERSION_FAILED)
    calls.stop("early")
    with pytest.raises(VoxfleetError) as caught:
        list(read(calls, "early"))
    assert caught.value.reason is Reason.CANCELLED
    assert list(read(calls, "other")) == []


def test_a_reader_that_leaves_ends_the_work() -> None:
    ended = threading.Event()

    def work(emit, stopped) -> None:
        while not stopped():
            emit(Pcm(b"1", 1, 0.0))
        ended.set()

    calls = Calls(Body(work), Reason.CONVERSION_FAILED)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(calls.run, "c", REQUEST, "")
        assert calls.more("c").events
        calls.stop("c")
        running.result(10)
    assert ended.is_set()
    assert calls.more("c") == Batch(), "nothing is left of it"


def test_work_waits_for_a_reader_who_does_not_read_on() -> None:
    sent: list[int] = []

    def work(emit, _stopped) -> None:
        for number in range(1000):
            emit(Pcm(b"", number, 0.0))
            sent.append(number)

    calls = Calls(Body(work), Reason.CONVERSION_FAILED)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(calls.run, "c", REQUEST, "")
        until(lambda: len(sent) >= HELD)
        assert len(sent) == HELD, "and it goes no further"
        told: list[int] = []
        while not running.done():
            told += [event.samples for event in calls.more("c").events]
        told += [event.samples for event in running.result().events]
    assert told == list(range(1000))


def test_what_was_sent_before_an_error_is_told_before_it() -> None:
    def work(emit, _stopped) -> None:
        emit(Pcm(b"1", 1, 0.0))
        raise invalid(Reason.AUDIO_EMPTY, "nothing")

    events = read(Calls(Body(work), Reason.CONVERSION_FAILED), "c")
    assert next(events) == Pcm(b"1", 1, 0.0)
    with pytest.raises(VoxfleetError) as caught:
        next(events)
    assert caught.value.reason is Reason.AUDIO_EMPTY


def test_many_small_advances_become_few() -> None:
    def work(emit, _stopped) -> None:
        for step in range(1000):
            emit(Advance("convert", step / 1000))
        emit(Advance("encode"))

    events = run(work)
    assert 40 <= len(events) <= 60
    assert events[-1] == Advance("encode")


def test_errors_are_ours_or_made_so() -> None:
    class OutOfMemoryError(RuntimeError):
        """As torch names it."""

    def failing(error: Exception):
        def work(_emit, _stopped) -> None:
            raise error

        return work

    cases = [
        (invalid(Reason.AUDIO_EMPTY, "nothing"), Reason.AUDIO_EMPTY, FailureClass.INPUT),
        (OutOfMemoryError("CUDA"), Reason.GPU_OUT_OF_MEMORY, FailureClass.RESOURCE),
        (ValueError("odd"), Reason.CONVERSION_FAILED, FailureClass.PERMANENT),
    ]
    for error, reason, failure in cases:
        with pytest.raises(VoxfleetError) as caught:
            run(failing(error))
        assert (caught.value.reason, caught.value.failure) == (reason, failure)


def test_the_work_is_a_span_under_the_request() -> None:
    exporter = InMemorySpanExporter()
    telemetry.configure_tracing("test", "")
    from opentelemetry import trace

    trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))
    run(lambda _emit, _stopped: None, traceparent=PARENT)
    span = exporter.get_finished_spans()[-1]
    assert span.name == "engine Convert"
    assert f"{span.context.trace_id:032x}" == PARENT.split("-")[1]
