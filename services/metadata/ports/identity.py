"""What the use cases need of a database for teams and keys."""

from __future__ import annotations

from typing import Protocol

from services.metadata.model.identity import ApiKey, Principal, Team
from services.metadata.model.page import Page


class IdentityRows(Protocol):
    """Teams and keys."""

    async def principal(self, token_sha256: str) -> Principal | None: ...
    async def add_team(self, team: str, display_name: str) -> bool: ...
    async def list_teams(self, page: Page) -> list[Team]: ...
    async def add_key(
        self, team: str, key: str, token_sha256: str, display_name: str, *, operator: bool
    ) -> ApiKey: ...
    async def keep_key(
        self, team: str, key: str, token_sha256: str, display_name: str, *, operator: bool
    ) -> bool: ...
    async def list_keys(self, team: str, page: Page) -> list[ApiKey]: ...
    async def revoke_key(self, team: str, key: str, *, operators: bool) -> bool: ...
