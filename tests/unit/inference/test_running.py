"""One call in a replica: events as they happen, stops, errors as callers know them."""

from __future__ import annotations

import threading
import time

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.common import telemetry
from services.common.errors import FailureClass, Reason, VoxfleetError, invalid
from services.inference.calls import Advance, Convert, Pcm
from services.inference.engine.running import _HELD as HELD
from services.inference.engine.running import Calls, stopped_error
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
    """A call's events, asked for batch by batch."""
    batch = calls.begin(call, request, traceparent)
    yield from batch.events
    while not batch.over:
        batch = calls.more(call)
        yield from batch.events


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


def test_what_is_over_at_once_takes_one_question() -> None:
    calls = Calls(Body(lambda emit, _: emit(Pcm(b"1", 1, 0.0))), Reason.CONVERSION_FAILED)
    # The work may just not be over when it is asked; once in so many tries it is.
    batches = [calls.begin(f"c{number}", REQUEST, "") for number in range(50)]
    assert all(batch.events == (Pcm(b"1", 1, 0.0),) for batch in batches)
    assert any(batch.over for batch in batches)


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
    calls.begin("c", REQUEST, "")
    calls.ended("c")
    assert ended.is_set()
    assert calls.more("c").over, "nothing is left of it"


def test_work_waits_for_a_reader_who_does_not_read_on() -> None:
    sent: list[int] = []

    def work(emit, _stopped) -> None:
        for number in range(1000):
            emit(Pcm(b"", number, 0.0))
            sent.append(number)

    calls = Calls(Body(work), Reason.CONVERSION_FAILED)
    first = calls.begin("c", REQUEST, "")
    deadline = time.monotonic() + 30
    while len(sent) < len(first.events) + HELD:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert len(sent) <= len(first.events) + HELD + 1
    rest = list(first.events)
    while not (batch := calls.more("c")).over:
        rest += batch.events
    assert [event.samples for event in [*rest, *batch.events]] == list(range(1000))


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
