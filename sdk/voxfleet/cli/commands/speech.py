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
from voxfleet.cli.commands.speech_files import (
    FORMATS,
    conversion,
    format_of,
    gate,
    quality_line,
    word_lines,
    write_speech,
)
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
Lexicons = Annotated[
    list[str], typer.Option("--lexicon", help="Says how words are spoken; may be repeated, the first counts.")
]
Verbatim = Annotated[bool, typer.Option("--verbatim", help="Put no numbers and units into words.")]

Bitrate = Annotated[int, typer.Option("--bitrate", help="kbit/s of mp3, opus and aac.")]
Pitch = Annotated[float, typer.Option(help="Semitones, -12 to 12, at the same pace.")]
Loudness = Annotated[
    float | None, typer.Option(help="LUFS, -40 to -5; as loud as the reference where not given.")
]
MaxWer = Annotated[
    float, typer.Option("--max-wer", help="Speak again what a recogniser hears worse, 0 to 1; 0.1 is strict.")
]
MinSimilarity = Annotated[
    float, typer.Option(help="Speak again what is less like the reference, 0 to 1; 0.7 is strict.")
]
Tries = Annotated[int, typer.Option(help="How often it is spoken at most, 1 to 5; 3 where 0.")]
Speaker = Annotated[
    str,
    typer.Option(
        help="Trained voices: the zero-shot voice that speaks first; its own recording where empty."
    ),
]
IndexRate = Annotated[float | None, typer.Option(help="Trained voices: 0 to 1; 0.5 by default.")]
FilterRadius = Annotated[int | None, typer.Option(help="Trained voices: 0 to 7; 3 by default.")]
RmsMixRate = Annotated[float | None, typer.Option(help="Trained voices: 0 to 1; 0.25 by default.")]
Protect = Annotated[float | None, typer.Option(help="Trained voices: 0 to 0.5; 0.33 by default.")]
F0Method = Annotated[str, typer.Option(help="Trained voices: the voice's own by default.")]
AutoPitch = Annotated[
    bool, typer.Option("--auto-pitch", help="Trained voices: bring the source's pitch to the voice's.")
]


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
        Path,
        typer.Option(
            "--output", "-o", help="File to write: wav, flac, mp3, opus or m4a; - for standard output."
        ),
    ] = Path("out.wav"),
    preset: Preset = "",
    steps: Steps = 0,
    speed: Speed = 0.0,
    seed: Seed = 0,
    duration: Annotated[float, typer.Option(help="Exactly so many seconds; natural where 0.")] = 0.0,
    language: Language = "",
    style: Style = "",
    lexicon: Lexicons = [],  # noqa: B006
    verbatim: Verbatim = False,
    pitch: Pitch = 0.0,
    loudness: Loudness = None,
    format: Format = "",  # noqa: A002
    rate_hz: RateHz = 0,
    bitrate: Bitrate = 0,
    words: Annotated[bool, typer.Option("--words", help="Show when each word is said.")] = False,
    max_wer: MaxWer = 0.0,
    min_similarity: MinSimilarity = 0.0,
    tries: Tries = 0,
    speaker: Speaker = "",
    index_rate: IndexRate = None,
    filter_radius: FilterRadius = None,
    rms_mix_rate: RmsMixRate = None,
    protect: Protect = None,
    f0_method: F0Method = "",
    auto_pitch: AutoPitch = False,
) -> None:
    """Speak a text with a voice, to a file."""
    from voxfleet.v1 import synthesis_pb2

    stream = session.client.synthesis.synthesize(
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
            lexicons=lexicon,
            verbatim=verbatim,
            pitch_shift=pitch,
            loudness_lufs=loudness,
            word_timestamps=words,
            quality=gate(max_wer, min_similarity, tries),
            speaker=speaker,
            conversion=conversion(
                index_rate=index_rate,
                filter_radius=filter_radius,
                rms_mix_rate=rms_mix_rate,
                protect=protect,
                f0_method=f0_method,
                auto_pitch=auto_pitch,
            ),
        ),
        format=format_of(to, format),
        rate_hz=rate_hz,
        bitrate_kbps=bitrate,
    )
    speech = write_speech(session, stream, to)
    # Standard output may be the audio; then what people read goes beside it.
    tell = session.remark if str(to) == "-" else session.say
    if str(to) != "-":
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
    for line in word_lines(speech.summary.words):
        tell(line)
    if speech.summary.HasField("quality"):
        tell(quality_line(speech.summary.quality))
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
    lexicon: Lexicons = [],  # noqa: B006
    verbatim: Verbatim = False,
    pitch: Pitch = 0.0,
    loudness: Loudness = None,
    format: Format = "",  # noqa: A002
    rate_hz: RateHz = 0,
    bitrate: Bitrate = 0,
    words: Annotated[
        bool, typer.Option("--words", help="Note when each word is said; beside each file of --out-dir.")
    ] = False,
    max_wer: MaxWer = 0.0,
    min_similarity: MinSimilarity = 0.0,
    tries: Tries = 0,
    speaker: Speaker = "",
    index_rate: IndexRate = None,
    filter_radius: FilterRadius = None,
    rms_mix_rate: RmsMixRate = None,
    protect: Protect = None,
    f0_method: F0Method = "",
    auto_pitch: AutoPitch = False,
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
            preset=preset,
            steps=steps,
            speed=speed,
            seed=seed,
            language=language,
            style=style,
            lexicons=lexicon,
            verbatim=verbatim,
            pitch_shift=pitch,
            loudness_lufs=loudness,
            word_timestamps=words,
            quality=gate(max_wer, min_similarity, tries),
            speaker=speaker,
            conversion=conversion(
                index_rate=index_rate,
                filter_radius=filter_radius,
                rms_mix_rate=rms_mix_rate,
                protect=protect,
                f0_method=f0_method,
                auto_pitch=auto_pitch,
            ),
        ),
        format=format,
        rate_hz=rate_hz,
        bitrate_kbps=bitrate,
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
        download_items(session, session.follow(job), out_dir, format or "wav", words=words)


def convert(
    session: Session,
    audios: Annotated[
        list[str],
        typer.Argument(metavar="AUDIO-or-FILE…", help="The recordings to convert.", show_default=False),
    ],
    *,
    voice: Voice,
    to: Annotated[
        Path | None, typer.Option("--output", "-o", help="Wait for the end, and download to this file.")
    ] = None,
    out_dir: Annotated[
        Path | None, typer.Option(help="Wait for the end, and download each recording into this folder.")
    ] = None,
    engine: Annotated[
        str,
        typer.Option(help="rvc (the default), or f5: a zero-shot voice speaks it again, with its timing."),
    ] = "",
    pitch: Annotated[float | None, typer.Option(help="Semitones, -24 to 24; with f5 -12 to 12.")] = None,
    index_rate: IndexRate = None,
    filter_radius: FilterRadius = None,
    rms_mix_rate: RmsMixRate = None,
    protect: Protect = None,
    f0_method: F0Method = "",
    auto_pitch: AutoPitch = False,
    seed: Seed = 0,
    preset: Annotated[str, typer.Option(help="f5: fast, balanced or quality.")] = "",
    steps: Annotated[int, typer.Option(help="f5: 4 to 64; overrides the preset.")] = 0,
    language: Annotated[str, typer.Option(help="f5: BCP-47 of what is said; heard where empty.")] = "",
    style: Annotated[str, typer.Option(help="f5: style of the reference clip.")] = "",
    lexicon: Annotated[
        list[str], typer.Option("--lexicon", help="f5: says how words are spoken; may be repeated.")
    ] = [],  # noqa: B006
    format: Format = "",  # noqa: A002
    rate_hz: RateHz = 0,
    bitrate: Bitrate = 0,
    after: After = [],  # noqa: B006
    priority: Priority = 0,
    follow: Follow = False,
) -> None:
    """Turn the voice of recordings into another, as a job; of several, a bad one fails alone."""
    from voxfleet.v1 import synthesis_pb2

    if to is not None and (len(audios) > 1 or out_dir is not None):
        raise typer.BadParameter("several recordings go into a folder: give --out-dir, not --output")
    speaking = synthesis_pb2.SynthesisParameters(
        preset=preset, steps=steps, language=language, style=style, lexicons=lexicon
    )
    given = speaking != synthesis_pb2.SynthesisParameters()
    names = [session.audio(audio, "conversion") for audio in audios]
    job = session.client.synthesis.convert(
        names,
        voice,
        engine=engine,
        parameters=synthesis_pb2.ConversionParameters(
            pitch_shift=pitch,
            index_rate=index_rate,
            filter_radius=filter_radius,
            rms_mix_rate=rms_mix_rate,
            protect=protect,
            f0_method=f0_method,
            auto_pitch=auto_pitch,
            seed=seed,
            # Only where it was given: the other engine refuses what it does not heed.
            speaking=speaking if given else None,
        ),
        format=format or (FORMATS.get(to.suffix.lower(), "") if to else ""),
        rate_hz=rate_hz,
        bitrate_kbps=bitrate,
        depends_on=after,
        priority=priority,
    )
    if to is None and out_dir is None:
        session.submitted(job, follow=follow)
        return
    session.remark(job.name)
    ended = session.follow(job)
    stems = [Path(audio).stem for audio in audios]
    if out_dir is not None and len(audios) > 1:
        download_items(session, ended, out_dir, format or "wav", names=stems)
        return
    if out_dir is not None:
        out_dir.mkdir(parents=True, exist_ok=True)
    to = to or (out_dir or Path()) / f"{stems[0]}.{format or 'wav'}"
    path = download_to(session, ended.result.audios[0], to)
    session.say(str(path))
    if session.as_json:
        output.print_json({"job": output.to_json(ended), "file": str(path)})
    session.note_weights([ended])
