"""Resource names (AIP-122), and the short ids that stand for them."""

from __future__ import annotations

import secrets
import uuid

from voxfleet.client.errors import ConfigurationError, InvalidArgument


def team_name(team: str) -> str:
    """``teams/{team}`` of a team's id or name; refuses an empty one."""
    if not team:
        raise ConfigurationError(
            'no team is set: give team=…, set VOXFLEET_TEAM, or add "team" to client.json',
            reason="TEAM_NOT_SET",
        )
    return team if team.startswith("teams/") else f"teams/{team}"


def full_name(team: str, collection: str, name: str) -> str:
    """``teams/{team}/{collection}/{id}`` of a bare id; a full name is left as it is.

    Raises:
        InvalidArgument: it is neither a bare id nor a full name of that collection.
        ConfigurationError: a bare id, and no team is set.
    """
    parts = name.split("/")
    if len(parts) == 1 and name:
        return f"{team_name(team)}/{collection}/{name}"
    if len(parts) == 4 and parts[0] == "teams" and parts[2] == collection and all(parts):
        return name
    raise InvalidArgument(
        f"{name!r} is neither an id nor a name like teams/{{team}}/{collection}/{{id}}",
        reason="INVALID_ARGUMENT",
    )


def node_name(name: str) -> str:
    """``nodes/{node}`` of a node's id or name."""
    return name if name.startswith("nodes/") else f"nodes/{name}"


def short_id(name: str) -> str:
    """The last part of a name."""
    return name.rpartition("/")[2]


def new_request_id() -> str:
    """A fresh id for one logical request: the same through all its retries."""
    return str(uuid.uuid4())


def new_upload_id() -> str:
    """A fresh id for one upload, of [a-z0-9-]."""
    return f"up-{secrets.token_hex(12)}"
