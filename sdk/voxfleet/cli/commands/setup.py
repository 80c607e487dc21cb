"""``voxfleet config`` and ``voxfleet version``."""

from __future__ import annotations

import platform
from importlib import metadata

import typer

from voxfleet.cli import output
from voxfleet.cli.session import Session, command


def add(app: typer.Typer) -> None:
    """Adds the commands."""
    command(app, "config")(config)
    command(app, "version")(version)


def config(session: Session) -> None:
    """Show which endpoint, team and key are used, and where each was found."""
    from voxfleet.client.config import FIELDS, find_config

    shared = session.shared
    found = find_config(shared.endpoint or None, shared.token or None, shared.team or None, tls=shared.tls)
    values = {
        "endpoint": found.endpoint,
        "token": f"…{found.token[-4:]}" if len(found.token) > 12 else "set" if found.token else "",
        "team": found.team,
    }
    if session.as_json:
        entries = {name: {"value": values[name], "from": found.sources.get(name, "")} for name in FIELDS}
        output.print_json({**entries, "tls": found.tls})
        return
    for name in FIELDS:
        session.say(
            f"{name}: {values[name] or 'not set'}" + (f"  ({found.sources[name]})" if values[name] else "")
        )
    session.say(f"tls: {'yes' if found.tls else 'no'}")


def version(session: Session) -> None:
    """Show the release of this client; `voxfleet fleet show` has the server's."""
    versions = {
        "voxfleet": _release("voxfleet"),
        "grpcio": _release("grpcio"),
        "protobuf": _release("protobuf"),
        "python": platform.python_version(),
    }
    if session.as_json:
        output.print_json(versions)
    else:
        session.say(", ".join(f"{name} {number}" for name, number in versions.items()))


def _release(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"
