"""Whether an audio was made by a machine: what the record, its file and its sound say."""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass

from services.inference.ports import Catalog, Examiner, ResolvedAudio, Traces

TAGGED = 0.9
"""How sure tags are alone: whoever writes them says so, but anyone can write them."""


class Evidence(enum.StrEnum):
    """What says that an audio was made by a machine, the surest first."""

    RECORD = "RECORD"
    WATERMARK = "WATERMARK"
    TAGS = "TAGS"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of how an audio came to be.

    Args:
        generated: whether anything says that a machine made it.
        confidence: that one did, 0 to 1.
        job: the team's that made it, by name; empty where that is not known.
        evidence: what says so.
    """

    generated: bool
    confidence: float
    job: str
    evidence: tuple[Evidence, ...]


class Provenance:
    """Verifies audios of a team.

    Args:
        catalog: the record.
        examiner: reads what is stored.
        at_once: audios that are read at the same time; each may be half an hour long.
    """

    def __init__(self, catalog: Catalog, examiner: Examiner, *, at_once: int = 1) -> None:
        self._catalog = catalog
        self._examiner = examiner
        self._places = asyncio.Semaphore(at_once)

    async def verify(self, team: str, name: str) -> Verdict:
        """What is known of an audio. Errors: AUDIO_NOT_FOUND, INVALID_FORMAT, STORAGE_UNAVAILABLE."""
        record = await self._catalog.resolve_audio(name)
        async with self._places:
            traces = await self._examiner.examine(record.blob)
        return judge(team, record, traces)


def judge(team: str, record: ResolvedAudio, traces: Traces) -> Verdict:
    """Weighs what was found: each source alone is enough, the surest gives the confidence."""
    tagged = traces.tags.get("generated") == "true"
    marked = traces.mark_present
    found = ((Evidence.RECORD, record.generated), (Evidence.WATERMARK, marked), (Evidence.TAGS, tagged))
    evidence = tuple(source for source, says_so in found if says_so)
    sure = max(float(record.generated), TAGGED * tagged, traces.mark_confidence)
    # A file may come from anywhere: a job that another team's file names is none of this one's business.
    named = traces.tags.get("job", "") if tagged else ""
    job = record.job or (named if named.startswith(f"teams/{team}/jobs/") else "")
    return Verdict(bool(evidence), sure, job if evidence else "", evidence)
