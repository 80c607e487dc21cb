"""Group commit: what several callers ask for at the same time goes in one statement."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from services.common.errors import VoxfleetError

A = TypeVar("A")
R = TypeVar("R")


@dataclass(eq=False)
class _Group(Generic[A, R]):
    """Those who go together: what each asked for, and where it waits."""

    asked: list[A] = field(default_factory=list)
    futures: list[asyncio.Future[R]] = field(default_factory=list)
    keys: set[Hashable] = field(default_factory=set)


class Together(Generic[A, R]):
    """Runs one thing for many: who comes while a run is under way goes with the next.

    So under load many asks cost one statement and one commit, and a lone one does not wait. Where more has
    come than goes into one run, or what must not stand in one, runs go beside one another.

    Args:
        run: answers several asks in their order. A VoxfleetError that it raises is raised to each of them;
            after any other error each ask is run by itself.
        most: keys in one run; an ask with more goes by itself.
        at_once: runs beside one another.
        unwanted: told of an answer whose asker has gone.
    """

    def __init__(
        self,
        run: Callable[[Sequence[A]], Awaitable[Sequence[R]]],
        *,
        most: int,
        at_once: int = 4,
        unwanted: Callable[[R], None] = lambda _: None,
    ) -> None:
        self._run = run
        self._most = most
        self._at_once = at_once
        self._unwanted = unwanted
        self._waiting: list[_Group[A, R]] = []
        self._running: set[asyncio.Task[None]] = set()

    async def __call__(self, asked: A, keys: Collection[Hashable]) -> R:
        """The answer to one ask; in one run no key stands twice."""
        group = self._group_for(keys)
        group.asked.append(asked)
        group.keys.update(keys)
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        group.futures.append(future)
        self._start()
        return await future

    def _group_for(self, keys: Collection[Hashable]) -> _Group[A, R]:
        for group in self._waiting:
            if len(group.keys) + len(keys) <= self._most and group.keys.isdisjoint(keys):
                return group
        group = _Group[A, R]()
        self._waiting.append(group)
        return group

    def _start(self) -> None:
        while self._waiting and (
            not self._running or (len(self._running) < self._at_once and len(self._waiting) > 1)
        ):
            task = asyncio.create_task(self._answer(self._waiting.pop(0)))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._start()

    async def _answer(self, group: _Group[A, R]) -> None:
        try:
            answers = await self._run(group.asked)
        except asyncio.CancelledError:
            for future in group.futures:
                future.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - each caller is told
            if len(group.asked) > 1 and not isinstance(error, VoxfleetError):
                # One of them asked for what cannot be: the others shall not suffer for it.
                await self._answer_apart(group)
                return
            for future in group.futures:
                if not future.done():  # its caller may have gone
                    future.set_exception(error)
            return
        for future, answer in zip(group.futures, answers, strict=True):
            if future.done():
                self._unwanted(answer)
            else:
                future.set_result(answer)

    async def _answer_apart(self, group: _Group[A, R]) -> None:
        for asked, future in zip(group.asked, group.futures, strict=True):
            await self._answer(_Group([asked], [future]))
