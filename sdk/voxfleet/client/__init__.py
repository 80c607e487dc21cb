"""The Python SDK of Voxfleet: ``AsyncClient``, and ``Client``, which is the same without ``await``.

Importing this package is cheap: gRPC is loaded with the first client.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from voxfleet.client.aio.client import AsyncClient
    from voxfleet.client.config import ClientConfig, find_config
    from voxfleet.client.errors import (
        ConfigurationError,
        JobCancelled,
        JobFailed,
        VoxfleetError,
    )
    from voxfleet.client.retry import RetryPolicy
    from voxfleet.client.speech import Speech
    from voxfleet.client.sync.client import Client

_HOME: Final = {
    "AsyncClient": "voxfleet.client.aio.client",
    "Client": "voxfleet.client.sync.client",
    "ClientConfig": "voxfleet.client.config",
    "ConfigurationError": "voxfleet.client.errors",
    "JobCancelled": "voxfleet.client.errors",
    "JobFailed": "voxfleet.client.errors",
    "RetryPolicy": "voxfleet.client.retry",
    "Speech": "voxfleet.client.speech",
    "VoxfleetError": "voxfleet.client.errors",
    "find_config": "voxfleet.client.config",
}

__all__ = [
    "AsyncClient",
    "Client",
    "ClientConfig",
    "ConfigurationError",
    "JobCancelled",
    "JobFailed",
    "RetryPolicy",
    "Speech",
    "VoxfleetError",
    "find_config",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
