"""``voxfleet webhook``, and ``voxfleet webhooks``, which is the same."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from voxfleet.cli import output
from voxfleet.cli.session import Session, command

if TYPE_CHECKING:
    from voxfleet.v1 import job_pb2

group = typer.Typer(help="Have a team's systems told of its jobs.", no_args_is_help=True)


def _states(webhook: job_pb2.Webhook) -> str:
    from voxfleet.v1 import job_pb2

    names = (job_pb2.JobState.Name(state).removeprefix("JOB_STATE_").lower() for state in webhook.states)
    return ",".join(names) or "final"


def _last_error(webhook: job_pb2.Webhook) -> str:
    status = webhook.status
    gone = "disabled; " if status.HasField("disable_time") else ""
    return f"{gone}{status.last_error} {output.when(status.last_error_time)}".strip()


COLUMNS: list[output.Column[job_pb2.Webhook]] = [
    ("ID", lambda webhook: webhook.name.rpartition("/")[2]),
    ("URL", lambda webhook: webhook.url),
    ("STATES", _states),
    ("PENDING", lambda webhook: webhook.status.pending),
    ("GIVEN UP", lambda webhook: webhook.status.given_up),
    ("LAST ERROR", _last_error),
]


def add(app: typer.Typer) -> None:
    """Adds the group."""
    app.add_typer(group, name="webhook")
    app.add_typer(group, name="webhooks", hidden=True)


@command(group, "create")
def create(
    session: Session,
    url: Annotated[str, typer.Argument(help="POSTed to; http or https.", show_default=False)],
    state: Annotated[
        list[str], typer.Option(help="Such as failed; repeat it for more. Every final state by default.")
    ] = [],  # noqa: B006
) -> None:
    """Make a webhook. Its secret is shown now and never again."""
    session.show(session.client.webhooks.create(url, states=state))
    session.remark("keep the secret: it is not shown again")


@command(group, "list")
def list_webhooks(session: Session) -> None:
    """List the team's webhooks, without their secrets."""
    session.show_all("webhooks", COLUMNS, session.client.webhooks.list())


@command(group, "delete")
def delete(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="WEBHOOK", help="Its id or name.", show_default=False)],
) -> None:
    """Delete a webhook; what waits for it is not sent any more."""
    session.client.webhooks.delete(name)
    if session.as_json:
        output.print_json({"deleted": name})
    else:
        session.say(f"deleted {name}")


@command(group, "verify")
def verify(
    session: Session,
    *,
    message_id: Annotated[str, typer.Option("--id", help="The header webhook-id.", show_default=False)],
    timestamp: Annotated[str, typer.Option(help="The header webhook-timestamp.", show_default=False)],
    signature: Annotated[str, typer.Option(help="The header webhook-signature.", show_default=False)],
    secret: Annotated[
        str,
        typer.Option(envvar="VOXFLEET_WEBHOOK_SECRET", help="Better in the environment.", show_default=False),
    ],
    tolerance: Annotated[float, typer.Option(help="Seconds that it may be old; inf for any.")] = 300.0,
) -> None:
    """Check a message that a receiver got, its body on standard input; calls nobody."""
    from voxfleet.client.webhooks import verify as verify_message

    headers = {"webhook-id": message_id, "webhook-timestamp": timestamp, "webhook-signature": signature}
    body = sys.stdin.buffer.read()
    try:
        message = verify_message(secret, headers, body, tolerance_s=tolerance)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--secret") from None
    if session.as_json:
        output.print_json(message)
    else:
        session.say(f"good: {message.get('type', '')} {message.get('id', '')}")
