"""An artefact store's blocking client, in threads of its own."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from services.common.artifacts.ports import ArtifactStore

P = ParamSpec("P")
T = TypeVar("T")


class ThreadedStore:
    """What the services' adapters of the store have in common.

    Args:
        store: any artefact store; its methods block.
        threads: how many of its requests run at once; further ones wait.
        name: of the threads.
    """

    def __init__(self, store: ArtifactStore, *, threads: int, name: str) -> None:
        self._store = store
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)

    def close(self) -> None:
        """Takes no more requests; those in progress end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def delete_prefix(self, prefix: str) -> None:
        """Deletes everything whose key begins so. Errors: STORAGE_UNAVAILABLE."""
        await self._call(self._store.delete_prefix, prefix)

    async def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        # The context goes along: the trace, and the caller's name in the logs.
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: context.run(function, *args, **kwargs)
        )
