"""Kills everything at random under load, and says what the ledger made of it.

``python -m tests.chaos.ledger --jobs 1000 --kills 200 --seed 7`` runs a gateway, two metadata processes,
workers, Postgres and an object store; submits so many jobs through the public API; kills so many processes
with ``kill -9``; lets everything come to rest; and prints one JSON line of what its history shows. The exit
status is 0 where nothing in it is wrong, 1 where something is, 2 where the run did not do what it was to.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psycopg

from services.common.errors import VoxfleetError
from services.stack.process import State
from tests.chaos.arena import TEAM, Arena, ArenaSettings, running_arena
from tests.chaos.clients import Clients, Seen
from tests.chaos.history import History, audit, examples, load, read_journals
from tests.chaos.killer import Killer, Observer

log = logging.getLogger("tests.chaos")

_MEDDLERS = 3
_UP_S = 90.0
_MAX_GPUS = 2.4


@dataclass(frozen=True)
class Options:
    """What to run.

    Args:
        jobs: to submit, batches counted by their items.
        kills: how many.
        seed: of everything that is drawn.
        settle_s: how long all may take to come to rest after the last kill.
        gap_s: between two kills, at most.
        pace_s: how long an attempt holds its place, at most.
    """

    jobs: int
    kills: int
    seed: str
    settle_s: float = 300.0
    gap_s: float = 0.8
    pace_s: float = 2.0


@dataclass(frozen=True)
class Verdict:
    """What became of a run: figures, in words what is wrong, and all that was judged by."""

    figures: dict[str, Any]
    history: History
    wrong: dict[str, list[str]]
    complete: bool

    @property
    def status(self) -> int:
        """The exit status."""
        if any(self.wrong.values()):
            return 1
        return 0 if self.complete else 2


async def run(arena: Arena, options: Options) -> Verdict:
    """Loads, kills, waits for rest, and judges."""
    began = time.monotonic()
    observer = Observer(arena)
    killer = Killer(arena, observer, options.seed, options.kills, gap_s=options.gap_s)
    clients = Clients(arena, options.seed, lambda: killer.share)
    background = [asyncio.create_task(observer.run()), asyncio.create_task(clients.watch())]
    trouble = [asyncio.create_task(clients.meddle(number)) for number in range(_MEDDLERS)]
    trouble.append(asyncio.create_task(killer.disturb()))
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(clients.submit(options.jobs))
            group.create_task(killer.run())
        await _stop(trouble)
        killed_s = time.monotonic() - began
        rested = await _settle(arena, clients, options.settle_s)
        settled_s = time.monotonic() - began - killed_s
    finally:
        await _stop([*trouble, *background])
        await clients.close()
    wrong, history = await asyncio.to_thread(judge, arena, clients.seen)
    wrong["quota_exceeded"] = observer.over_quota
    wrong["contradictions"] = clients.seen.contradictions
    wrong["odd_errors"] = clients.seen.odd
    figures = {
        **{rule: len(found) for rule, found in wrong.items()},
        "seed": options.seed,
        "jobs": sum(job["kind"] != "batch" for job in history.jobs),
        "batches": sum(job["kind"] == "batch" for job in history.jobs),
        "kills": dict(killer.kills) | {"all": killer.done},
        "kills_under_load": killer.under_load,
        "worker_deaths": dict(killer.places),
        "others": dict(killer.others),
        "states": dict(Counter(job["state"] for job in history.jobs if job["kind"] != "batch")),
        "attempts": dict(Counter(attempt["outcome"] for attempt in history.attempts)),
        "events": len(history.events),
        "watched": len(history.watched),
        "stale_refused": sum(line["what"] == "stale refused" for line in history.journal),
        "clients": dict(sorted(clients.seen.counts.items())),
        "most_gpus": round(observer.most_gpus, 3),
        "killing_s": round(killed_s, 1),
        "settling_s": round(settled_s, 1),
    }
    complete = rested and killer.done >= options.kills and clients.seen.leaves >= options.jobs
    return Verdict(figures, history, wrong, complete)


async def _settle(arena: Arena, clients: Clients, timeout_s: float) -> bool:
    """Waits until every process is up, then until every job has ended; whether that came to be."""
    names = ("postgres", "s3", "metadata", "gateway", "metadata-b", *(w.name for w in arena.workers))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_UP_S):
            while any(arena.child(name).state is not State.READY for name in names):
                await asyncio.sleep(0.1)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    left, paused = await _open_jobs(arena.url)
                except psycopg.Error:
                    left, paused = 1, []
                if not left:
                    return True
                await clients.resume(paused)
                await asyncio.sleep(0.3)
    return False


async def _open_jobs(url: str) -> tuple[int, list[str]]:
    """How much has not ended or is not counted, and which jobs are paused."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        cursor = await connection.execute(
            "SELECT (SELECT count(*) FROM jobs WHERE state IN ('QUEUED', 'RUNNING', 'CANCELLING'))"
            " + (SELECT count(*) FROM batch_ticks)"
        )
        row = await cursor.fetchone()
        cursor = await connection.execute(
            "SELECT id FROM jobs WHERE paused AND state IN ('QUEUED', 'RUNNING') ORDER BY id LIMIT 100"
        )
        paused = [f"teams/{TEAM}/jobs/{found[0]}" for found in await cursor.fetchall()]
    assert row is not None
    return int(row[0]), paused


def judge(arena: Arena, seen: Seen) -> tuple[dict[str, list[str]], History]:
    """What is wrong with what an arena left, by rule; and all that it left."""
    history = load(arena.url)
    store = arena.store
    missing = []
    for audio in history.audios:
        try:
            if store.stat(audio["key"]).sha256 != audio["sha256"]:
                missing.append(audio["key"])
        except VoxfleetError:
            missing.append(audio["key"])
    history = replace(
        history,
        journal=read_journals(arena.journals()),
        acknowledged=seen.acknowledged,
        watched=seen.watched,
        missing_bytes=missing,
    )
    return audit(history), history


async def _stop(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for found in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(found, Exception):
            raise found


def main(words: list[str] | None = None) -> int:
    """Runs it once; the exit status is returned."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.ledger", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000, help="batches counted by their items")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--lease", type=float, default=2.0, help="seconds that a lease holds")
    parser.add_argument("--pace", type=float, default=2.0, help="seconds an attempt holds its place, at most")
    parser.add_argument("--gap", type=float, default=0.8, help="seconds between two kills, at most")
    parser.add_argument("--settle", type=float, default=300.0, help="seconds to come to rest afterwards")
    parser.add_argument("--keep", type=Path, help="where to leave logs, journals and history")
    parser.add_argument("--verbose", action="store_true", help="say each kill on standard error")
    given = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO if given.verbose else logging.ERROR, stream=sys.stderr)
    options = Options(given.jobs, given.kills, given.seed, given.settle, given.gap, given.pace)
    settings = ArenaSettings(
        workers=given.workers,
        lease_s=given.lease,
        max_gpus=_MAX_GPUS,
        mischief=True,
        pace_s=given.pace,
        seed=given.seed,
    )
    with tempfile.TemporaryDirectory(prefix="voxfleet-chaos-") as folder:
        home = Path(folder) / "home"
        try:
            with running_arena(home, settings) as arena:
                verdict = asyncio.run(run(arena, options))
                if given.keep:
                    text = json.dumps(asdict(verdict.history), default=str)
                    (home / "history.json").write_text(text)
        finally:
            if given.keep:
                _keep(home, given.keep)
    for line in examples(verdict.wrong):
        sys.stderr.write(f"{line}\n")
    sys.stdout.write(f"{json.dumps(verdict.figures)}\n")
    return verdict.status


def _keep(home: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in (
        *home.glob("*.log"),
        *home.glob("journal-*.jsonl"),
        *home.glob("history.json"),
        *(home / "logs").glob("*"),
    ):
        shutil.copy(path, target / path.name)


if __name__ == "__main__":
    sys.exit(main())
