"""Bad input: the documented reason, no row and no object left, and the server goes on."""

import json
import struct
from collections.abc import Callable

import grpc
import pytest

from tests.e2e.conftest import SPEECH
from tests.polling import until
from voxfleet.client import VoxfleetError
from voxfleet.v1 import audio_pb2, audio_pb2_grpc, job_pb2, job_pb2_grpc, synthesis_pb2, voice_pb2

FLAC = (SPEECH / "clip_en_1.flac").read_bytes()
SAID = {
    clip["file"]: clip["text"]
    for clip in json.loads((SPEECH / "manifest.json").read_text())["files"]
    if "text" in clip
}


def wav_that_claims(size_bytes: int) -> bytes:
    """A WAV header that claims so much data, and 1 s of it."""
    rate = 16000
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, rate * 2, 2, 16)
    return (
        b"RIFF"
        + struct.pack("<I", size_bytes + 36)
        + b"WAVE"
        + fmt
        + b"data"
        + struct.pack("<I", size_bytes)
        + b"\1\0" * rate
    )


UPLOADS: dict[str, tuple[bytes, dict[str, object], str]] = {
    "empty": (b"", {}, "AUDIO_EMPTY"),
    "text named as audio": (b"just some words, no audio at all\n" * 50, {}, "INVALID_FORMAT"),
    "truncated header": (FLAC[:60], {}, "INVALID_FORMAT"),
    "claims a gigabyte": (wav_that_claims(2**30), {}, "INVALID_FORMAT"),
    "playlist that names a file": (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", {}, "INVALID_FORMAT"),
    "too short to train on": (FLAC, {"purpose": audio_pb2.AUDIO_PURPOSE_TRAINING}, "AUDIO_TOO_SHORT"),
    "wrong checksum": (FLAC, {"sha256": "0" * 64}, "CHECKSUM_MISMATCH"),
    "a voice's file without a byte": (b"", {"purpose": audio_pb2.AUDIO_PURPOSE_VOICE_FILE}, "AUDIO_EMPTY"),
    "a voice's file of another checksum": (
        b"weights",
        {"purpose": audio_pb2.AUDIO_PURPOSE_VOICE_FILE, "sha256": "0" * 64},
        "CHECKSUM_MISMATCH",
    ),
    "a voice's file over the limit": (
        b"weights",
        {"purpose": audio_pb2.AUDIO_PURPOSE_VOICE_FILE, "size_bytes": 2 * 2**30},
        "FILE_TOO_LARGE",
    ),
    "announced over the limit": (FLAC, {"size_bytes": 400 * 2**20}, "FILE_TOO_LARGE"),
}


def upload(channel: grpc.Channel, team, data: bytes, **spec: object) -> audio_pb2.Audio:
    audio = audio_pb2.AudioSpec(display_name="bad.wav", purpose=audio_pb2.AUDIO_PURPOSE_CONVERSION)
    audio.MergeFrom(audio_pb2.AudioSpec(**spec))
    opened = audio_pb2.OpenUpload(parent=team.parent, audio=audio)
    messages = [audio_pb2.UploadAudioRequest(open=opened)]
    messages += [
        audio_pb2.UploadAudioRequest(chunk=data[start : start + 65536])
        for start in range(0, len(data), 65536)
    ]
    stub = audio_pb2_grpc.AudioServiceStub(channel)
    return stub.UploadAudio(iter(messages), metadata=team.headers, timeout=60)


@pytest.mark.parametrize("case", UPLOADS)
def test_a_bad_file_gets_its_reason_and_leaves_nothing(case, alpha, channel, left_behind):
    data, spec, reason = UPLOADS[case]
    before = left_behind()
    with pytest.raises(grpc.RpcError) as caught:
        upload(channel, alpha, data, **spec)
    assert reason_of(caught.value) == reason
    assert left_behind() == before
    assert upload(channel, alpha, FLAC).name, "the server goes on"


CALLS: dict[str, tuple[Callable[..., object], str]] = {
    "unknown audio": (lambda a, n: a.audio.get("none-such"), "AUDIO_NOT_FOUND"),
    "unknown voice": (lambda a, n: a.synthesis.say("Hello.", "none-such"), "VOICE_NOT_FOUND"),
    "unknown job": (lambda a, n: a.jobs.get("none-such"), "JOB_NOT_FOUND"),
    "unknown bundle": (lambda a, n: wait(a, a.synthesis.pull_bundle("none-such")), "MODEL_NOT_FOUND"),
    "empty text": (lambda a, n: a.synthesis.say(" ", n["clone"]), "TEXT_EMPTY"),
    "too long text": (lambda a, n: a.synthesis.say("word " * 2000, n["clone"]), "TEXT_TOO_LONG"),
    "unknown characters": (lambda a, n: a.synthesis.say("☃ snow", n["clone"]), "UNSUPPORTED_CHARACTERS"),
    "transcript in unknown characters": (
        lambda a, n: a.voices.create(reference=n["reference"], text="☃☃☃ ☃☃", voice_id="snow-man"),
        "UNSUPPORTED_CHARACTERS",
    ),
    "another clip's transcript": (
        lambda a, n: a.voices.create(reference=n["reference"], text=SAID["clip_en_5.flac"], voice_id="other"),
        "TRANSCRIPT_MISMATCH",
    ),
    "reference too long": (
        lambda a, n: a.voices.create(reference=n["target"], text="words", voice_id="too-long"),
        "AUDIO_TOO_LONG",
    ),
    "voice that exists": (
        lambda a, n: a.voices.create(
            reference=n["reference"], text=SAID["reference_en.flac"], voice_id="clone"
        ),
        "VOICE_EXISTS",
    ),
    "too little to train on": (lambda a, n: a.voices.train([n["short"]]), "AUDIO_TOO_SHORT"),
    "training on nothing": (lambda a, n: a.voices.train([]), "INVALID_ARGUMENT"),
    "converting to a zero-shot voice": (
        lambda a, n: a.synthesis.convert(n["target"], n["clone"]),
        "UNSUPPORTED_ENGINE",
    ),
    "parameter out of range": (
        lambda a, n: a.synthesis.say(
            "Hello.", n["clone"], parameters=synthesis_pb2.SynthesisParameters(steps=1000)
        ),
        "INVALID_ARGUMENT",
    ),
    "language that no bundle speaks": (
        lambda a, n: a.synthesis.say(
            "Hello.", n["clone"], parameters=synthesis_pb2.SynthesisParameters(language="tlh")
        ),
        "UNSUPPORTED_LANGUAGE",
    ),
    "unknown preset": (
        lambda a, n: a.voices.train([n["target"]], parameters=voice_pb2.RvcTrainingParameters(preset="huge")),
        "INVALID_ARGUMENT",
    ),
    "an engine that does not exist": (
        lambda a, n: a.synthesis.convert(n["target"], n["clone"], engine="vits"),
        "UNSUPPORTED_ENGINE",
    ),
    "importing what was uploaded as audio": (
        lambda a, n: a.voices.import_voice(n["target"]),
        "INVALID_FORMAT",
    ),
    "importing nothing": (lambda a, n: a.voices.import_voice(""), "INVALID_ARGUMENT"),
    "importing an unknown file": (lambda a, n: a.voices.import_voice("none-such"), "AUDIO_NOT_FOUND"),
    "importing with an index that is audio": (
        lambda a, n: a.voices.import_voice(n["file"], index_file=n["target"]),
        "INVALID_FORMAT",
    ),
    "importing to an id that exists": (
        lambda a, n: a.voices.import_voice(n["file"], voice_id="clone"),
        "VOICE_EXISTS",
    ),
    "importing to a malformed id": (
        lambda a, n: a.voices.import_voice(n["file"], voice_id="Not An Id"),
        "INVALID_ARGUMENT",
    ),
    "importing under words for a licence": (
        lambda a, n: a.voices.import_voice(n["file"], weights_licence="do what you like"),
        "INVALID_ARGUMENT",
    ),
    "exporting an unknown voice": (lambda a, n: a.voices.export_voice("none-such"), "VOICE_NOT_FOUND"),
    "exporting a zero-shot voice": (lambda a, n: a.voices.export_voice(n["clone"]), "UNSUPPORTED_ENGINE"),
    "exporting an encoder that others lack": (
        lambda a, n: a.voices.export_voice(n["trained"], format="pth"),
        "UNSUPPORTED_ENGINE",
    ),
    "training on a voice's file": (lambda a, n: a.voices.train([n["file"]]), "INVALID_FORMAT"),
    "converting a voice's file": (
        lambda a, n: a.synthesis.convert(n["file"], n["trained"]),
        "INVALID_FORMAT",
    ),
    "measuring a voice's file": (lambda a, n: a.audio.analyze(n["file"]), "INVALID_FORMAT"),
    "explaining an unknown job": (lambda a, n: a.jobs.explain("none-such"), "JOB_NOT_FOUND"),
    "unknown filter": (lambda a, n: list(a.audio.list(filter="colour=red")), "INVALID_ARGUMENT"),
    "empty batch": (lambda a, n: a.synthesis.batch([], n["clone"]), "INVALID_ARGUMENT"),
}


def wait(client, job: job_pb2.Job) -> job_pb2.Job:
    return client.jobs.wait(job.name, timeout_s=60)


@pytest.fixture(scope="module")
def named(alpha, clone, trained, target, reference) -> dict[str, str]:
    short = alpha.client.audio.upload(SPEECH / "clip_en_1.flac")
    file = alpha.client.audio.upload(b"no voice at all", purpose="voice_file", display_name="evil.pth")
    return {
        "clone": clone.name,
        "target": target.name,
        "reference": reference.name,
        "short": short.name,
        "trained": trained.name,
        "file": file.name,
    }


@pytest.mark.parametrize("case", CALLS)
def test_a_bad_call_gets_its_reason_and_leaves_nothing(case, alpha, named, left_behind):
    call, reason = CALLS[case]
    voices = {voice.name for voice in alpha.client.voices.list()}
    before = left_behind()
    with pytest.raises(VoxfleetError) as caught:
        call(alpha.client, named)
    assert caught.value.reason == reason
    assert left_behind() == before
    assert {voice.name for voice in alpha.client.voices.list()} == voices
    assert alpha.client.audio.get(named["target"]).name, "the server goes on"


def test_negative_page_size(alpha, channel):
    with pytest.raises(grpc.RpcError) as caught:
        job_pb2_grpc.JobServiceStub(channel).ListJobs(
            job_pb2.ListJobsRequest(parent=alpha.parent, page_size=-1), metadata=alpha.headers
        )
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_cut_stream_leaves_only_what_can_be_resumed(alpha, channel, left_behind):
    before = left_behind()
    stub = audio_pb2_grpc.AudioServiceStub(channel)
    spec = audio_pb2.AudioSpec(display_name="cut.flac", size_bytes=len(FLAC))

    def cut():
        opened = audio_pb2.OpenUpload(parent=alpha.parent, upload_id="cut-stream", audio=spec)
        yield audio_pb2.UploadAudioRequest(open=opened)
        yield audio_pb2.UploadAudioRequest(chunk=FLAC[:1000])
        until(lambda: exists(stub, alpha, "cut-stream"), timeout_s=20)
        raise ConnectionError

    with pytest.raises(grpc.RpcError):
        stub.UploadAudio(cut(), metadata=alpha.headers, timeout=30)
    names, keys = left_behind()
    assert names == before[0]
    assert all("/staging/cut-stream/" in key for key in keys - before[1])
    upload_name = f"{alpha.parent}/uploads/cut-stream"
    found = stub.GetUpload(audio_pb2.GetUploadRequest(name=upload_name), metadata=alpha.headers)
    rest = [
        audio_pb2.UploadAudioRequest(
            resume=audio_pb2.ResumeUpload(upload=upload_name, offset=found.durable_offset)
        ),
        audio_pb2.UploadAudioRequest(chunk=FLAC[found.durable_offset :]),
    ]
    audio = stub.UploadAudio(iter(rest), metadata=alpha.headers, timeout=60)
    assert alpha.client.audio.download_bytes(audio.name) == FLAC
    assert not [key for key in left_behind()[1] if "/staging/" in key]


def test_resuming_at_a_wrong_offset_names_the_right_one(alpha, channel):
    stub = audio_pb2_grpc.AudioServiceStub(channel)

    def cut():
        opened = audio_pb2.OpenUpload(parent=alpha.parent, upload_id="wrong-offset")
        yield audio_pb2.UploadAudioRequest(open=opened)
        until(lambda: exists(stub, alpha, "wrong-offset"), timeout_s=20)
        raise ConnectionError

    with pytest.raises(grpc.RpcError):
        stub.UploadAudio(cut(), metadata=alpha.headers, timeout=30)
    name = f"{alpha.parent}/uploads/wrong-offset"
    resume = audio_pb2.UploadAudioRequest(resume=audio_pb2.ResumeUpload(upload=name, offset=77))
    with pytest.raises(grpc.RpcError) as caught:
        stub.UploadAudio(iter([resume]), metadata=alpha.headers, timeout=30)
    assert reason_of(caught.value) == "UPLOAD_OFFSET_MISMATCH"
    assert info_of(caught.value).metadata["durable_offset"] == "0"


@pytest.mark.parametrize("token", ["", "Bearer", "Bearer wrong", "Basic abc"])
def test_no_token_no_answer(channel, alpha, token):
    headers = (("authorization", token),) if token else ()
    with pytest.raises(grpc.RpcError) as caught:
        audio_pb2_grpc.AudioServiceStub(channel).ListAudios(
            audio_pb2.ListAudiosRequest(parent=alpha.parent), metadata=headers
        )
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


FOREIGN: dict[str, tuple[Callable[..., object], str]] = {
    "get": (lambda b, n: b.audio.get(n["target"]), "AUDIO_NOT_FOUND"),
    "download": (lambda b, n: b.audio.download_bytes(n["target"]), "AUDIO_NOT_FOUND"),
    "analyse": (lambda b, n: b.audio.analyze(n["target"]), "AUDIO_NOT_FOUND"),
    "delete": (lambda b, n: b.audio.delete(n["target"]), "AUDIO_NOT_FOUND"),
    "train": (lambda b, n: b.voices.train([n["target"]]), "AUDIO_NOT_FOUND"),
    "clone": (lambda b, n: b.voices.create(reference=n["reference"], text="x"), "AUDIO_NOT_FOUND"),
    "import": (lambda b, n: b.voices.import_voice(n["file"]), "AUDIO_NOT_FOUND"),
    "export": (lambda b, n: b.voices.export_voice(n["trained"]), "VOICE_NOT_FOUND"),
    "speak": (lambda b, n: b.synthesis.say("Hello.", n["clone"]), "VOICE_NOT_FOUND"),
    "delete voice": (lambda b, n: b.voices.delete(n["clone"]), "VOICE_NOT_FOUND"),
    "operate": (lambda b, n: b.trust.create_team("gamma"), "PERMISSION_DENIED"),
    "pull": (lambda b, n: b.synthesis.pull_bundle("f5-v1-base"), "PERMISSION_DENIED"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_foreign_teams_names_look_as_if_they_did_not_exist(case, beta, named):
    call, reason = FOREIGN[case]
    with pytest.raises(VoxfleetError) as caught:
        call(beta.client, named)
    assert caught.value.reason == reason


def exists(stub: audio_pb2_grpc.AudioServiceStub, team, upload_id: str) -> bool:
    name = f"{team.parent}/uploads/{upload_id}"
    try:
        stub.GetUpload(audio_pb2.GetUploadRequest(name=name), metadata=team.headers, timeout=10)
    except grpc.RpcError:
        return False
    return True


def info_of(error: grpc.RpcError):
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    found = error_details_pb2.ErrorInfo()
    for detail in rpc_status.from_call(error).details:
        if detail.Is(found.DESCRIPTOR):
            detail.Unpack(found)
    return found


def reason_of(error: grpc.RpcError) -> str:
    return info_of(error).reason
