"""Voices out to files and in again, through the public API alone."""

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch

from services.common.media.decode import decode
from services.engines.rvc.community import read_pth, write_pth
from services.engines.rvc.config import TINY_40K, V2_40K
from services.engines.rvc.retrieval import build_index
from services.engines.rvc.synthesizer import Synthesizer
from services.engines.rvc.voice import VoiceFacts, inference_weights
from tests.e2e.conftest import SPEECH
from voxfleet.client import JobFailed, VoxfleetError
from voxfleet.v1 import audio_pb2, job_pb2, synthesis_pb2, voice_pb2

TIMEOUT_S = 240


def community_file(config=V2_40K) -> bytes:
    """A fabricated voice as the community shares them: nobody trained it, every key is there."""
    torch.manual_seed(5)
    sink = io.BytesIO()
    encoder = "contentvec" if config.content_width == 768 else "contentvec-v1"
    write_pth(VoiceFacts(config, encoder), inference_weights(Synthesizer(config).state_dict()), sink)
    return sink.getvalue()


def index_file(width=768) -> bytes:
    vectors = np.random.default_rng(0).standard_normal((500, width)).astype(np.float32)
    return faiss.serialize_index(build_index(vectors).index).tobytes()


def uploaded(team, data: bytes, name: str) -> audio_pb2.Audio:
    return team.client.audio.upload(io.BytesIO(data), purpose="voice_file", display_name=name)


def converted(team, source: audio_pb2.Audio, voice: str) -> np.ndarray:
    how = synthesis_pb2.ConversionParameters(seed=3)
    job = team.client.synthesis.convert(source.name, voice, parameters=how, format="wav")
    (name,) = team.client.jobs.wait(job.name, timeout_s=TIMEOUT_S).result.audios
    return decode(team.client.audio.download_bytes(name)).samples


def test_a_trained_voice_goes_out_and_comes_back_and_sounds_the_same(alpha, trained):
    client = alpha.client
    source = client.audio.upload(SPEECH / "clip_it.flac")
    before = converted(alpha, source, trained.name)
    job = client.jobs.wait(client.voices.export_voice(trained.name).name, timeout_s=TIMEOUT_S)
    (made,) = (client.audio.get(name) for name in job.result.audios)
    assert made.purpose == audio_pb2.AUDIO_PURPOSE_VOICE_FILE
    assert (made.display_name, made.provenance.voice) == ("trained.zip", trained.name)
    assert made.HasField("expire_time")
    package = client.audio.download_bytes(made.name)
    try:
        assert client.voices.delete(trained.name).state == voice_pb2.VOICE_STATE_DELETED
        file = uploaded(alpha, package, "trained.zip")
        assert (file.sha256, file.assessment.grade) == (made.sha256, "")
        begun = client.voices.import_voice(file.name, voice_id="come-back", display_name="Again")
        done = client.jobs.wait(begun.name, timeout_s=TIMEOUT_S)
        voice = client.voices.get(done.result.voice)
    finally:
        client.voices.undelete(trained.name)
    assert (voice.name, voice.engine, voice.state) == (
        f"{alpha.parent}/voices/come-back",
        "rvc",
        voice_pb2.VOICE_STATE_READY,
    )
    assert (voice.content_encoder, voice.rate_hz) == (trained.content_encoder, trained.rate_hz)
    assert (voice.weights_licence, voice.weights_trained) == ("LicenseRef-imported", True)
    assert voice.metrics["index_vectors"] > 0
    after = converted(alpha, source, voice.name)
    assert np.array_equal(before, after), "the same weights, the same index, the same seed"


def test_a_community_voice_comes_in_waits_for_its_encoder_and_goes_out_unchanged(alpha, target, tmp_path):
    client = alpha.client
    data = community_file()
    model, index = uploaded(alpha, data, "singer.pth"), uploaded(alpha, index_file(), "added.index")
    begun = client.voices.import_voice(
        model.name, index_file=index.name, voice_id="singer", weights_licence="CC-BY-4.0"
    )
    assert begun.kind == "voice.import"
    done = client.jobs.wait(begun.name, timeout_s=TIMEOUT_S)
    voice = client.voices.get(done.result.voice)
    assert (voice.state, voice.content_encoder, voice.rate_hz) == (
        voice_pb2.VOICE_STATE_READY,
        "contentvec",
        40_000,
    )
    assert (voice.weights_licence, voice.metrics["index_vectors"]) == ("CC-BY-4.0", 500)
    assert voice.training_job == begun.name

    with pytest.raises(JobFailed) as caught:
        client.jobs.wait(client.synthesis.convert(target.name, voice.name).name, timeout_s=TIMEOUT_S)
    assert caught.value.reason == "MODEL_NOT_FOUND"
    assert "ContentVec" in caught.value.message

    begun = client.voices.export_voice(voice.name, format="pth")
    out = client.jobs.wait(begun.name, timeout_s=TIMEOUT_S)
    files = {audio.display_name: audio for audio in map(client.audio.get, out.result.audios)}
    assert list(files) == ["singer.pth", "singer.index"]
    first, last = (
        read_pth(io.BytesIO(each), "it")
        for each in (data, client.audio.download_bytes(files["singer.pth"].name))
    )
    assert first.config == last.config
    incompatible = Synthesizer(V2_40K, with_posterior=False).load_state_dict(dict(last.weights), strict=False)
    assert (incompatible.missing_keys, incompatible.unexpected_keys) == ([], [])
    assert all(torch.equal(first.weights[name], last.weights[name]) for name in first.weights)
    assert client.audio.download_bytes(files["singer.index"].name) == index_file()


def test_a_voice_of_the_first_version_comes_in_too(alpha):
    data = community_file(dataclasses.replace(TINY_40K, content_width=256))
    begun = alpha.client.voices.import_voice(uploaded(alpha, data, "old.pth").name, voice_id="old-one")
    done = alpha.client.jobs.wait(begun.name, timeout_s=TIMEOUT_S)
    assert alpha.client.voices.get(done.result.voice).content_encoder == "contentvec-v1"


class Runs:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_hostile_file_fails_its_job_alone(alpha, trained, tmp_path):
    sink = io.BytesIO()
    torch.save({"weight": Runs(f"touch {tmp_path / 'ran'}"), "config": []}, sink)
    for number, data in enumerate((sink.getvalue(), b"words\n" * 100, community_file(TINY_768)[:-5000])):
        file = uploaded(alpha, data, "evil.pth")
        begun = alpha.client.voices.import_voice(file.name, voice_id=f"evil-{number}")
        with pytest.raises(JobFailed) as caught:
            alpha.client.jobs.wait(begun.name, timeout_s=TIMEOUT_S)
        assert caught.value.reason == "MODEL_CORRUPT"
        assert "evil.pth" in caught.value.message
        job = alpha.client.jobs.get(begun.name)
        assert (job.state, job.attempt) == (job_pb2.JOB_STATE_FAILED, 1), "no repeat mends a bad file"
        voice = alpha.client.voices.get(f"evil-{number}")
        assert voice.state == voice_pb2.VOICE_STATE_FAILED
    assert not (tmp_path / "ran").exists()
    assert alpha.client.voices.get(trained.name).state == voice_pb2.VOICE_STATE_READY


TINY_768 = dataclasses.replace(TINY_40K, content_width=768)


def test_a_repeat_makes_one_voice_and_an_id_is_taken_once(alpha):
    client = alpha.client
    file = uploaded(alpha, community_file(TINY_768), "tiny.pth").name
    preview = client.voices.import_voice(file, voice_id="only-one", validate_only=True)
    assert preview.state == job_pb2.JOB_STATE_QUEUED
    with pytest.raises(VoxfleetError, match="does not exist"):
        client.voices.get("only-one")
    first = client.voices.import_voice(file, voice_id="only-one", request_id="import-once")
    again = client.voices.import_voice(file, voice_id="only-one", request_id="import-once")
    assert first.name == again.name
    with pytest.raises(VoxfleetError) as caught:
        client.voices.import_voice(file, voice_id="only-one")
    assert caught.value.reason == "VOICE_EXISTS"
    client.jobs.wait(first.name, timeout_s=TIMEOUT_S)
    assert client.voices.get("only-one").state == voice_pb2.VOICE_STATE_READY


def test_the_command_line_imports_and_exports(alpha, tmp_path):
    (tmp_path / "tiny.pth").write_bytes(community_file(TINY_768))
    (tmp_path / "tiny.index").write_bytes(index_file())

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "voxfleet.cli.main", "voice", *words],
            env={
                **os.environ,
                "VOXFLEET_ENDPOINT": alpha.endpoint,
                "VOXFLEET_TOKEN": alpha.token,
                "VOXFLEET_TEAM": alpha.name,
            },
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    given = str(tmp_path / "tiny.pth"), "--index", str(tmp_path / "tiny.index")
    made = run("import", *given, "--name", "By command", "--id", "by-command", "--json")
    assert made.returncode == 0, made.stderr
    voice = json.loads(made.stdout)
    assert (voice["display_name"], voice["state"]) == ("By command", "VOICE_STATE_READY")
    (tmp_path / "out").mkdir()
    done = run("export", "by-command", "--format", "pth", "--out", str(tmp_path / "out"), "--json")
    assert done.returncode == 0, done.stderr
    assert [Path(path).name for path in json.loads(done.stdout)["files"]] == [
        "by-command.pth",
        "by-command.index",
    ]
    assert (tmp_path / "out" / "by-command.index").read_bytes() == index_file()
    wrong = run("export", "by-command", "--format", "onnx", "--out", str(tmp_path / "out"))
    assert wrong.returncode != 0
    assert "voxfleet, pth" in wrong.stderr
    absent = run("import", str(tmp_path / "absent.pth"))
    assert absent.returncode != 0
    assert "there is no file" in absent.stderr
