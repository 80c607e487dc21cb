"""``voxfleet lexicon``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from voxfleet.cli import output
from voxfleet.cli.commands.lexicon_files import read_entries
from voxfleet.cli.session import Session, command

if TYPE_CHECKING:
    from voxfleet.v1 import lexicon_pb2

group = typer.Typer(help="How the team wants words said.", no_args_is_help=True)

LexiconName = Annotated[str, typer.Argument(metavar="LEXICON", help="Its id or name.", show_default=False)]
_FILE_HELP = (
    'CSV with a word and how it is spelled on each line; or JSON, {"word": "spelling"} or a list of '
    '{"grapheme", "alias"}; - for standard input.'
)

COLUMNS: list[output.Column[lexicon_pb2.Lexicon]] = [
    ("ID", lambda lexicon: lexicon.name.rpartition("/")[2]),
    ("NAME", lambda lexicon: lexicon.display_name),
    ("LANGUAGE", lambda lexicon: lexicon.language),
    ("CREATED", lambda lexicon: output.when(lexicon.create_time)),
    ("UPDATED", lambda lexicon: output.when(lexicon.update_time)),
]


def add(app: typer.Typer) -> None:
    """Adds the group."""
    app.add_typer(group, name="lexicon")


@command(group, "create")
def create(
    session: Session,
    file: Annotated[str, typer.Argument(metavar="FILE", help=_FILE_HELP, show_default=False)],
    *,
    lexicon_id: Annotated[
        str,
        typer.Option("--id", help="The last part of its name, 4 to 64 letters (a to z), digits and hyphens."),
    ] = "",
    name: Annotated[str, typer.Option(help="A name for people.")] = "",
    language: Annotated[str, typer.Option(help="BCP-47, for people.")] = "",
) -> None:
    """Make a lexicon of a file's words; name it with --lexicon where a text is spoken."""
    session.show(
        session.client.lexicons.create(
            read_entries(file), lexicon_id=lexicon_id, display_name=name, language=language
        )
    )


@command(group, "list")
def list_lexicons(session: Session) -> None:
    """List the team's lexicons, without their words."""
    session.show_all("lexicons", COLUMNS, session.client.lexicons.list())


@command(group, "show")
def show(session: Session, name: LexiconName) -> None:
    """Show a lexicon with its words; --json shows them all."""
    session.show(session.client.lexicons.get(name))


@command(group, "update")
def update(
    session: Session,
    name: LexiconName,
    file: Annotated[
        str | None, typer.Argument(metavar="[FILE]", help="Replaces all words. " + _FILE_HELP)
    ] = None,
    *,
    display_name: Annotated[str | None, typer.Option("--name", help="A new name for people.")] = None,
) -> None:
    """Replace a lexicon's words by a file's, or change its name."""
    if file is None and display_name is None:
        raise typer.BadParameter("nothing to change: give FILE or --name")
    entries = None if file is None else read_entries(file)
    session.show(session.client.lexicons.update(name, entries=entries, display_name=display_name))


@command(group, "delete")
def delete(session: Session, name: LexiconName) -> None:
    """Delete a lexicon; what was submitted with it is still spoken with it."""
    session.client.lexicons.delete(name)
    if session.as_json:
        output.print_json({"deleted": name})
    else:
        session.say(f"deleted {name}")
