"""Pronunciation dictionaries of teams, as plain data."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from services.common.jobs.tasks import Pronunciation


@dataclass(frozen=True, slots=True)
class Lexicon:
    """How a team wants words said; in a list it comes without its entries."""

    team: str
    id: str
    display_name: str
    language: str
    entries: tuple[Pronunciation, ...] = ()
    created_at: dt.datetime | None = None
    updated_at: dt.datetime | None = None

    @property
    def name(self) -> str:
        """``teams/{team}/lexicons/{id}``."""
        return f"teams/{self.team}/lexicons/{self.id}"


@dataclass(frozen=True, slots=True)
class LexiconChange:
    """What is to be changed of a lexicon; None leaves it as it is."""

    display_name: str | None = None
    entries: tuple[Pronunciation, ...] | None = None
