"""The gateway's process: the only builder of its adapters."""

from __future__ import annotations

import voxfleet.v1.dubbing_pb2
import voxfleet.v1.fleet_pb2
import voxfleet.v1.lexicon_pb2
import voxfleet.v1.trust_pb2  # noqa: F401 - descriptors are looked up by name
from services.common import telemetry
from services.common.rpc.channel import service_channel
from services.common.rpc.server import RpcServer, run_service, run_until_stopped
from services.gateway.forward import Forwarder
from services.gateway.identity import BearerAuthenticator
from services.gateway.routes import SERVICES, Backend
from services.gateway.settings import GatewaySettings


async def serve(settings: GatewaySettings) -> None:
    """Builds the gateway and runs it until SIGTERM."""
    addresses = {
        Backend.METADATA: settings.metadata_address,
        Backend.AUDIO: settings.audio_address,
        Backend.INFERENCE: settings.inference_address,
    }
    channels = {
        backend: service_channel(address, settings.service_token) for backend, address in addresses.items()
    }
    forwarder = Forwarder(
        channels,
        unary_timeout_s=settings.unary_timeout_s,
        upload_timeout_s=settings.upload_timeout_s,
    )
    server = RpcServer(
        settings,
        forwarder.handlers(),
        BearerAuthenticator(channels[Backend.METADATA]),
        services=[f"voxfleet.v1.{name}" for name in SERVICES],
    )

    async def stop() -> None:
        await server.drain()
        for channel in channels.values():
            await channel.close()
        telemetry.flush_traces()

    await server.start()
    await server.ready()
    await run_until_stopped(stop)


def main() -> None:
    """Reads the settings and serves."""
    settings = GatewaySettings()  # type: ignore[call-arg]
    telemetry.configure_logging("gateway", settings.log_level, as_json=settings.log_json)
    telemetry.configure_tracing("gateway", settings.otlp_endpoint)
    run_service(serve(settings))


if __name__ == "__main__":
    main()
