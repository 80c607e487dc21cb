"""The replicas of one pool: started, replaced and ended as ``model.reconcile`` decides."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator

from services.common.errors import Reason, VoxfleetError, internal, unavailable
from services.inference import metrics
from services.inference.app.members import Member
from services.inference.calls import EngineFacts, EngineSpec
from services.inference.model import (
    DRAINED,
    SLOW_START,
    Drain,
    PoolPlan,
    Replica,
    ReplicaState,
    Role,
    Start,
    Stop,
    back_off_s,
    generation_to_hold,
    reconcile,
)
from services.inference.ports import Executor

log = logging.getLogger(__name__)


class Replicas:
    """What runs, and with which weights.

    Args:
        role: which engine.
        executor: where replicas run.
        clock: seconds, monotonic.
        changed: told when one has become ready or could not be started.
    """

    def __init__(
        self, role: Role, executor: Executor, *, clock: Callable[[], float], changed: Callable[[], None]
    ) -> None:
        self._role = role
        self._executor = executor
        self._clock = clock
        self._changed = changed
        self._members: dict[int, Member] = {}
        self._is_closed = False
        self._started = 0
        # Weights by generation: the newest, and the last that a replica was ready with.
        self._specs: dict[int, EngineSpec] = {}
        self._newest = 0
        self._proven = 0
        self._failures = 0
        self._newest_failures = 0
        self._newest_failed_s = 0.0
        self._start_from_s = 0.0
        self._last_facts: EngineFacts | None = None
        self._broken: VoxfleetError | None = None

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._members.values()))

    def __getitem__(self, number: int) -> Member:
        return self._members[number]

    @property
    def seen(self) -> tuple[Replica, ...]:
        """The replicas there are."""
        return tuple(member.seen() for member in self._members.values())

    @property
    def has_weights(self) -> bool:
        """Whether it was said what they are to hold."""
        return self._newest > 0

    @property
    def broken(self) -> VoxfleetError | None:
        """Why the last one could not be started; None where it could."""
        return self._broken

    @property
    def facts(self) -> EngineFacts | None:
        """Of the newest that is ready; None while there is none."""
        ready = [member for member in self._members.values() if member.state is ReplicaState.READY]
        return max(ready, key=lambda member: member.number).facts if ready else None

    @property
    def last_facts(self) -> EngineFacts | None:
        """Of the newest that ever was ready."""
        return self._last_facts

    def use(self, spec: EngineSpec) -> bool:
        """Says what replicas are to hold; returns whether that is news."""
        if self._newest and spec == self._specs[self._newest]:
            return False
        known = [number for number, held in self._specs.items() if held == spec]
        # What is asked for again may still be held.
        self._newest = known[0] if known else max(self._specs, default=0) + 1
        self._specs[self._newest] = spec
        self._specs = {number: self._specs[number] for number in {self._newest, self._proven} - {0}}
        self._broken, self._failures, self._newest_failures, self._start_from_s = None, 0, 0, 0.0
        self._last_facts = None
        return True

    def refuse(self, error: VoxfleetError) -> None:
        """Says that there is nothing for them to hold."""
        self._broken = error

    def reconcile(self, plan: PoolPlan, drained: frozenset[str], *, waiting: int, waited_s: float) -> None:
        """Starts, drains and stops what is to be; see ``model.reconcile``."""
        # What ends at once makes room at once.
        while self._may_run and self._step(plan, drained, waiting, waited_s):
            pass

    def close(self) -> None:
        """Ends all; none is started any more, whatever is released later."""
        self._is_closed = True
        for member in self:
            self.drop(member, "closed")

    @property
    def _may_run(self) -> bool:
        return self.has_weights and not self._is_closed

    def _step(self, plan: PoolPlan, drained: frozenset[str], waiting: int, waited_s: float) -> bool:
        """Does what is to be done now; whether a replica that was drained has ended by that."""
        now_s = self._clock()
        generation = generation_to_hold(
            plan,
            self._newest,
            self._proven,
            failures=self._newest_failures,
            since_failure_s=now_s - self._newest_failed_s,
        )
        actions = reconcile(
            plan,
            generation,
            self.seen,
            waiting=waiting,
            waited_s=waited_s,
            now_s=now_s,
            start_from_s=self._start_from_s,
            drained=drained,
        )
        for action in actions:
            match action:
                case Start():
                    self._start(generation, drained)
                case Drain(number, reason):
                    self._drain(self._members[number], reason, now_s)
                case Stop(number, reason):
                    self._stop(self._members[number], reason)
        drained_now = {action.number for action in actions if isinstance(action, Drain)}
        return not drained_now <= self._members.keys()

    def drop(self, member: Member, reason: str) -> None:
        """Ends one at once; harmless where it has ended."""
        if self._members.pop(member.number, None) is None:
            return
        log.info("%s replica %d ends: %s", self._role, member.number, reason)
        metrics.ENDED.labels(self._role, reason).inc()
        member.engine.end()
        current = asyncio.current_task()
        for task in member.tasks:
            if task is not current:
                task.cancel()

    def _start(self, generation: int, avoid: frozenset[str]) -> None:
        self._started += 1
        log.info("%s replica %d starts", self._role, self._started)
        engine = self._executor.start(self._specs[generation], avoid)
        member = Member(self._started, generation, engine, self._clock(), avoids=avoid)
        self._members[member.number] = member
        task = asyncio.create_task(self._bring_up(member))
        member.tasks.add(task)
        task.add_done_callback(member.tasks.discard)

    async def _bring_up(self, member: Member) -> None:
        try:
            facts = await member.engine.ready()
        except Exception as error:  # noqa: BLE001 - whatever it is, the pool goes on without this replica
            known = (
                error if isinstance(error, VoxfleetError) else internal(f"{type(error).__name__}: {error}")
            )
            self._failed(member, known)
            self.drop(member, "start failed")
        else:
            self._is_ready(member, facts)
        self._changed()

    def _is_ready(self, member: Member, facts: EngineFacts) -> None:
        self._failures, self._proven = 0, member.generation
        if member.generation == self._newest:
            self._broken, self._newest_failures = None, 0
        self._specs = {number: self._specs[number] for number in {self._newest, self._proven}}
        member.facts, member.state, member.since_s = facts, ReplicaState.READY, self._clock()
        self._last_facts = facts
        log.info(
            "%s replica %d is ready on %s, pid %d (%s): %s, %d slots",
            *(self._role, member.number, facts.node, facts.pid, facts.device),
            *(facts.weights.label, facts.slots),
        )

    def _failed(self, member: Member, error: VoxfleetError) -> None:
        self._failures += 1
        now_s = self._clock()
        self._start_from_s = now_s + back_off_s(self._failures)
        self._broken = error
        if member.generation == self._newest:
            self._newest_failures, self._newest_failed_s = self._newest_failures + 1, now_s
        log.warning("%s replica %d does not start: %s", self._role, member.number, error.message)

    def _drain(self, member: Member, reason: str, now_s: float) -> None:
        log.info("%s replica %d drains: %s", self._role, member.number, reason)
        member.state, member.since_s, member.leaving = ReplicaState.DRAINING, now_s, reason
        if member.busy == 0:
            self.drop(member, reason)

    def _stop(self, member: Member, reason: str) -> None:
        if reason == SLOW_START:
            waited_s = self._clock() - member.since_s
            self._failed(
                member,
                unavailable(
                    Reason.SERVICE_UNAVAILABLE, f"it was not ready after {waited_s:.0f} s", retry_after_s=10.0
                ),
            )
        self.drop(member, member.leaving if reason == DRAINED else reason)
