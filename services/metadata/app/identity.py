"""Who holds a token; teams and keys."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from services.common.errors import Kind, Reason, VoxfleetError, not_found
from services.common.names import new_id
from services.metadata.model.identity import ApiKey, Principal, Team
from services.metadata.model.page import Page
from services.metadata.ports.store import Store


def hash_token(token: str) -> str:
    """SHA-256 of a token, hexadecimal: what is stored of it."""
    return hashlib.sha256(token.encode()).hexdigest()


class Identity:
    """The use cases of teams and keys."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def authenticate(self, token_sha256: str) -> Principal:
        """Who holds a token. Errors: UNAUTHENTICATED."""
        async with self._store.service() as tx:
            principal = await tx.principal(token_sha256)
        if principal is None:
            raise VoxfleetError(
                Reason.UNAUTHENTICATED,
                "this token is unknown or revoked: send `authorization: Bearer TOKEN` with a valid one",
                kind=Kind.UNAUTHENTICATED,
            )
        return principal

    async def bootstrap(self, team: str, token: str) -> None:
        """Makes the first team and its operator's key, where they are not there yet."""
        async with self._store.service() as tx:
            await tx.add_team(team, team)
            # A bootstrap key that was revoked stays so, and is no reason not to start.
            await tx.keep_key(team, new_id(), hash_token(token), "bootstrap", operator=True)

    async def create_team(self, team: str, display_name: str, allowed_licences: Sequence[str] = ()) -> Team:
        """Makes a team, or finds it as it is."""
        async with self._store.service() as tx:
            await tx.add_team(team, display_name, _distinct(allowed_licences))
        (found,) = await self.own_team(team)
        return found

    async def update_team(self, team: str, changes: Mapping[str, Any]) -> Team:
        """Changes a team's ``display_name`` or ``allowed_licences``. Errors: TEAM_NOT_FOUND."""
        values = dict(changes)
        if "allowed_licences" in values:
            values["allowed_licences"] = _distinct(values["allowed_licences"])
        async with self._store.service() as tx:
            changed = await tx.update_team(team, values)
        if not changed:
            raise not_found(Reason.TEAM_NOT_FOUND, f"teams/{team}")
        (found,) = await self.own_team(team)
        return found

    async def allowed_licences(self, team: str) -> tuple[str, ...]:
        """The licences of weights that a team may use; any where there are none."""
        async with self._store.tenant(team) as tx:
            return await tx.allowed_licences(team)

    async def list_teams(self, page: Page) -> list[Team]:
        """Every team."""
        async with self._store.service() as tx:
            return await tx.list_teams(page)

    async def own_team(self, team: str) -> list[Team]:
        """The one team that a tenant sees, or none where it does not exist."""
        async with self._store.tenant(team) as tx:
            return await tx.list_teams(Page(size=1))

    async def create_key(self, team: str, display_name: str, *, operator: bool) -> tuple[ApiKey, str]:
        """Makes a key; the token is only in this answer. Errors: TEAM_NOT_FOUND."""
        token = f"vf_{secrets.token_urlsafe(32)}"
        if not await self.own_team(team):
            raise not_found(Reason.TEAM_NOT_FOUND, f"teams/{team}")
        async with self._store.service() as tx:
            key = await tx.add_key(team, new_id(), hash_token(token), display_name, operator=operator)
        return key, token

    async def list_keys(self, team: str, page: Page) -> list[ApiKey]:
        """A team's keys."""
        async with self._store.tenant(team) as tx:
            return await tx.list_keys(team, page)

    async def revoke_key(self, team: str, key: str, *, operators: bool) -> None:
        """Revokes a key, an operator's only where told to; gateways forget it within their cache's time."""
        async with self._store.tenant(team) as tx:
            if not await tx.revoke_key(team, key, operators=operators):
                raise not_found(Reason.INVALID_ARGUMENT, f"teams/{team}/apiKeys/{key}")


def _distinct(licences: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(licences))
