"""Brings the schema up to date, one process at a time.

``python -m services.metadata.migrate`` is what a deployment's migration job runs; embedded stacks let
metadata migrate itself (``VOXFLEET_MIGRATE=true``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import OperationalError

from services.common.errors import Reason, unavailable

# Any fixed number: it names the lock under which migrations run.
_ADVISORY_LOCK = 0x766F7866

_FOLDER = Path(__file__).parent / "migrations"


def sqlalchemy_url(database_url: str) -> sa.URL:
    """A ``postgresql://`` URL for SQLAlchemy with psycopg 3."""
    return sa.make_url(database_url).set(drivername="postgresql+psycopg")


def migrate(database_url: str) -> str:
    """Migrates to the newest schema under an advisory lock; returns the revision.

    Errors: DATABASE_UNAVAILABLE.
    """
    config = _config()
    with _connection(database_url) as connection:
        connection.execute(sa.text("SELECT pg_advisory_lock(:lock)"), {"lock": _ADVISORY_LOCK})
        connection.commit()
        try:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()
        finally:
            connection.rollback()
            connection.execute(sa.text("SELECT pg_advisory_unlock(:lock)"), {"lock": _ADVISORY_LOCK})
            connection.commit()
    return newest_revision()


def current_revision(database_url: str) -> str:
    """The revision that the database has, or empty. Errors: DATABASE_UNAVAILABLE."""
    with _connection(database_url) as connection:
        return MigrationContext.configure(connection).get_current_revision() or ""


@contextmanager
def _connection(database_url: str) -> Iterator[sa.Connection]:
    engine = sa.create_engine(sqlalchemy_url(database_url), poolclass=sa.NullPool)
    try:
        with engine.connect() as connection:
            yield connection
    except OperationalError as error:
        # The driver's own words, which name host and port and never the password.
        raise unavailable(Reason.DATABASE_UNAVAILABLE, str(error.orig).splitlines()[0]) from error
    finally:
        engine.dispose()


def newest_revision() -> str:
    """The revision that this release brings."""
    return ScriptDirectory.from_config(_config()).get_current_head() or ""


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    return config


def main() -> None:
    """The migration job."""
    from services.metadata.settings import MigrationSettings

    settings = MigrationSettings()  # type: ignore[call-arg]
    print(f"schema {migrate(settings.database_url)}")  # noqa: T201


if __name__ == "__main__":
    main()
