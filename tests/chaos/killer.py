"""Kills: which process, when, and at which place; all of it drawn from a seed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
from collections import Counter
from dataclasses import dataclass, field

import psutil
import psycopg

from services.stack.process import State
from tests.chaos.arena import SECOND_METADATA, TEAM, Arena, WorkerComponent
from tests.chaos.worker import POINTS

log = logging.getLogger(__name__)

# Of a hundred kills, how many are whose.
TARGETS = {"worker": 46, "metadata": 10, SECOND_METADATA: 10, "gateway": 13, "backend": 13, "postgres": 8}
_FUSE_S = 2.0
_STANDSTILL_S = 8.0
_TOLERANCE_GPUS = 1e-4


@dataclass
class Observer:
    """Looks at the database from outside, as often as it can: is anything done, is the quota kept?

    Args:
        arena: whose database.
    """

    arena: Arena
    ended: int = 0
    gpus: float = 0.0
    looks: int = 0
    most_gpus: float = 0.0
    over_quota: list[str] = field(default_factory=list)
    backends: list[int] = field(default_factory=list)

    async def run(self) -> None:
        """Looks until cancelled."""
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(
                    self.arena.url, autocommit=True, connect_timeout=3
                ) as connection:
                    while True:
                        await self._look(connection)
                        await asyncio.sleep(0.1)
            except psycopg.Error:
                self.backends = []
                await asyncio.sleep(0.1)

    async def _look(self, connection: psycopg.AsyncConnection[tuple[object, ...]]) -> None:
        # One statement, one snapshot: what it adds up was true at one moment.
        cursor = await connection.execute(
            "SELECT (SELECT count(*) FROM job_attempts),"
            " (SELECT coalesce(sum(gpus), 0)::float8 FROM jobs WHERE lease_token IS NOT NULL AND team = %s),"
            " ARRAY(SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'"
            "       AND datname = current_database() AND pid <> pg_backend_pid())",
            [TEAM],
        )
        row = await cursor.fetchone()
        assert row is not None
        ended, gpus, backends = row
        assert isinstance(ended, int)
        assert isinstance(gpus, float)
        assert isinstance(backends, list)
        self.ended, self.gpus, self.backends = ended, gpus, backends
        self.looks += 1
        self.most_gpus = max(self.most_gpus, gpus)
        most = self.arena.settings.max_gpus
        if most and gpus > most + _TOLERANCE_GPUS:
            self.over_quota.append(f"{gpus:.3f} of {most:g} GPUs held")


class Killer:
    """Kills processes of an arena, so many in all.

    Args:
        arena: whose processes.
        observer: tells whether anything is done between kills.
        seed: decides.
        kills: how many.
        gap_s: between two, at most.

    ``under_load`` counts the kills at which leases were held.
    """

    def __init__(self, arena: Arena, observer: Observer, seed: str, kills: int, *, gap_s: float) -> None:
        self._arena = arena
        self._observer = observer
        self._chance = random.Random(f"{seed}/kills")
        self._wanted = kills
        self._gap_s = gap_s
        # A short run kills one of each at least.
        self._plan = list(TARGETS) * (kills >= len(TARGETS))
        weights = list(TARGETS.values())
        self._plan += self._chance.choices(list(TARGETS), weights, k=max(0, kills - len(self._plan)))
        self._chance.shuffle(self._plan)
        self.kills: Counter[str] = Counter()
        self.places: Counter[str] = Counter()
        self.others: Counter[str] = Counter()
        self.under_load = 0
        self._ended_before = -1

    @property
    def done(self) -> int:
        """How many were killed."""
        return sum(self.kills.values())

    @property
    def share(self) -> float:
        """How far it is, from 0 to 1."""
        return self.done / self._wanted if self._wanted else 1.0

    async def run(self) -> None:
        """Kills as many as were asked for; returns when that is done."""
        for target in self._plan:
            await asyncio.sleep(self._chance.uniform(0.05, self._gap_s))
            await self._until_something_is_done()
            under_load = self._observer.gpus > 0
            while not await self._kill(target):
                await asyncio.sleep(0.05)
            self.under_load += under_load
            self.kills[target] += 1
            log.info("killed %s (%d of %d)", target, self.done, self._wanted)

    async def disturb(self) -> None:
        """Lesser evils, until cancelled: a worker that stands still past its lease, a connection cut."""
        while True:
            await asyncio.sleep(self._chance.uniform(1.0, 5.0))
            if self._chance.random() < 0.5:
                await self._freeze(self._chance.choice(self._arena.workers))
            elif self._signal_backend(signal.SIGTERM):
                self.others["connections cut"] += 1

    async def _until_something_is_done(self) -> None:
        """Waits until an attempt has ended and others run: a kill of what stands still proves nothing."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STANDSTILL_S):
                while self._observer.ended == self._ended_before or not self._observer.gpus:
                    await asyncio.sleep(0.02)
        self._ended_before = self._observer.ended

    async def _kill(self, target: str) -> bool:
        if target == "worker":
            return await self._kill_worker(self._chance.choice(self._arena.workers))
        if target == "backend":
            # One that dies so takes the others with it: the server cannot trust its memory any more.
            return self._signal_backend(signal.SIGKILL)
        child = self._arena.child(target)
        if child.pid is None or (target == "postgres" and child.state is not State.READY):
            return False
        child.kill()
        self._observer.backends = []
        return True

    def _signal_backend(self, number: signal.Signals) -> bool:
        if not self._observer.backends:
            return False
        pid = self._chance.choice(self._observer.backends)
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            # The number may have gone to a stranger since we looked: only a child of our own server.
            if psutil.Process(pid).ppid() == self._arena.child("postgres").pid:
                os.kill(pid, number)
                return True
        self._observer.backends = []
        return False

    async def _kill_worker(self, worker: WorkerComponent) -> bool:
        child = self._arena.child(worker.name)
        pid = child.pid
        if pid is None:
            return False
        if self._chance.random() < 0.6:
            # At a chosen place around its commit, by its own hand.
            point = self._chance.choice(POINTS)
            worker.fuse.write_text(point)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FUSE_S):
                    while worker.fuse.exists():
                        await asyncio.sleep(0.02)
                self.places[point] += 1
                return True
            worker.fuse.unlink(missing_ok=True)
        if child.pid is None:
            return False
        child.kill()
        self.places["anywhere"] += 1
        return True

    async def _freeze(self, worker: WorkerComponent) -> None:
        """Stops a worker in mid-step for longer than its leases hold; it then goes on, none the wiser."""
        child = self._arena.child(worker.name)
        pid = child.pid
        if pid is None:
            return
        try:
            child.kill(signal.SIGSTOP)
            self.others["freezes"] += 1
            await asyncio.sleep(1.5 * self._arena.settings.lease_s + 1.0)
        finally:
            if child.pid == pid:
                child.kill(signal.SIGCONT)
