"""What every RPC of every service passes through: identity, metrics, errors, logs."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from prometheus_client import Counter, Histogram

from services.common import telemetry
from services.common.errors import Kind, Reason, VoxfleetError, internal
from services.common.names import new_id
from services.common.rpc import caller as callers
from services.common.rpc import status
from services.common.rpc.reading import read_out

log = logging.getLogger(__name__)

RPCS = Counter("voxfleet_rpcs_total", "RPCs served, by method and gRPC code.", ["method", "code"])
RPC_SECONDS = Histogram(
    "voxfleet_rpc_duration_seconds",
    "Time to serve an RPC, by method; of a stream, its whole life.",
    ["method"],
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2.5, 10, 60, 600),
)

# Health and reflection answer anyone, as load balancers and tools expect.
OPEN_PREFIXES = ("/grpc.health.v1.", "/grpc.reflection.")

Authenticator = Callable[[dict[str, str]], Awaitable[callers.Caller]]


def service_authenticator(service_token: str) -> Authenticator:
    """Lets only holders of the service token in, in the name that they give."""

    async def authenticate(metadata: dict[str, str]) -> callers.Caller:
        if not hmac.compare_digest(metadata.get(callers.TOKEN_HEADER, ""), service_token):
            raise VoxfleetError(
                Reason.UNAUTHENTICATED,
                "this is an internal service: call the gateway",
                kind=Kind.UNAUTHENTICATED,
            )
        return callers.Caller(
            team=metadata.get(callers.TEAM_HEADER, ""),
            key=metadata.get(callers.KEY_HEADER, ""),
            operator=metadata.get(callers.OPERATOR_HEADER) == "1",
            request_id=metadata.get(callers.REQUEST_ID_HEADER, ""),
        )

    return authenticate


class Boundary(grpc.aio.ServerInterceptor):
    """Identity in, documented errors out, and a metric for each call."""

    def __init__(self, authenticate: Authenticator) -> None:
        self._authenticate = authenticate

    async def intercept_service(
        self,
        continuation: Any,
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps a call's handler; health and reflection pass unguarded."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(OPEN_PREFIXES):
            return handler
        metadata = {
            key: value for key, value in handler_call_details.invocation_metadata if isinstance(value, str)
        }
        return _wrap(handler, self._guard(method, metadata))

    def _guard(self, method: str, metadata: dict[str, str]) -> _Guard:
        return _Guard(method, metadata, self._authenticate)


class _Guard:
    """One call's passage."""

    def __init__(self, method: str, metadata: dict[str, str], authenticate: Authenticator) -> None:
        self.method = method
        self._metadata = metadata
        self._authenticate = authenticate
        self._began = time.perf_counter()

    async def enter(self) -> None:
        caller = await self._authenticate(self._metadata)
        if not caller.request_id:
            caller = callers.Caller(
                caller.team,
                caller.key,
                caller.operator,
                self._metadata.get(callers.REQUEST_ID_HEADER, "")[:64] or new_id(),
            )
        callers.set_caller(caller)

    def leave(self, code: str) -> None:
        RPCS.labels(self.method, code).inc()
        RPC_SECONDS.labels(self.method).observe(time.perf_counter() - self._began)

    async def fail(
        self, error: BaseException, request: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """Ends the call with the error's documented form; a client that still sends is heard out first."""
        if isinstance(error, grpc.aio.AioRpcError):
            error = status.from_rpc_error(error)
        if not isinstance(error, VoxfleetError):
            log.error("unexpected error in %s", self.method, exc_info=error)
            error = internal("an internal error; quote the trace id to an operator")
        code = status.CODE_OF_KIND[error.kind]
        self.leave(code.name)
        if error.kind is Kind.INTERNAL:
            log.error("%s failed: %s", self.method, error.message)
        trace_id = telemetry.current_trace_id() or callers.current_caller().request_id
        if isinstance(request, AsyncIterable):
            await read_out(request)
        context.set_trailing_metadata(status.trailers(error, trace_id=trace_id))
        await context.abort(code, status.cut(error.message))


def _wrap(handler: grpc.RpcMethodHandler, guard: _Guard) -> grpc.RpcMethodHandler:
    """The handler with the guard around its behaviour; the same arity and codecs."""
    codec = {
        "request_deserializer": handler.request_deserializer,
        "response_serializer": handler.response_serializer,
    }
    if handler.response_streaming:
        streaming: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream
        guarded = _guarded_stream(streaming, guard)
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(guarded, **codec)
        return grpc.unary_stream_rpc_method_handler(guarded, **codec)
    single: Any = handler.stream_unary if handler.request_streaming else handler.unary_unary
    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler(_guarded_unary(single, guard), **codec)
    return grpc.unary_unary_rpc_method_handler(_guarded_unary(single, guard), **codec)


def _guarded_unary(behaviour: Any, guard: _Guard) -> Any:
    async def unary(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            await guard.enter()
            response = await behaviour(request, context)
        except (grpc.aio.AbortError, asyncio.CancelledError):
            guard.leave("CANCELLED")
            raise
        except Exception as error:
            await guard.fail(error, request, context)
            raise
        guard.leave("OK")
        return response

    return unary


def _guarded_stream(behaviour: Any, guard: _Guard) -> Any:
    async def stream(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            await guard.enter()
            async for response in behaviour(request, context):
                yield response
        except (grpc.aio.AbortError, asyncio.CancelledError, GeneratorExit):
            guard.leave("CANCELLED")
            raise
        except Exception as error:
            await guard.fail(error, request, context)
            raise
        guard.leave("OK")

    return stream
