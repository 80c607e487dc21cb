"""The caller's trace, carried to the server (W3C Trace Context)."""

from __future__ import annotations

import sys
from typing import Any


def trace_headers() -> tuple[tuple[str, str], ...]:
    """``traceparent`` of the active OpenTelemetry span; nothing where there is none.

    A span can be active only if the program has imported OpenTelemetry: this never imports it.
    """
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return ()
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return ()
    value = f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
    return (("traceparent", value),)
