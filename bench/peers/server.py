"""The one Postgres of a run: durable, as a real server is, and a fresh database for each measurement."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import psycopg

from services.stack.config import inherited
from services.stack.home import Home
from services.stack.postgres import EmbeddedPostgres

_SHOWN = (
    "server_version",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "shared_buffers",
    "max_wal_size",
    "autovacuum_naptime",
)


@contextmanager
def running_postgres(home: Home) -> Iterator[EmbeddedPostgres]:
    """A server that survives the loss of its machine: every commit waits for its disc."""
    server = EmbeddedPostgres(
        directory=home.path / "postgres",
        port=home.ports().port("postgres"),
        password=home.secrets().postgres_password,
        log_path=home.logs / "postgres.log",
        base_env=inherited(os.environ),
        durable=True,
    )
    server.start()
    try:
        yield server
    finally:
        server.stop()


@asynccontextmanager
async def fresh_database(
    server: EmbeddedPostgres, name: str, template: str | None = None
) -> AsyncIterator[str]:
    """A database of that name, gone at the end; yields its URL.

    A checkpoint comes before it, so that none falls due in what is measured and no page of the measured
    tables is written whole because of one.
    """
    url = await asyncio.to_thread(server.create_database, name, template)
    try:
        await run_alone(url, "CHECKPOINT")
        yield url
    finally:
        await asyncio.to_thread(server.drop_database, name)


async def settle(url: str) -> None:
    """Vacuums and analyses: every queue starts with the planner knowing its tables."""
    await run_alone(url, "VACUUM (ANALYZE)")


async def run_alone(url: str, statement: str) -> None:
    """Runs a statement that takes no transaction."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(statement)


async def settings(url: str) -> dict[str, str]:
    """The settings that a figure depends on, as the server has them."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        found = await connection.execute(
            "SELECT name, current_setting(name) FROM unnest(%s::text[]) AS name", [list(_SHOWN)]
        )
        return {str(name): str(value) for name, value in await found.fetchall()}
