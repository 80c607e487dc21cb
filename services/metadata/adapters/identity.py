"""Teams and keys in Postgres."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from services.metadata.adapters import tables as t
from services.metadata.adapters.queries import Queries
from services.metadata.model.identity import ApiKey, Principal, Team
from services.metadata.model.page import Page


class IdentityQueries(Queries):
    """The teams' and keys' part of a transaction."""

    async def principal(self, token_sha256: str) -> Principal | None:
        """Who holds a token, unless its key was revoked."""
        row = await self._one(
            sa.select(t.api_keys).where(
                t.api_keys.c.token_sha256 == token_sha256, t.api_keys.c.revoked_at.is_(None)
            )
        )
        return Principal(row.team, row.id, row.operator) if row else None

    async def add_team(self, team: str, display_name: str, allowed_licences: Sequence[str] = ()) -> bool:
        """Makes a team; False where there is one."""
        values = {"id": team, "display_name": display_name, "allowed_licences": list(allowed_licences)}
        return await self._inserted(insert(t.teams).values(values))

    async def update_team(self, team: str, changes: Mapping[str, Any]) -> bool:
        """Changes a team; False where there is none."""
        return await self._changed(sa.update(t.teams).where(t.teams.c.id == team).values(dict(changes)))

    async def allowed_licences(self, team: str) -> tuple[str, ...]:
        """The licences of weights that a team may use; any where there are none."""
        row = await self._one(sa.select(t.teams.c.allowed_licences).where(t.teams.c.id == team))
        return tuple(row.allowed_licences) if row else ()

    async def list_teams(self, page: Page) -> list[Team]:
        """Teams by id."""
        query = sa.select(t.teams).where(t.teams.c.id > page.after).order_by(t.teams.c.id).limit(page.size)
        return [
            Team(row.id, row.display_name, row.created_at, tuple(row.allowed_licences))
            for row in await self._all(query)
        ]

    async def add_key(
        self, team: str, key: str, token_sha256: str, display_name: str, *, operator: bool
    ) -> ApiKey:
        """Makes a key."""
        row = await self._one(
            insert(t.api_keys)
            .values(
                team=team, id=key, token_sha256=token_sha256, display_name=display_name, operator=operator
            )
            .returning(t.api_keys)
        )
        assert row is not None
        return _key(row)

    async def keep_key(
        self, team: str, key: str, token_sha256: str, display_name: str, *, operator: bool
    ) -> bool:
        """Makes a key unless one of the same token was ever made, be it revoked."""
        return await self._inserted(
            insert(t.api_keys).values(
                team=team, id=key, token_sha256=token_sha256, display_name=display_name, operator=operator
            )
        )

    async def list_keys(self, team: str, page: Page) -> list[ApiKey]:
        """A team's keys by id."""
        query = (
            sa.select(t.api_keys)
            .where(t.api_keys.c.team == team, t.api_keys.c.id > page.after)
            .order_by(t.api_keys.c.id)
            .limit(page.size)
        )
        return [_key(row) for row in await self._all(query)]

    async def revoke_key(self, team: str, key: str, *, operators: bool) -> bool:
        """Revokes a key; False where there is none, or it is an operator's and those are not meant."""
        return await self._changed(
            sa.update(t.api_keys)
            .where(t.api_keys.c.team == team, t.api_keys.c.id == key)
            .where(sa.or_(sa.literal(operators), t.api_keys.c.operator.is_(False)))
            .values(revoked_at=sa.func.coalesce(t.api_keys.c.revoked_at, sa.func.now()))
        )


def _key(row: Any) -> ApiKey:
    return ApiKey(row.team, row.id, row.display_name, row.operator, row.created_at, row.revoked_at)
