"""Logs and traces. Traces leave only where an OTLP endpoint is set; the context travels always.

The context is W3C Trace Context (``traceparent``): from the client's call through gRPC metadata,
the ledger's row and the Ray actor's arguments to the work on a GPU.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

_TRACER = "voxfleet"


def configure_tracing(service: str, otlp_endpoint: str, *, exporter: SpanExporter | None = None) -> None:
    """Sets the process's tracer; without an endpoint (or an exporter) spans are made but sent nowhere."""
    provider = TracerProvider(resource=Resource.create({"service.name": f"voxfleet-{service}"}))
    if exporter is None and otlp_endpoint:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter(endpoint=otlp_endpoint, insecure=not otlp_endpoint.startswith("https"))
    if exporter is not None:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def flush_traces() -> None:
    """Sends what is still held; call before a process ends."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.shutdown()


def current_traceparent() -> str:
    """The present context as a ``traceparent`` header, or empty outside a span."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier.get("traceparent", "")


def current_trace_id() -> str:
    """The present trace id, hexadecimal, or empty outside a span."""
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else ""


def trace_id_of(traceparent: str) -> str:
    """The trace id in a ``traceparent`` header, or empty."""
    parts = traceparent.split("-")
    return parts[1] if len(parts) == 4 else ""


@contextmanager
def span(name: str, *, traceparent: str = "", **attributes: str | float | bool) -> Iterator[trace.Span]:
    """A span; under ``traceparent`` where given, else under the present one."""
    parent = propagate.extract({"traceparent": traceparent}) if traceparent else otel_context.get_current()
    with trace.get_tracer(_TRACER).start_as_current_span(
        name, context=parent, attributes=attributes
    ) as found:
        yield found


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if trace_id := current_trace_id():
            entry["trace_id"] = trace_id
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def configure_logging(service: str, level: str, *, as_json: bool = False) -> None:
    """Sends the process's logs to standard error, a line each."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter(f"%(asctime)s %(levelname)-7s {service} %(name)s: %(message)s")
    handler.setFormatter(_JsonFormatter() if as_json else text)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)
