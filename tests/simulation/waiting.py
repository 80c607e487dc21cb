"""Two stories without any trouble, about waiting: endless higher work, and a team that floods."""

from __future__ import annotations

import asyncio

from services.metadata.model.jobs import PriorityClass
from tests.simulation.owners import Desk
from tests.simulation.workers import Worker
from tests.simulation.world import AGE_S, CHANCE, World

PLACES = 3
SLACK_S = 4.0
"""What a claim waits for beside its turn: a job's end, an offer, the network."""


async def story(world: World) -> None:
    """One worker; one of the two."""
    worker = Worker(world, "i0", "n0", "inference", PLACES)
    worker.start()
    desk = Desk(world)
    await (_starving if world.plan.mode == "starving" else _flooded)(world, desk)
    world.watchdog.check_leases()


async def _submit(world: World, desk: Desk, team: str, priority_class: PriorityClass) -> str:
    job = desk.single(team, "f5.item", "", (), priority_class=priority_class, gpus=0.2)
    return await world.insist(lambda process: desk.submit(process, team, "", [job], ()))


async def _starving(world: World, desk: Desk) -> None:
    """Interactive work without end, more than there are places for: lower classes are served all the same.

    The bound is that of the lane book: a class that stands d below is served at least every d * age_s.
    """
    high, low = world.plan.teams
    hogging = world.spawn("hog", _keep_full(world, desk, high))
    chance, waiting = CHANCE.get(), []
    for priority_class in (PriorityClass.CONVERSION, PriorityClass.BATCH, PriorityClass.TRAINING):
        await world.pause(chance.choice((0.5, 5.0)))
        waiting.append((await _submit(world, desk, low, priority_class), world.loop.time(), priority_class))
    bounds = {job: (c - 1) * AGE_S + SLACK_S for job, _, c in waiting}
    await asyncio.sleep(max(bounds.values()) + 1.0)
    for job, since_s, _ in waiting:
        waited_s = world.watchdog.waits.get(job, float("inf")) - since_s
        world.watchdog.check(
            waited_s <= bounds[job], f"{job} waited {waited_s:.1f} s, not {bounds[job]:.1f} s"
        )
    hogging.cancel()


async def _keep_full(world: World, desk: Desk, team: str) -> None:
    rows = world.database.jobs.rows
    while True:
        waiting = sum(row.claimable for row in rows.values() if row.team == team)
        for _ in range(waiting, 4 * PLACES):
            await _submit(world, desk, team, PriorityClass.INTERACTIVE)
        await asyncio.sleep(0.5)


async def _flooded(world: World, desk: Desk) -> None:
    """One team has far more waiting than can be done; another's jobs take turns with it all the same."""
    flood, other = world.plan.teams
    size = CHANCE.get().choice((40, 100))
    await world.insist(
        lambda process: desk.submit(process, flood, "", desk.batch(flood, "", size, 0, ()), ())
    )
    await world.pause(2.0)
    for _ in range(6):
        since_s = world.loop.time()
        job = await _submit(world, desk, other, PriorityClass.BATCH)
        while job not in world.watchdog.waits and world.loop.time() < since_s + 60.0:
            await asyncio.sleep(0.05)
        began_s = world.watchdog.waits.get(job, float("inf"))
        before = sum(since_s < at < began_s and row.team == flood for at, row in world.watchdog.order)
        world.watchdog.check(before <= PLACES, f"{before} of {flood} began while {job} of {other} waited")
        await world.pause(1.0)
