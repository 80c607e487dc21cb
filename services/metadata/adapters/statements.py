"""Runs named statements on one connection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.rows import dict_row

from services.metadata.sql import statements


def _bare(text: str) -> str:
    """A statement without its comments: what is long the driver takes apart anew each time."""
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))


FILES = ("jobs.sql", "batches.sql", "leases.sql", "fleet.sql", "grants.sql", "retention.sql", "webhooks.sql")
SQL = {name: _bare(text) for file in FILES for name, text in statements(file).items()}

Row = dict[str, Any]


class Statements:
    """Named statements on one connection."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._driver = connection

    async def _run(self, statement: str, /, **parameters: Any) -> None:
        await self._driver.execute(SQL[statement], parameters)

    async def _rows(self, statement: str, /, **parameters: Any) -> list[Row]:
        return await self._fetch(SQL[statement], parameters)

    async def _tuples(self, statement: str, /, **parameters: Any) -> list[tuple[Any, ...]]:
        """Rows without their columns' names: for statements of which many rows are read a second."""
        cursor = await self._driver.execute(SQL[statement], parameters)
        return await cursor.fetchall()

    async def _row(self, statement: str, /, **parameters: Any) -> Row | None:
        rows = await self._fetch(SQL[statement], parameters)
        return rows[0] if rows else None

    async def _fetch(self, query: str, parameters: Mapping[str, Any]) -> list[Row]:
        async with self._driver.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(query, parameters)
            return await cursor.fetchall()
