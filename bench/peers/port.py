"""What a queue must do to be measured, and the document that every queue is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Claimer(Protocol):
    """One worker's access to a queue, with a database connection or stream of its own."""

    async def claim(self, batch: int) -> Sequence[Any]:
        """Takes up to ``batch`` jobs, durably, in one go; none where nothing was found."""

    async def finish(self, jobs: Sequence[Any]) -> None:
        """Records, durably, that these claimed jobs are done."""


class Peer(Protocol):
    """A queue with a fresh database of its own.

    Every method may raise; a benchmark that meets an error measures nothing.
    """

    @property
    def name(self) -> str:
        """What it is called in the output."""

    async def setup(self, url: str) -> None:
        """Makes the schema in an empty database and connects, as the project's own manual says."""

    async def enqueue(self, count: int, teams: int) -> None:
        """Queues ``count`` jobs of :func:`document`, by turns of ``teams`` teams where it knows teams."""

    async def claimer(self) -> Claimer:
        """One more worker."""

    async def finished(self) -> int:
        """How many jobs the database holds as done."""

    async def teardown(self) -> None:
        """Closes what :meth:`setup` and :meth:`claimer` opened."""


def document(team: str, number: int) -> dict[str, Any]:
    """The job itself, the same for every queue: about 200 bytes of JSON."""
    return {
        "kind": "f5.item",
        "team": team,
        "voice": f"teams/{team}/voices/anna",
        "text": "The quick brown fox jumps over the lazy dog by the river bank.",
        "seed": number,
        "language": "en",
        "output": {"format": "flac", "rate_hz": 24_000},
    }


def team_names(teams: int) -> list[str]:
    """The teams' ids."""
    return [f"team-{number:04d}" for number in range(teams)]
