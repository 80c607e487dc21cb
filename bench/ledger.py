"""The job ledger against two other queues on the same Postgres in the same run, and against itself.

``vs_pgqueuer_batchN``, ``vs_procrastinate_batch1``: jobs claimed and finished a second, ours over theirs, at
the level of SQL (both in this process). ``grpc_vs_…``: the same, ours through a metadata process's Work
streams and EndAttempts calls. ``enqueue_100k_vs_copy``: time to add a batch of 100,000 items over that of a
COPY of the very rows. ``claim_p50_idle_txn_vs_none``: the median claim with a transaction open elsewhere
while 100,000 jobs passed, over the same without. ``claim_p99_full_vs_empty``: the slow claims with a million
finished jobs in the table over an empty one's. ``notify_to_claim_p50_ms``: from the commit of a submit until
a waiting claimer has the job. What makes it fair stands in ``docs/benchmarks/ledger.md``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from bench.failures import UnmeasurableError
from bench.peers import server as pg
from bench.peers.grpc import GrpcPeer
from bench.peers.ledger import LedgerPeer, batch_of
from bench.peers.port import Peer, team_names
from bench.peers.timing import (
    claim_latencies_s,
    drain,
    in_turn,
    paired_ratio,
    percentile,
)
from services.stack.home import Home
from services.stack.postgres import EmbeddedPostgres

BUDGET_S = 1200.0
_WARM_UP_CLAIMS = 8  # a driver prepares a statement after some uses
_TEMPLATE = "ledger_template"
_PASS_BATCH = 100
_FLOW = 1000
_LEAST_SLICES = 3
_FLOW_TEAMS = 20


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    setups: int
    slices: int
    heat_s: float
    slice_jobs: Mapping[int, int]  # by batch size
    claimers: int
    teams: int
    items: int
    passing: int
    finished: int
    claims: int
    parts: int
    wakes: int
    copies: int


FULL = Sizes(
    setups=2,
    slices=8,
    heat_s=30.0,
    slice_jobs={1: 400, 10: 1500, 100: 4000},
    claimers=4,
    teams=1000,
    items=100_000,
    passing=100_000,
    finished=1_000_000,
    claims=1000,
    parts=5,
    wakes=100,
    copies=3,
)
QUICK = Sizes(
    setups=1,
    slices=2,
    heat_s=30.0,
    slice_jobs={1: 80, 10: 400, 100: 800},
    claimers=4,
    teams=100,
    items=5000,
    passing=2000,
    finished=20_000,
    claims=100,
    parts=2,
    wakes=20,
    copies=1,
)

Figures = dict[str, float]


@dataclass
class Bench:
    """One run on one server."""

    server: EmbeddedPostgres
    home: Home
    sizes: Sizes
    say: Callable[[str], None]
    _databases: int = field(default=0, init=False)

    async def race(self) -> Figures:
        """Every queue at every batch size, each on its own fresh tables, in short slices by turns."""
        from bench.peers.pgqueuer import PgqueuerPeer
        from bench.peers.procrastinate import ProcrastinatePeer

        figures: Figures = {}
        for batch in self.sizes.slice_jobs:
            rates: dict[str, list[float]] = {}
            for _ in range(self.sizes.setups):
                peers: list[Peer] = [self._ours(), PgqueuerPeer(), self._ours_by_grpc()]
                if batch == 1:
                    peers.append(ProcrastinatePeer())  # it takes one at a time
                for name, found in (await self._heat(peers, batch)).items():
                    rates.setdefault(name, []).extend(found)
            for name, found in rates.items():
                figures[f"{name}_batch{batch}_per_s"] = statistics.median(found)
                self.say(f"batch {batch}: {name} {statistics.median(found):.0f} jobs/s of {_spread(found)}")
            for prefix, ours in (("", "voxfleet"), ("grpc_", "voxfleet_grpc")):
                for name in rates.keys() - {"voxfleet", "voxfleet_grpc"}:
                    figures[f"{prefix}vs_{name}_batch{batch}"] = paired_ratio(rates[ours], rates[name])
        return figures

    async def enqueue_vs_copy(self) -> Figures:
        """A batch of items added as a submit adds it, against a COPY of the very rows it made."""
        team = team_names(1)[0]
        ours: list[float] = []
        copied: list[float] = []
        for _ in range(self.sizes.copies):
            jobs = batch_of(team, self.sizes.items)
            async with AsyncExitStack() as stack:
                peer = await self._ledger(stack)
                began = time.perf_counter()
                await peer.add_batch(team, jobs)
                ours.append(time.perf_counter() - began)
                rows = await peer.copy_out()
            async with AsyncExitStack() as stack:
                peer = await self._ledger(stack)
                began = time.perf_counter()
                await peer.copy_in(rows)
                copied.append(time.perf_counter() - began)
                if await peer.queued() < self.sizes.items:
                    raise UnmeasurableError("the COPY did not bring every item")
            self.say(f"{self.sizes.items} items: added in {ours[-1]:.2f} s, copied in {copied[-1]:.2f} s")
        return {
            "enqueue_100k_vs_copy": paired_ratio(ours, copied),
            "enqueue_items_per_s": self.sizes.items / statistics.median(ours),
        }

    async def idle_vs_none(self) -> Figures:
        """The work of many teams, and, which is harder, all of it one team's."""
        figures = await self._beside_idle("claim_p50_idle_txn_vs_none", self.sizes.teams)
        return figures | await self._beside_idle("claim_p50_idle_txn_vs_none_one_team", 1)

    async def _beside_idle(self, name: str, teams: int) -> Figures:
        """Two databases at once, one with a transaction left open: jobs pass by turns, claims by turns.

        Jobs flow: a thousand come, a thousand go, over and over. A snapshot keeps dead rows in its own
        database only.
        """
        found: dict[str, list[float]] = {"idle": [], "none": []}
        some = min(teams, _FLOW_TEAMS)
        async with AsyncExitStack() as stack:
            arms = {arm: await self._ledger(stack) for arm in found}
            claimers = {arm: await peer.claimer() for arm, peer in arms.items()}
            for peer in arms.values():
                await peer.enqueue(2 * _FLOW, teams)
            await stack.enter_async_context(arms["idle"].idle_transaction())
            gone = dict.fromkeys(arms, _FLOW)
            for number in range(self.sizes.passing // _FLOW):
                for arm, peer in arms.items():
                    # As many as went: the last claim of a round may bring more than the round asked for.
                    await peer.enqueue(gone[arm], some, first=number * some % teams)
                    gone[arm] = (await drain([claimers[arm]], _PASS_BATCH, _FLOW)).jobs
            for _ in range(10):
                for arm, claimer in claimers.items():
                    found[arm] += await claim_latencies_s(claimer, self.sizes.claims // 10)
        idle, none = (1e3 * percentile(found[arm], 0.5) for arm in ("idle", "none"))
        self.say(f"claim p50, {teams} teams: {idle:.3f} ms beside an idle transaction, {none:.3f} not")
        return {name: idle / none}

    async def full_vs_empty(self) -> Figures:
        """Two databases at once, one with a million finished jobs; claims by turns, p99 of each slice."""
        p99: dict[str, list[float]] = {"full": [], "empty": []}
        async with AsyncExitStack() as stack:
            arms = {name: await self._ledger(stack) for name in p99}
            await arms["full"].fill_finished(self.sizes.finished)
            claimers = {name: await arm.claimer() for name, arm in arms.items()}
            for arm in arms.values():
                await arm.enqueue(self.sizes.claims * self.sizes.parts + 100, self.sizes.teams)
                await pg.settle(arm.url)
                await pg.run_alone(arm.url, "CHECKPOINT")
            for name in p99:
                await claim_latencies_s(claimers[name], 50)
            for _ in range(self.sizes.parts):
                for name, claimer in claimers.items():
                    p99[name].append(percentile(await claim_latencies_s(claimer, self.sizes.claims), 0.99))
        full, empty = (1e3 * statistics.median(p99[name]) for name in ("full", "empty"))
        self.say(f"claim p99: {full:.3f} ms with {self.sizes.finished} finished jobs, {empty:.3f} with none")
        return {"claim_p99_full_vs_empty": full / empty, "claim_p99_empty_ms": empty}

    async def notify_to_claim(self) -> Figures:
        """One submit at a time and one claimer that waits, in this process and through gRPC."""
        figures: Figures = {}
        async with AsyncExitStack() as stack:
            peer = await self._ledger(stack)
            claimer = await peer.claimer()
            figures["notify_to_claim_p50_ms"] = await self._wakes(peer, claimer.wait, claimer.finish)
        async with AsyncExitStack() as stack:
            service = self._ours_by_grpc()
            url = await self._fresh(stack, _TEMPLATE)
            stack.push_async_callback(service.teardown)
            await service.setup(url)
            stream = await service.claimer()
            figures["grpc_notify_to_claim_p50_ms"] = await self._wakes(
                service.ledger, stream.wait, stream.finish
            )
        return figures

    async def _wakes(
        self,
        peer: LedgerPeer,
        wait: Callable[[], Awaitable[Sequence[object]]],
        finish: Callable[..., Awaitable[None]],
    ) -> float:
        took: list[float] = []
        for _ in range(self.sizes.wakes):
            waiting = asyncio.create_task(_timed(wait))
            # Long enough that it has looked, found nothing and waits.
            await asyncio.sleep(0.02)
            await peer.enqueue(1, 1)
            committed = time.perf_counter()
            jobs, had = await waiting
            if not jobs:
                raise UnmeasurableError("the stream of the waiting claimer ended")
            took.append(1e3 * (had - committed))
            await finish(jobs)
        return percentile(took, 0.5)

    async def _heat(self, peers: Sequence[Peer], batch: int) -> dict[str, list[float]]:
        """Each queue's jobs a second in every slice; nobody's backlog ever ends."""
        sizes = self.sizes
        each = sizes.slice_jobs[batch]
        warm_up = _WARM_UP_CLAIMS * sizes.claimers * batch
        # At the end of each slice every claimer may hold one batch more than was asked for.
        backlog = warm_up + sizes.slices * each + (sizes.slices + 2) * sizes.claimers * batch
        rates: dict[str, list[float]] = {peer.name: [] for peer in peers}
        done: dict[str, int] = {}
        async with AsyncExitStack() as stack:
            claimers = {}
            for peer in peers:
                ours = isinstance(peer, LedgerPeer | GrpcPeer)
                url = await self._fresh(stack, _TEMPLATE if ours else None)
                stack.push_async_callback(peer.teardown)
                await peer.setup(url)
                await peer.enqueue(backlog, sizes.teams)
                await pg.settle(url)
                claimers[peer.name] = [await peer.claimer() for _ in range(sizes.claimers)]
            for name, workers in claimers.items():
                done[name] = (await drain(workers, batch, warm_up)).jobs
            began = time.monotonic()
            for number in range(sizes.slices):
                if number >= _LEAST_SLICES and time.monotonic() - began > sizes.heat_s:
                    break  # a busy machine gives fewer slices, not a longer run
                for peer in in_turn(peers, number):
                    found = await drain(claimers[peer.name], batch, each)
                    rates[peer.name].append(found.per_s)
                    done[peer.name] += found.jobs
            for peer in peers:
                if (recorded := await peer.finished()) != done[peer.name]:
                    raise UnmeasurableError(f"{peer.name}: {recorded} jobs are done, not {done[peer.name]}")
        return rates

    async def _fresh(self, stack: AsyncExitStack, template: str | None) -> str:
        self._databases += 1
        name = f"ledger_{self._databases}"
        return await stack.enter_async_context(pg.fresh_database(self.server, name, template))

    async def _ledger(self, stack: AsyncExitStack) -> LedgerPeer:
        """Our ledger on a fresh database, torn down with the stack."""
        url = await self._fresh(stack, _TEMPLATE)
        peer = self._ours()
        stack.push_async_callback(peer.teardown)
        await peer.setup(url)
        return peer

    def _ours(self) -> LedgerPeer:
        return LedgerPeer(teams=self.sizes.teams)

    def _ours_by_grpc(self) -> GrpcPeer:
        return GrpcPeer(teams=self.sizes.teams, home=self.home)


def _spread(rates: Sequence[float]) -> str:
    return f"{len(rates)} slices, {min(rates):.0f} to {max(rates):.0f}"


async def _timed(wait: Callable[[], Awaitable[Sequence[object]]]) -> tuple[Sequence[object], float]:
    jobs = await wait()
    return jobs, time.perf_counter()


PARTS: Mapping[str, Callable[[Bench], Awaitable[Figures]]] = {
    "race": Bench.race,
    "copy": Bench.enqueue_vs_copy,
    "idle": Bench.idle_vs_none,
    "full": Bench.full_vs_empty,
    "notify": Bench.notify_to_claim,
}


async def measure(home: Home, sizes: Sizes, parts: Sequence[str], say: Callable[[str], None]) -> Figures:
    """The figures of these parts."""
    figures: Figures = {}
    with pg.running_postgres(home) as server:
        shown = await pg.settings(server.url)
        say("Postgres " + ", ".join(f"{name} {value}" for name, value in shown.items()))
        template = await asyncio.to_thread(server.create_database, _TEMPLATE)
        peer = LedgerPeer(teams=sizes.teams)
        await peer.setup(template)
        await peer.teardown()
        bench = Bench(server, home, sizes, say)
        for part in parts:
            began = time.monotonic()
            figures |= await PARTS[part](bench)
            say(f"{part}: {time.monotonic() - began:.0f} s")
    return figures


def main() -> int:
    """Measures on a Postgres of its own; 1 and a message where a figure cannot be had."""
    parser = argparse.ArgumentParser(prog="bench.ledger", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run, not how fast is it")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="only these")
    arguments = parser.parse_args()
    sizes = QUICK if arguments.quick else FULL

    async def bounded(home: Home) -> Figures:
        async with asyncio.timeout(BUDGET_S):
            return await measure(home, sizes, arguments.parts, lambda line: print(line, file=sys.stderr))

    with tempfile.TemporaryDirectory(prefix="voxfleet-bench-") as folder:
        try:
            figures = uvloop.run(bounded(Home(Path(folder))))
        except ImportError as error:
            print(f"bench.ledger: {error}; install the extra `bench`", file=sys.stderr)
            return 1
        except TimeoutError:
            print(f"bench.ledger: not done within {BUDGET_S:g} s", file=sys.stderr)
            return 1
        except Exception as error:  # noqa: BLE001 - whatever it was, there is no figure
            traceback.print_exc()
            print(f"bench.ledger: cannot measure: {error or type(error).__name__}", file=sys.stderr)
            return 1
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
