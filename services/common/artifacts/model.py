"""Artefacts and the layout of their keys.

=====================================================  ==================================================
``teams/{team}/sha256/{aa}/{sha256}``                  committed content; the name is its hash
``teams/{team}/staging/{upload_id}/{offset:016d}``     parts of an upload that is not complete
``teams/{team}/work/{job_id}/{attempt}/{name}``        checkpoints and other files of one attempt
``teams/{team}/archive/jobs/{day}/{hash}.jsonl.gz``    finished jobs, written by retention
``bundles/{name}/{file}``                              weights, shared by all teams
=====================================================  ==================================================

Everything of a team stands under ``teams/{team}/``, and duplicate content is stored once per team,
never across teams.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from services.common.errors import Reason, invalid

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+=-]{0,199}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CONTENT_KEY = re.compile(r"teams/[^/]+/sha256/([0-9a-f]{2})/(\1[0-9a-f]{62})")

DEFAULT_MEDIA_TYPE = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Blob:
    """One stored artefact. ``sha256`` is empty where the store does not know it (a presigned upload)."""

    key: str
    sha256: str
    size_bytes: int
    media_type: str


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of a listing."""

    key: str
    size_bytes: int
    modified_at: datetime


def content_key(team: str, sha256: str) -> str:
    """The key of committed content."""
    return f"{team_prefix(team)}sha256/{_sha256(sha256)[:2]}/{sha256}"


def staging_key(team: str, upload_id: str, offset_bytes: int) -> str:
    """The key of the part of an upload that begins at ``offset_bytes``; keys sort by offset."""
    if not 0 <= offset_bytes < 10**16:
        raise invalid(Reason.INVALID_ARGUMENT, f"{offset_bytes} is no offset of a file", field="offset")
    return f"{staging_prefix(team, upload_id)}{offset_bytes:016d}"


def work_key(team: str, job_id: str, attempt: int, name: str) -> str:
    """The key of a file of one attempt of a job; ``name`` may have folders."""
    if attempt < 0:
        raise invalid(Reason.INVALID_ARGUMENT, f"{attempt} is no attempt number", field="attempt")
    return f"{work_prefix(team, job_id)}{attempt}/{_path('name', name)}"


def bundle_key(name: str, file: str) -> str:
    """The key of one file of a bundle of weights; ``file`` may have folders."""
    return f"{bundle_prefix(name)}{_path('file', file)}"


def team_prefix(team: str) -> str:
    """Where everything of a team stands."""
    return f"teams/{_segment('team', team)}/"


def staging_prefix(team: str, upload_id: str) -> str:
    """Where the parts of an upload stand."""
    return f"{team_prefix(team)}staging/{_segment('upload_id', upload_id)}/"


def work_prefix(team: str, job_id: str) -> str:
    """Where the files of all attempts of a job stand."""
    return f"{team_prefix(team)}work/{_segment('job_id', job_id)}/"


def bundle_prefix(name: str) -> str:
    """Where the files of a bundle stand."""
    return f"bundles/{_segment('name', name)}/"


def content_sha256(key: str) -> str:
    """The hash that a key of committed content promises; empty for every other key."""
    match = _CONTENT_KEY.fullmatch(key)
    return match.group(2) if match else ""


def check_prefix(prefix: str) -> str:
    """``prefix`` itself, where deleting everything under it cannot reach another team or bundle.

    Errors: INVALID_ARGUMENT for the whole store, all teams, or a prefix that ends inside a name.
    """
    parts = prefix.split("/")
    if len(parts) < 3 or parts[-1] or parts[0] not in ("teams", "bundles") or not all(parts[:-1]):
        raise invalid(
            Reason.INVALID_ARGUMENT,
            f"{prefix!r} is no prefix to delete: name a team or a bundle, and end with /",
        )
    return prefix


def _segment(field: str, value: str) -> str:
    if not _SEGMENT.fullmatch(value):
        raise invalid(Reason.INVALID_ARGUMENT, f"{value!r} cannot be part of an artefact's key", field=field)
    return value


def _path(field: str, value: str) -> str:
    for part in value.split("/"):
        _segment(field, part)
    return value


def _sha256(value: str) -> str:
    if not _SHA256.fullmatch(value):
        raise invalid(Reason.INVALID_ARGUMENT, f"{value!r} is no SHA-256 in lower-case hex", field="sha256")
    return value
