"""What the use cases need of a database for lexicons."""

from __future__ import annotations

from typing import Protocol

from services.metadata.model.lexicons import Lexicon, LexiconChange
from services.metadata.model.page import Page


class LexiconRows(Protocol):
    """Lexicons."""

    async def add_lexicon(self, lexicon: Lexicon) -> bool:
        """Makes a lexicon; False where the id is taken."""

    async def get_lexicon(self, team: str, lexicon: str) -> Lexicon | None: ...
    async def list_lexicons(self, team: str, page: Page) -> list[Lexicon]:
        """A team's lexicons by id, without their entries."""

    async def update_lexicon(self, team: str, lexicon: str, change: LexiconChange) -> bool:
        """Changes a lexicon; False where there is none."""

    async def delete_lexicon(self, team: str, lexicon: str) -> bool: ...
