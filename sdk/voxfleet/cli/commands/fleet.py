"""``voxfleet fleet``."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Annotated

import typer

from voxfleet.cli import output
from voxfleet.cli.session import Session, command

if TYPE_CHECKING:
    from voxfleet.v1 import fleet_pb2

group = typer.Typer(help="Nodes, queues, quotas, usage.", no_args_is_help=True)

NodeName = Annotated[str, typer.Argument(metavar="NODE", help="Its id or name.", show_default=False)]


def _class(queue: fleet_pb2.Queue) -> str:
    from voxfleet.v1 import job_pb2

    return job_pb2.PriorityClass.Name(queue.priority_class).removeprefix("PRIORITY_CLASS_")


def _category(share: fleet_pb2.RetentionShare) -> str:
    from voxfleet.v1 import fleet_pb2

    return fleet_pb2.RetentionCategory.Name(share.category).removeprefix("RETENTION_CATEGORY_")


NODE_COLUMNS: list[output.Column[fleet_pb2.Node]] = [
    ("NODE", lambda node: node.name.rpartition("/")[2]),
    ("STATE", lambda node: node.state),
    ("GPUS", lambda node: node.gpus),
    ("TYPE", lambda node: node.gpu_type),
    ("FREE", lambda node: node.gpus_free),
    ("VIRTUAL", lambda node: node.virtual_gpus),
    ("CPUS", lambda node: node.cpus),
]
WORKER_COLUMNS: list[output.Column[fleet_pb2.Worker]] = [
    ("WORKER", lambda worker: worker.name),
    ("QUEUE", lambda worker: worker.queue),
    ("NODE", lambda worker: worker.node),
    ("RUNNING", lambda worker: worker.running),
    ("FREE", lambda worker: worker.free),
    ("LAST SEEN", lambda worker: output.when(worker.last_seen_time)),
]
QUEUE_COLUMNS: list[output.Column[fleet_pb2.Queue]] = [
    ("QUEUE", lambda queue: queue.name),
    ("CLASS", _class),
    ("QUEUED", lambda queue: queue.queued),
    ("RUNNING", lambda queue: queue.running),
    ("OLDEST (S)", lambda queue: f"{queue.oldest_wait_s:.1f}"),
]
RETENTION_COLUMNS: list[output.Column[fleet_pb2.RetentionShare]] = [
    ("CATEGORY", _category),
    ("COUNT", lambda share: share.count),
    ("BYTES", lambda share: share.size_bytes),
]


def add(app: typer.Typer) -> None:
    """Adds the group."""
    app.add_typer(group, name="fleet")


@command(group, "show")
def show(session: Session) -> None:
    """Show workers, nodes and GPUs, and what they do."""
    fleet = session.client.fleet.get()
    if session.as_json:
        session.show(fleet)
        return
    session.say(f"version {fleet.version}; default weights: {', '.join(fleet.default_bundles) or 'none'}")
    output.print_table(NODE_COLUMNS, fleet.nodes)
    output.print_table(WORKER_COLUMNS, fleet.workers)


@command(group, "queues")
def queues(session: Session) -> None:
    """Show the queues: how deep, how old."""
    session.show_all("queues", QUEUE_COLUMNS, session.client.fleet.queues())


@command(group, "usage")
def usage(
    session: Session,
    since: Annotated[dt.datetime | None, typer.Option(help="From; local time.")] = None,
    until: Annotated[dt.datetime | None, typer.Option(help="Until; local time.")] = None,
) -> None:
    """Show what a team used: yours, or --team's (operators)."""
    session.show(
        session.client.fleet.usage(
            start=since.astimezone() if since else None, end=until.astimezone() if until else None
        )
    )


@command(group, "quota")
def quota(session: Session) -> None:
    """Show what a team may use: yours, or --team's (operators)."""
    session.show(session.client.fleet.quota())


@command(group, "set-quota")
def set_quota(
    session: Session,
    whose: Annotated[str, typer.Argument(metavar="TEAM", help="Its id or name.", show_default=False)],
    *,
    max_gpus: Annotated[float | None, typer.Option(help="GPUs at once; 0 for no bound.")] = None,
    max_queued: Annotated[int | None, typer.Option(help="Jobs waiting; 0 for no bound.")] = None,
    gpu_seconds_per_day: Annotated[
        int | None, typer.Option(help="From midnight to midnight UTC; 0 for no bound.")
    ] = None,
    weight: Annotated[float | None, typer.Option(help="Weight in the fair share, above 0.")] = None,
) -> None:
    """Change what a team may use: what is given, and no more. Operators only."""
    if all(value is None for value in (max_gpus, max_queued, gpu_seconds_per_day, weight)):
        raise typer.BadParameter("say what to change: see --help")
    session.show(
        session.client.fleet.update_quota(
            whose,
            max_gpus=max_gpus,
            max_queued_jobs=max_queued,
            max_gpu_seconds_per_day=gpu_seconds_per_day,
            weight=weight,
        )
    )


@command(group, "drain")
def drain(session: Session, node: NodeName) -> None:
    """Take no new work on a node, and move what it has. Operators only."""
    session.show(session.client.fleet.drain(node))


@command(group, "resume")
def resume(session: Session, node: NodeName) -> None:
    """Let a drained node work again. Operators only."""
    session.show(session.client.fleet.resume(node))


@command(group, "retention")
def retention(
    session: Session,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would go. Required: what goes, goes by itself.")
    ] = False,
    names: Annotated[int, typer.Option(min=1, max=1000, help="Names of each category at most.")] = 100,
) -> None:
    """List what retention would remove if it ran now. Operators only."""
    if not dry_run:
        raise typer.BadParameter("retention runs by itself, every minute; --dry-run lists what would go")
    plan = session.client.fleet.plan_retention(max_names=names)
    if session.as_json:
        session.show(plan)
        return
    output.print_table(RETENTION_COLUMNS, plan.shares)
    for share in plan.shares:
        for name in share.names:
            session.say(f"{_category(share)} {name}")
    if not plan.complete:
        session.say("there is more: counting stopped at a bound")
