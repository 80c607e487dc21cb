"""Lexicons in memory."""

from __future__ import annotations

from dataclasses import replace

from services.metadata.adapters.memory.database import Statements, statement
from services.metadata.model.lexicons import Lexicon, LexiconChange
from services.metadata.model.page import Page


class MemoryLexicons(Statements):
    """The lexicons' part of a transaction."""

    @statement
    async def add_lexicon(self, lexicon: Lexicon) -> bool:
        """Makes a lexicon; False where the id is taken."""
        made = replace(lexicon, created_at=self._s.now, updated_at=self._s.now)
        return await self._s.insert(self._db.lexicons, (lexicon.team, lexicon.id), made)

    @statement
    async def get_lexicon(self, team: str, lexicon: str) -> Lexicon | None:
        """A lexicon with its entries."""
        return self._s.get(self._db.lexicons, (team, lexicon)) if self._s.team in ("", team) else None

    @statement
    async def list_lexicons(self, team: str, page: Page) -> list[Lexicon]:
        """A team's lexicons by id, without their entries."""
        found = [
            replace(row, entries=())
            for (owner, lexicon), row in self._s.scan(self._db.lexicons)
            if owner == team and self._s.team in ("", team) and lexicon > page.after
        ]
        return sorted(found, key=lambda row: row.id)[: page.size]

    @statement
    async def update_lexicon(self, team: str, lexicon: str, change: LexiconChange) -> bool:
        """Changes a lexicon; False where there is none."""
        key = (team, lexicon)
        if self._s.team not in ("", team):
            return False
        found = await self._s.lock(self._db.lexicons, key)
        if found is None:
            return False
        changed = replace(
            found,
            display_name=found.display_name if change.display_name is None else change.display_name,
            entries=found.entries if change.entries is None else change.entries,
            updated_at=self._s.now,
        )
        self._s.put(self._db.lexicons, key, changed)
        return True

    @statement
    async def delete_lexicon(self, team: str, lexicon: str) -> bool:
        """Deletes a lexicon; False where there is none."""
        key = (team, lexicon)
        if self._s.team not in ("", team) or await self._s.lock(self._db.lexicons, key) is None:
            return False
        self._s.put(self._db.lexicons, key, None)
        return True
