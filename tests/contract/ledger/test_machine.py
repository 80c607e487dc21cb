"""Random histories of the ledger, held against a model of plain dicts: in memory and on Postgres.

Two metadata processes whose clocks are apart, four workers on three nodes whose clocks are wrong and who go
on writing under leases that they lost long ago, owners who do what they like. After every step every job,
every event and every lease is what the model says.

A history that fails is made as short as possible and printed as the steps that lead there. More of them:
``LEDGER_HISTORIES=20 pytest tests/contract/ledger/test_machine.py`` for twenty times as many.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from services.common.errors import VoxfleetError
from services.common.jobs.model import Fence
from services.metadata.adapters.memory.catalog import MemoryCatalog
from services.metadata.adapters.memory.jobs import MemoryJobs
from services.metadata.adapters.memory.leases import MemoryLeases
from tests.contract.ledger.backends import MemoryBackend, PostgresBackend
from tests.contract.ledger.machine import LedgerMachine, Surroundings

HISTORIES = float(os.environ.get("LEDGER_HISTORIES", "1"))


def machine_over(surroundings: Surroundings) -> type[LedgerMachine]:
    """The machine as hypothesis runs it."""
    return type("LedgerMachine", (LedgerMachine,), {"surroundings": surroundings})


def histories(count: int, steps: int, **given: Any) -> settings:
    """So many histories of so many steps."""
    return settings(
        max_examples=max(1, round(count * HISTORIES)),
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
        **given,
    )


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    found = asyncio.new_event_loop()
    yield found
    found.run_until_complete(found.shutdown_asyncgens())
    found.close()


@pytest.mark.timeout(1200)
def test_every_history_in_memory_is_that_of_the_model(loop):
    around = Surroundings(MemoryBackend(), loop)
    run_state_machine_as_test(machine_over(around), settings=histories(400, 60))


@pytest.mark.timeout(1200)
def test_every_history_on_postgres_is_that_of_the_model(loop, fresh_database, ledger_template):
    backend = PostgresBackend(fresh_database(ledger_template))
    loop.run_until_complete(backend.make_teams())
    try:
        around = Surroundings(backend, loop)
        run_state_machine_as_test(machine_over(around), settings=histories(40, 50))
    finally:
        loop.run_until_complete(backend.close())


# -- it is no good unless it finds what is broken


def any_holder(row: Any, _: Fence) -> bool:
    return row is not None and bool(row.lease_token)


async def remember_nothing(_: Any, *request: str) -> str:
    return request[-1]


async def depend_on_nothing(_: Any, *__: Any) -> list[str]:
    return []


def pass_over_quotas(_: Any, __: str) -> float:
    return float("inf")


@pytest.mark.parametrize(
    ("owner", "name", "broken"),
    [
        (MemoryLeases, "_is_held", staticmethod(any_holder)),
        (MemoryCatalog, "remember_request", remember_nothing),
        (MemoryJobs, "_depend", depend_on_nothing),
        (MemoryLeases, "_room", pass_over_quotas),
    ],
    ids=["fences", "request ids", "dependencies", "quotas"],
)
def test_a_broken_adapter_is_found(loop, monkeypatch, owner, name, broken):
    monkeypatch.setattr(owner, name, broken)
    around = Surroundings(MemoryBackend(), loop)
    quick = histories(400, 60, phases=[Phase.generate], database=None)
    with pytest.raises((AssertionError, pytest.fail.Exception, VoxfleetError)):
        run_state_machine_as_test(machine_over(around), settings=quick)
