"""Postgres goes away under load, in order or by ``kill -9``: the rate comes back, and nothing is lost.

Other work shares the machine, so no rate means anything by itself. Two servers bear the same load side by
side, one of them is restarted, and its rate is taken as a share of the other's, before and after.
"""

import asyncio
import bisect
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest

from services.common.jobs import tasks
from services.metadata import migrate
from services.metadata.adapters.postgres import PostgresStore, PostgresWakeups
from services.metadata.app.dispatch import Offer
from services.metadata.app.ledger import Ledger, LedgerSettings
from services.metadata.app.resolving import Line
from services.metadata.app.submit import Submitter
from services.stack.config import inherited
from services.stack.home import Home
from services.stack.postgres import EmbeddedPostgres
from services.stack.process import Child, State
from tests.chaos.looks import faults, with_artefact
from tests.chaos.racing import insist
from tests.integration.metadata.conftest import Metadata
from tests.integration.metadata.test_ledger import make_voice, request

SHARE = 0.95
WITHIN_S = 30.0
SPAN_S = 6.0
LOOK_S = 0.5
RUNS = 3
WORKERS = 2
AHEAD = 400


@contextlib.contextmanager
def running_server(path: Path) -> Iterator[tuple[EmbeddedPostgres, Child]]:
    """A Postgres of this test's own, which is started again when it ends."""
    home = Home(path)
    postgres = EmbeddedPostgres(
        directory=home.path / "postgres",
        port=home.ports().port("postgres"),
        password=home.secrets().postgres_password,
        log_path=home.logs / "postgres.log",
        base_env=inherited(os.environ),
        durable=False,
    )
    child = Child(postgres)
    child.start()
    child.wait_ready(120)
    yield postgres, child
    child.stop()
    home.remove_runtime_dir()


@pytest.fixture
def servers(tmp_path) -> Iterator[list[tuple[EmbeddedPostgres, Child]]]:
    """One that is to be restarted, and one that is not."""
    with running_server(tmp_path / "restarted") as restarted, running_server(tmp_path / "left") as left:
        yield [restarted, left]


class Load:
    """Submits, claims and ends as fast as it goes; ``ended`` is when each attempt was."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.store = PostgresStore(url, pool_size=6)
        self.wakeups = PostgresWakeups(url)
        settings = LedgerSettings(lease_s=2.0, sweep_s=0.5, refresh_s=0.5)
        self.ledger = Ledger(self.store, self.wakeups, settings)
        self.submitter = Submitter(self.store, max_attempts=20)
        self.ended: list[float] = []
        self.submitted = 0
        self.submitting = True

    def ended_since(self, since: float) -> int:
        """How many attempts have ended since a time of the monotonic clock."""
        return len(self.ended) - bisect.bisect_left(self.ended, since)

    @contextlib.asynccontextmanager
    async def running(self, voice: str) -> AsyncIterator[None]:
        """Under load inside the block."""
        loops = [self.ledger.run(), self.wakeups.run(), self._submit(voice)]
        loops += [self._work(f"w{number}") for number in range(WORKERS)]
        running = [asyncio.create_task(loop) for loop in loops]
        try:
            yield
        finally:
            for task in running:
                task.cancel()
            ends = await asyncio.gather(*running, return_exceptions=True)
            assert {type(end) for end in ends} == {asyncio.CancelledError}, f"a loop ended by itself: {ends}"

    async def _submit(self, voice: str) -> None:
        while True:
            if self.submitting and self.submitted - len(self.ended) < AHEAD:
                lines = [Line(f"l{n}", "text", voice, tasks.SpeakingParameters()) for n in range(AHEAD)]
                request_id = f"load-{self.submitted}"
                sent = request(request_id)
                await insist(lambda sent=sent, lines=lines: self.submitter.batch(sent, lines, tasks.Output()))
                self.submitted += AHEAD
            await asyncio.sleep(0.02)

    async def _work(self, name: str) -> None:
        while True:
            offer = Offer(name, name, {"f5.item": 5})
            found = await insist(lambda offer=offer: self.ledger.dispatcher.claim(offer))
            await asyncio.gather(*(self._end(job.fence) for job in found))
            if not found:
                await asyncio.sleep(0.01)

    async def _end(self, fence) -> None:
        if await insist(lambda: self.ledger.work.succeed(fence, with_artefact(fence))) is not None:
            self.ended.append(time.monotonic())


def share(loads: list[Load]) -> float:
    """The rate of the first as a share of the second's, over the last span; 0 where neither does anything."""
    one, other = (load.ended_since(time.monotonic() - SPAN_S) for load in loads)
    return one / other if other else 0.0


async def recovered(loads: list[Load], before: float, began: float) -> list[float]:
    """The shares that were seen after a restart, until one is as it was or the time is over."""
    seen: list[float] = []
    await asyncio.sleep(max(0.0, began + SPAN_S - time.monotonic()))  # nothing of before counts
    while not seen or (seen[-1] < SHARE * before and time.monotonic() - began < WITHIN_S):
        await asyncio.sleep(LOOK_S)
        seen.append(share(loads))
    return seen


async def restart(child: Child, how: signal.Signals) -> None:
    """Ends the server and sees that another takes its place."""
    times = child.times_ready
    child.kill(how)
    async with asyncio.timeout(WITHIN_S):
        while child.times_ready == times or child.state is not State.READY:
            await asyncio.sleep(0.02)


async def all_ended(url: str) -> None:
    """Waits until nothing is open or uncounted."""
    async with (
        asyncio.timeout(90),
        await psycopg.AsyncConnection.connect(url, autocommit=True) as connection,
    ):
        left = 1
        while left:
            await asyncio.sleep(0.2)
            cursor = await connection.execute(
                "SELECT (SELECT count(*) FROM jobs WHERE state IN ('QUEUED', 'RUNNING', 'CANCELLING'))"
                " + (SELECT count(*) FROM batch_ticks)"
            )
            (left,) = await cursor.fetchone()


async def begin(postgres: EmbeddedPostgres) -> tuple[Load, str]:
    """A load that is not yet running on a ledger of its own, and the voice for its jobs."""
    url = postgres.create_database("ledger")
    await asyncio.to_thread(migrate.migrate, url)
    metadata = Metadata(url)
    await metadata.identity.bootstrap("alpha", "vf_alpha_token")
    voice = await make_voice(metadata)
    await metadata.store.close()
    return Load(url), voice


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["in-order", "kill-9"])
async def test_the_rate_is_back_within_30_s_of_a_restart(servers, how):
    begun = [await begin(postgres) for postgres, _ in servers]
    loads = [load for load, _ in begun]
    runs = []
    async with contextlib.AsyncExitStack() as stack:
        for load, voice in begun:
            await stack.enter_async_context(load.running(voice))
        await asyncio.sleep(SPAN_S)  # caches and plans
        for _ in range(RUNS):
            await asyncio.sleep(SPAN_S)
            before, began = share(loads), time.monotonic()
            assert before > 0
            await restart(servers[0][1], how)
            after = await recovered(loads, before, began)
            runs.append((before, after))
            if after[-1] >= SHARE * before:
                break
        for load in loads:
            load.submitting = False
        await asyncio.gather(*(all_ended(load.url) for load in loads))
    assert after[-1] >= SHARE * before, f"rate as a share of the other's, before and after: {runs}"
    for load in loads:
        assert faults(load.url) == {}, "not one job was lost or done twice"
        await load.store.close()
