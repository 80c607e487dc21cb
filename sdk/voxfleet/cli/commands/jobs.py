"""``voxfleet job``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from voxfleet.cli import output, progress
from voxfleet.cli.session import Session, command

if TYPE_CHECKING:
    from voxfleet.v1 import job_pb2

group = typer.Typer(help="Follow jobs and steer them.", no_args_is_help=True)

JobName = Annotated[str, typer.Argument(metavar="JOB", help="Its id or name.", show_default=False)]
After = Annotated[
    list[str],
    typer.Option("--after", metavar="JOB", help="A job that must succeed first; may be repeated."),
]
Priority = Annotated[int, typer.Option(help="Order within its class, -100 to 100, higher first.")]


def state(job: job_pb2.Job) -> str:
    """A job's state in one word."""
    from voxfleet.v1 import job_pb2

    return job_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_")


def _phase(job: job_pb2.Job) -> str:
    from voxfleet.v1 import job_pb2

    if job.waiting_reason:
        return job_pb2.WaitingReason.Name(job.waiting_reason).removeprefix("WAITING_REASON_")
    return job.progress.phase


def _note(job: job_pb2.Job) -> str:
    if job.error.reason:
        return job.error.reason
    return output.UNTRAINED if output.untrained_weights(job) else ""


COLUMNS: list[output.Column[job_pb2.Job]] = [
    ("ID", lambda job: job.name.rpartition("/")[2]),
    ("KIND", lambda job: job.kind),
    ("NAME", lambda job: job.display_name),
    ("STATE", state),
    ("PHASE", _phase),
    ("PERCENT", lambda job: f"{job.progress.percent:.0f}"),
    ("ATTEMPT", lambda job: job.attempt),
    ("NOTE", _note),
    ("CREATED", lambda job: output.when(job.create_time)),
]
ITEM_COLUMNS: list[output.Column[job_pb2.Job]] = [
    ("INDEX", lambda job: job.item_index),
    ("ITEM", lambda job: job.item_id),
    ("STATE", state),
    ("AUDIO", lambda job: ",".join(name.rpartition("/")[2] for name in job.result.audios)),
    ("NOTE", _note),
]
ATTEMPT_COLUMNS: list[output.Column[job_pb2.JobAttempt]] = [
    ("ATTEMPT", lambda attempt: attempt.attempt),
    ("OUTCOME", lambda attempt: attempt.outcome or "RUNNING"),
    ("CLASS", lambda attempt: attempt.failure_class),
    ("REASON", lambda attempt: attempt.error.reason),
    ("NODE", lambda attempt: attempt.node.removeprefix("nodes/")),
    ("BATCH", lambda attempt: f"{attempt.batch_scale:g}" if attempt.batch_scale not in (0, 1) else ""),
    ("STARTED", lambda attempt: output.when(attempt.start_time)),
    ("ENDED", lambda attempt: output.when(attempt.end_time)),
    ("WORKER", lambda attempt: attempt.worker),
]


def add(app: typer.Typer) -> None:
    """Adds the group."""
    app.add_typer(group, name="job")


@command(group, "list")
def list_jobs(
    session: Session,
    filter: Annotated[str, typer.Option(help="Such as state=RUNNING or kind=rvc.train.")] = "",  # noqa: A002
    query: Annotated[str, typer.Option(help="Words of the name.")] = "",
) -> None:
    """List jobs, newest first."""
    session.show_all("jobs", COLUMNS, session.client.jobs.list(filter=filter, query=query))


@command(group, "show")
def show(session: Session, name: JobName) -> None:
    """Show one job: its state, progress, attempts, result or error."""
    job = session.client.jobs.get(name)
    if session.as_json:
        session.show(job)
        return
    rest = type(job)()
    rest.CopyFrom(job)
    for field in ("attempts", "expected_start_time", "earliest_start_time", "latest_start_time"):
        rest.ClearField(field)
    session.show(rest)
    _say_start(session, job)
    if job.attempts:
        session.say("")
        output.print_table(ATTEMPT_COLUMNS, job.attempts)


@command(group, "watch")
def watch(
    session: Session,
    name: JobName,
    cursor: Annotated[int, typer.Option(help="The last cursor seen; shows what came after it.")] = 0,
) -> None:
    """Show what happens to a job until it ends; goes on over dropped connections."""
    with progress.job_progress(sys.stdout, quiet=session.as_json) as tell:
        for message in session.client.jobs.watch(name, cursor=cursor):
            if session.as_json:
                output.print_json(output.to_json(message), line=True)
            tell(message)
    session.note_weights([session.client.jobs.get(name)])


@command(group, "wait")
def wait(
    session: Session,
    name: JobName,
    for_s: Annotated[
        float | None, typer.Option("--for", help="Seconds at most; for ever by default.")
    ] = None,
) -> None:
    """Wait for a job to end: exit code 0 if it succeeded, 7 if it failed, 8 if it was cancelled."""
    session.show(session.follow(session.client.jobs.get(name), timeout_s=for_s))


@command(group, "cancel")
def cancel(session: Session, name: JobName) -> None:
    """Ask a job to stop."""
    _changed(session, session.client.jobs.cancel(name))


@command(group, "pause")
def pause(session: Session, name: JobName) -> None:
    """Hold a job back; running training stops at a checkpoint."""
    _changed(session, session.client.jobs.pause(name))


@command(group, "resume")
def resume(session: Session, name: JobName) -> None:
    """Let a paused job go on."""
    _changed(session, session.client.jobs.resume(name))


@command(group, "retry")
def retry(
    session: Session,
    name: JobName,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for its end, and show progress.")] = False,
) -> None:
    """Run a failed or cancelled job again, from its last checkpoint where it has one."""
    job = session.client.jobs.retry(name)
    if follow:
        session.submitted(job, follow=True)
    else:
        _changed(session, job)


@command(group, "update")
def update(
    session: Session,
    name: JobName,
    priority: Annotated[int | None, typer.Option(help="Order within its class, higher first.")] = None,
    display_name: Annotated[str | None, typer.Option("--name", help="A new name for people.")] = None,
) -> None:
    """Change a job's priority or name."""
    session.show(session.client.jobs.update(name, priority=priority, display_name=display_name))


@command(group, "priority")
def priority(
    session: Session,
    name: JobName,
    number: Annotated[
        int,
        typer.Argument(
            metavar="N", help="-100 to 100; higher goes first; below 0 after --.", show_default=False
        ),
    ],
) -> None:
    """Move a job in the order of its class; of a batch, all of its items."""
    _changed(session, session.client.jobs.update(name, priority=number))


@command(group, "explain")
def explain(session: Session, name: JobName) -> None:
    """Say why a job waits, for what, and how long."""
    why = session.client.jobs.explain(name)
    if session.as_json:
        session.show(why)
        return
    from voxfleet.v1 import job_pb2

    reason = job_pb2.WaitingReason.Name(why.waiting_reason).removeprefix("WAITING_REASON_")
    session.say(f"{reason}: {why.explanation}" if why.waiting_reason else why.explanation)
    if why.queue_position:
        session.say(f"queue position: {why.queue_position}")
    if why.depends_on:
        session.say(f"depends on: {', '.join(why.depends_on)}")
    _say_start(session, why)


@command(group, "items")
def items(
    session: Session,
    name: JobName,
    filter: Annotated[str, typer.Option(help="Such as state=FAILED.")] = "",  # noqa: A002
) -> None:
    """List the items of a batch, in their order."""
    session.show_all("jobs", ITEM_COLUMNS, session.client.jobs.items(name, filter=filter))


def _say_start(session: Session, found: job_pb2.Job | job_pb2.ExplainJobResponse) -> None:
    """When it is expected to begin, and the interval that nine of ten such jobs keep to."""
    if not found.HasField("expected_start_time"):
        return
    line = f"expected start: {output.when(found.expected_start_time)}"
    if found.HasField("earliest_start_time") and found.HasField("latest_start_time"):
        early, late = output.when(found.earliest_start_time), output.when(found.latest_start_time)
        line += f" (nine of ten between {early} and {late})"
    session.say(line)


def _changed(session: Session, job: job_pb2.Job) -> None:
    if session.as_json:
        session.show(job)
    else:
        session.say(f"{job.name}\t{state(job)}")
