"""``voxfleet voice``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxfleet.cli import output
from voxfleet.cli.commands.audio import download_to, file_name
from voxfleet.cli.commands.jobs import After, Priority
from voxfleet.cli.session import Session, command, pairs

if TYPE_CHECKING:
    from voxfleet.v1 import voice_pb2

group = typer.Typer(help="Make, train, import, export, list, change voices.", no_args_is_help=True)

VoiceName = Annotated[str, typer.Argument(metavar="VOICE", help="Its id or name.", show_default=False)]
VoiceId = Annotated[
    str, typer.Option("--id", help="The last part of its name, 4 to 64 letters (a to z), digits and hyphens.")
]
DisplayName = Annotated[str, typer.Option("--name", help="A name for people.")]
Labels = Annotated[list[str], typer.Option("--label", help="key=value; may be repeated.")]


def _state(voice: voice_pb2.Voice) -> str:
    from voxfleet.v1 import voice_pb2

    return voice_pb2.VoiceState.Name(voice.state).removeprefix("VOICE_STATE_")


COLUMNS: list[output.Column[voice_pb2.Voice]] = [
    ("ID", lambda voice: voice.name.rpartition("/")[2]),
    ("NAME", lambda voice: voice.display_name),
    ("ENGINE", lambda voice: voice.engine),
    ("STATE", _state),
    ("LANGUAGES", lambda voice: ",".join(voice.languages)),
    ("LICENCE", lambda voice: voice.weights_licence),
    ("NOTE", lambda voice: output.UNTRAINED if output.untrained_weights(voice) else ""),
    ("CREATED", lambda voice: output.when(voice.create_time)),
]
CHECKPOINT_COLUMNS: list[output.Column[voice_pb2.Checkpoint]] = [
    ("ID", lambda checkpoint: checkpoint.name.rpartition("/")[2]),
    ("EPOCH", lambda checkpoint: checkpoint.epoch),
    ("STEP", lambda checkpoint: checkpoint.step),
    ("ATTEMPT", lambda checkpoint: checkpoint.attempt),
    ("SIZE", lambda checkpoint: output.size(checkpoint.size_bytes)),
    ("CREATED", lambda checkpoint: output.when(checkpoint.create_time)),
]


def add(app: typer.Typer) -> None:
    """Adds the group."""
    app.add_typer(group, name="voice")


@command(group, "create")
def create(
    session: Session,
    *,
    reference: Annotated[
        str, typer.Option(metavar="AUDIO-or-FILE", help="A clip of 3 to 30 s, best 10.", show_default=False)
    ],
    text: Annotated[str, typer.Option(help="Exactly what is said in it; heard where left out.")] = "",
    voice_id: VoiceId = "",
    name: DisplayName = "",
    language: Annotated[list[str], typer.Option(help="BCP-47; may be repeated.")] = [],  # noqa: B006
    consent: Annotated[str, typer.Option(help="The speaker's consent, by name.")] = "",
    label: Labels = [],  # noqa: B006
) -> None:
    """Clone a voice from a clip; ready at once."""
    labels = pairs(label, "--label")
    clip = session.audio(reference, "reference")
    session.show(
        session.client.voices.create(
            reference=clip,
            text=text,
            voice_id=voice_id,
            display_name=name,
            languages=language,
            labels=labels,
            consent=consent,
        )
    )


@command(group, "train")
def train(
    session: Session,
    audios: Annotated[
        list[str], typer.Argument(metavar="AUDIO-or-FILE…", help="Recordings, 1 to 100.", show_default=False)
    ],
    *,
    voice_id: VoiceId = "",
    name: DisplayName = "",
    epochs: Annotated[int, typer.Option(help="Passes over the audio; by its length where 0.")] = 0,
    batch_size: Annotated[int, typer.Option(help="8 where 0.")] = 0,
    learning_rate: Annotated[float, typer.Option(help="1e-4 where 0.")] = 0.0,
    save_every: Annotated[int, typer.Option(help="Epochs between checkpoints.")] = 0,
    max_steps: Annotated[int, typer.Option(help="Ends after so many steps; no bound where 0.")] = 0,
    preset: Annotated[str, typer.Option(help="v2_40k, v2_32k, v2_48k; tiny_40k for CPUs.")] = "",
    f0_method: Annotated[str, typer.Option(help="fcpe by default.")] = "",
    content_encoder: Annotated[str, typer.Option(help="contentvec or whisper-base.")] = "",
    gpus: Annotated[int, typer.Option(help="Whole GPUs, 1 to 8.")] = 0,
    gpu_type: Annotated[str, typer.Option(help="Such as H200; any where empty.")] = "",
    seed: Annotated[int, typer.Option(help="1234 where 0.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Even where the quality gate says no.")] = False,
    label: Labels = [],  # noqa: B006
    after: After = [],  # noqa: B006
    priority: Priority = 0,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Check, make nothing.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for its end, and show progress.")] = False,
) -> None:
    """Train an RVC voice on recordings, as a job."""
    from voxfleet.v1 import voice_pb2

    labels = pairs(label, "--label")
    names = [session.audio(audio, "training") for audio in audios]
    job = session.client.voices.train(
        names,
        voice_id=voice_id,
        display_name=name,
        parameters=voice_pb2.RvcTrainingParameters(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            save_every=save_every,
            max_steps=max_steps,
            preset=preset,
            f0_method=f0_method,
            content_encoder=content_encoder,
            gpus=gpus,
            gpu_type=gpu_type,
            seed=seed,
        ),
        force=force,
        labels=labels,
        depends_on=after,
        priority=priority,
        validate_only=validate_only,
    )
    if validate_only:
        session.show(job)
        session.say("valid: nothing was made")
    else:
        session.submitted(job, follow=follow)


@command(group, "import")
def import_voice(
    session: Session,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="A community .pth, or a package that export made.", show_default=False
        ),
    ],
    *,
    index: Annotated[str, typer.Option(metavar="FILE", help="The .index of a .pth.")] = "",
    voice_id: VoiceId = "",
    name: DisplayName = "",
    licence: Annotated[str, typer.Option(help="SPDX id of its weights' licence, such as CC-BY-4.0.")] = "",
    label: Labels = [],  # noqa: B006
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Check, make nothing.")] = False,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Wait for its end.")] = True,
) -> None:
    """Import a voice from a file, as a job: it is opened where it can do no harm."""
    labels = pairs(label, "--label")
    model_file = session.audio(file, "voice_file")
    job = session.client.voices.import_voice(
        model_file,
        index_file=session.audio(index, "voice_file") if index else "",
        voice_id=voice_id,
        display_name=name or Path(file).stem,
        weights_licence=licence,
        labels=labels,
        validate_only=validate_only,
    )
    if validate_only:
        session.show(job)
        session.say("valid as far as can be told without opening it: nothing was made")
    elif follow:
        session.remark(job.name)
        session.show(session.client.voices.get(session.follow(job).result.voice))
    else:
        session.submitted(job, follow=False)


@command(group, "export")
def export_voice(
    session: Session,
    name: VoiceName,
    *,
    format: Annotated[  # noqa: A002
        str, typer.Option(help="voxfleet (a package), or pth (the community's; ContentVec voices only).")
    ] = "voxfleet",
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder to write to; this one by default.")
    ] = Path(),
) -> None:
    """Export a trained voice to files, and download them."""
    if not out.is_dir():
        raise typer.BadParameter(f"there is no folder {out}")
    job = session.client.voices.export_voice(name, format=format)
    session.remark(job.name)
    done = session.follow(job)
    files = []
    for audio in done.result.audios:
        made = session.client.audio.get(audio)
        files.append(str(download_to(session, made.name, out / file_name(made))))
    if session.as_json:
        output.print_json({"job": done.name, "files": files})
    for path in files:
        session.say(path)


@command(group, "list")
def list_voices(
    session: Session,
    filter: Annotated[str, typer.Option(help="Such as engine=rvc.")] = "",  # noqa: A002
    query: Annotated[str, typer.Option(help="Words of the name.")] = "",
    deleted: Annotated[bool, typer.Option("--deleted", help="Deleted ones too.")] = False,
) -> None:
    """List voices, newest first."""
    found = session.client.voices.list(filter=filter, query=query, show_deleted=deleted)
    session.show_all("voices", COLUMNS, found)


@command(group, "show")
def show(session: Session, name: VoiceName) -> None:
    """Show one voice: its engine, clips, licence, figures of its making."""
    session.show(session.client.voices.get(name))


@command(group, "update")
def update(
    session: Session,
    name: VoiceName,
    *,
    display_name: Annotated[str | None, typer.Option("--name", help="A new name for people.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="key=value; replaces all labels.")] = None,
    language: Annotated[list[str] | None, typer.Option(help="BCP-47; replaces all.")] = None,
    consent: Annotated[str | None, typer.Option(help="The speaker's consent, by name.")] = None,
) -> None:
    """Change what is given, leave the rest."""
    session.show(
        session.client.voices.update(
            name,
            display_name=display_name,
            labels=pairs(label, "--label") if label else None,
            languages=language or None,
            consent=consent,
        )
    )


@command(group, "delete")
def delete(session: Session, name: VoiceName) -> None:
    """Delete a voice; undelete brings it back until its purge time."""
    session.show(session.client.voices.delete(name))


@command(group, "undelete")
def undelete(session: Session, name: VoiceName) -> None:
    """Bring a deleted voice back."""
    session.show(session.client.voices.undelete(name))


@command(group, "checkpoints")
def checkpoints(session: Session, name: VoiceName) -> None:
    """List the checkpoints of a voice's training, newest first."""
    session.show_all("checkpoints", CHECKPOINT_COLUMNS, session.client.voices.checkpoints(name))
