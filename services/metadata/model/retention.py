"""What is kept how long, and what goes: plain data."""

from __future__ import annotations

import datetime as dt
import enum
import gzip
import hashlib
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from services.common.artifacts.model import team_prefix

DAY_S: Final = 86_400.0
MAX_NAMES: Final = 1000
MAX_COUNTED: Final = 100_000
EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class Category(enum.StrEnum):
    """Why something goes; the steps of a run, in their order."""

    BYTES = "BYTES"
    """Content that nothing refers to any more."""
    ORPHANS = "ORPHANS"
    """Objects that no row names: what an upload or an attempt left that never came to its commit."""
    INPUTS = "INPUTS"
    """Audios that were uploaded, have expired, and that nothing uses."""
    OUTPUTS = "OUTPUTS"
    """Audios that jobs made and that have expired."""
    UPLOADS = "UPLOADS"
    """Uploads that have expired: their rows, and the parts of those that were not completed."""
    REQUESTS = "REQUESTS"
    """Request ids whose job is gone."""
    JOBS = "JOBS"
    """Finished jobs; a batch takes its items along."""


@dataclass(frozen=True, slots=True)
class RetentionSettings:
    """How long what is kept.

    Args:
        policy: what becomes of finished jobs: `archive` writes them to the object store before their rows go.
        retain_jobs_s: after its end a job stays for so long.
        second_look_s: between condemning something and deleting it: longer than any transaction.
        orphan_grace_s: age that an object without a row must have: longer than anybody takes from storing
            bytes to the commit of the row that names them.
        sweep_s: between two runs.
        orphans_s: between two listings of the store.
        delete_s: a process that has said that it will delete bytes does so within this time; another takes
            over after four times as long.
        rows: that one transaction may delete, attempts and events included.
    """

    policy: Literal["archive", "delete", "keep"] = "archive"
    retain_jobs_s: float = 30 * DAY_S
    second_look_s: float = 900.0
    orphan_grace_s: float = DAY_S
    sweep_s: float = 60.0
    orphans_s: float = 6 * 3600.0
    delete_s: float = 120.0
    rows: int = 2000


@dataclass(frozen=True, slots=True)
class Doomed:
    """One thing that goes: a resource name, or the key of an object; and its bytes in the store."""

    category: Category
    name: str
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Share:
    """What goes of one category: how many, how many bytes, and the names of the first."""

    category: Category
    count: int
    size_bytes: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What a run removed, or would. ``complete`` is False where counting stopped at a bound."""

    at: dt.datetime
    shares: tuple[Share, ...]
    complete: bool = True

    def names(self, category: Category) -> tuple[str, ...]:
        """The names of the first of a category."""
        return next((share.names for share in self.shares if share.category is category), ())


@dataclass(slots=True)
class Tally:
    """Adds up what goes."""

    most_names: int
    counts: dict[Category, int] = field(default_factory=dict)
    sizes: dict[Category, int] = field(default_factory=dict)
    names: dict[Category, list[str]] = field(default_factory=dict)
    complete: bool = True

    def add(self, doomed: Iterable[Doomed]) -> None:
        """Counts more."""
        for one in doomed:
            self.counts[one.category] = self.counts.get(one.category, 0) + 1
            self.sizes[one.category] = self.sizes.get(one.category, 0) + one.size_bytes
            names = self.names.setdefault(one.category, [])
            if len(names) < self.most_names:
                names.append(one.name)

    def is_full(self, *categories: Category) -> bool:
        """Whether as many of these were counted as a dry run counts."""
        full = sum(self.counts.get(each, 0) for each in categories) >= MAX_COUNTED
        self.complete = self.complete and not full
        return full

    def report(self, at: dt.datetime) -> Report:
        """Every category, also those of which nothing goes."""
        shares = (
            Share(each, self.counts.get(each, 0), self.sizes.get(each, 0), tuple(self.names.get(each, ())))
            for each in Category
        )
        return Report(at, tuple(shares), self.complete)


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished job that is due, as it was looked at.

    ``event_seq`` and ``updated_at`` are its version: a job that changed has others. ``rows`` is how many rows
    it has in all.
    """

    team: str
    id: str
    kind: str
    event_seq: int
    updated_at: dt.datetime
    ended_at: dt.datetime
    rows: int
    size_bytes: int = 0

    @property
    def name(self) -> str:
        """``teams/{team}/jobs/{id}``."""
        return f"teams/{self.team}/jobs/{self.id}"


@dataclass(frozen=True, slots=True)
class RetiredBatch:
    """A batch whose row is gone and whose items are going."""

    team: str
    id: str
    ended_at: dt.datetime


@dataclass(frozen=True, slots=True)
class Stray:
    """An object of a team that may have no row. ``owner`` is what a row would be found by.

    That is the SHA-256 of content, the upload of a part, the job of a file of an attempt.
    """

    team: str
    area: Literal["sha256", "staging", "work"]
    owner: str
    key: str
    size_bytes: int


def stray_of(key: str, size_bytes: int) -> Stray | None:
    """An object as the sweeper sees it; None where its key is none that the sweeper may delete."""
    parts = key.split("/")
    if len(parts) < 4 or parts[0] != "teams":
        return None
    team, area = parts[1], parts[2]
    if area == "sha256":
        return Stray(team, "sha256", parts[4], key, size_bytes) if len(parts) == 5 else None
    if area == "staging":
        return Stray(team, "staging", parts[3], key, size_bytes) if len(parts) == 5 else None
    return Stray(team, "work", parts[3], key, size_bytes) if area == "work" and len(parts) > 5 else None


def parts_of(jobs: Sequence[Finished], rows: int) -> list[list[Finished]]:
    """Jobs in parts of at most so many rows each; a job that has more is a part by itself."""
    parts: list[list[Finished]] = []
    held = rows
    for job in jobs:
        if held + job.rows > rows:
            parts.append([])
            held = 0
        parts[-1].append(job)
        held += job.rows
    return parts


def first_id_at(moment: dt.datetime) -> str:
    """No id that was made before this moment is above it (ids are UUIDs of version 7)."""
    return str(uuid.UUID(int=max(0, int(moment.timestamp() * 1000)) << 80))


def archive_object(team: str, day: dt.date, lines: Sequence[str]) -> tuple[str, bytes]:
    """The key and the bytes of an archive object, of jobs that ended on a day: JSON lines in gzip (RFC 1952).

    The key says what it holds, so that a repeat after a crash writes the same object once more.
    """
    data = "".join(f"{line}\n" for line in lines).encode()
    digest = hashlib.sha256(data).hexdigest()[:32]
    return f"{team_prefix(team)}archive/jobs/{day.isoformat()}/{digest}.jsonl.gz", gzip.compress(
        data, mtime=0
    )


@dataclass(frozen=True, slots=True)
class Mark:
    """The last of a list, after which the next one begins; ``at`` only where it goes by time."""

    team: str = ""
    id: str = ""
    at: dt.datetime = EPOCH


@dataclass(frozen=True, slots=True)
class Due:
    """When something condemned is due: so long after that, or after another process claimed it and died."""

    second_look_s: float
    takeover_s: float


@dataclass(frozen=True, slots=True)
class ExpiredAudio:
    """An audio after its time."""

    team: str
    id: str
    sha256: str
    purpose: str = ""
    size_bytes: int = 0
    expires_at: dt.datetime = EPOCH

    @property
    def key(self) -> tuple[str, str]:
        """(team, id)."""
        return self.team, self.id

    @property
    def doomed(self) -> Doomed:
        """As it is reported."""
        made = self.purpose == "AUDIO_PURPOSE_OUTPUT"
        name = f"teams/{self.team}/audios/{self.id}"
        return Doomed(Category.OUTPUTS if made else Category.INPUTS, name, self.size_bytes)


@dataclass(frozen=True, slots=True)
class Condemned:
    """An artefact that seems to be used by nobody. ``swept``: its bytes may be gone already."""

    team: str
    sha256: str
    object_key: str
    size_bytes: int = 0
    condemned_at: dt.datetime = EPOCH
    swept: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """(team, SHA-256)."""
        return self.team, self.sha256


@dataclass(frozen=True, slots=True)
class ExpiredUpload:
    """An upload after its time, with the bytes that are in parts."""

    team: str
    id: str
    size_bytes: int = 0
    expires_at: dt.datetime = EPOCH


@dataclass(frozen=True, slots=True)
class OldRequest:
    """A request id; ``due``: it is old, and its job is gone."""

    team: str
    id: str
    due: bool
