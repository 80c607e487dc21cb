"""What both kinds of channel are opened with."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import grpc

MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024

OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", -1),
    # A connection that died without a word is noticed within 40 s; the gateway allows a ping every 10 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A gateway that was restarted must be found again within seconds.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


def client_version() -> str:
    """The release of this client; ``unknown`` where it runs from a bare folder."""
    try:
        return metadata.version("voxfleet")
    except metadata.PackageNotFoundError:
        return "unknown"


def options() -> tuple[tuple[str, Any], ...]:
    """The channel's options, with the client's name for the server's logs."""
    agent = f"voxfleet-python/{client_version()} python/{platform.python_version()}"
    return (*OPTIONS, ("grpc.primary_user_agent", agent))


def credentials(ca_file: str | Path | None) -> grpc.ChannelCredentials:
    """TLS by the certificates of a PEM file, or by gRPC's own where None."""
    roots = Path(ca_file).read_bytes() if ca_file else None
    return grpc.ssl_channel_credentials(root_certificates=roots)
