"""Resource names, AIP-122: ``teams/{team}/{collection}/{id}``."""

from __future__ import annotations

import re
import secrets
import time
import uuid
from dataclasses import dataclass

from services.common.errors import Reason, VoxfleetError, invalid

TEAM_PATTERN = re.compile(r"[a-z0-9][a-z0-9-]{1,38}[a-z0-9]")
ID_PATTERN = re.compile(r"[a-z0-9][a-z0-9-]{2,62}[a-z0-9]")
NODE_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")

COLLECTIONS = ("audios", "uploads", "voices", "jobs", "lexicons", "dubs", "consents", "webhooks", "apiKeys")


@dataclass(frozen=True, slots=True)
class Name:
    """A parsed resource name."""

    team: str
    collection: str
    id: str

    def __str__(self) -> str:
        return f"teams/{self.team}/{self.collection}/{self.id}"


def parse_team(parent: str, *, field: str = "parent") -> str:
    """The team's id in ``teams/{team}``.

    Raises:
        VoxfleetError: INVALID_ARGUMENT where it is not of that form.
    """
    prefix, _, team = parent.partition("/")
    if prefix != "teams" or not TEAM_PATTERN.fullmatch(team):
        raise _malformed(field, parent, "teams/{team}")
    return team


def parse(name: str, collection: str, *, field: str = "name") -> Name:
    """The parts of ``teams/{team}/{collection}/{id}``.

    Raises:
        VoxfleetError: INVALID_ARGUMENT where it is not of that form.
    """
    parts = name.split("/")
    if (
        len(parts) != 4
        or parts[0] != "teams"
        or parts[2] != collection
        or not TEAM_PATTERN.fullmatch(parts[1])
        or not ID_PATTERN.fullmatch(parts[3])
    ):
        raise _malformed(field, name, f"teams/{{team}}/{collection}/{{id}}")
    return Name(parts[1], collection, parts[3])


def parse_quota(name: str, *, field: str = "name") -> str:
    """The team's id in ``teams/{team}/quota``.

    Raises:
        VoxfleetError: INVALID_ARGUMENT where it is not of that form.
    """
    parts = name.split("/")
    if len(parts) != 3 or (parts[0], parts[2]) != ("teams", "quota") or not TEAM_PATTERN.fullmatch(parts[1]):
        raise _malformed(field, name, "teams/{team}/quota")
    return parts[1]


def parse_node(name: str, *, field: str = "name") -> str:
    """A node's whole name, ``nodes/{node}``: what Ray's nodes are known by everywhere.

    Raises:
        VoxfleetError: INVALID_ARGUMENT where it is not of that form.
    """
    prefix, _, node = name.partition("/")
    if prefix != "nodes" or not NODE_PATTERN.fullmatch(node):
        raise _malformed(field, name, "nodes/{node}")
    return name


def check_id(value: str, *, field: str) -> str:
    """An id that a client chose: 4 to 64 of lower-case letters, digits and hyphens."""
    if not ID_PATTERN.fullmatch(value):
        raise invalid(
            Reason.INVALID_ARGUMENT,
            f"{field} must be 4 to 64 lower-case letters, digits and hyphens, not {value[:80]!r}",
            field=field,
        )
    return value


def new_id() -> str:
    """A fresh id that sorts by time (UUID version 7, RFC 9562)."""
    milliseconds = time.time_ns() // 1_000_000
    value = (
        (milliseconds << 80)
        | (0x7 << 76)
        | (secrets.randbits(12) << 64)
        | (0b10 << 62)
        | secrets.randbits(62)
    )
    return str(uuid.UUID(int=value))


def slug(text: str) -> str:
    """An id made from a display name, with a random end so that two never clash."""
    stem = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48].strip("-")
    return f"{stem or 'item'}-{secrets.token_hex(3)}"


def _malformed(field: str, value: str, form: str) -> VoxfleetError:
    return invalid(
        Reason.INVALID_ARGUMENT, f"{field} must look like {form}, not {value[:120]!r}", field=field
    )
