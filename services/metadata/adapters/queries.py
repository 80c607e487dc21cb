"""Runs SQLAlchemy statements on one connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection


class Queries:
    """SQLAlchemy statements on one connection."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def _one(self, statement: sa.Executable) -> Any:
        return (await self._connection.execute(statement)).one_or_none()

    async def _all(self, statement: sa.Executable) -> Sequence[Any]:
        return (await self._connection.execute(statement)).all()

    async def _inserted(self, statement: Any) -> bool:
        # RETURNING, since SQLAlchemy does not keep the row count of an INSERT.
        found = await self._connection.execute(statement.on_conflict_do_nothing().returning(sa.literal(1)))
        return found.first() is not None

    async def _changed(self, statement: sa.Executable) -> bool:
        return bool((await self._connection.execute(statement)).rowcount)
