"""``voxfleet models`` and ``voxfleet engines``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxfleet.cli import output
from voxfleet.cli.session import Session, command
from voxfleet.client.errors import FailedPrecondition, NotFound

if TYPE_CHECKING:
    from voxfleet.v1 import synthesis_pb2

group = typer.Typer(help="Bring weights into the fleet.", no_args_is_help=True)

Accept = Annotated[bool, typer.Option("--accept-licence", help="I have read the licence and accept it.")]

COLUMNS: list[output.Column[synthesis_pb2.Bundle]] = [
    ("NAME", lambda bundle: bundle.name),
    ("ENGINE", lambda bundle: bundle.engine),
    ("PRESENT", lambda bundle: bundle.present),
    ("DEFAULT", lambda bundle: bundle.is_default),
    ("LICENCE", lambda bundle: bundle.licence),
    ("SPEAKS", lambda bundle: ",".join(bundle.speaks)),
    ("LANGUAGES", lambda bundle: ",".join(bundle.languages)),
    ("SIZE", lambda bundle: output.size(bundle.size_bytes)),
    ("NOTE", lambda bundle: output.UNTRAINED if output.untrained_weights(bundle) else ""),
    ("DESCRIPTION", lambda bundle: bundle.description),
]
ENGINE_COLUMNS: list[output.Column[synthesis_pb2.Engine]] = [
    ("NAME", lambda engine: engine.name),
    ("CAPABILITIES", lambda engine: ",".join(engine.capabilities)),
    ("DESCRIPTION", lambda engine: engine.description),
]


def add(app: typer.Typer) -> None:
    """Adds the group and the command."""
    app.add_typer(group, name="models")
    command(app, "engines")(engines)


@command(group, "list")
def list_models(session: Session) -> None:
    """List the bundles of weights: which are present, and under which licence."""
    session.show_all("bundles", COLUMNS, session.client.synthesis.bundles())


@command(group, "pull")
def pull(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Such as f5-v1-base.", show_default=False)],
    accept_licence: Accept = False,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for its end, and show progress.")] = False,
) -> None:
    """Bring a known bundle into the fleet's store, as a job. Operators only."""
    bundle = next((one for one in session.client.synthesis.bundles() if one.name == name), None)
    if bundle is None:
        raise NotFound(
            f"no bundle is called {name}: `voxfleet models list` names them", reason="MODEL_NOT_FOUND"
        )
    accepted = accept_licence or not bundle.requires_acceptance or _ask(session, bundle)
    if not accepted:
        raise FailedPrecondition(
            f"{name} is under {bundle.licence} ({bundle.licence_url}): "
            "read it, and repeat with --accept-licence",
            reason="LICENCE_NOT_ACCEPTED",
            metadata={"licence": bundle.licence, "licence_url": bundle.licence_url},
        )
    job = session.client.synthesis.pull_bundle(name, accept_licence=accepted)
    session.submitted(job, follow=follow)


@command(group, "import")
def import_model(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The bundle's name.", show_default=False)],
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Its files.", exists=True, file_okay=False, show_default=False),
    ],
    accept_licence: Accept = False,
) -> None:
    """Bring a bundle from this disk, where the fleet has no network. Operators only."""
    session.show(session.client.synthesis.import_bundle(name, folder, accept_licence=accept_licence))


def engines(session: Session) -> None:
    """List the engines of the fleet; --json has the schemas of their parameters."""
    session.show_all("engines", ENGINE_COLUMNS, session.client.synthesis.engines())


def _ask(session: Session, bundle: synthesis_pb2.Bundle) -> bool:
    if session.as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    return typer.confirm(
        f"{bundle.name} is under {bundle.licence}: {bundle.licence_url}\nHave you read it, and accept it?",
        err=True,
    )
