"""The few things that differ between the two clients beyond ``await``: here for threads."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import grpc

from voxfleet.client.channel import credentials, options
from voxfleet.client.config import ClientConfig

_P = ParamSpec("_P")
_T = TypeVar("_T")

CALL_FAILURES: tuple[type[BaseException], ...] = (grpc.RpcError,)


def open_channel(config: ClientConfig, ca_file: str | Path | None) -> grpc.Channel:
    """A channel to the configured endpoint; connects with the first call."""
    if config.tls:
        return grpc.secure_channel(config.target, credentials(ca_file), options=options())
    return grpc.insecure_channel(config.target, options=options())


def sleep(seconds: float) -> None:
    """Waits."""
    time.sleep(seconds)


def run_blocking(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Runs it here: the caller's thread may block."""
    return function(*args, **kwargs)
