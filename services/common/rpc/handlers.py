"""Method handlers from descriptors: a servicer is any object with methods of the RPCs' names.

A service may serve only some methods of a public service (metadata serves ``GetAudio``, audio
serves ``UploadAudio``), which generated base classes do not allow for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf import descriptor, descriptor_pool, message, message_factory


def service_descriptor(full_name: str) -> descriptor.ServiceDescriptor:
    """The descriptor of a service whose generated module has been imported."""
    found: descriptor.ServiceDescriptor = descriptor_pool.Default().FindServiceByName(full_name)
    return found


def message_class(kind: descriptor.Descriptor) -> type[message.Message]:
    """The generated class of a message."""
    return message_factory.GetMessageClass(kind)


def method_path(method: descriptor.MethodDescriptor) -> str:
    """``/package.Service/Method``."""
    return f"/{method.containing_service.full_name}/{method.name}"


def rpc_handler(
    method: descriptor.MethodDescriptor,
    behaviour: Callable[..., Any],
    *,
    request_deserializer: Callable[[bytes], Any] | None = None,
    response_serializer: Callable[[Any], bytes] | None = None,
) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler of the method's own arity (unary or stream on each side)."""
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[(method.client_streaming, method.server_streaming)]
    request_class = message_class(method.input_type)
    response_class = message_class(method.output_type)
    return make(
        behaviour,
        request_deserializer=request_deserializer or request_class.FromString,
        response_serializer=response_serializer or response_class.SerializeToString,
    )


def servicer_handlers(full_name: str, servicer: object) -> grpc.GenericRpcHandler:
    """Handlers for those methods of a service that the servicer has.

    Raises:
        LookupError: where it has none of them, which is a mistake of wiring.
    """
    service = service_descriptor(full_name)
    handlers = {
        method.name: rpc_handler(method, getattr(servicer, method.name))
        for method in service.methods
        if hasattr(servicer, method.name)
    }
    if not handlers:
        raise LookupError(f"{type(servicer).__name__} has no method of {full_name}")
    return grpc.method_handlers_generic_handler(full_name, handlers)
