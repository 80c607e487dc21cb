"""Forwards public methods unchanged to the service that owns them.

Requests are read once, for validation, and travel on as the very bytes that came; answers are not read
at all. A backend's error reaches the client as the backend raised it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
from google.protobuf import descriptor, message

from services.common.errors import Kind, Reason, VoxfleetError, invalid, not_built
from services.common.rpc.caller import current_caller
from services.common.rpc.channel import MAX_MESSAGE_BYTES
from services.common.rpc.handlers import message_class, method_path, rpc_handler, service_descriptor
from services.gateway.routes import ROUTES, SERVICES, Backend
from services.gateway.validation import MAX_CHUNK_BYTES, validate, validate_first

# A chunk's frame adds a few bytes to what it carries.
_MAX_STREAM_MESSAGE_BYTES = MAX_CHUNK_BYTES + 1024
_MAX_UNARY_BYTES = 4 * 1024 * 1024
_MAX_BYTES_OF = {"BatchSynthesize": MAX_MESSAGE_BYTES}


class Forwarder:
    """Handlers for every public service."""

    def __init__(
        self,
        channels: Mapping[Backend, grpc.aio.Channel],
        *,
        unary_timeout_s: float,
        upload_timeout_s: float,
    ) -> None:
        """Makes the handlers.

        Args:
            channels: to each backend.
            unary_timeout_s: the deadline of a unary call that brings none.
            upload_timeout_s: the deadline of an upload that brings none.
        """
        self._channels = channels
        self._unary_timeout_s = unary_timeout_s
        self._upload_timeout_s = upload_timeout_s

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """One generic handler a public service, with every method that it declares."""
        return [self._service(f"voxfleet.v1.{name}", ROUTES.get(name, {})) for name in SERVICES]

    def _service(self, full_name: str, routes: Mapping[str, Backend]) -> grpc.GenericRpcHandler:
        service = service_descriptor(full_name)
        unknown = routes.keys() - {method.name for method in service.methods}
        if unknown:
            raise LookupError(f"{full_name} declares no {', '.join(sorted(unknown))}")
        return grpc.method_handlers_generic_handler(
            full_name,
            {method.name: self._method(method, routes.get(method.name)) for method in service.methods},
        )

    def _method(
        self, method: descriptor.MethodDescriptor, backend: Backend | None
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        if backend is None:
            behaviour = _not_built(method)
        else:
            behaviour = {
                (False, False): self._unary_unary,
                (False, True): self._unary_stream,
                (True, False): self._stream_unary,
                (True, True): self._stream_stream,
            }[(method.client_streaming, method.server_streaming)](method, self._channels[backend])
        return rpc_handler(method, behaviour, request_deserializer=bytes, response_serializer=bytes)

    def _unary_unary(self, method: descriptor.MethodDescriptor, channel: grpc.aio.Channel) -> Any:
        call: Any = channel.unary_unary(method_path(method))

        async def handle(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            validate(_parse(method, request), current_caller())
            answer: bytes = await call(request, timeout=context.time_remaining() or self._unary_timeout_s)
            return answer

        return handle

    def _unary_stream(self, method: descriptor.MethodDescriptor, channel: grpc.aio.Channel) -> Any:
        call: Any = channel.unary_stream(method_path(method))

        async def handle(
            request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]
        ) -> AsyncIterator[bytes]:
            validate(_parse(method, request), current_caller())
            stream = call(request, timeout=context.time_remaining())
            try:
                async for answer in stream:
                    yield answer
            finally:
                stream.cancel()

        return handle

    def _stream_unary(self, method: descriptor.MethodDescriptor, channel: grpc.aio.Channel) -> Any:
        call: Any = channel.stream_unary(method_path(method))

        async def handle(
            requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
        ) -> bytes:
            source = _Source(method, requests)
            await source.open()
            stream = call(source.messages(), timeout=context.time_remaining() or self._upload_timeout_s)
            try:
                answer: bytes = await stream
                return answer
            except asyncio.CancelledError:
                source.raise_failure()
                raise
            finally:
                stream.cancel()

        return handle

    def _stream_stream(self, method: descriptor.MethodDescriptor, channel: grpc.aio.Channel) -> Any:
        call: Any = channel.stream_stream(method_path(method))

        async def handle(
            requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
        ) -> AsyncIterator[bytes]:
            source = _Source(method, requests)
            await source.open()
            stream = call(source.messages(), timeout=context.time_remaining())
            try:
                async for answer in stream:
                    yield answer
            except asyncio.CancelledError:
                source.raise_failure()
                raise
            finally:
                stream.cancel()

        return handle


class _Source:
    """A client's stream on its way to a backend: its first message judged, each within the limit.

    gRPC answers an error in what it sends with a cancellation of the call; :meth:`raise_failure` says what
    it was.
    """

    def __init__(self, method: descriptor.MethodDescriptor, requests: AsyncIterator[bytes]) -> None:
        self._method = method
        self._requests = aiter(requests)
        self._first = b""
        self._failure: VoxfleetError | None = None

    async def open(self) -> None:
        """Judges the first message, before the backend is called at all."""
        first = await anext(self._requests, None)
        if first is None:
            raise VoxfleetError(
                Reason.INVALID_ARGUMENT, "the stream ended before its first message", kind=Kind.INVALID
            )
        _check_size(self._method, first, _MAX_STREAM_MESSAGE_BYTES)
        validate_first(_parse(self._method, first), current_caller())
        self._first = first

    async def messages(self) -> AsyncIterator[bytes]:
        """The messages. Errors: MESSAGE_TOO_LARGE."""
        yield self._first
        self._first = b""
        async for request in self._requests:
            try:
                _check_size(self._method, request, _MAX_STREAM_MESSAGE_BYTES)
            except VoxfleetError as error:
                self._failure = error
                raise
            yield request

    def raise_failure(self) -> None:
        """Raises what ended the stream, where it was ours."""
        if self._failure is not None:
            raise self._failure


def _check_size(method: descriptor.MethodDescriptor, request: bytes, max_bytes: int) -> None:
    if len(request) > max_bytes:
        raise invalid(
            Reason.MESSAGE_TOO_LARGE,
            f"a message of {method.name} has at most {max_bytes} bytes, this one {len(request)}",
            max_bytes=max_bytes,
        )


def _parse(method: descriptor.MethodDescriptor, request: bytes) -> message.Message:
    """The message. Errors: MESSAGE_TOO_LARGE, INVALID_ARGUMENT."""
    _check_size(method, request, _MAX_BYTES_OF.get(method.name, _MAX_UNARY_BYTES))
    try:
        return message_class(method.input_type).FromString(request)
    except message.DecodeError:
        raise VoxfleetError(
            Reason.INVALID_ARGUMENT,
            f"the bytes are no {method.input_type.full_name}",
            kind=Kind.INVALID,
        ) from None


def _not_built(method: descriptor.MethodDescriptor) -> Any:
    feature = f"{method.containing_service.name}.{method.name}"

    async def unary(_request: object, _context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        raise not_built(feature)

    async def stream(
        _request: object, _context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        raise not_built(feature)
        yield b""  # makes this a generator, as gRPC wants of a streaming method

    return stream if method.server_streaming else unary
