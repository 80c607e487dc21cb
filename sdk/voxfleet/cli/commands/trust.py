"""``voxfleet team`` and ``voxfleet key``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from voxfleet.cli import output
from voxfleet.cli.session import Session, command

if TYPE_CHECKING:
    from voxfleet.v1 import trust_pb2

teams = typer.Typer(help="Teams.", no_args_is_help=True)
keys = typer.Typer(help="API keys of the team.", no_args_is_help=True)


def _role(key: trust_pb2.ApiKey) -> str:
    from voxfleet.v1 import trust_pb2

    return trust_pb2.Role.Name(key.role).removeprefix("ROLE_").lower()


TEAM_COLUMNS: list[output.Column[trust_pb2.Team]] = [
    ("ID", lambda team: team.name.rpartition("/")[2]),
    ("NAME", lambda team: team.display_name),
    ("LICENCES", lambda team: ",".join(team.allowed_licences) or "any"),
    ("CREATED", lambda team: output.when(team.create_time)),
]
KEY_COLUMNS: list[output.Column[trust_pb2.ApiKey]] = [
    ("ID", lambda key: key.name.rpartition("/")[2]),
    ("NAME", lambda key: key.display_name),
    ("ROLE", _role),
    ("CREATED", lambda key: output.when(key.create_time)),
    ("REVOKED", lambda key: output.when(key.revoke_time)),
]


def add(app: typer.Typer) -> None:
    """Adds the groups."""
    app.add_typer(teams, name="team")
    app.add_typer(keys, name="key")


@command(teams, "list")
def list_teams(session: Session) -> None:
    """List the teams that this key may see."""
    session.show_all("teams", TEAM_COLUMNS, session.client.trust.teams())


@command(teams, "create")
def create_team(
    session: Session,
    team_id: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="3 to 40 letters (a to z), digits and hyphens.", show_default=False
        ),
    ],
    name: Annotated[str, typer.Option(help="A name for people.")] = "",
    licence: Annotated[list[str], typer.Option(help="SPDX id of weights it may use; any by default.")] = [],  # noqa: B006
) -> None:
    """Make a team. Operators only."""
    session.show(session.client.trust.create_team(team_id, display_name=name, allowed_licences=licence))


@command(teams, "update")
def update_team(
    session: Session,
    team_id: Annotated[str, typer.Argument(metavar="TEAM", help="Its id or name.", show_default=False)],
    *,
    name: Annotated[str | None, typer.Option(help="A name for people.", show_default=False)] = None,
    allow_licence: Annotated[
        list[str], typer.Option(help="SPDX id of weights it may use, in place of those before; repeatable.")
    ] = [],  # noqa: B006
    allow_any_licence: Annotated[
        bool, typer.Option("--allow-any-licence", help="It may use any weights again.")
    ] = False,
) -> None:
    """Change a team's name, or which weights it may use. Operators only."""
    if allow_licence and allow_any_licence:
        raise typer.BadParameter("give --allow-licence or --allow-any-licence, not both")
    if name is None and not allow_licence and not allow_any_licence:
        raise typer.BadParameter("nothing to change: give --name, --allow-licence or --allow-any-licence")
    licences = allow_licence if allow_licence or allow_any_licence else None
    session.show(session.client.trust.update_team(team_id, display_name=name, allowed_licences=licences))


@command(keys, "list")
def list_keys(session: Session) -> None:
    """List the team's keys, without their tokens."""
    session.show_all("api_keys", KEY_COLUMNS, session.client.trust.keys())


@command(keys, "create")
def create_key(
    session: Session,
    name: Annotated[str, typer.Option(help="A name for people.")] = "",
    role: Annotated[str, typer.Option(help="member or operator.")] = "member",
) -> None:
    """Make a key. Its token is shown now and never again."""
    session.show(session.client.trust.create_key(display_name=name, role=role))
    session.remark("keep the token: it is not shown again")


@command(keys, "revoke")
def revoke_key(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="KEY", help="Its id or name.", show_default=False)],
) -> None:
    """Revoke a key."""
    session.client.trust.revoke_key(name)
    if session.as_json:
        output.print_json({"revoked": name})
    else:
        session.say(f"revoked {name}")
