"""Teams and API keys, as plain data."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Principal:
    """Who holds an API key."""

    team: str
    key: str
    operator: bool


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key, without its secret."""

    team: str
    id: str
    display_name: str
    operator: bool
    created_at: dt.datetime
    revoked_at: dt.datetime | None


@dataclass(frozen=True, slots=True)
class Team:
    """A tenant. ``allowed_licences`` are SPDX ids of the weights it may use; any where there are none."""

    id: str
    display_name: str
    created_at: dt.datetime
    allowed_licences: tuple[str, ...] = ()
