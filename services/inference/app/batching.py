"""Texts of batches, spoken together: as many of those that wait as the engine takes in one call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from services.common.errors import FailureClass, Reason, VoxfleetError, internal
from services.common.jobs.tasks import SpeakTask
from services.inference.app.members import GpusLentError, Running
from services.inference.app.pool import Pool
from services.inference.calls import Advance, EngineFacts, Made, Refused, SpeakItems, SpeechItem
from services.inference.model import Rank


@dataclass(eq=False)
class _Item:
    item: SpeechItem
    check: Callable[[EngineFacts], None]
    advance: Callable[[Advance], None]
    made: asyncio.Future[Made]
    share: float = 1.0
    group: asyncio.Task[None] | None = None
    lost: bool = False


class SpeechBatcher:
    """Groups items while they wait for a slot, so that a group costs them no wait of its own.

    Args:
        pool: of F5 replicas.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._waiting: list[_Item] = []
        self._groups: dict[asyncio.Task[None], list[_Item]] = {}
        self._groups_waiting = 0

    async def speak(
        self,
        job: str,
        task: SpeakTask,
        *,
        check: Callable[[EngineFacts], None],
        advance: Callable[[Advance], None],
        share: float = 1.0,
    ) -> Made:
        """One item's audio, in the store. Cancelling it stops its group once nobody wants the rest.

        Args:
            job: the item's name.
            task: what to speak; its seed is not 0.
            check: raises where the weights cannot speak it.
            advance: told how far it is.
            share: of the usual number of texts to be spoken together with it: below 1 after a lack of memory.

        Errors: the engine's own for this item; WORKER_LOST where two replicas died under it. GpusLentError
        where the pool lost its GPUs before it was begun.
        """
        made: asyncio.Future[Made] = asyncio.get_running_loop().create_future()
        item = _Item(SpeechItem(job, task), check, advance, made, share)
        self._enqueue(item)
        try:
            return await item.made
        finally:
            if item in self._waiting:
                self._waiting.remove(item)
            elif not item.made.done() or item.made.cancelled():
                self._leave(item)

    def _enqueue(self, item: _Item) -> None:
        self._waiting.append(item)
        self._form_groups()

    def _form_groups(self) -> None:
        """As many groups wait for a slot as the waiting items need, and no more: each counts as demand."""
        facts = self._pool.facts
        batch = facts.batch if facts is not None else 1
        while self._groups_waiting * batch < len(self._waiting):
            self._groups_waiting += 1
            task = asyncio.create_task(self._run_group())
            self._groups[task] = []
            task.add_done_callback(lambda done: self._groups.pop(done, None))

    def _leave(self, item: _Item) -> None:
        if item.group is not None and all(other.made.done() for other in self._groups.get(item.group, ())):
            item.group.cancel()

    async def _run_group(self) -> None:
        """Waits for a slot, then speaks what waits by then; there may be nothing left."""
        taken: list[_Item] = []
        group = asyncio.current_task()
        assert group is not None

        def take(facts: EngineFacts) -> SpeakItems | None:
            self._groups_waiting -= 1
            self._groups[group] = taken
            while self._waiting and len(taken) < _most_with(self._waiting[0], taken, facts.batch):
                item = self._waiting.pop(0)
                try:
                    item.check(facts)
                except VoxfleetError as error:
                    _fail(item, error)
                else:
                    item.group = group
                    taken.append(item)
            self._form_groups()
            return SpeakItems(tuple(one.item for one in taken)) if taken else None

        try:
            async with self._pool.call(take, Rank.BATCH) as running:
                if running is not None:
                    await _follow(running, taken)
        except GpusLentError as error:
            self._groups_waiting -= 1
            waiting, self._waiting = self._waiting, []
            for item in waiting:
                _fail(item, error)
        except VoxfleetError as error:
            self._after(error, taken)
        except Exception as error:
            self._after(internal(f"{type(error).__name__}: {error}"), taken)
            raise

    def _after(self, error: VoxfleetError, taken: list[_Item]) -> None:
        for item in taken:
            if item.made.done():
                continue
            if error.reason is Reason.WORKER_LOST and not item.lost:
                item.lost = True
                self._enqueue(item)
            else:
                _fail(item, error)


def _most_with(item: _Item, taken: list[_Item], batch: int) -> int:
    """How many texts a group may have that has this one as well."""
    return max(1, int(batch * min(one.share for one in [item, *taken])))


async def _follow(running: Running, taken: list[_Item]) -> None:
    async for event in running.events():
        match event:
            case Advance(item=index):
                taken[index].advance(event)
            case Made(item=index):
                if not taken[index].made.done():
                    taken[index].made.set_result(event)
            case Refused(error=error, item=index):
                if error.failure is FailureClass.RESOURCE:
                    error.metadata.setdefault("node", running.facts.node)
                _fail(taken[index], error)
    for item in taken:
        _fail(item, internal("the engine ended without an answer"))


def _fail(item: _Item, error: VoxfleetError | GpusLentError) -> None:
    if not item.made.done():
        item.made.set_exception(error)
