"""Speech as files: the SDK's pieces, the command's formats and parameters, words and quality."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest

from tests.unit.sdk.conftest import Face
from tests.unit.sdk.server import TEAM, Double, change, job
from tests.unit.sdk.test_cli import NAME, SUCCEEDED, Run, parsed, run
from tests.unit.sdk.test_synthesis import BREAK, HEADER, PCM, PIECES, SUMMARY
from voxfleet.client.errors import DataLoss, Unavailable
from voxfleet.v1 import audio_pb2, job_pb2, synthesis_pb2

__all__ = ["run"]

FILE = b"fLaC" + bytes(range(200)) * 20
FLAC = synthesis_pb2.SynthesizeResponse(
    header=synthesis_pb2.SynthesisHeader(rate_hz=44_100, chunks=1, format="AUDIO_FORMAT_FLAC")
)
BYTES = [synthesis_pb2.SynthesizeResponse(encoded=FILE[n : n + 900]) for n in range(0, len(FILE), 900)]
WORDS = [audio_pb2.WordTimestamp(word="Hello.", start_s=0.25, end_s=0.5)]
JUDGED = synthesis_pb2.SynthesizeResponse(
    summary=synthesis_pb2.SynthesisSummary(
        provenance=audio_pb2.Provenance(seed=7, weights="f5-smoke", generated=True),
        duration_s=1.5,
        words=WORDS,
        quality=audio_pb2.SpeechQuality(word_error_rate=0.25, similarity=0.5, tries=3, heard="hallo"),
    )
)


async def test_a_file_comes_as_its_bytes(face: Face, double: Double, tmp_path: Path) -> None:
    double.speech = [FLAC, *BYTES, JUDGED]
    stream = face.client.synthesis.synthesize("Hello.", "v-anna", format="flac", rate_hz=44_100)
    assert b"".join(await face.collect(lambda: stream)) == FILE
    assert stream.header.format == synthesis_pb2.AUDIO_FORMAT_FLAC
    speech = await face.call(
        face.client.synthesis.say, "Hello.", "v-anna", format="mp3", rate_hz=22_050, bitrate_kbps=64
    )
    asked = double.asked("Synthesize")[-1].output
    assert (asked.format, asked.rate_hz, asked.bitrate_kbps) == (synthesis_pb2.AUDIO_FORMAT_MP3, 22_050, 64)
    assert (speech.data, speech.rate_hz, speech.duration_s) == (FILE, 44_100, 1.5)
    speech.save(tmp_path / "hello.flac")
    assert (tmp_path / "hello.flac").read_bytes() == FILE
    with pytest.raises(ValueError, match="file"):
        _ = speech.pcm
    with pytest.raises(ValueError, match="file"):
        speech.save_wav(tmp_path / "hello.wav")
    assert not (tmp_path / "hello.wav").exists()


async def test_plain_samples_are_saved_as_wav(face: Face, double: Double, tmp_path: Path) -> None:
    double.speech = [HEADER, *PIECES, SUMMARY]
    speech = await face.call(face.client.synthesis.say, "Hello.", "v-anna")
    speech.save(tmp_path / "a.wav")
    speech.save_wav(tmp_path / "b.wav")
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


async def test_a_file_that_is_cut_short_is_no_file(face: Face, double: Double) -> None:
    double.speech = [FLAC, *BYTES]
    with pytest.raises(DataLoss):
        await face.call(face.client.synthesis.say, "Hello.", "v-anna", format="flac")
    double.speech = [FLAC, BYTES[0], BREAK]
    with pytest.raises(Unavailable):
        await face.call(face.client.synthesis.say, "Hello.", "v-anna", format="flac")
    assert len(double.asked("Synthesize")) == 2, "it is not repeated once bytes have come"


@pytest.mark.parametrize(
    ("file", "fmt"),
    [
        ("a.flac", "AUDIO_FORMAT_FLAC"),
        ("a.MP3", "AUDIO_FORMAT_MP3"),
        ("a.opus", "AUDIO_FORMAT_OPUS"),
        ("a.m4a", "AUDIO_FORMAT_AAC"),
    ],
)
def test_say_asks_for_the_format_of_the_files_ending(
    run: Run, double: Double, tmp_path: Path, file: str, fmt: str
) -> None:
    double.speech = [FLAC, *BYTES, JUDGED]
    done = run("say", "Hello.", "--voice", "v-anna", "-o", file, "--rate", "44100")
    assert done.exit_code == 0
    assert (tmp_path / file).read_bytes() == FILE
    asked = double.asked("Synthesize")[0].output
    assert (asked.format, asked.rate_hz) == (synthesis_pb2.AudioFormat.Value(fmt), 44_100)


def test_say_pipes_the_file_and_nothing_else(run: Run, double: Double) -> None:
    double.speech = [FLAC, *BYTES, JUDGED]
    done = run("say", "Hello.", "--voice", "v-anna", "-o", "-", "--format", "flac", "--words")
    assert done.stdout_bytes == FILE
    assert "0.25     0.50  Hello." in done.stderr
    assert "untrained weights" in done.stderr


def test_say_gives_every_parameter_on(run: Run, double: Double) -> None:
    double.speech = [FLAC, *BYTES, JUDGED]
    done = run(
        *("say", "Hello.", "--voice", "v-anna", "-o", "out.mp3", "--bitrate", "64", "--pitch", "-3.5"),
        *("--loudness", "-16", "--lexicon", "names", "--lexicon", f"{TEAM}/lexicons/brands", "--verbatim"),
        *("--words", "--max-wer", "0.1", "--min-similarity", "0.7", "--tries", "4"),
    )
    assert done.exit_code == 0
    request = double.asked("Synthesize")[0]
    asked = request.parameters
    assert request.output.bitrate_kbps == 64
    assert (asked.pitch_shift, asked.loudness_lufs, asked.verbatim, asked.word_timestamps) == (
        -3.5,
        -16.0,
        True,
        True,
    )
    assert list(asked.lexicons) == [f"{TEAM}/lexicons/names", f"{TEAM}/lexicons/brands"]
    gate = asked.quality
    assert (gate.max_word_error_rate, gate.min_similarity, gate.tries) == (0.1, 0.7, 4)
    assert "out.mp3: 1.50 s, seed 7" in done.stdout
    assert "0.25     0.50  Hello." in done.stdout
    assert "word error rate 0.25, similarity 0.50, 3 tries: NOT good enough" in done.stdout

    double.speech = [HEADER, *PIECES, SUMMARY]
    run("say", "Hello.", "--voice", "v-anna")
    plain = double.asked("Synthesize")[1].parameters
    assert not plain.HasField("loudness_lufs")
    assert not plain.HasField("quality")


def test_say_as_json_has_words_and_quality(run: Run, double: Double) -> None:
    double.speech = [FLAC, *BYTES, JUDGED]
    found = parsed(run("say", "Hello.", "--voice", "v-anna", "-o", "a.flac", "--words", "--json"))
    assert (found["rate_hz"], found["duration_s"]) == (44_100, 1.5)
    assert found["summary"]["words"] == [{"word": "Hello.", "start_s": 0.25, "end_s": 0.5}]
    assert found["summary"]["quality"]["tries"] == 3


def test_say_refuses_an_ending_that_it_does_not_know(run: Run, double: Double, tmp_path: Path) -> None:
    done = run("say", "Hello.", "--voice", "v-anna", "-o", "hello.txt")
    assert done.exit_code == 2
    assert ".txt" in done.stderr
    assert not double.asked("Synthesize")
    double.speech = [FLAC, *BYTES, JUDGED]
    assert run("say", "Hello.", "--voice", "v-anna", "-o", "hello.txt", "--format", "flac").exit_code == 0
    assert (tmp_path / "hello.txt").read_bytes() == FILE


def test_speech_that_fails_leaves_no_file(run: Run, double: Double, tmp_path: Path) -> None:
    double.speech = [FLAC, BYTES[0], BREAK]
    assert run("say", "Hello.", "--voice", "v-anna", "-o", "a.flac").exit_code not in (0, 2)
    double.failures["Synthesize"].append(grpc.StatusCode.INVALID_ARGUMENT)
    assert run("say", "Hello.", "--voice", "v-anna", "-o", "b.wav").exit_code == 4
    assert list(tmp_path.iterdir()) == []


def test_plain_samples_are_piped_as_wav(run: Run, double: Double) -> None:
    double.speech = [HEADER, *PIECES, SUMMARY]
    done = run("say", "Hello.", "--voice", "v-anna", "-o", "-")
    assert done.stdout_bytes[:4] == b"RIFF"
    assert done.stdout_bytes.endswith(PCM)


def test_batch_gives_every_parameter_on_and_writes_words(
    run: Run, double: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lines.jsonl").write_text('{"text": "One.", "id": "a"}\n', encoding="utf-8")
    audio = f"{TEAM}/audios/a-0001"
    double.audios[audio] = b"spoken"
    monkeypatch.setattr(double, "audio", lambda name: audio_pb2.Audio(name=name, words=WORDS))
    double.jobs[NAME] = job(SUCCEEDED, batch_counts=job_pb2.BatchCounts(total=1, succeeded=1))
    double.watches.append([change(1, SUCCEEDED)])
    double.items = [
        job_pb2.Job(item_id="a", state=SUCCEEDED, result=job_pb2.JobResult(audios=[audio])),
    ]
    done = run(
        *("batch", "lines.jsonl", "--voice", "v-anna", "--out-dir", "spoken", "--format", "opus"),
        *("--bitrate", "32", "--pitch", "2", "--loudness", "-23", "--words", "--max-wer", "0.2", "--json"),
    )
    assert done.exit_code == 0
    request = double.asked("BatchSynthesize")[0]
    assert (request.output.format, request.output.bitrate_kbps) == (synthesis_pb2.AUDIO_FORMAT_OPUS, 32)
    asked = request.parameters
    assert (asked.pitch_shift, asked.loudness_lufs, asked.word_timestamps) == (2.0, -23.0, True)
    assert asked.quality.max_word_error_rate == 0.2
    made = parsed(done)["files"][0]
    assert made == {
        "item_id": "a",
        "file": str(Path("spoken") / "a.ogg"),
        "words": str(Path("spoken") / "a.ogg.words.json"),
    }
    found = json.loads((tmp_path / made["words"]).read_text(encoding="utf-8"))
    assert found == [{"word": "Hello.", "start_s": 0.25, "end_s": 0.5}]
