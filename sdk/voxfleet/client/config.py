"""Where the client calls, with which key and for which team; and where it learnt that from.

Looked up in this order, each over the next: arguments, the environment (``VOXFLEET_ENDPOINT``,
``VOXFLEET_TOKEN``, ``VOXFLEET_TEAM``), then the first of these files: ``$VOXFLEET_HOME/client.json``, the
nearest ``.voxfleet/client.json`` from the working directory upwards, ``~/.config/voxfleet/client.json``. A
file is a JSON object ``{"endpoint": …, "token": …, "team": …}``.

A file's token belongs to that file's endpoint: where another endpoint was given, it is not sent there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from voxfleet.client.errors import ConfigurationError

FIELDS: Final = ("endpoint", "token", "team")
VARIABLES: Final = {name: f"VOXFLEET_{name.upper()}" for name in FIELDS}


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """Where to call, and as whom.

    Args:
        endpoint: ``host:port``, ``http://…``, ``https://…`` or any gRPC target.
        token: an API key's token; empty for none.
        team: the id of the team that bare names are of; empty where none is set.
        tls: whether the connection is encrypted.
        sources: for each field that is set, where it was found.
    """

    endpoint: str
    token: str = field(default="", repr=False)
    team: str = ""
    tls: bool = False
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def target(self) -> str:
        """The gRPC target of the endpoint."""
        for scheme, port in (("https://", "443"), ("http://", "80")):
            if self.endpoint.startswith(scheme):
                authority = self.endpoint.removeprefix(scheme).rstrip("/")
                has_port = ":" in authority.rpartition("]")[2]
                return authority if has_port else f"{authority}:{port}"
        return self.endpoint


def find_config(
    endpoint: str | None = None,
    token: str | None = None,
    team: str | None = None,
    *,
    tls: bool | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> ClientConfig:
    """The configuration of a client; see the module for the order.

    Args:
        endpoint: overrides what would be found.
        token: overrides what would be found.
        team: overrides what would be found; an id or ``teams/{id}``.
        tls: encrypts or not; by the endpoint's scheme where None.
        environ: the environment; the process's own where None.
        cwd: where the walk upwards starts; the process's own where None.

    Raises:
        ConfigurationError: no endpoint was found, or a file cannot be read.
    """
    environ = os.environ if environ is None else environ
    given = {"endpoint": endpoint, "token": token, "team": team}
    values: dict[str, str] = {}
    sources: dict[str, str] = {}
    for name in FIELDS:
        if given[name]:
            values[name], sources[name] = str(given[name]), "argument"
        elif environ.get(VARIABLES[name]):
            values[name], sources[name] = environ[VARIABLES[name]], f"environment ({VARIABLES[name]})"
    places = list(_places(environ, cwd))
    path = next((place for place in places if place.is_file()), None)
    if path is not None:
        found = _read(path)
        same_endpoint = values.get("endpoint", found.get("endpoint")) == found.get("endpoint")
        for name in FIELDS:
            if name not in values and found.get(name) and same_endpoint:
                values[name], sources[name] = found[name], str(path)
    if not values.get("endpoint"):
        raise ConfigurationError(
            "no endpoint is configured: pass endpoint=… (--endpoint), set VOXFLEET_ENDPOINT, or write "
            f"one of {', '.join(str(place) for place in places if place.parent.parent.is_dir())} "
            'as {"endpoint": "host:port", "token": "…", "team": "…"}',
            reason="ENDPOINT_NOT_SET",
        )
    where = values["endpoint"]
    return ClientConfig(
        endpoint=where,
        token=values.get("token", ""),
        team=values.get("team", "").removeprefix("teams/"),
        tls=where.startswith("https://") if tls is None else tls,
        sources=sources,
    )


def _places(environ: Mapping[str, str], cwd: Path | None) -> Iterator[Path]:
    if environ.get("VOXFLEET_HOME"):
        yield Path(environ["VOXFLEET_HOME"]) / "client.json"
    here = (cwd or Path.cwd()).absolute()
    nearest = [folder / ".voxfleet" / "client.json" for folder in (here, *here.parents)]
    # The walk upwards names one file: the nearest that is there, or the one that would be looked for first.
    yield next((place for place in nearest if place.is_file()), nearest[0])
    home = environ.get("HOME") or str(Path.home())
    yield Path(home) / ".config" / "voxfleet" / "client.json"


def _read(path: Path) -> dict[str, str]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}", reason="CONFIG_UNREADABLE") from error
    if not isinstance(data, dict) or any(not isinstance(data.get(name, ""), str) for name in FIELDS):
        raise ConfigurationError(
            f"{path} must be a JSON object with the strings {', '.join(FIELDS)}", reason="CONFIG_UNREADABLE"
        )
    return {name: data[name] for name in FIELDS if data.get(name)}
