"""One call in a replica: events as they happen, stops, errors as callers know them."""

from __future__ import annotations

import threading

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.common import telemetry
from services.common.errors import FailureClass, Reason, VoxfleetError, invalid
from services.inference.calls import Advance, Convert, Pcm
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


def run(work, **settings) -> list:
    return list(
        Calls(Body(work), Reason.CONVERSION_FAILED).run("c", REQUEST, settings.get("traceparent", ""))
    )


def test_events_come_while_the_work_goes_on() -> None:
    go_on = threading.Event()

    def work(emit, _stopped) -> None:
        emit(Pcm(b"1", 1, 0.0))
        assert go_on.wait(10)
        emit(Pcm(b"2", 1, 0.0))

    events = Calls(Body(work), Reason.CONVERSION_FAILED).run("c", REQUEST, "")
    assert next(events) == Pcm(b"1", 1, 0.0)
    go_on.set()
    assert list(events) == [Pcm(b"2", 1, 0.0)]


def test_a_stop_reaches_the_work_even_before_it_begins() -> None:
    def work(_emit, stopped) -> None:
        if stopped():
            raise stopped_error()

    calls = Calls(Body(work), Reason.CONVERSION_FAILED)
    calls.stop("early")
    with pytest.raises(VoxfleetError) as caught:
        list(calls.run("early", REQUEST, ""))
    assert caught.value.reason is Reason.CANCELLED
    assert list(calls.run("other", REQUEST, "")) == []


def test_a_reader_that_leaves_ends_the_work() -> None:
    ended = threading.Event()

    def work(emit, stopped) -> None:
        while not stopped():
            emit(Pcm(b"1", 1, 0.0))
        ended.set()

    events = Calls(Body(work), Reason.CONVERSION_FAILED).run("c", REQUEST, "")
    next(events)
    events.close()
    assert ended.is_set()


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
