"""The few things that differ between the two clients beyond ``await``: here for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import grpc

from voxfleet.client.channel import credentials, options
from voxfleet.client.config import ClientConfig
from voxfleet.client.errors import ConfigurationError

_P = ParamSpec("_P")
_T = TypeVar("_T")

# grpc.aio cancels a call whose messages could not be made, and then raises as if the task were cancelled.
CALL_FAILURES: tuple[type[BaseException], ...] = (grpc.RpcError, asyncio.CancelledError)


def open_channel(config: ClientConfig, ca_file: str | Path | None) -> grpc.aio.Channel:
    """A channel to the configured endpoint; connects with the first call."""
    try:
        asyncio.get_running_loop()
    except RuntimeError as error:
        raise ConfigurationError(
            "an AsyncClient belongs to an event loop: make it inside a coroutine, or use Client",
            reason="NO_EVENT_LOOP",
        ) from error
    if config.tls:
        return grpc.aio.secure_channel(config.target, credentials(ca_file), options=options())
    return grpc.aio.insecure_channel(config.target, options=options())


async def sleep(seconds: float) -> None:
    """Waits."""
    await asyncio.sleep(seconds)


async def run_blocking(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Runs what reads or writes files off the event loop."""
    return await asyncio.to_thread(function, *args, **kwargs)
