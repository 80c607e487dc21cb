"""The ledger's use cases put together, as a process or a test runs them."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from services.metadata.app.channel import Orders
from services.metadata.app.dispatch import Dispatcher
from services.metadata.app.feed import JobFeed
from services.metadata.app.grants import Granting
from services.metadata.app.housekeeping import Aftermath, Housekeeping
from services.metadata.app.jobs import Jobs
from services.metadata.app.learning import Experience
from services.metadata.app.planner import Planner
from services.metadata.app.work import Work
from services.metadata.ports.store import Store, Wakeups
from services.metadata.scheduling.grants import Rules


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """How the ledger is run.

    Args:
        lease_s: how long a lease holds without a heartbeat.
        sweep_s: between two looks for expired leases.
        refresh_s: between two looks at lanes and quotas.
        look_s: between two looks at what is watched.
        keep_checkpoints: of one training.
        output_ttl_s: after which what a job made is deleted.
        guaranteed_run_s: what a training runs before it is asked to yield its GPUs.
    """

    lease_s: float = 15.0
    sweep_s: float = 1.0
    refresh_s: float = 1.0
    look_s: float = 0.25
    keep_checkpoints: int = 2
    output_ttl_s: float = 7 * 86_400.0
    guaranteed_run_s: float = 300.0


class Ledger:
    """The use cases of jobs over one store."""

    def __init__(
        self,
        store: Store,
        wakeups: Wakeups,
        settings: LedgerSettings,
        *,
        chance: random.Random | None = None,
    ) -> None:
        self.store = store
        self.feed = JobFeed(store, look_s=settings.look_s)
        self.experience = Experience(store)
        self.dispatcher = Dispatcher(
            store,
            wakeups,
            lease_s=settings.lease_s,
            refresh_s=settings.refresh_s,
            cost_of=self.experience.cost_of,
            unwanted=lambda jobs: self.work.give_back(jobs),  # noqa: PLW0108 - made below,
        )
        self.aftermath = Aftermath(self.feed, self.dispatcher)
        self.planner = Planner(store, self.experience, self.dispatcher)
        self.orders = Orders()
        self.granting = Granting(store, self.orders, Rules(guaranteed_run_s=settings.guaranteed_run_s))
        self.jobs = Jobs(store, self.feed, self.planner, self.aftermath)
        self.work = Work(
            store,
            self.aftermath,
            lease_s=settings.lease_s,
            keep_checkpoints=settings.keep_checkpoints,
            output_ttl_s=settings.output_ttl_s,
            chance=chance,
        )
        self.housekeeping = Housekeeping(
            store,
            self.work,
            self.aftermath,
            every_s=settings.sweep_s,
            others=[
                (2 * settings.refresh_s, self.planner.refresh),
                (5 * settings.sweep_s, self.experience.learn),
                (settings.refresh_s, self.granting.sweep),
            ],
        )

    async def run(self) -> None:
        """Runs its loops until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.feed.run())
            group.create_task(self.dispatcher.run())
            group.create_task(self.housekeeping.run())
