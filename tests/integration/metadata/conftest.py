from collections.abc import AsyncIterator

import pytest

from services.metadata import migrate
from services.metadata.adapters.postgres import PostgresStore, PostgresWakeups
from services.metadata.app.audios import Audios
from services.metadata.app.identity import Identity
from services.metadata.app.jobs import Jobs
from services.metadata.app.submit import Submitter
from services.metadata.app.voices import Voices
from services.metadata.app.work import Work


class Metadata:
    """The use cases over one real database."""

    def __init__(self, url: str, *, lease_s: float = 15.0) -> None:
        self.url = url
        self.store = PostgresStore(url, pool_size=4)
        self.wakeups = PostgresWakeups(url)
        self.audios = Audios(self.store, upload_ttl_s=86_400)
        self.voices = Voices(self.store)
        self.identity = Identity(self.store)
        self.jobs = Jobs(self.store, self.wakeups)
        self.submit = Submitter(self.store, max_attempts=3)
        self.work = Work(
            self.store, self.wakeups, lease_s=lease_s, poll_s=0.1, keep_checkpoints=2, output_ttl_s=3600
        )


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
