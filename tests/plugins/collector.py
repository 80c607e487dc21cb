"""A real OTLP collector over gRPC, in memory."""

from __future__ import annotations

import threading
from concurrent import futures
from dataclasses import dataclass, field

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass(frozen=True)
class Span:
    """What a test asks of a span."""

    service: str
    name: str
    trace_id: str


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps every span that services send; ``endpoint`` is what they send it to."""

    endpoint: str = ""
    _spans: list[Span] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def Export(self, request, context):
        """Takes spans."""
        with self._lock:
            for resource in request.resource_spans:
                names = {a.key: a.value.string_value for a in resource.resource.attributes}
                for scope in resource.scope_spans:
                    self._spans += [
                        Span(names.get("service.name", ""), span.name, span.trace_id.hex())
                        for span in scope.spans
                    ]
        return trace_service_pb2.ExportTraceServiceResponse()

    def of_trace(self, trace_id: str) -> list[Span]:
        """The spans of one trace."""
        with self._lock:
            return [span for span in self._spans if span.trace_id == trace_id]


def start() -> tuple[Collector, grpc.Server]:
    """A collector that listens on loopback."""
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    return collector, server
