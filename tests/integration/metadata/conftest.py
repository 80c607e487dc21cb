from collections.abc import AsyncIterator, Mapping

import pytest

from services.metadata import migrate
from services.metadata.adapters.postgres import PostgresStore, PostgresWakeups
from services.metadata.app.audios import Audios
from services.metadata.app.dispatch import Offer
from services.metadata.app.identity import Identity
from services.metadata.app.ledger import Ledger, LedgerSettings
from services.metadata.app.submit import Submitter
from services.metadata.app.voices import Voices
from services.metadata.app.work import Claimed


class Metadata:
    """The use cases over one real database; what loops do is done when a test asks for it."""

    def __init__(self, url: str, *, lease_s: float = 15.0) -> None:
        self.url = url
        self.store = PostgresStore(url, pool_size=4)
        self.wakeups = PostgresWakeups(url)
        self.audios = Audios(self.store, upload_ttl_s=86_400)
        self.voices = Voices(self.store)
        self.identity = Identity(self.store)
        self.ledger = Ledger(
            self.store, self.wakeups, LedgerSettings(lease_s=lease_s, look_s=0.05, output_ttl_s=3600)
        )
        self.jobs, self.work = self.ledger.jobs, self.ledger.work
        self.submit = Submitter(self.store, max_attempts=3, foretelling=self.ledger.planner)

    async def claim(self, worker: str, free: Mapping[str, int]) -> list[Claimed]:
        """What a worker is handed now."""
        await self.ledger.dispatcher.refresh()
        return await self.work.with_checkpoints(
            await self.ledger.dispatcher.claim(Offer(worker, f"node-of-{worker}", free))
        )

    async def count(self) -> None:
        """One sweep over batches and dependencies."""
        await self.ledger.housekeeping.count()


@pytest.fixture(scope="session")
def template_database(postgres_server) -> str:
    name = "voxfleet_template"
    migrate.migrate(postgres_server.create_database(name))
    return name


@pytest.fixture
async def metadata(fresh_database, template_database) -> AsyncIterator[Metadata]:
    found = Metadata(fresh_database(template_database))
    await found.identity.bootstrap("alpha", "vf_alpha_token")
    await found.identity.create_team("beta", "Beta")
    yield found
    await found.store.close()
