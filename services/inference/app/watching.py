"""Watches over replicas: whether they answer, whether they can still work, whether their calls go on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from services.common.errors import Reason, VoxfleetError
from services.inference import metrics
from services.inference.app.members import Member, Running, ends
from services.inference.calls import Probe
from services.inference.health import (
    HealthPlan,
    Pace,
    Vitals,
    holds_too_much,
    is_overdue,
    silence_limit_s,
)
from services.inference.model import ReplicaState, Role

log = logging.getLogger(__name__)

_NOT_KNOWN_S = float("inf")


class Paces:
    """How long calls take, by what is asked for."""

    def __init__(self) -> None:
        self._paces: dict[str, Pace] = {}

    def note(self, running: Running, beside: int) -> None:
        """A call has ended well; ``beside`` calls ran on its replica at its end, it included."""
        pace = self._paces.get(running.kind, Pace())
        self._paces[running.kind] = pace.after(running.work_s, running.size, min(running.beside, beside))

    def limit_s(self, plan: HealthPlan, running: Running, beside: int) -> float:
        """How long a call may be silent while ``beside`` calls run on its replica, it included."""
        pace = self._paces.get(running.kind, Pace())
        return silence_limit_s(plan, pace, running.size, max(running.beside, beside))

    def forget(self) -> None:
        """Other weights have another pace."""
        self._paces.clear()


class Watch:
    """The looks at a pool's replicas. What follows from them is the pool's to decide.

    Args:
        role: which engine the replicas hold.
        paces: of its calls.
        clock: seconds, monotonic.
        stop_grace_s: how long a probe may take to end when it is asked to.
        lost: told of a replica that has died.
        changed: told that what is held against a replica has changed.
    """

    def __init__(
        self,
        role: Role,
        paces: Paces,
        *,
        clock: Callable[[], float],
        stop_grace_s: float,
        lost: Callable[[Member], None],
        changed: Callable[[], None],
    ) -> None:
        self._role = role
        self._paces = paces
        self._clock = clock
        self._stop_grace_s = stop_grace_s
        self._lost = lost
        self._changed = changed

    def look(self, plan: HealthPlan, members: Iterable[Member]) -> None:
        """Begins the checks and probes that are due, and notes the calls that hang."""
        now_s = self._clock()
        members = list(members)
        metrics.show_memory(self._role, (member.vitals for member in members if member.vitals is not None))
        for member in members:
            if member.state is ReplicaState.STARTING:
                continue
            self._look_at_calls(plan, member, now_s)
            if now_s - member.checked_s >= plan.check_s:
                member.checked_s = now_s + plan.check_limit_s
                _spawn(self._check(plan, member), member)
            if member.probe_due_s == _NOT_KNOWN_S:
                # It was warmed up with real work a moment ago.
                member.probe_due_s = now_s + plan.probe_s
            idle = member.state is ReplicaState.READY and member.busy == 0 and not member.is_probed
            if plan.probe_s > 0.0 and idle and now_s >= member.probe_due_s:
                member.is_probed = True
                _spawn(self._probe(plan, member), member)

    def _look_at_calls(self, plan: HealthPlan, member: Member, now_s: float) -> None:
        quiet_s = now_s - max([member.since_s, *(running.heard_s for running in member.calls)])
        for running in member.calls:
            limit_s = self._paces.limit_s(plan, running, member.busy)
            silent_s = running.silent_s(now_s)
            if not is_overdue(limit_s, silent_s=silent_s, quiet_s=quiet_s):
                running.looked_overdue = False
            elif not running.looked_overdue:
                # This process may have stood still: what came meanwhile is read before the next look.
                running.looked_overdue = True
            else:
                member.overdue = True
                log.warning(
                    "%s replica %d hangs: a call (%s, size %.0f) has been silent for %.0f s",
                    *(self._role, member.number, running.kind, running.size, silent_s),
                )

    async def _check(self, plan: HealthPlan, member: Member) -> None:
        try:
            async with asyncio.timeout(plan.check_limit_s):
                vitals = await member.engine.check()
        except TimeoutError:
            member.missed += 1
            log.warning("%s replica %d misses a health check", self._role, member.number)
        except VoxfleetError as error:
            log.warning("%s replica %d is lost: %s", self._role, member.number, error.message)
            self._lost(member)
        else:
            member.missed = 0
            self._weigh(plan, member, vitals)
        member.checked_s = self._clock()
        self._changed()

    def _weigh(self, plan: HealthPlan, member: Member, vitals: Vitals) -> None:
        member.vitals = vitals
        if member.when_ready is None:
            member.when_ready = vitals
        if not holds_too_much(plan, vitals, member.when_ready):
            member.over_memory = 0
            return
        member.over_memory += 1
        log.warning(
            "%s replica %d holds %d MiB and %d MiB of its GPU, %d and %d when it became ready",
            *(self._role, member.number, vitals.rss_bytes >> 20, vitals.gpu_bytes >> 20),
            *(member.when_ready.rss_bytes >> 20, member.when_ready.gpu_bytes >> 20),
        )

    async def _probe(self, plan: HealthPlan, member: Member) -> None:
        """Has a replica do real work; work of its users that came meanwhile excuses a late end."""
        begun = member.begun
        call = member.engine.call(Probe())
        why = ""
        try:
            async with asyncio.timeout(plan.probe_limit_s):
                async for _ in call.events():
                    pass
        except TimeoutError:
            if not await ends(call, self._stop_grace_s):
                why = "it does not end"
            elif member.begun == begun:
                why = f"it takes longer than {plan.probe_limit_s:g} s"
        except VoxfleetError as error:
            if error.reason is Reason.WORKER_LOST:
                log.warning("%s replica %d is lost: %s", self._role, member.number, error.message)
                self._lost(member)
                return
            why = error.message
        finally:
            member.is_probed = False
        self._judge(plan, member, why)

    def _judge(self, plan: HealthPlan, member: Member, why: str) -> None:
        if why:
            member.probes_failed += 1
            member.probe_due_s = self._clock() + plan.check_s
            log.warning("%s replica %d fails a probe: %s", self._role, member.number, why)
        else:
            member.proved(self._clock() + plan.probe_s)
        self._changed()


def _spawn(work: Coroutine[Any, Any, None], member: Member) -> None:
    task = asyncio.create_task(work)
    member.tasks.add(task)
    task.add_done_callback(member.tasks.discard)
