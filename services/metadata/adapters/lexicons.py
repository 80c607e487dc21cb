"""Lexicons in Postgres."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from services.common.jobs.tasks import Pronunciation
from services.metadata.adapters import tables as t
from services.metadata.adapters.queries import Queries
from services.metadata.model.lexicons import Lexicon, LexiconChange
from services.metadata.model.page import Page


class LexiconQueries(Queries):
    """The lexicons' part of a transaction."""

    async def add_lexicon(self, lexicon: Lexicon) -> bool:
        """Makes a lexicon; False where the id is taken."""
        return await self._inserted(
            insert(t.lexicons).values(
                team=lexicon.team,
                id=lexicon.id,
                display_name=lexicon.display_name,
                language=lexicon.language,
                entries=_stored(lexicon.entries),
            )
        )

    async def get_lexicon(self, team: str, lexicon: str) -> Lexicon | None:
        """A lexicon with its entries."""
        row = await self._one(
            sa.select(t.lexicons).where(t.lexicons.c.team == team, t.lexicons.c.id == lexicon)
        )
        return _lexicon(row, row.entries) if row else None

    async def list_lexicons(self, team: str, page: Page) -> list[Lexicon]:
        """A team's lexicons by id, without their entries."""
        columns = [column for column in t.lexicons.c if column.name != "entries"]
        query = sa.select(*columns).where(t.lexicons.c.team == team, t.lexicons.c.id > page.after)
        return [_lexicon(row) for row in await self._all(query.order_by(t.lexicons.c.id).limit(page.size))]

    async def update_lexicon(self, team: str, lexicon: str, change: LexiconChange) -> bool:
        """Changes a lexicon; False where there is none."""
        values: dict[str, Any] = {"updated_at": sa.func.voxfleet_now()}
        if change.display_name is not None:
            values["display_name"] = change.display_name
        if change.entries is not None:
            values["entries"] = _stored(change.entries)
        return await self._changed(
            sa.update(t.lexicons)
            .where(t.lexicons.c.team == team, t.lexicons.c.id == lexicon)
            .values(**values)
        )

    async def delete_lexicon(self, team: str, lexicon: str) -> bool:
        """Deletes a lexicon; False where there is none."""
        return await self._changed(
            sa.delete(t.lexicons).where(t.lexicons.c.team == team, t.lexicons.c.id == lexicon)
        )


def _stored(entries: Sequence[Pronunciation]) -> list[list[str]]:
    return [[entry.grapheme, entry.alias] for entry in entries]


def _lexicon(row: Any, entries: Sequence[Sequence[str]] = ()) -> Lexicon:
    return Lexicon(
        team=row.team,
        id=row.id,
        display_name=row.display_name,
        language=row.language,
        entries=tuple(Pronunciation(grapheme=grapheme, alias=alias) for grapheme, alias in entries),
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
