"""A served double of the gateway, and both clients behind one face."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from tests.unit.sdk.server import Double, serve
from voxfleet.client import AsyncClient, Client, RetryPolicy

QUICK = RetryPolicy(attempts=4, initial_backoff_s=0.001, max_backoff_s=0.002, reconnect_s=30.0)


class Face:
    """Runs the same test on the asynchronous and on the synchronous client."""

    def __init__(self, client: AsyncClient | Client) -> None:
        self.client: Any = client
        self._sync = isinstance(client, Client)

    async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Awaits it, or runs it in a thread."""
        if self._sync:
            return await asyncio.to_thread(function, *args, **kwargs)
        return await function(*args, **kwargs)

    async def collect(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Everything that it yields."""
        if self._sync:
            return await asyncio.to_thread(lambda: list(function(*args, **kwargs)))
        return [item async for item in function(*args, **kwargs)]


@pytest.fixture
def double() -> Double:
    return Double()


@pytest.fixture
def endpoint(double: Double) -> Iterator[str]:
    server, port = serve(double)
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture(params=["aio", "sync"])
async def face(request: pytest.FixtureRequest, endpoint: str) -> AsyncIterator[Face]:
    where = {"endpoint": endpoint, "token": "vf-test", "team": "acme", "retry": QUICK}
    if request.param == "aio":
        async with AsyncClient(**where) as client:
            yield Face(client)
    else:
        with Client(**where) as plain:
            yield Face(plain)
