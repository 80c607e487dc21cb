"""``voxfleet audio``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxfleet.cli import codes, output, progress
from voxfleet.cli.session import Session, command, pairs

if TYPE_CHECKING:
    from voxfleet.v1 import audio_pb2

group = typer.Typer(help="Upload, measure, download recordings.", no_args_is_help=True)

AudioName = Annotated[str, typer.Argument(metavar="AUDIO", help="Its id or name.", show_default=False)]

COLUMNS: list[output.Column[audio_pb2.Audio]] = [
    ("ID", lambda audio: audio.name.rpartition("/")[2]),
    ("NAME", lambda audio: audio.display_name),
    ("PURPOSE", lambda audio: _word(audio, "purpose", "AUDIO_PURPOSE_").lower()),
    ("STATE", lambda audio: _word(audio, "state", "AUDIO_STATE_")),
    ("SECONDS", lambda audio: f"{audio.measures.duration_s:.2f}"),
    ("SIZE", lambda audio: output.size(audio.size_bytes)),
    ("GRADE", lambda audio: audio.assessment.grade),
    ("NOTE", lambda audio: output.UNTRAINED if output.untrained_weights(audio) else ""),
    ("CREATED", lambda audio: output.when(audio.create_time)),
]


def add(app: typer.Typer) -> None:
    """Adds the group."""
    app.add_typer(group, name="audio")


@command(group, "upload")
def upload(
    session: Session,
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE…", help="Files to upload.", exists=True, dir_okay=False, show_default=False
        ),
    ],
    *,
    purpose: Annotated[str, typer.Option(help="training, conversion, reference; voice_file.")] = "conversion",
    name: Annotated[str, typer.Option(help="A name for people; the file's own by default.")] = "",
    label: Annotated[list[str], typer.Option(help="key=value; may be repeated.")] = [],  # noqa: B006
    wait: Annotated[bool, typer.Option("--wait", help="Until it is ready or rejected.")] = False,
) -> None:
    """Upload recordings; a stream that is cut is resumed where it stopped."""
    labels = pairs(label, "--label")
    done: list[audio_pb2.Audio] = []
    try:
        for path in files:
            with progress.transfer(path.name, quiet=session.as_json) as tell:
                audio = session.client.audio.upload(
                    path, purpose=purpose, display_name=name, labels=labels, progress=tell
                )
            done.append(session.client.audio.wait_ready(audio.name) if wait else audio)
            session.say(f"{done[-1].name}\t{path}\t{_word(done[-1], 'state', 'AUDIO_STATE_')}")
    finally:
        if session.as_json:
            output.print_json({"audios": [output.to_json(audio) for audio in done]})
    if any(_word(audio, "state", "AUDIO_STATE_") == "REJECTED" for audio in done):
        raise typer.Exit(codes.INVALID)


@command(group, "show")
def show(session: Session, name: AudioName) -> None:
    """Show one recording: its state, measures, grade, and how it was made."""
    session.show(session.client.audio.get(name))


@command(group, "list")
def list_audios(
    session: Session,
    filter: Annotated[str, typer.Option(help="Such as purpose=TRAINING or labels.speaker=anna.")] = "",  # noqa: A002
    query: Annotated[str, typer.Option(help="Words of the name.")] = "",
) -> None:
    """List recordings, newest first."""
    session.show_all("audios", COLUMNS, session.client.audio.list(filter=filter, query=query))


@command(group, "analyze")
def analyze(
    session: Session,
    name: AudioName,
    points: Annotated[int, typer.Option(help="Peaks to return for drawing, up to 4096.")] = 0,
) -> None:
    """Measure a recording: level, noise, speech; and grade it."""
    session.show(session.client.audio.analyze(name, waveform_points=points))


@command(group, "download")
def download(
    session: Session,
    name: AudioName,
    to: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; by default in this folder.")
    ] = None,
) -> None:
    """Download a recording; resumed after a cut, and verified."""
    if to is None or to.is_dir():
        audio = session.client.audio.get(name)
        to = (to or Path()) / file_name(audio)
    path = download_to(session, name, to)
    session.note_weights([session.client.audio.get(name)])
    if session.as_json:
        output.print_json({"audio": name, "file": str(path)})
    else:
        session.say(str(path))


@command(group, "url")
def url(
    session: Session,
    name: AudioName,
    ttl: Annotated[float, typer.Option(help="Seconds that it is to work; an hour by default.")] = 0.0,
) -> None:
    """Make an address from which anyone who holds it can download."""
    found = session.client.audio.download_url(name, ttl_s=ttl)
    if session.as_json:
        session.show(found)
    else:
        session.say(found.url)


@command(group, "verify")
def verify(
    session: Session,
    name_or_file: Annotated[
        str,
        typer.Argument(metavar="AUDIO|FILE", help="An audio, or a file to upload first.", show_default=False),
    ],
) -> None:
    """Say whether a machine made it, by the record, its file's tags and its inaudible mark."""
    name = session.audio(name_or_file, "conversion")
    found = session.client.trust.verify_provenance(name)
    if session.as_json:
        output.print_json({"audio": name, **output.to_json(found)})
        return
    if not found.generated:
        session.say("not known to be generated: no record, no tag, no mark")
        return
    sources = [_SOURCES.get(source, str(source)) for source in found.evidence]
    session.say(f"generated ({found.confidence:.4f}), by {', '.join(sources)}")
    if found.job:
        session.say(f"made by {found.job}")


@command(group, "delete")
def delete(session: Session, name: AudioName) -> None:
    """Delete a recording; refused while a voice or a job needs it."""
    session.client.audio.delete(name)
    if session.as_json:
        output.print_json({"deleted": name})
    else:
        session.say(f"deleted {name}")


def download_to(session: Session, name: str, path: Path) -> Path:
    """Downloads an audio with its progress shown."""
    with progress.transfer(path.name, quiet=session.as_json) as tell:
        return session.client.audio.download(name, path, progress=tell)


def file_name(audio: audio_pb2.Audio) -> str:
    """A file's name for an audio: its own, where that is a plain one, or its id with a fitting ending."""
    own = Path(audio.display_name).name
    if own == audio.display_name and "." in own and not own.startswith("."):
        return own
    return audio.name.rpartition("/")[2] + ENDINGS.get(audio.media_type, "")


ENDINGS = {
    "audio/wav": ".wav",
    "audio/x-wav": ".wav",
    "audio/flac": ".flac",
    "audio/mpeg": ".mp3",
    "audio/ogg": ".ogg",
    "audio/opus": ".opus",
    "audio/mp4": ".m4a",
    "audio/aac": ".aac",
    "audio/webm": ".webm",
}


# By the numbers of voxfleet.v1.ProvenanceEvidence.
_SOURCES = {1: "the record", 2: "the tags of its file", 3: "the mark in its sound"}


def _word(audio: audio_pb2.Audio, field: str, prefix: str) -> str:
    enum = audio.DESCRIPTOR.fields_by_name[field].enum_type
    assert enum is not None
    return enum.values_by_number[getattr(audio, field)].name.removeprefix(prefix)
