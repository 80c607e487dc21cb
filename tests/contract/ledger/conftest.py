from collections.abc import AsyncIterator

import pytest

from services.metadata import migrate
from tests.contract.ledger.backends import Backend, MemoryBackend, PostgresBackend
from tests.contract.ledger.desk import Desk


@pytest.fixture(scope="session")
def ledger_template(postgres_server) -> str:
    name = "ledger_contract_template"
    migrate.migrate(postgres_server.create_database(name))
    return name


@pytest.fixture(params=["memory", "postgres"])
async def backend(request) -> AsyncIterator[Backend]:
    if request.param == "memory":
        yield MemoryBackend()
        return
    fresh_database = request.getfixturevalue("fresh_database")
    found = PostgresBackend(fresh_database(request.getfixturevalue("ledger_template")))
    await found.make_teams()
    yield found
    await found.close()


@pytest.fixture
def desk(backend) -> Desk:
    return Desk(backend)
