"""Runs the ledger's use cases over the memory adapter through seeded troubles, and says what broke.

``python -m tests.simulation.ledger --seeds 10000 --first 0`` runs that many; ``--seed N`` runs one again,
exactly as it ran before, and prints its history.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from services.metadata.adapters.memory import MemoryStore
from services.metadata.model.fleet import Quota
from services.metadata.model.jobs import FINAL_STATES
from tests.simulation import waiting
from tests.simulation.owners import Desk, Owner
from tests.simulation.virtual import StuckError
from tests.simulation.workers import Worker
from tests.simulation.world import CHANCE, LEASE_S, Plan, Process, World

_LOG = logging.getLogger("services")
REST_S = 300.0
"""All must have come to its end so long after the troubles have."""


@dataclass(frozen=True)
class Outcome:
    """What became of one seed; ``digest`` is the same whenever the seed is run."""

    seed: int
    mode: str
    violation: str
    digest: str
    took_s: float
    virtual_s: float
    counted: Counter[str]
    history: tuple[str, ...]


def run(seed: int, *, plan: Plan | None = None, store_type: type[MemoryStore] = MemoryStore) -> Outcome:
    """Runs one seed to its end, or to the first thing that is wrong.

    Args:
        seed: which.
        plan: another than the seed's own.
        store_type: how processes see the database.
    """
    began = time.perf_counter()
    world = World(seed, plan=plan or Plan.of(seed), store_type=store_type)
    watchdog = world.watchdog
    _LOG.addHandler(watchdog)
    propagates, _LOG.propagate = _LOG.propagate, False
    try:
        world.loop.run_until_complete(world.spawn("story", _story(world)))
    except (StuckError, TimeoutError) as error:
        watchdog.failed(error)
    finally:
        world.close()
        _LOG.removeHandler(watchdog)
        _LOG.propagate = propagates
    watchdog.counted["jobs"] = len(world.database.jobs.rows)
    return Outcome(
        seed=seed,
        mode=world.plan.mode,
        violation=watchdog.violation,
        digest=watchdog.digest,
        took_s=time.perf_counter() - began,
        virtual_s=world.loop.time(),
        counted=watchdog.counted,
        history=tuple(watchdog.history),
    )


async def _story(world: World) -> None:
    """Troubles, then rest; checked after every commit, every second, and at the end."""
    plan = world.plan
    world.processes += [Process(world, f"p{number}") for number in range(plan.processes)]
    for process in world.processes:
        process.start()
    for quota in plan.quotas:
        await _put_quota(world, quota)
    if plan.mode != "troubled":
        await waiting.story(world)
        return
    workers = [Worker(world, f"t{number}", f"n{number}", "trainer", 2) for number in range(plan.trainers)]
    workers += [Worker(world, f"i{number}", f"n{number}", "inference", 3) for number in range(plan.inferrers)]
    for worker in workers:
        worker.start()
    desk = Desk(world)
    owners = [Owner(world, desk, team) for team in plan.teams]
    acting = [world.spawn(f"owner {owner.team}", owner.act()) for owner in owners]
    if plan.crash_every_s:
        world.spawn("killer", _kill(world, workers))
    while not all(task.done() for task in acting):
        await _second(world)
    await _rest(world, workers, owners)


async def _second(world: World) -> None:
    """One second passes; what was found wrong ends the story."""
    await asyncio.sleep(1.0)
    world.watchdog.check_leases()
    if world.watchdog.violation:
        raise TimeoutError


async def _kill(world: World, workers: list[Worker]) -> None:
    """Crashes processes and workers, asks for what runs back, until the busy time is over."""
    chance = CHANCE.get()
    while world.loop.time() < world.plan.busy_s:
        await world.pause(world.plan.crash_every_s)
        what = chance.choice((*world.processes, *workers, None))
        if what is None:
            running = sorted(row.id for row in world.database.jobs.rows.values() if row.lease_token)
            await world.insist(lambda process, ids=running: _ask_to_yield(process, ids))
            continue
        what.crash()
        world.watchdog.counted["crashes"] += 1
        await world.pause(chance.choice((0.1, 1.0, 4.0)))
        what.start()


async def _ask_to_yield(process: Process, ids: list[str]) -> None:
    async with process.store.service() as tx:
        await tx.ask_to_yield(ids)


async def _put_quota(world: World, quota: Quota) -> None:
    async def put(process: Process) -> None:
        async with process.store.service() as tx:
            await tx.put_quota(quota)

    await world.insist(put)


async def _rest(world: World, workers: list[Worker], owners: list[Owner]) -> None:
    """No more troubles: everybody is up, nothing is held back, and all comes to its end."""
    world.calm = True
    await asyncio.sleep(LEASE_S)
    for quota in world.plan.quotas:
        await _put_quota(world, replace(quota, max_gpu_seconds_per_day=0))
    rows = world.database.jobs.rows
    until_s = world.loop.time() + REST_S
    while any(row.state not in FINAL_STATES for row in rows.values()) or _untold(owners):
        if world.loop.time() > until_s:
            break
        for owner in owners:
            paused = [row.id for row in rows.values() if row.paused and row.team == owner.team]
            for job in paused:
                if rows[job].state not in FINAL_STATES:
                    await owner.change(job, "resume")
        await _second(world)
    # What nothing waits for any more is dealt with by sweeps that have no hurry.
    await world.processes[0].housekeeping.sweep()
    world.watchdog.at_rest()
    for owner in owners:
        for watcher in owner.watchers:
            _check_told(world, watcher.job, [event.seq for event in watcher.told])


def _untold(owners: list[Owner]) -> bool:
    return any(
        not watcher.told or watcher.told[-1].state not in FINAL_STATES
        for owner in owners
        for watcher in owner.watchers
    )


def _check_told(world: World, job: str, seqs: list[int]) -> None:
    """A watcher was told of everything up to an end, once and in order."""
    world.watchdog.counted["events watched"] += len(seqs)
    world.watchdog.check(
        seqs and seqs == list(range(1, len(seqs) + 1)), f"the watcher of {job} was told of {seqs}"
    )
    told = world.database.events.rows.get((job, len(seqs)))
    world.watchdog.check(
        told is not None and told.state in FINAL_STATES, f"the watcher of {job} was not told of its end"
    )


def run_many(first: int, count: int, jobs: int) -> Iterator[Outcome]:
    """Runs seeds on so many cores, in any order."""
    seeds = range(first, first + count)
    if jobs <= 1:
        yield from map(run, seeds)
        return
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        yield from pool.imap_unordered(run, seeds, chunksize=8)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns 1 where something was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.ledger", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000, help="how many seeds (2000)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (0)")
    parser.add_argument("--seed", type=int, help="run this one alone and print its history")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (one a core)")
    given = parser.parse_args(arguments)
    if os.environ.get("PYTHONHASHSEED") != "0":
        # Sets of strings are walked in the same order in every run, so that a seed is one history.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation.ledger", *sys.argv[1:]])
    if given.seed is not None:
        found = run(given.seed)
        _say("\n".join(found.history))
        _say(f"seed {found.seed} ({found.mode}): {found.violation or 'nothing violated'}; {found.digest}")
        return 1 if found.violation else 0
    began, total, bad = time.perf_counter(), Counter[str](), 0
    for found in run_many(given.first, given.seeds, given.jobs):
        total.update(found.counted)
        if found.violation:
            bad += 1
            _say(f"seed {found.seed} ({found.mode}): {found.violation}")
            _say(f"  again: python -m tests.simulation.ledger --seed {found.seed}")
    took_s = time.perf_counter() - began
    each = ", ".join(f"{count} {what}" for what, count in sorted(total.items()))
    _say(
        f"{given.seeds} seeds in {took_s:.1f} s ({given.seeds / took_s:.0f} a second), {bad} violated: {each}"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
