"""Which GPUs belong to trainings and which to the pools, decided every second or so and told to all workers.

Every metadata process looks; whoever gets the one row of the division locked decides, from what workers last
said, what waits, and what was remembered in that row. The others pass on what it decided. So there is one
decision at a time however many processes there are, it goes on with any of them, and what has to be
remembered (since when a pool is idle, when a training last gave GPUs back) outlives each.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from services.common.jobs.model import TRAINER_POOL, FleetOrders, GpuFacts, PoolState, TrainingGpus
from services.metadata.app.channel import Orders
from services.metadata.app.fleet import seen_nodes
from services.metadata.model.fleet import RunningJob
from services.metadata.model.jobs import PriorityClass
from services.metadata.ports.grants import KindLoad, WantingTraining
from services.metadata.ports.store import Store, Transaction
from services.metadata.scheduling.grants import (
    Grants,
    HoldingTraining,
    Load,
    Node,
    Pool,
    Rules,
    WaitingTraining,
    divide,
)

log = logging.getLogger(__name__)

POOL_OF_KIND: Final[Mapping[str, str]] = {"rvc.convert": "rvc", "f5.item": "f5", "f5.convert": "f5"}


@dataclass(frozen=True, slots=True)
class Memory:
    """What one decision leaves to the next; times are seconds since 1970, by the database's clock.

    Args:
        held: trainings that had GPUs.
        left: when trainings that wait now gave theirs back.
        left_s: when any training last did; None where none ever has.
        busy: when each pool last had work, or was first seen.
        told: what was granted, for the log.
    """

    held: frozenset[str] = frozenset()
    left: Mapping[str, float] = field(default_factory=dict)
    left_s: float | None = None
    busy: Mapping[str, float] = field(default_factory=dict)
    told: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def load(cls, found: Mapping[str, Any]) -> Memory:
        """From JSON."""
        return cls(
            frozenset(found.get("held", ())),
            dict(found.get("left", {})),
            found.get("left_s"),
            dict(found.get("busy", {})),
            dict(found.get("told", {})),
        )

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "held": sorted(self.held),
            "left": dict(self.left),
            "left_s": self.left_s,
            "busy": dict(self.busy),
            "told": dict(self.told),
        }


class Granting:
    """Divides the GPUs, and tells the workers of this process what was decided.

    Args:
        store: the database.
        orders: what every worker is told.
        rules: the operator's settings.
    """

    def __init__(self, store: Store, orders: Orders, rules: Rules) -> None:
        self._store = store
        self._orders = orders
        self._rules = rules

    async def sweep(self) -> None:
        """Decides where nobody else does, and passes on what holds. Errors: DATABASE_UNAVAILABLE."""
        async with self._store.service() as tx:
            drained = await tx.drained_nodes()
            locked = await tx.lock_division()
            if locked is not None:
                now_s, memory = locked
                await self._decide(tx, now_s, Memory.load(memory), drained)
            grants = await tx.grants()
        self._orders.set(FleetOrders(drained, grants))

    async def _decide(self, tx: Transaction, now_s: float, memory: Memory, drained: frozenset[str]) -> None:
        nodes = nodes_of(seen_nodes(await tx.live_workers(), drained))
        if not nodes:
            # Every worker is away, as after a restart: what was decided holds until one is back.
            return
        said = [aged(facts, age_s) for facts, age_s in await tx.worker_gpus()]
        running = {job.id: job for job in await tx.running_jobs()}
        full = [use.quota.team for use in await tx.quota_uses() if use.full]
        known = [one for facts in said for one in facts.trainings if one.job_id in running]
        wanting = await tx.waiting_trainings([one.job_id for one in known if not _waits(one)], full)
        loads = await tx.job_loads(list(POOL_OF_KIND), full)
        holding = holding_of(known, running)
        pools = pools_of(merged(said), loads, running.values())
        memory = remember(memory, now_s, holding, wanting, pools)
        found = divide(
            nodes,
            holding,
            [
                WaitingTraining(one.gpus, min(one.waited_s, now_s - memory.left.get(one.job_id, -math.inf)))
                for one in wanting
            ],
            [replace(pool, idle_s=now_s - memory.busy[pool.name]) for pool in pools],
            self._rules,
            since_training_s=math.inf if memory.left_s is None else now_s - memory.left_s,
        )
        if found.yields:
            await tx.ask_to_yield(found.yields)
        told = to_tell(found, holding)
        if told != memory.told or found.yields:
            log.info("GPUs: %s%s", told, f" ({'; '.join(found.reasons)})" if found.reasons else "")
        await tx.put_grants(told)
        await tx.keep_division(replace(memory, told=told).dump())


def nodes_of(seen: Iterable[Mapping[str, Any]]) -> list[Node]:
    """The nodes with GPUs; those that are dead or drained are not alive."""
    return [
        Node(str(node["name"]), int(node.get("gpus") or 0), alive=node["state"] == "alive")
        for node in seen
        if node.get("gpus")
    ]


def aged(facts: GpuFacts, age_s: float) -> GpuFacts:
    """What a worker said so long ago, as of now: it says so at once when anything but time changes."""
    return GpuFacts(
        tuple(replace(one, held_s=one.held_s + age_s) if one.node else one for one in facts.trainings),
        tuple(
            replace(
                pool,
                streams_waited_s=pool.streams_waited_s + (age_s if pool.streams_waiting else 0.0),
                since_begin_s=pool.since_begin_s + age_s if pool.since_begin_s >= 0 else -1.0,
            )
            for pool in facts.pools
        ),
    )


def merged(said: Sequence[GpuFacts]) -> list[PoolState]:
    """Each pool once: where two processes have one of that name, as in an upgrade, what they do is added up.

    Its settings are the newest's.
    """
    found: dict[str, PoolState] = {}
    for pool in (pool for facts in said for pool in facts.pools):
        first = found.setdefault(pool.name, pool)
        if first is not pool:
            begun = [one.since_begin_s for one in (first, pool) if one.since_begin_s >= 0]
            found[pool.name] = replace(
                first,
                held_gpus=first.held_gpus + pool.held_gpus,
                streams_waiting=first.streams_waiting + pool.streams_waiting,
                streams_running=first.streams_running + pool.streams_running,
                streams_waited_s=max(first.streams_waited_s, pool.streams_waited_s),
                since_begin_s=min(begun, default=-1.0),
            )
    return list(found.values())


def holding_of(known: Iterable[TrainingGpus], running: Mapping[str, RunningJob]) -> list[HoldingTraining]:
    """The trainings with GPUs, as both the ledger and their worker know them."""
    return [
        HoldingTraining(
            one.job_id,
            one.gpus,
            one.node,
            one.held_s,
            running[one.job_id].priority,
            running[one.job_id].priority_class,
            yield_asked=running[one.job_id].yield_asked,
        )
        for one in known
        if one.node and one.gpus
    ]


def pools_of(
    states: Iterable[PoolState], loads: Iterable[KindLoad], running: Iterable[RunningJob]
) -> list[Pool]:
    """The pools with what they have to do; streamed requests count as interactive jobs."""
    work: dict[tuple[str, PriorityClass], Load] = {}

    def add(pool: str, at: PriorityClass, load: Load) -> None:
        had = work.get((pool, at), Load())
        work[pool, at] = Load(
            had.queued + load.queued, had.running + load.running, max(had.waited_s, load.waited_s)
        )

    for one in loads:
        add(POOL_OF_KIND[one.kind], one.priority_class, Load(one.queued, 0, one.waited_s))
    for job in running:
        if job.kind in POOL_OF_KIND:
            add(POOL_OF_KIND[job.kind], job.priority_class, Load(0, 1))
    pools = []
    for state in states:
        streams = Load(state.streams_waiting, state.streams_running, state.streams_waited_s)
        if streams.queued or streams.running:
            add(state.name, PriorityClass.INTERACTIVE, streams)
        pools.append(
            Pool(
                state.name,
                {at: load for (pool, at), load in work.items() if pool == state.name},
                state.gpus_each,
                max(state.places_each, 1),
                state.least,
                state.most,
                state.held_gpus,
                since_begin_s=state.since_begin_s if state.since_begin_s >= 0 else math.inf,
            )
        )
    return pools


def remember(
    memory: Memory,
    now_s: float,
    holding: Iterable[HoldingTraining],
    wanting: Iterable[WantingTraining],
    pools: Iterable[Pool],
) -> Memory:
    """What the last decision left, brought up to now."""
    held = frozenset(training.job for training in holding)
    gone = memory.held - held
    waiting = {training.job_id for training in wanting}
    left = {
        job: at_s for job, at_s in {**memory.left, **dict.fromkeys(gone, now_s)}.items() if job in waiting
    }
    busy = {
        pool.name: now_s if pool.loads else min(memory.busy.get(pool.name, now_s), now_s) for pool in pools
    }
    return replace(memory, held=held, left=left, left_s=now_s if gone else memory.left_s, busy=busy)


def to_tell(found: Grants, holding: Iterable[HoldingTraining]) -> dict[str, float]:
    """What workers are told: the decision, less what trainings hold that were asked for it.

    Else the trainer would begin the next one on it, or the same one again, before the next decision.
    """
    leaving = sum(one.gpus for one in holding if one.yield_asked or one.job in found.yields)
    return {**found.pools, TRAINER_POOL: float(max(found.trainer_gpus - leaving, 0))}


def _waits(training: TrainingGpus) -> bool:
    return bool(training.gpus) and not training.node
