"""``voxfleet say``, ``voxfleet batch`` and ``voxfleet convert``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from voxfleet.cli import output
from voxfleet.cli.commands.audio import download_to
from voxfleet.cli.commands.batch_files import download_items, read_items
from voxfleet.cli.commands.jobs import After, Priority
from voxfleet.cli.session import Session, command, pairs

Voice = Annotated[str, typer.Option(help="Id or name of the voice.", show_default=False)]
Format = Annotated[str, typer.Option(help="wav, flac, mp3, opus or aac; by the file's ending.")]
RateHz = Annotated[int, typer.Option("--rate", help="Samples a second; the engine's own where 0.")]
Follow = Annotated[bool, typer.Option("--follow", help="Wait for its end, and show progress.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same audio; chosen where 0.")]
Speed = Annotated[float, typer.Option(help="0.5 to 2; 1 where 0.")]
Preset = Annotated[str, typer.Option(help="fast, balanced or quality.")]
Steps = Annotated[int, typer.Option(help="4 to 64; overrides the preset.")]
Language = Annotated[str, typer.Option(help="BCP-47; the voice's first where empty.")]
Style = Annotated[str, typer.Option(help="Style of the reference clip.")]

FORMATS = {
    ".wav": "wav",
    ".flac": "flac",
    ".mp3": "mp3",
    ".opus": "opus",
    ".ogg": "opus",
    ".m4a": "aac",
    ".aac": "aac",
}


def add(app: typer.Typer) -> None:
    """Adds the commands."""
    command(app, "say")(say)
    command(app, "batch")(batch)
    command(app, "convert")(convert)


def say(
    session: Session,
    text: Annotated[
        str, typer.Argument(help="What to say; - reads it from standard input.", show_default=False)
    ],
    *,
    voice: Voice,
    to: Annotated[
        Path, typer.Option("--output", "-o", help="WAV file to write; - for standard output.")
    ] = Path("out.wav"),
    preset: Preset = "",
    steps: Steps = 0,
    speed: Speed = 0.0,
    seed: Seed = 0,
    duration: Annotated[float, typer.Option(help="Exactly so many seconds; natural where 0.")] = 0.0,
    language: Language = "",
    style: Style = "",
    rate_hz: RateHz = 0,
    words: Annotated[bool, typer.Option("--words", help="Show when each word is said.")] = False,
) -> None:
    """Speak a text with a voice, to a WAV file."""
    from voxfleet.v1 import synthesis_pb2

    speech = session.client.synthesis.say(
        sys.stdin.read() if text == "-" else text,
        voice,
        parameters=synthesis_pb2.SynthesisParameters(
            preset=preset,
            steps=steps,
            speed=speed,
            seed=seed,
            duration_s=duration,
            language=language,
            style=style,
            word_timestamps=words,
        ),
        rate_hz=rate_hz,
    )
    if str(to) == "-":
        speech.save_wav(sys.stdout.buffer)
        sys.stdout.flush()
    else:
        speech.save_wav(to)
        if session.as_json:
            output.print_json(
                {
                    "file": str(to),
                    "rate_hz": speech.rate_hz,
                    "duration_s": speech.duration_s,
                    "summary": output.to_json(speech.summary),
                }
            )
        made = f"{to}: {speech.duration_s:.2f} s, seed {speech.provenance.seed}"
        session.say(f"{made}, {speech.provenance.weights}".rstrip(", "))
        for word in speech.summary.words:
            session.say(f"{word.start_s:8.2f} {word.end_s:8.2f}  {word.word}")
    session.note_weights([speech.provenance])


def batch(
    session: Session,
    lines: Annotated[
        str,
        typer.Argument(
            metavar="FILE.jsonl",
            help='On each line {"text": …, "id": …, "voice": …, "parameters": {…}}; - for standard input.',
            show_default=False,
        ),
    ],
    *,
    voice: Annotated[str, typer.Option(help="For lines that name none.")] = "",
    out_dir: Annotated[
        Path | None, typer.Option(help="Wait for the end, and download each line's audio into this folder.")
    ] = None,
    preset: Preset = "",
    steps: Steps = 0,
    speed: Speed = 0.0,
    seed: Seed = 0,
    language: Language = "",
    style: Style = "",
    format: Format = "",  # noqa: A002
    rate_hz: RateHz = 0,
    name: Annotated[str, typer.Option(help="A name for people.")] = "",
    label: Annotated[list[str], typer.Option(help="key=value; may be repeated.")] = [],  # noqa: B006
    after: After = [],  # noqa: B006
    priority: Priority = 0,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Check, make nothing.")] = False,
    follow: Follow = False,
) -> None:
    """Speak many lines as one job; a bad line fails alone."""
    from voxfleet.v1 import synthesis_pb2

    job = session.client.synthesis.batch(
        read_items(lines),
        voice,
        parameters=synthesis_pb2.SynthesisParameters(
            preset=preset, steps=steps, speed=speed, seed=seed, language=language, style=style
        ),
        format=format,
        rate_hz=rate_hz,
        display_name=name,
        labels=pairs(label, "--label"),
        depends_on=after,
        priority=priority,
        validate_only=validate_only,
    )
    if validate_only:
        session.show(job)
        session.say("valid: nothing was made")
    elif out_dir is None:
        session.submitted(job, follow=follow)
    else:
        session.remark(job.name)
        download_items(session, session.follow(job), out_dir, format or "wav")


def convert(
    session: Session,
    audio: Annotated[
        str, typer.Argument(metavar="AUDIO-or-FILE", help="The recording to convert.", show_default=False)
    ],
    *,
    voice: Voice,
    to: Annotated[
        Path | None, typer.Option("--output", "-o", help="Wait for the end, and download to this file.")
    ] = None,
    engine: Annotated[str, typer.Option(help="rvc (the default) or f5.")] = "",
    pitch: Annotated[float | None, typer.Option(help="Semitones, -24 to 24.")] = None,
    index_rate: Annotated[float | None, typer.Option(help="0 to 1; 0.5 by default.")] = None,
    filter_radius: Annotated[int | None, typer.Option(help="0 to 7; 3 by default.")] = None,
    rms_mix_rate: Annotated[float | None, typer.Option(help="0 to 1; 0.25 by default.")] = None,
    protect: Annotated[float | None, typer.Option(help="0 to 0.5; 0.33 by default.")] = None,
    f0_method: Annotated[str, typer.Option(help="The voice's own by default.")] = "",
    seed: Seed = 0,
    format: Format = "",  # noqa: A002
    rate_hz: RateHz = 0,
    after: After = [],  # noqa: B006
    priority: Priority = 0,
    follow: Follow = False,
) -> None:
    """Turn the voice of a recording into another, as a job."""
    from voxfleet.v1 import synthesis_pb2

    name = session.audio(audio, "conversion")
    job = session.client.synthesis.convert(
        name,
        voice,
        engine=engine,
        parameters=synthesis_pb2.ConversionParameters(
            pitch_shift=pitch,
            index_rate=index_rate,
            filter_radius=filter_radius,
            rms_mix_rate=rms_mix_rate,
            protect=protect,
            f0_method=f0_method,
            seed=seed,
        ),
        format=format or (FORMATS.get(to.suffix.lower(), "") if to else ""),
        rate_hz=rate_hz,
        depends_on=after,
        priority=priority,
    )
    if to is None:
        session.submitted(job, follow=follow)
        return
    session.remark(job.name)
    ended = session.follow(job)
    path = download_to(session, ended.result.audios[0], to)
    session.say(str(path))
    if session.as_json:
        output.print_json({"job": output.to_json(ended), "file": str(path)})
    session.note_weights([ended])
