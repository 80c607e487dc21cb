"""A client's stream that is answered before its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable
from typing import Any, Final

import grpc

# How long a client that is answered may go on sending, and what counts as its having stopped.
READ_OUT_S: Final = 5.0
READ_OUT_PAUSE_S: Final = 0.1


async def read_out(requests: AsyncIterable[Any]) -> None:
    """Lets a client in the midst of sending come to an end or a pause before it is answered.

    grpc.aio's client reports INTERNAL in place of the answer where the answer meets a write of its own.
    RuntimeError: someone else still reads the stream, and takes what comes.
    """
    source = aiter(requests)
    with contextlib.suppress(TimeoutError, StopAsyncIteration, RuntimeError, grpc.aio.UsageError):
        async with asyncio.timeout(READ_OUT_S):
            while True:
                async with asyncio.timeout(READ_OUT_PAUSE_S):
                    await anext(source)
