"""Runs named statements on one connection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.rows import dict_row

from services.metadata.sql import statements

SQL = {
    name: text
    for file in ("jobs.sql", "batches.sql", "leases.sql", "fleet.sql")
    for name, text in statements(file).items()
}

Row = dict[str, Any]


class Statements:
    """Named statements on one connection."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._driver = connection

    async def _run(self, statement: str, /, **parameters: Any) -> None:
        await self._driver.execute(SQL[statement], parameters)

    async def _rows(self, statement: str, /, **parameters: Any) -> list[Row]:
        return await self._fetch(SQL[statement], parameters)

    async def _row(self, statement: str, /, **parameters: Any) -> Row | None:
        rows = await self._fetch(SQL[statement], parameters)
        return rows[0] if rows else None

    async def _fetch(self, query: str, parameters: Mapping[str, Any]) -> list[Row]:
        async with self._driver.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(query, parameters)
            return await cursor.fetchall()
