"""The files of ``voxfleet say``: which format, the bytes as they come, when each word is said."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from voxfleet.cli import progress

if TYPE_CHECKING:
    from voxfleet.cli.session import Session
    from voxfleet.client.speech import Speech
    from voxfleet.client.sync.speaking import SpeechStream
    from voxfleet.v1 import audio_pb2, synthesis_pb2

FORMATS = {
    ".wav": "wav",
    ".flac": "flac",
    ".mp3": "mp3",
    ".opus": "opus",
    ".ogg": "opus",
    ".m4a": "aac",
    ".aac": "aac",
}


def format_of(to: Path, given: str) -> str:
    """The format that was asked for, or the one of the file's ending. Raises BadParameter."""
    if given:
        return given
    if str(to) == "-" or not to.suffix:
        return "wav"
    try:
        return FORMATS[to.suffix.lower()]
    except KeyError:
        known = " ".join(FORMATS)
        raise typer.BadParameter(
            f"{to.suffix} is no ending of a file that can be written ({known}); or give --format"
        ) from None


def write_speech(session: Session, stream: SpeechStream, to: Path) -> Speech:
    """Writes a stream to a file, or to standard output for ``-``, as it comes; a file appears once whole.

    A WAV file, which begins with its length, is written at the end.
    """
    from voxfleet.client.files import PartFile
    from voxfleet.client.speech import Speech

    piped = str(to) == "-"
    sink = None if piped else PartFile(to)

    def write(data: bytes) -> None:
        if sink is not None:
            sink.write(data)
        else:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()

    try:
        speech = Speech(_take(session, stream, to, write), stream.header, stream.summary)
        if not speech.is_file:
            wav = io.BytesIO()
            speech.save_wav(wav)
            write(wav.getvalue())
        if sink is not None:
            sink.commit()
    except BaseException:
        if sink is not None:
            sink.discard()
        raise
    return speech


def _take(session: Session, stream: SpeechStream, to: Path, write: Callable[[bytes], None]) -> bytes:
    """Plain samples, to be written at the end; nothing where a file's bytes were written as they came."""
    from voxfleet.client.speech import is_file

    samples = bytearray()
    came = 0
    with progress.transfer("speech" if str(to) == "-" else to.name, quiet=session.as_json) as tell:
        for piece in stream:
            came += len(piece)
            tell(came, 0)
            if is_file(stream.header):
                write(piece)
            else:
                samples += piece
    return bytes(samples)


def word_lines(words: Iterable[audio_pb2.WordTimestamp]) -> list[str]:
    """When each word is said, for people."""
    return [f"{word.start_s:8.2f} {word.end_s:8.2f}  {word.word}" for word in words]


def quality_line(quality: audio_pb2.SpeechQuality) -> str:
    """How well speech came out, for people."""
    passed = "good enough" if quality.passed else "NOT good enough: the best of its tries"
    parts = [f"{quality.tries} tries" if quality.tries != 1 else "1 try"]
    # What was not judged is not shown as 0.
    if quality.similarity:
        parts.insert(0, f"similarity {quality.similarity:.2f}")
    if quality.heard:
        parts.insert(0, f"word error rate {quality.word_error_rate:.2f}")
    return f"{', '.join(parts)}: {passed}"


def gate(max_wer: float, min_similarity: float, tries: int) -> synthesis_pb2.QualityGate | None:
    """What is good enough; None where nothing was said of it."""
    from voxfleet.v1 import synthesis_pb2

    if not (max_wer or min_similarity or tries):
        return None
    return synthesis_pb2.QualityGate(max_word_error_rate=max_wer, min_similarity=min_similarity, tries=tries)


def conversion(
    *,
    index_rate: float | None,
    filter_radius: int | None,
    rms_mix_rate: float | None,
    protect: float | None,
    f0_method: str,
    auto_pitch: bool,
) -> synthesis_pb2.ConversionParameters | None:
    """How a text in a trained voice is converted; None where nothing was said of it."""
    from voxfleet.v1 import synthesis_pb2

    found = synthesis_pb2.ConversionParameters(
        index_rate=index_rate,
        filter_radius=filter_radius,
        rms_mix_rate=rms_mix_rate,
        protect=protect,
        f0_method=f0_method,
        auto_pitch=auto_pitch,
    )
    return found if found.ListFields() else None
