"""Ray's blocking calls, from asyncio: without a head they wait for it for a minute."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")


async def in_thread(call: Callable[[], _T], timeout_s: float) -> _T:
    """What a blocking call returns, run in a thread of its own.

    Not in asyncio's shared threads: a call that hangs in a dead connection would keep one of them,
    and the event loop's end waits for those.

    Raises:
        TimeoutError: it has not returned in time; its thread stays until it does.
    """
    executor = ThreadPoolExecutor(1, thread_name_prefix="ray-call")
    try:
        return await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(executor, call), timeout_s)
    finally:
        executor.shutdown(wait=False)
