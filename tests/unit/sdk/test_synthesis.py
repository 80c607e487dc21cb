"""Speech, batches and bundles."""

from __future__ import annotations

import wave
from pathlib import Path

import grpc
import pytest

from tests.unit.sdk.conftest import Face
from tests.unit.sdk.server import TEAM, Double, job
from voxfleet.client.errors import DataLoss, Unavailable
from voxfleet.v1 import audio_pb2, job_pb2, synthesis_pb2

HEADER = synthesis_pb2.SynthesizeResponse(header=synthesis_pb2.SynthesisHeader(rate_hz=24000, chunks=1))
SUMMARY = synthesis_pb2.SynthesizeResponse(
    summary=synthesis_pb2.SynthesisSummary(
        provenance=audio_pb2.Provenance(seed=7, weights="f5-smoke", generated=True), duration_s=0.1
    )
)
PCM = bytes(range(256)) * 10
PIECES = [synthesis_pb2.SynthesizeResponse(pcm=PCM[n : n + 1000]) for n in range(0, len(PCM), 1000)]
BREAK = synthesis_pb2.SynthesizeResponse()


async def test_speech_comes_in_pieces_and_as_a_whole(face: Face, double: Double, tmp_path: Path) -> None:
    double.speech = [HEADER, *PIECES, SUMMARY]
    stream = face.client.synthesis.synthesize("Hello.", "v-anna")
    assert b"".join(await face.collect(lambda: stream)) == PCM
    assert (stream.header.rate_hz, stream.summary.provenance.seed) == (24000, 7)
    speech = await face.call(
        face.client.synthesis.say,
        "Hello.",
        "v-anna",
        parameters=synthesis_pb2.SynthesisParameters(seed=7, preset="fast"),
    )
    assert double.asked("Synthesize")[-1].parameters.preset == "fast"
    speech.save_wav(tmp_path / "hello.wav")
    with wave.open(str(tmp_path / "hello.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24000, 1, 2)
        assert file.readframes(1 << 20) == PCM
    assert speech.duration_s == pytest.approx(len(PCM) / 2 / 24000)
    assert speech.provenance.weights == "f5-smoke"


async def test_speech_is_repeated_before_its_first_piece_only(face: Face, double: Double) -> None:
    double.speech = [HEADER, *PIECES, SUMMARY]
    double.failures["Synthesize"].append(grpc.StatusCode.UNAVAILABLE)
    speech = await face.call(face.client.synthesis.say, "Hello.", "v-anna")
    assert speech.pcm == PCM
    assert len(double.asked("Synthesize")) == 2
    double.speech = [HEADER, PIECES[0], BREAK]
    with pytest.raises(Unavailable):
        await face.call(face.client.synthesis.say, "Hello.", "v-anna")
    assert len(double.asked("Synthesize")) == 3


async def test_speech_without_its_summary_is_not_taken_for_whole(face: Face, double: Double) -> None:
    double.speech = [HEADER, *PIECES]
    with pytest.raises(DataLoss):
        await face.call(face.client.synthesis.say, "Hello.", "v-anna")


async def test_a_batch_takes_texts_pairs_and_items(face: Face, double: Double) -> None:
    double.jobs[f"{TEAM}/jobs/j-0001"] = job(job_pb2.JOB_STATE_QUEUED)
    own = synthesis_pb2.BatchItem(id="c", text="Three.", voice="v-otto")
    await face.call(
        face.client.synthesis.batch, ["One.", ("b", "Two."), own], "v-anna", format="flac", rate_hz=48000
    )
    request = double.asked("BatchSynthesize")[0]
    assert [(item.id, item.text, item.voice) for item in request.items] == [
        ("", "One.", ""),
        ("b", "Two.", ""),
        ("c", "Three.", "teams/acme/voices/v-otto"),
    ]
    assert own.voice == "v-otto"
    assert request.output.format == synthesis_pb2.AUDIO_FORMAT_FLAC
    assert request.request_id


async def test_items_of_a_batch_are_listed_by_its_name(face: Face, double: Double) -> None:
    double.items = [job_pb2.Job(item_id="a"), job_pb2.Job(item_id="b")]
    found = await face.collect(face.client.jobs.items, "j-0001")
    assert [item.item_id for item in found] == ["a", "b"]
    request = double.asked("ListJobs")[0]
    assert (request.parent, request.batch_job) == (TEAM, f"{TEAM}/jobs/j-0001")


async def test_a_bundle_is_sent_file_by_file(face: Face, double: Double, tmp_path: Path) -> None:
    (tmp_path / "vocos").mkdir()
    (tmp_path / "manifest.json").write_text('{"name": "mine"}', encoding="utf-8")
    (tmp_path / ".cache").write_bytes(b"not of it")
    (tmp_path / "vocab.txt").write_bytes(b"")
    (tmp_path / "vocos" / "model.safetensors").write_bytes(b"m" * 2_500_000)
    bundle = await face.call(face.client.synthesis.import_bundle, "mine", tmp_path, accept_licence=True)
    assert bundle.present
    assert double.imported == {"vocab.txt": b"", "vocos/model.safetensors": b"m" * 2_500_000}
    opening = double.asked("ImportBundle")[0]
    assert (opening.manifest_json, opening.accept_licence) == ('{"name": "mine"}', True)
