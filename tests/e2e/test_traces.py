"""One trace from the client's call through the ledger's row to the work in a Ray actor."""

import secrets

from opentelemetry import trace

from tests.polling import until
from voxfleet.v1 import synthesis_pb2


def test_one_trace_from_client_to_actor(alpha, clone, collector):
    context = trace.SpanContext(
        secrets.randbits(128), secrets.randbits(64), is_remote=False, trace_flags=trace.TraceFlags(1)
    )
    trace_id = f"{context.trace_id:032x}"
    with trace.use_span(trace.NonRecordingSpan(context)):
        fast = synthesis_pb2.SynthesisParameters(preset="fast")
        job = alpha.client.synthesis.batch([("a", "A traced line.")], clone.name, parameters=fast)
    assert job.trace_id == trace_id, "the ledger's row carries it"
    alpha.client.jobs.wait(job.name, timeout_s=120)

    def services() -> set[str]:
        return {span.service for span in collector.of_trace(trace_id)}

    until(lambda: services() >= {"voxfleet-gateway", "voxfleet-metadata", "voxfleet-inference"}, timeout_s=60)
    until(
        lambda: any("actor" in s or "f5" in s for s in services() | names(collector, trace_id)), timeout_s=60
    )
    assert any(name.startswith("job f5.item") for name in names(collector, trace_id))


def names(collector, trace_id: str) -> set[str]:
    return {span.name for span in collector.of_trace(trace_id)}
