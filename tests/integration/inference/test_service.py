"""The inference service as users, the ledger and an operator meet it."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, replace

import grpc
import numpy as np
import psutil
import pytest

from services.common.jobs.tasks import (
    ConversionParameters,
    ConvertTask,
    Output,
    PullBundleTask,
    SpeakingParameters,
    SpeakTask,
)
from services.common.media.decode import decode, probe
from services.common.rpc.status import from_rpc_error
from services.engines.f5 import small
from tests.integration.inference.conftest import F5_NAME, RVC_NAME, Fleet
from tests.polling import until
from voxfleet.v1 import synthesis_pb2

TEXT = "Hello there, this is one short sentence."


@dataclass
class Spoken:
    header: synthesis_pb2.SynthesisHeader
    pcm: np.ndarray
    summary: synthesis_pb2.SynthesisSummary


def speak(fleet: Fleet, text: str = TEXT, *, voice: str = F5_NAME, **parameters: object) -> Spoken:
    request = synthesis_pb2.SynthesizeRequest(
        voice=voice,
        text=text,
        parameters=synthesis_pb2.SynthesisParameters(**{"steps": 4, "seed": 7, **parameters}),
    )
    parts = list(fleet.stub().Synthesize(request, metadata=fleet.headers(), timeout=120))
    kinds = [part.WhichOneof("part") for part in parts]
    assert kinds[0] == "header"
    assert kinds[-1] == "summary"
    assert set(kinds[1:-1]) == {"pcm"}
    pcm = np.frombuffer(b"".join(part.pcm for part in parts[1:-1]), "<i2")
    return Spoken(parts[0].header, pcm, parts[-1].summary)


def refused(fleet: Fleet, request: synthesis_pb2.SynthesizeRequest):
    with pytest.raises(grpc.RpcError) as caught:
        list(fleet.stub().Synthesize(request, metadata=fleet.headers(), timeout=60))
    return from_rpc_error(caught.value)


def test_a_text_is_streamed_and_counted(fleet: Fleet) -> None:
    before = len(fleet.metadata.usage)
    spoken = speak(fleet)
    assert spoken.header.rate_hz == 24_000
    assert spoken.header.provenance.weights == "f5-small-random"
    assert not spoken.header.provenance.weights_trained
    assert spoken.header.provenance.seed == spoken.summary.provenance.seed == 7
    assert len(spoken.pcm) == round(spoken.summary.duration_s * 24_000)
    assert spoken.summary.duration_s > 1.0
    assert np.abs(spoken.pcm).max() > 100
    until(lambda: len(fleet.metadata.usage) > before)
    usage = fleet.metadata.usage[-1]
    assert (usage.parent, usage.voice, usage.characters) == ("teams/blue", F5_NAME, len(TEXT))
    assert usage.audio_s == pytest.approx(spoken.summary.duration_s)


def test_the_same_seed_says_the_same_and_a_long_text_comes_in_chunks(fleet: Fleet) -> None:
    long = " ".join(f"This is sentence number {word} of them." for word in ("one", "two", "three", "four"))
    first, second = speak(fleet, long), speak(fleet, long)
    assert first.header.chunks > 1
    assert np.array_equal(first.pcm, second.pcm)


def test_another_rate_lasts_as_long(fleet: Fleet) -> None:
    request = synthesis_pb2.SynthesizeRequest(
        voice=F5_NAME,
        text=TEXT,
        parameters=synthesis_pb2.SynthesisParameters(steps=4, seed=7, duration_s=3.0),
        output=synthesis_pb2.OutputFormat(rate_hz=48_000),
    )
    parts = list(fleet.stub().Synthesize(request, metadata=fleet.headers(), timeout=120))
    samples = sum(len(part.pcm) // 2 for part in parts)
    assert parts[0].header.rate_hz == 48_000
    assert abs(samples - 3 * 48_000) <= 48


@pytest.mark.parametrize(
    ("text", "voice", "parameters", "reason"),
    [
        ("", F5_NAME, {}, "TEXT_EMPTY"),
        ("x" * 5001, F5_NAME, {}, "TEXT_TOO_LONG"),
        ("Say ꙮ now", F5_NAME, {}, "UNSUPPORTED_CHARACTERS"),
        (TEXT, F5_NAME, {"language": "ru"}, "UNSUPPORTED_LANGUAGE"),
        (TEXT, F5_NAME, {"preset": "best"}, "INVALID_ARGUMENT"),
        (TEXT, RVC_NAME, {"speaker": RVC_NAME}, "UNSUPPORTED_ENGINE"),
        (TEXT, RVC_NAME, {"style": "calm"}, "INVALID_ARGUMENT"),
        (TEXT, F5_NAME, {"speaker": F5_NAME}, "INVALID_ARGUMENT"),
        (TEXT, F5_NAME, {"duration_s": 0.3}, "INVALID_ARGUMENT"),
    ],
)
def test_what_cannot_be_spoken_says_why(
    fleet: Fleet, text: str, voice: str, parameters: dict[str, object], reason: str
) -> None:
    request = synthesis_pb2.SynthesizeRequest(
        voice=voice, text=text, parameters=synthesis_pb2.SynthesisParameters(**parameters)
    )
    error = refused(fleet, request)
    assert error.reason == reason
    if reason == "UNSUPPORTED_CHARACTERS":
        assert error.metadata["characters"] == "ꙮ"


def test_a_text_in_a_trained_voice_is_spoken_and_converted(fleet: Fleet) -> None:
    long = " ".join(f"This is sentence number {word} of them." for word in ("one", "two", "three", "four"))
    spoken = speak(fleet, long, voice=RVC_NAME)
    made = spoken.header.provenance
    assert (spoken.header.rate_hz, made.engine, made.voice) == (40_000, "rvc", RVC_NAME)
    assert (made.speaker, made.speaker_weights) == ("teams/blue/audios/weasels", "f5-small-random")
    assert spoken.header.chunks > 1
    assert np.abs(spoken.pcm).max() > 100
    assert np.array_equal(spoken.pcm, speak(fleet, long, voice=RVC_NAME).pcm)
    plain = speak(fleet, TEXT, duration_s=3.0)
    other = speak(fleet, TEXT, voice=RVC_NAME, duration_s=3.0, speaker=F5_NAME)
    assert len(plain.pcm) == 3 * 24_000
    assert len(other.pcm) == 3 * 40_000
    assert other.summary.provenance.speaker == F5_NAME
    until(lambda: fleet.is_idle("f5") and fleet.is_idle("rvc"))


def test_a_client_that_leaves_a_trained_voice_frees_both_slots(fleet: Fleet) -> None:
    until(lambda: fleet.is_idle("f5") and fleet.is_idle("rvc"))
    request = synthesis_pb2.SynthesizeRequest(
        voice=RVC_NAME,
        text="A sentence that is repeated to make it long. " * 60,
        parameters=synthesis_pb2.SynthesisParameters(steps=16, seed=1, speaker=F5_NAME),
    )
    call = fleet.stub().Synthesize(request, metadata=fleet.headers(), timeout=300)
    assert next(call).WhichOneof("part") == "header"
    call.cancel()
    until(lambda: fleet.is_idle("f5") and fleet.is_idle("rvc"))


def test_a_stranger_is_not_served(fleet: Fleet) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        fleet.stub().ListEngines(synthesis_pb2.ListEnginesRequest(), timeout=10)
    assert from_rpc_error(caught.value).reason == "UNAUTHENTICATED"


def test_a_client_that_leaves_frees_its_slot(fleet: Fleet) -> None:
    until(lambda: fleet.is_idle("f5"))
    request = synthesis_pb2.SynthesizeRequest(
        voice=F5_NAME,
        text="A sentence that is repeated to make it long. " * 60,
        parameters=synthesis_pb2.SynthesisParameters(steps=64, seed=1),
    )
    replicas = fleet.pids("f5")
    call = fleet.stub().Synthesize(request, metadata=fleet.headers(), timeout=300)
    assert next(call).HasField("header")
    call.cancel()
    began = time.monotonic()
    assert speak(fleet).summary.duration_s > 1.0
    assert time.monotonic() - began < 60
    assert fleet.pids("f5") == replicas


def test_a_full_queue_is_refused_with_a_time(fleet: Fleet) -> None:
    slow = synthesis_pb2.SynthesizeRequest(
        voice=F5_NAME,
        text="A sentence that is repeated to make it long. " * 60,
        parameters=synthesis_pb2.SynthesisParameters(steps=64, seed=1),
    )
    stub = fleet.stub()
    running = stub.Synthesize(slow, metadata=fleet.headers(), timeout=300)
    assert next(running).HasField("header")
    # Of the next two, whichever comes first waits, and the queue of one is taken.
    others = [stub.Synthesize(slow, metadata=fleet.headers(), timeout=300) for _ in range(2)]
    until(lambda: any(call.done() for call in others), 60.0)
    with pytest.raises(grpc.RpcError) as caught:
        next(next(call for call in others if call.done()))
    error = from_rpc_error(caught.value)
    assert error.reason == "QUEUE_FULL"
    assert error.retry_after_s is not None
    assert error.retry_after_s >= 1.0
    assert not all(call.done() for call in others)
    for call in (running, *others):
        call.cancel()


def test_a_dead_replica_is_replaced_and_its_request_goes_on(fleet: Fleet) -> None:
    wanted = speak(fleet)
    before = fleet.pids("f5")
    os.kill(before[-1], signal.SIGKILL)
    again = speak(fleet)
    assert np.array_equal(again.pcm, wanted.pcm)
    until(lambda: len(fleet.pids("f5")) == len(before) + 1)


def test_items_of_a_batch_come_with_their_provenance(fleet: Fleet) -> None:
    texts = [f"This is line number {number}." for number in range(3)]
    for number, text in enumerate(texts):
        task = SpeakTask(
            team="blue",
            text=text,
            voice=fleet.f5,
            parameters=SpeakingParameters(steps=4, seed=number + 1, duration_s=2.5),
            output=Output(format="flac", rate_hz=16_000),
        )
        fleet.metadata.lease(f"item-{number}", task)
    bad = SpeakTask(team="blue", text="ꙮ", voice=fleet.f5)
    fleet.metadata.lease("item-bad", bad)
    jobs = [*(f"item-{number}" for number in range(3)), "item-bad"]
    until(lambda: set(jobs) <= set(fleet.metadata.ended), 120.0)
    for number in range(3):
        done = fleet.metadata.ended[f"item-{number}"].succeeded
        audio = done.audios[0]
        assert (audio.rate_hz, audio.channels, audio.codec) == (16_000, 1, "flac")
        assert audio.duration_s == pytest.approx(2.5)
        assert (audio.weights, audio.weights_trained, audio.seed) == ("f5-small-random", False, number + 1)
        data = fleet.store.get_bytes(audio.blob.key, sha256=audio.blob.sha256)
        assert audio.blob.sha256 in audio.blob.key
        assert decode(data).duration_s == pytest.approx(2.5, abs=0.001)
        tags = probe(data).tags
        assert tags["weights"] == "f5-small-random (untrained weights)"
        assert (tags["voice"], tags["seed"]) == (F5_NAME, str(number + 1))
        assert tags["job"] == f"teams/blue/jobs/item-{number}"
    failed = fleet.metadata.ended["item-bad"].failed
    assert failed.error.reason == "UNSUPPORTED_CHARACTERS"
    assert failed.failure_class == "input"


def test_a_recording_is_converted(fleet: Fleet) -> None:
    task = ConvertTask(
        team="blue",
        audio=fleet.source,
        voice=fleet.rvc,
        parameters=ConversionParameters(index_rate=0.0, f0_method="swift"),
        output=Output(format="opus"),
    )
    fleet.metadata.lease("convert-1", task)
    until(lambda: "convert-1" in fleet.metadata.ended, 120.0)
    ended = fleet.metadata.ended["convert-1"]
    assert ended.HasField("succeeded"), ended
    audio = ended.succeeded.audios[0]
    assert audio.source_audio == fleet.source.name
    assert (audio.engine, audio.voice, audio.rate_hz) == ("rvc", RVC_NAME, 48_000)
    assert not audio.weights_trained
    assert audio.duration_s == pytest.approx(fleet.source.duration_s, abs=0.01)
    data = fleet.store.get_bytes(audio.blob.key, sha256=audio.blob.sha256)
    assert np.abs(decode(data).samples).max() > 0.001


def test_a_missing_recording_fails_for_good(fleet: Fleet) -> None:
    gone = fleet.source.model_copy(
        update={"blob": fleet.source.blob.model_copy(update={"key": "teams/blue/sha256/00/" + "0" * 64})}
    )
    fleet.metadata.lease("convert-gone", ConvertTask(team="blue", audio=gone, voice=fleet.rvc))
    until(lambda: "convert-gone" in fleet.metadata.ended, 60.0)
    failed = fleet.metadata.ended["convert-gone"].failed
    assert (failed.error.reason, failed.failure_class) == ("AUDIO_NOT_FOUND", "input")


def test_a_conversion_survives_its_replica(fleet: Fleet) -> None:
    before = fleet.pids("rvc")
    process = psutil.Process(before[-1])
    process.suspend()
    fleet.metadata.lease("convert-2", ConvertTask(team="blue", audio=fleet.source, voice=fleet.rvc))
    until(lambda: fleet.metadata.free.get("rvc.convert") == 0)
    process.kill()
    until(lambda: "convert-2" in fleet.metadata.ended, 120.0)
    assert fleet.metadata.ended["convert-2"].HasField("succeeded")
    assert len(fleet.pids("rvc")) == len(before) + 1


def test_a_cancelled_conversion_on_a_stuck_replica_ends_it(fleet: Fleet) -> None:
    before = fleet.pids("rvc")
    process = psutil.Process(before[-1])
    process.suspend()
    fleet.metadata.lease("convert-3", ConvertTask(team="blue", audio=fleet.source, voice=fleet.rvc))
    until(lambda: fleet.metadata.free.get("rvc.convert") == 0)
    fleet.metadata.cancel("convert-3")
    until(lambda: "convert-3" in fleet.metadata.ended, 30.0)
    assert fleet.metadata.ended["convert-3"].HasField("cancelled")
    until(lambda: len(fleet.pids("rvc")) == len(before) + 1, 90.0)
    until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, 30.0)
    until(lambda: fleet.is_idle("rvc"), 30.0)


def test_the_engines_and_bundles_are_told(fleet: Fleet) -> None:
    stub = fleet.stub()
    engines = stub.ListEngines(synthesis_pb2.ListEnginesRequest(), metadata=fleet.headers(), timeout=10)
    assert [engine.name for engine in engines.engines] == ["f5", "rvc"]
    bundles = stub.ListBundles(synthesis_pb2.ListBundlesRequest(), metadata=fleet.headers(), timeout=10)
    by_name = {bundle.name: bundle for bundle in bundles.bundles}
    assert by_name["f5-small-random"].is_default
    assert not by_name["f5-small-random"].trained
    assert not by_name["f5-v1-base"].present
    assert by_name["f5-v1-base"].requires_acceptance


def test_a_pull_without_a_network_says_what_to_do(fleet: Fleet) -> None:
    fleet.metadata.lease("pull-1", PullBundleTask(team="blue", bundle="f5-v1-base"))
    until(lambda: "pull-1" in fleet.metadata.ended, 30.0)
    assert fleet.metadata.ended["pull-1"].failed.error.reason == "LICENCE_NOT_ACCEPTED"
    fleet.metadata.lease("pull-2", PullBundleTask(team="blue", bundle="f5-v1-base", accepted_licence=True))
    until(lambda: "pull-2" in fleet.metadata.ended, 90.0)
    failed = fleet.metadata.ended["pull-2"].failed
    assert failed.error.reason == "HUB_UNREACHABLE"
    assert "models import" in failed.error.message


def test_an_imported_bundle_is_stored_and_an_operator_is_needed(fleet: Fleet, tmp_path) -> None:
    made = small.build(tmp_path / "made", seed=3)
    manifest = replace(made, name="f5-blue", origin="custom", languages=("de",))

    def parts():
        opened = synthesis_pb2.ImportBundleOpen(
            parent="teams/blue", bundle="f5-blue", accept_licence=True, manifest_json=manifest.to_json()
        )
        yield synthesis_pb2.ImportBundleRequest(open=opened)
        for file in manifest.files:
            data = (tmp_path / "made" / file.path).read_bytes()
            begun = synthesis_pb2.ImportBundleFile(path=file.path, size_bytes=len(data), sha256=file.sha256)
            yield synthesis_pb2.ImportBundleRequest(file=begun)
            for start in range(0, len(data), 1 << 20):
                yield synthesis_pb2.ImportBundleRequest(chunk=data[start : start + (1 << 20)])

    with pytest.raises(grpc.RpcError) as caught:
        fleet.stub().ImportBundle(parts(), metadata=fleet.headers(), timeout=60)
    assert from_rpc_error(caught.value).reason == "PERMISSION_DENIED"
    bundle = fleet.stub().ImportBundle(parts(), metadata=fleet.headers(operator=True), timeout=60)
    assert (bundle.name, bundle.present, bundle.is_default) == ("f5-blue", True, False)
    assert fleet.metadata.accepted["f5-blue"] == "teams/blue"
    stored = fleet.store.get_bytes(f"bundles/f5-blue/{manifest.digest[:16]}/vocab.txt")
    assert stored == (tmp_path / "made" / "vocab.txt").read_bytes()


def test_a_text_goes_to_the_bundle_that_has_its_language(fleet: Fleet) -> None:
    # The one that was imported a moment ago: replicas that hold both come up beside those that serve.
    def spoken_by(language: str) -> str:
        parameters = synthesis_pb2.SynthesisParameters(language=language, steps=4, seed=3)
        request = synthesis_pb2.SynthesizeRequest(voice=F5_NAME, text="Guten Tag.", parameters=parameters)
        parts = list(fleet.stub().Synthesize(request, metadata=fleet.headers(), timeout=60))
        return parts[0].header.provenance.weights

    def is_spoken() -> bool:
        try:
            return spoken_by("de-AT") == "f5-blue"
        except grpc.RpcError as error:
            if from_rpc_error(error).reason != "UNSUPPORTED_LANGUAGE":
                raise
            return False

    until(is_spoken, 90.0)
    assert spoken_by("en") == spoken_by("") == "f5-small-random"
    with pytest.raises(grpc.RpcError) as caught:
        spoken_by("fi")
    assert from_rpc_error(caught.value).reason == "UNSUPPORTED_LANGUAGE"
    assert from_rpc_error(caught.value).metadata["supported_languages"] == "en, zh, de"
    bundles = fleet.stub().ListBundles(
        synthesis_pb2.ListBundlesRequest(), metadata=fleet.headers(), timeout=10
    )
    assert {one.name: list(one.speaks) for one in bundles.bundles if one.speaks} == {
        "f5-small-random": ["en", "zh"],
        "f5-blue": ["de"],
    }


def test_the_official_bundle_is_taken_up_when_it_is_stored(fleet: Fleet, tmp_path) -> None:
    # Its name and place, with weights that this machine can run.
    manifest = replace(small.build(tmp_path, seed=4), name="f5-v1-base", trained=True, licence="CC-BY-NC-4.0")
    for file in manifest.files:
        key = f"bundles/f5-v1-base/{manifest.digest[:16]}/{file.path}"
        fleet.store.put_file(key, tmp_path / file.path, sha256=file.sha256)
    before = speak(fleet)
    replicas = fleet.pids("f5")
    fleet.metadata.bundles["f5-v1-base"] = manifest.to_json()
    until(lambda: len(fleet.pids("f5")) == len(replicas) + 1, 90.0)
    after = speak(fleet)
    provenance = after.header.provenance
    assert (provenance.weights, provenance.weights_trained) == ("f5-v1-base", True)
    assert provenance.weights_licence == "CC-BY-NC-4.0"
    assert not np.array_equal(before.pcm, after.pcm)
    assert fleet.metadata.capacity.default_bundle == "f5-v1-base"
    until(lambda: not psutil.pid_exists(replicas[-1]))
    del fleet.metadata.bundles["f5-v1-base"]
    until(lambda: len(fleet.pids("f5")) == len(replicas) + 2, 90.0)
    assert np.array_equal(speak(fleet).pcm, before.pcm)


def test_capacity_names_the_bundle_and_the_nodes(fleet: Fleet) -> None:
    until(lambda: len(fleet.metadata.capacity.nodes) == 1 and fleet.metadata.capacity.nodes[0].gpus_free == 0)
    node = fleet.metadata.capacity.nodes[0]
    assert (node.gpus, node.virtual_gpus, node.state) == (1.0, True, "alive")
    assert fleet.metadata.capacity.default_bundle == "f5-small-random"


def test_it_ends_when_it_is_told_and_leaves_no_replica(fleet: Fleet) -> None:
    pids = [fleet.pids("f5")[-1], fleet.pids("rvc")[-1]]
    assert all(psutil.pid_exists(pid) for pid in pids)
    fleet.process.terminate()
    assert fleet.process.wait(30) == 0
    until(lambda: not any(psutil.pid_exists(pid) for pid in pids), 30.0)
