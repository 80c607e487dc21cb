"""The one server shape: health, reflection, ``/metrics``, limits, graceful drain on SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import grpc
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection
from opentelemetry.instrumentation.grpc import aio_server_interceptor
from prometheus_client import start_http_server

from services.common.errors import VoxfleetError
from services.common.rpc.channel import MAX_MESSAGE_BYTES
from services.common.rpc.interceptors import Authenticator, Boundary
from services.common.settings import ServiceSettings

log = logging.getLogger(__name__)

OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A client may ping every 10 s, also without a call; one that pings faster is sent away.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.max_concurrent_streams", 20_000),
    ("grpc.so_reuseport", 0),
)


class RpcServer:
    """A service's server: what it serves, and its beginning and end."""

    def __init__(
        self,
        settings: ServiceSettings,
        handlers: Sequence[grpc.GenericRpcHandler],
        authenticate: Authenticator,
        *,
        services: Sequence[str],
    ) -> None:
        """Builds the server; :meth:`start` binds it.

        Args:
            settings: where to listen and how long to drain.
            handlers: the services.
            authenticate: says who calls, or raises UNAUTHENTICATED.
            services: full names, for health and reflection.
        """
        self._settings = settings
        self._server = grpc.aio.server(
            interceptors=[aio_server_interceptor(), Boundary(authenticate)], options=OPTIONS
        )
        self._server.add_generic_rpc_handlers(tuple(handlers))
        self._health = HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._services = (*services, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
        reflection.enable_server_reflection((*self._services, reflection.SERVICE_NAME), self._server)
        self.port = 0

    async def start(self) -> None:
        """Binds the ports and answers calls; health says SERVING only after :meth:`ready`."""
        host, _, port = self._settings.metrics_listen.rpartition(":")
        start_http_server(int(port), addr=host)
        self.port = self._server.add_insecure_port(self._settings.listen)
        await self.set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.start()

    async def ready(self) -> None:
        """Tells health checks that the service may be used."""
        await self.set_health(health_pb2.HealthCheckResponse.SERVING)
        log.info("ready on port %d", self.port)

    async def set_health(self, state: health_pb2.HealthCheckResponse.ServingStatus.ValueType) -> None:
        """Sets the health of the whole and of each service."""
        for service in ("", *self._services):
            await self._health.set(service, state)

    async def drain(self) -> None:
        """Refuses new calls, lets those in progress end, at most ``drain_s``."""
        await self.set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.stop(self._settings.drain_s)


def run_service(work: Coroutine[Any, Any, None]) -> None:
    """Runs a service's process; what it cannot start without is said in one line, and the status is 1."""
    try:
        uvloop.run(work)
    except VoxfleetError as error:
        log.error("cannot run: %s: %s", error.reason.value, error.message)  # noqa: TRY400 - it is explained
        sys.exit(1)


async def run_until_stopped(stop: Callable[[], Awaitable[None]]) -> None:
    """Waits for SIGTERM or SIGINT, then stops."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()
    log.info("stopping")
    await stop()
