"""Real servers for tests: one Postgres and one S3 a session, on loopback, gone at its end."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator

import pytest

from services.common.artifacts.settings import S3Settings
from services.stack.config import inherited
from services.stack.home import Home
from services.stack.postgres import EmbeddedPostgres
from services.stack.seaweed import EmbeddedSeaweed, SeaweedPorts


@pytest.fixture(scope="session")
def embedded_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A state directory for the session's servers."""
    home = Home(tmp_path_factory.mktemp("embedded"))
    yield home
    home.remove_runtime_dir()


@pytest.fixture(scope="session")
def postgres_server(embedded_home: Home) -> Iterator[EmbeddedPostgres]:
    """A running Postgres (``.url``, ``.create_database(name, template)``, ``.drop_database(name)``)."""
    server = EmbeddedPostgres(
        directory=embedded_home.path / "postgres",
        port=embedded_home.ports().port("postgres"),
        password=embedded_home.secrets().postgres_password,
        log_path=embedded_home.logs / "postgres.log",
        base_env=inherited(os.environ),
        durable=False,
    )
    server.start()
    yield server
    server.stop()


@pytest.fixture
def fresh_database(postgres_server: EmbeddedPostgres) -> Iterator[Callable[..., str]]:
    """Makes a database of its own for a test, ``fresh_database(template=None) -> url``; dropped after it."""
    made: list[str] = []

    def make(template: str | None = None) -> str:
        made.append(f"t_{uuid.uuid4().hex}")
        return postgres_server.create_database(made[-1], template)

    yield make
    for name in made:
        postgres_server.drop_database(name)


@pytest.fixture(scope="session")
def seaweed_server(embedded_home: Home) -> Iterator[EmbeddedSeaweed]:
    """A running S3 server."""
    secrets = embedded_home.secrets()
    server = EmbeddedSeaweed(
        directory=embedded_home.path / "s3",
        runtime_dir=embedded_home.runtime_dir(),
        ports=SeaweedPorts.choose(embedded_home.ports()),
        access_key=secrets.s3_access_key,
        secret_key=secrets.s3_secret_key,
        log_path=embedded_home.logs / "s3.log",
        base_env=inherited(os.environ),
    )
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def s3_settings(seaweed_server: EmbeddedSeaweed) -> S3Settings:
    """How to reach the session's S3 server; its bucket exists."""
    return seaweed_server.settings
