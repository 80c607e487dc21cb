"""Voices in and out of files: what is fetched, opened in the jail and stored, and how failures are told."""

import asyncio
import dataclasses
import hashlib
import io

import pytest
import torch

from services.common.artifacts.memory_store import MemoryArtifactStore
from services.common.artifacts.model import content_key
from services.common.errors import FailureClass, Reason, VoxfleetError
from services.common.jail.running import BrokenError, run_jailed
from services.common.jail.work import JailLimits
from services.common.jobs.tasks import Blob, ExportVoiceTask, ImportVoiceTask, RvcVoice, VoiceFile
from services.engines.rvc.community import read_pth, write_pth
from services.engines.rvc.config import TINY_40K
from services.engines.rvc.package import MEDIA_TYPE, unpack_voice
from services.engines.rvc.synthesizer import Synthesizer
from services.engines.rvc.voice import VoiceFacts, inference_weights, read_facts
from services.inference.app.exchange import Exchange

VOICE = "teams/blue/voices/singer"


def model() -> bytes:
    config = dataclasses.replace(TINY_40K, content_width=768)
    sink = io.BytesIO()
    write_pth(VoiceFacts(config, "contentvec"), inference_weights(Synthesizer(config).state_dict()), sink)
    return sink.getvalue()


class Rig:
    def __init__(self, tmp_path, jail=run_jailed):
        self.store = MemoryArtifactStore()
        self.work_dir = tmp_path / "work"
        self.exchange = Exchange(self.store, self.work_dir, jail, JailLimits())
        self.told = []

    def put(self, data: bytes) -> Blob:
        sha256 = hashlib.sha256(data).hexdigest()
        key = content_key("blue", sha256)
        self.store.put_bytes(key, data)
        return Blob(key=key, sha256=sha256, size_bytes=len(data))

    def importing(self, data: bytes) -> ImportVoiceTask:
        file = VoiceFile(name="teams/blue/audios/file", blob=self.put(data), display_name="../a/singer.pth")
        return ImportVoiceTask(team="blue", voice=VOICE, model=file, licence="CC0-1.0")

    async def bring_in(self, data: bytes):
        return await self.exchange.bring_in(self.importing(data), self._tell)

    def _tell(self, phase, percent):
        self.told.append(phase)

    def left(self):
        return list(self.work_dir.iterdir()) if self.work_dir.is_dir() else []


async def test_a_file_becomes_a_package_under_its_hash_and_comes_out_again(tmp_path):
    rig = Rig(tmp_path)
    data = model()
    made = await rig.bring_in(data)
    assert rig.told == ["fetch", "open", "write", "store"]
    assert made.weights_trained
    assert made.voice is not None
    assert (made.voice.content_encoder, made.voice.rate_hz) == ("contentvec", 40_000)
    package = made.voice.package
    assert (package.key, package.media_type) == (content_key("blue", package.sha256), MEDIA_TYPE)
    stored = rig.store.get_bytes(package.key)
    assert hashlib.sha256(stored).hexdigest() == package.sha256
    (tmp_path / "package").write_bytes(stored)
    unpack_voice(tmp_path / "package", tmp_path / "voice")
    training = read_facts(tmp_path / "voice").training
    assert (training["imported_from"], training["licence"]) == ("singer.pth", "CC0-1.0")
    assert training["imported_sha256"] == hashlib.sha256(data).hexdigest()
    again = await rig.bring_in(data)
    assert again.voice == made.voice, "the same file is the same package"

    voice = RvcVoice(name=VOICE, package=package)
    task = ExportVoiceTask(team="blue", voice=voice, format="pth", licence="CC0-1.0")
    out = await rig.exchange.send_out(task, rig._tell)
    (file,) = out.audios
    assert (file.display_name, file.voice_file, file.weights_licence) == ("singer.pth", True, "CC0-1.0")
    first, last = (read_pth(io.BytesIO(each), "it") for each in (data, rig.store.get_bytes(file.blob.key)))
    assert all(torch.equal(first.weights[name], last.weights[name]) for name in first.weights)
    (whole,) = (await rig.exchange.send_out(task.model_copy(update={"format": "voxfleet"}), rig._tell)).audios
    assert (whole.display_name, whole.blob) == ("singer.zip", package)
    assert rig.left() == []


async def test_a_file_that_is_none_is_at_fault_and_leaves_nothing(tmp_path):
    rig = Rig(tmp_path)
    with pytest.raises(VoxfleetError) as caught:
        await rig.bring_in(b"words\n" * 99)
    assert (caught.value.reason, caught.value.failure) == (Reason.MODEL_CORRUPT, FailureClass.INPUT)
    assert "singer.pth" in caught.value.message
    assert rig.left() == []


@pytest.mark.parametrize(
    ("cause", "reason", "failure"),
    [
        ("memory", Reason.MODEL_CORRUPT, FailureClass.INPUT),
        ("time", Reason.MODEL_CORRUPT, FailureClass.INPUT),
        ("crash", Reason.MODEL_CORRUPT, FailureClass.INPUT),
        # Not a byte was read: the machine is at fault, and another attempt may do.
        ("start", Reason.SERVICE_UNAVAILABLE, FailureClass.TRANSIENT),
    ],
)
async def test_a_process_that_broke_is_told_by_its_cause(tmp_path, cause, reason, failure):
    async def broken(work, **_):
        raise BrokenError(cause, "it did not end well")

    rig = Rig(tmp_path, broken)
    with pytest.raises(VoxfleetError) as caught:
        await rig.bring_in(b"x")
    assert (caught.value.reason, caught.value.failure) == (reason, failure)
    assert rig.left() == []


async def test_a_cancelled_import_leaves_nothing(tmp_path):
    begun = asyncio.Event()

    async def endless(work, **_):
        begun.set()
        await asyncio.Event().wait()

    rig = Rig(tmp_path, endless)
    task = asyncio.create_task(rig.bring_in(b"x"))
    await begun.wait()
    assert rig.left()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert rig.left() == []


async def test_bytes_that_are_gone_are_said_to_be(tmp_path):
    rig = Rig(tmp_path)
    task = rig.importing(b"x")
    rig.store.delete(task.model.blob.key)
    with pytest.raises(VoxfleetError) as caught:
        await rig.exchange.bring_in(task, rig._tell)
    assert caught.value.reason is Reason.AUDIO_NOT_FOUND
