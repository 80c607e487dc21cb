"""What every command has: its options, its client, its output, its exit code."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from voxfleet.cli import codes, output, progress
from voxfleet.cli.interrupts import interruptible
from voxfleet.client.errors import JobFailed, VoxfleetError

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from voxfleet.client import Client
    from voxfleet.v1 import job_pb2

_PANEL = "Connection and output"


@dataclass(frozen=True, slots=True)
class Shared:
    """The options of every command."""

    as_json: bool = False
    endpoint: str = ""
    token: str = ""
    team: str = ""
    tls: bool | None = None
    ca_file: Path | None = None
    timeout: float = 30.0


_ANNOTATIONS: dict[str, Any] = {
    "as_json": Annotated[
        bool, typer.Option("--json", help="Print JSON: one document, or a line each.", rich_help_panel=_PANEL)
    ],
    "endpoint": Annotated[
        str, typer.Option(help="host:port or https://… of the gateway.", rich_help_panel=_PANEL)
    ],
    "token": Annotated[
        str, typer.Option(help="API key; better in a file or VOXFLEET_TOKEN.", rich_help_panel=_PANEL)
    ],
    "team": Annotated[str, typer.Option(help="Team that bare ids are of.", rich_help_panel=_PANEL)],
    "tls": Annotated[
        bool | None,
        typer.Option("--tls/--no-tls", help="Encrypt; by the endpoint's scheme.", rich_help_panel=_PANEL),
    ],
    "ca_file": Annotated[
        Path | None, typer.Option(help="Certificates to trust (PEM).", rich_help_panel=_PANEL)
    ],
    "timeout": Annotated[float, typer.Option(help="Seconds for a short call.", rich_help_panel=_PANEL)],
}


class Session:
    """One run of a command.

    Args:
        shared: the options that every command has.
    """

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.as_json = shared.as_json
        self._client: Client | None = None
        self._followed = ""
        self._left = ""

    @property
    def client(self) -> Client:
        """The client, made when it is first needed."""
        if self._client is None:
            from voxfleet.client import Client

            self._client = Client(
                self.shared.endpoint or None,
                self.shared.token or None,
                self.shared.team or None,
                tls=self.shared.tls,
                ca_file=self.shared.ca_file,
                timeout_s=self.shared.timeout,
            )
        return self._client

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            self._client.close()

    def say(self, text: str) -> None:
        """A line for people on standard output; nothing where JSON is wanted."""
        if not self.as_json:
            sys.stdout.write(text + "\n")

    def remark(self, text: str) -> None:
        """A line for people on standard error; nothing where JSON is wanted."""
        if not self.as_json:
            sys.stderr.write(text + "\n")

    def show(self, message: Message) -> None:
        """One resource, whole."""
        if self.as_json:
            output.print_json(output.to_json(message))
        else:
            output.print_message(message)
        self.note_weights([message])

    def show_all(self, key: str, columns: Sequence[output.Column[Any]], messages: Iterable[Any]) -> None:
        """A list of resources: a document with one key, or a table."""
        found = list(messages)
        if self.as_json:
            output.print_json({key: [output.to_json(message) for message in found]})
        else:
            output.print_table(columns, found)
        self.note_weights(found)

    def note_weights(self, messages: Iterable[Message]) -> None:
        """Notes each set of untrained weights behind what was shown, once."""
        for weights in dict.fromkeys(filter(None, map(output.untrained_weights, messages))):
            output.print_untrained(weights, as_json=self.as_json)

    def audio(self, name_or_file: str, purpose: str) -> str:
        """The name of an audio; a file that is there is uploaded first."""
        path = Path(name_or_file)
        if path.is_file():
            with progress.transfer(path.name, quiet=self.as_json) as tell:
                uploaded = self.client.audio.upload(path, purpose=purpose, progress=tell)
            self.remark(f"uploaded {path} as {uploaded.name}")
            return uploaded.name
        if not name_or_file.startswith("teams/") and ("/" in name_or_file or "." in name_or_file):
            raise typer.BadParameter(f"there is no file {name_or_file}, and it is no audio's id")
        return name_or_file

    def follow(self, job: job_pb2.Job, *, timeout_s: float | None = None) -> job_pb2.Job:
        """Waits for a job and shows how it goes; the job once it has succeeded."""
        self._followed = job.name.rpartition("/")[2]
        try:
            with progress.job_progress(sys.stderr, quiet=self.as_json) as tell:
                return self.client.jobs.wait(job.name, timeout_s=timeout_s, on_message=tell)
        except JobFailed as failure:
            if self.as_json:
                output.print_json(output.to_json(failure.job))
            raise
        finally:
            self._followed = ""

    def stop(self) -> None:
        """Makes a command that runs in another thread end: its calls are cut off."""
        self._left = self._followed
        if self._client is not None:
            self._client.close()

    def note_interrupt(self) -> None:
        """Notes the job that was followed when the command was interrupted: it goes on."""
        if job_id := self._left:
            self.remark(f"\nthe job goes on: `voxfleet job watch {job_id}` or `voxfleet job cancel {job_id}`")

    def submitted(self, job: job_pb2.Job, *, follow: bool) -> None:
        """A job that was just made: its name, or all of it to its end."""
        if follow:
            self.remark(job.name)
            self.show(self.follow(job))
        elif self.as_json:
            self.show(job)
        else:
            self.say(job.name)
            self.remark(f"follow it with: voxfleet job watch {job.name.rpartition('/')[2]}")


def command(group: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds a function to a group as a command.

    The function's first argument is the :class:`Session`; the options of every command are added to its
    own. Errors end it with their exit code.
    """

    def add(function: Callable[..., None]) -> Callable[..., None]:
        hints = typing.get_type_hints(function, include_extras=True)
        own = [
            parameter.replace(annotation=hints[parameter.name])
            for parameter in list(inspect.signature(function).parameters.values())[1:]
        ]
        defaults = Shared()
        shared = [
            inspect.Parameter(
                field, inspect.Parameter.KEYWORD_ONLY, default=getattr(defaults, field), annotation=annotation
            )
            for field, annotation in _ANNOTATIONS.items()
        ]

        def run(**values: Any) -> None:
            options = Shared(**{field: values.pop(field) for field in _ANNOTATIONS})
            with Session(options) as session:
                run_guarded(functools.partial(function, session, **values), session)

        run.__name__ = function.__name__
        run.__doc__ = function.__doc__
        run.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *shared]}
        group.command(name)(run)
        return function

    return add


def run_guarded(function: Callable[[], None], session: Session) -> None:
    """Runs a command; an error is printed and becomes an exit code."""
    try:
        interruptible(function, session.stop)
    except VoxfleetError as error:
        output.print_error(error, codes.hint(error), as_json=session.as_json)
        raise typer.Exit(codes.exit_code(error)) from error
    except KeyboardInterrupt as error:
        session.note_interrupt()
        raise typer.Exit(codes.INTERRUPTED) from error
    except BrokenPipeError as error:
        # The reader of our output has gone; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(codes.FAILED) from error
    except OSError as error:
        output.print_error(VoxfleetError(str(error), reason="LOCAL_FILE"), "", as_json=session.as_json)
        raise typer.Exit(codes.FAILED) from error


def pairs(values: Sequence[str], option: str) -> Mapping[str, str]:
    """``key=value`` options as a mapping."""
    found = dict(value.partition("=")[::2] for value in values)
    if any("=" not in value for value in values):
        raise typer.BadParameter(f"{option} takes key=value")
    return found
