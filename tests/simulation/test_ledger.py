"""The seeded simulation: thousands of worlds, none of which breaks a promise, and broken ledgers that do.

More: ``LEDGER_SEEDS=100000 pytest tests/simulation`` or ``python -m tests.simulation.ledger --seeds 100000``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from services.common.jobs.model import Fence
from services.metadata.adapters.memory import MemoryStore
from services.metadata.adapters.memory.leases import MemoryLeases
from services.metadata.adapters.memory.store import MemoryTransaction
from services.metadata.model.fleet import Quota
from tests.simulation import ledger
from tests.simulation.world import Plan

SEEDS = int(os.environ.get("LEDGER_SEEDS", "2000"))


@pytest.mark.timeout(60 + SEEDS)
def test_no_seed_breaks_a_promise():
    command = [sys.executable, "-m", "tests.simulation.ledger", "--seeds", str(SEEDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{SEEDS} seeds" in done.stdout
    assert "0 violated" in done.stdout


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_seed_is_one_history(seed):
    first, second = ledger.run(seed), ledger.run(seed)
    assert first.digest == second.digest
    assert first.digest != ledger.run(seed + 6).digest
    assert first.virtual_s == second.virtual_s


def test_a_seed_is_the_same_history_in_another_process():
    told = {
        subprocess.run(
            [sys.executable, "-m", "tests.simulation.ledger", "--seed", "1"],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
        ).stdout
        for hash_seed in ("0", "1")
    }
    assert len(told) == 1
    assert "RUNNING -> SUCCEEDED" in told.pop()


def test_the_troubles_are_real():
    """What the seeds are for does happen in them."""
    total = ledger.Counter[str]()
    for seed in range(1, 41):
        total.update(ledger.run(seed).counted)
    for what in ("crashes", "expiries", "refused", "ends", "events watched", "dependencies refused"):
        assert total[what] > 0, what


# -- broken ledgers


class NoFences:
    """Whoever writes is believed, if only the job is leased to someone."""

    @staticmethod
    def _is_held(row: Any, _: Fence) -> bool:
        return row is not None and bool(row.lease_token)


class NoExpiry:
    """A lease holds for ever."""

    async def expired(self, _: int) -> list[Any]:
        return []


class NoRequestIds:
    """A request that is sent again is done again."""

    async def remember_request(self, *request: str) -> str:
        return request[-1]


class NoDependencies:
    """Nothing waits for anything."""

    async def _depend(self, *_: Any) -> list[str]:
        return []


class NoQuotas:
    """There is always room."""

    def _room(self, _: str) -> float:
        return float("inf")


class Stealing:
    """What another worker has may be claimed too."""

    def _claimable(self, pick: Any, *_: Any) -> list[Any]:
        rows = self._db.jobs.rows.values()  # type: ignore[attr-defined]
        lane = (pick.lane.kind, pick.lane.priority_class, pick.lane.team)
        found = [row for row in rows if (row.kind, row.priority_class, row.team) == lane]
        return [row for row in found if row.claimable or row.lease_token]


class NoTicks:
    """The end of an item is told to no batch."""

    async def _tick(self, *_: Any) -> None:
        pass


class NoEvents:
    """A change that nobody is told of, now and then."""

    async def _event(self, row: Any, message: str) -> None:
        if row.event_seq % 3:
            await super()._event(row, message)  # type: ignore[misc]


def broken(how: type) -> type[MemoryStore]:
    """A store over a database in memory that lacks something."""
    return type(
        "BrokenStore",
        (MemoryStore,),
        {
            "transaction_type": type("Transaction", (how, MemoryTransaction), {}),
            "leases_type": type("Leases", (how, MemoryLeases), {}),
        },
    )


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (NoFences, "was told that it ended as"),
        (NoExpiry, "ran out"),
        (NoRequestIds, "made"),
        (NoDependencies, "began before|waits for"),
        (NoQuotas, "GPUs of"),
        (Stealing, "was leased to|illegal job transition"),
        (NoTicks, "never ended"),
        (NoEvents, "events"),
    ],
)
def test_what_a_ledger_lacks_is_found(how, says):
    store_type, found = broken(how), []
    for seed in (seed for seed in range(1, 60) if seed % 6 not in (0, 3)):
        found.append(ledger.run(seed, store_type=store_type).violation)
        if re.search(says, found[-1]):
            return
    raise AssertionError(f"not found: {sorted(set(found))}")


def test_a_class_that_does_not_age_is_found_to_starve():
    found = ledger.run(0, plan=replace(Plan.of(0), age_s=0.0)).violation
    assert "waited inf s" in found


def test_a_share_that_is_not_fair_is_found():
    plan = Plan.of(3)
    unfair = replace(plan, quotas=(Quota(plan.teams[0], weight=1e6),))
    assert "began while" in ledger.run(3, plan=unfair).violation


def test_a_seed_that_fails_says_how_to_run_it_again(monkeypatch, capsys):
    broken_store = broken(NoExpiry)
    run = ledger.run
    monkeypatch.setattr(ledger, "run", lambda seed: run(seed, store_type=broken_store))
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert ledger.main(["--first", "1", "--seeds", "14", "--jobs", "1"]) == 1
    said = capsys.readouterr().out
    assert "again: python -m tests.simulation.ledger --seed" in said
    assert " violated" in said
