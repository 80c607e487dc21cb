"""What teams may use, remembered for a while."""

from __future__ import annotations

import time
from collections.abc import Callable

from services.inference.ports import Catalog

KEEP_S = 10.0
"""How long what the record said of a team is gone by: a batch has a hundred thousand items."""


class TeamLicences:
    """What each team may use, asked of the record and kept for a while.

    Args:
        catalog: the record.
        keep_s: how long an answer is kept.
        clock: seconds, monotonic.
    """

    def __init__(
        self, catalog: Catalog, *, keep_s: float = KEEP_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._catalog = catalog
        self._keep_s = keep_s
        self._clock = clock
        self._kept: dict[str, tuple[float, tuple[str, ...]]] = {}

    async def allowed(self, team: str) -> tuple[str, ...]:
        """SPDX ids; any where there are none. Errors: SERVICE_UNAVAILABLE."""
        now_s = self._clock()
        until_s, found = self._kept.get(team, (now_s, ()))
        if until_s > now_s:
            return found
        found = await self._catalog.allowed_licences(team)
        current = {name: kept for name, kept in self._kept.items() if kept[0] > now_s}
        self._kept = {**current, team: (now_s + self._keep_s, found)}
        return found
