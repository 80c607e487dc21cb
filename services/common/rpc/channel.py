"""Channels between services: retried where that is safe, with the service token and the trace."""

from __future__ import annotations

import json
from typing import Any, Final

import grpc
from opentelemetry import propagate

from services.common.rpc.caller import TOKEN_HEADER, Caller, current_caller

# A batch of 100,000 lines comes in one message; the gateway holds every other call to far less.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024

_READS: Final = {
    "voxfleet.internal.v1.IdentityService": ("Authenticate",),
    "voxfleet.internal.v1.CatalogService": (
        "FetchUpload",
        "ResolveAudio",
        "ResolveVoice",
        "ListStoredBundles",
    ),
    "voxfleet.v1.AudioService": ("GetUpload", "GetAudio", "ListAudios", "AnalyzeAudio", "GetDownloadUrl"),
    "voxfleet.v1.VoiceService": ("GetVoice", "ListVoices", "ListCheckpoints"),
    "voxfleet.v1.SynthesisService": ("ListEngines", "ListBundles"),
    "voxfleet.v1.JobService": ("GetJob", "ListJobs"),
    "voxfleet.v1.FleetService": ("GetFleet", "ListQueues"),
    "voxfleet.v1.TrustService": ("ListTeams", "ListApiKeys"),
}
"""What is retried on UNAVAILABLE: reads alone. A write that was cut off may have been done, so it is its
caller who repeats it, under its request id. (gRPC itself repeats what never reached a server.)"""

_SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [
                    {"service": service, "method": method}
                    for service, methods in _READS.items()
                    for method in methods
                ],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
        "loadBalancingConfig": [{"round_robin": {}}],
    }
)

OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.service_config", _SERVICE_CONFIG),
    # A service that was restarted must be found again within seconds.
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
)


def identity_headers(service_token: str, caller: Caller) -> tuple[tuple[str, str], ...]:
    """The metadata that every call between services carries."""
    return ((TOKEN_HEADER, service_token), *caller.headers())


class _Identity:
    """Adds the identity headers and the trace context to a call's metadata.

    OpenTelemetry's own interceptors for grpc.aio are not used: of a call with one answer they await the
    end inside the interceptor, and a caller that is cancelled meanwhile leaves the call running. An upload
    cut off before a gateway would end in order behind it, and pass for a whole one.
    """

    def __init__(self, service_token: str) -> None:
        self._token = service_token

    def details(self, found: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        metadata = grpc.aio.Metadata(*(found.metadata or ()))
        for key, value in identity_headers(self._token, current_caller()):
            metadata.add(key, value)
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        for key, value in carrier.items():
            metadata.add(key, value)
        return grpc.aio.ClientCallDetails(
            method=found.method,
            timeout=found.timeout,
            metadata=metadata,
            credentials=found.credentials,
            wait_for_ready=found.wait_for_ready,
        )


# grpc.aio files an interceptor under the first arity that its class fits: hence one class for each.
class _UnaryUnary(_Identity, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self.details(client_call_details), request)


class _UnaryStream(_Identity, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self.details(client_call_details), request)


class _StreamUnary(_Identity, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await continuation(self.details(client_call_details), request_iterator)


class _StreamStream(_Identity, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await continuation(self.details(client_call_details), request_iterator)


def service_channel(address: str, service_token: str) -> grpc.aio.Channel:
    """A channel to another service, in the name of the present caller.

    Args:
        address: ``host:port``, or a gRPC target such as ``dns:///name:port``.
        service_token: the secret that services show one another.
    """
    identity = [kind(service_token) for kind in (_UnaryUnary, _UnaryStream, _StreamUnary, _StreamStream)]
    return grpc.aio.insecure_channel(address, options=OPTIONS, interceptors=identity)
