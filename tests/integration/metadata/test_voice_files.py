"""Imports and exports of voices on real Postgres: what is made of them, and what is refused."""

import pytest

from services.common.errors import Kind, Reason, VoxfleetError
from services.common.jobs import tasks
from services.common.jobs.model import AudioOutput, Succeeded, VoiceOutput
from services.common.jobs.tasks import Blob
from services.common.licences import IMPORTED_LICENCE
from services.metadata.model.catalog import VOICE_FILE, VoiceState
from services.metadata.model.jobs import JobState, PriorityClass
from services.metadata.model.page import Page
from services.metadata.servicers.jobs import SubmitServicer
from tests.integration.metadata.test_ledger import add_audio, blob, make_voice
from tests.integration.metadata.test_races import make_rvc_voice
from voxfleet.v1 import job_pb2, voice_pb2


@pytest.fixture
def servicer(metadata):
    return SubmitServicer(metadata.submit)


@pytest.fixture
def bring_in(servicer):
    async def ask(model: str, *, parent: str = "teams/alpha", **fields) -> job_pb2.Job:
        request = voice_pb2.ImportVoiceRequest(parent=parent, model_file=model, **fields)
        return await servicer.ImportVoice(request, None)

    return ask


@pytest.fixture
def send_out(servicer):
    async def ask(name: str, **fields) -> job_pb2.Job:
        return await servicer.ExportVoice(voice_pb2.ExportVoiceRequest(name=name, **fields), None)

    return ask


async def add_file(metadata, sha: str, name: str = "singer.pth", team: str = "alpha") -> str:
    spec = {"display_name": name, "purpose": VOICE_FILE}
    upload = await metadata.audios.open_upload(team, "", spec)
    stored = blob(sha)
    stored = stored.model_copy(update={"key": stored.key.replace("alpha", team)})
    return (await metadata.audios.commit(team, upload.id, stored, {}, {})).name


async def refusal(asked) -> VoxfleetError:
    with pytest.raises(VoxfleetError) as caught:
        await asked
    return caught.value


def imported() -> Succeeded:
    package = Blob(key=f"teams/alpha/sha256/ee/{'ee' * 32}", sha256="ee" * 32, size_bytes=7)
    return Succeeded(
        voice=VoiceOutput(package, "contentvec", 40_000, {"index_vectors": 9.0}), weights_trained=True
    )


async def test_an_import_is_a_job_for_inference_and_ends_as_a_voice(metadata, bring_in):
    model, index = await add_file(metadata, "aa" * 32), await add_file(metadata, "bb" * 32, "added.index")
    made = await bring_in(model, index_file=index, voice_id="singer", display_name="Ann", labels={"a": "b"})
    job, _ = await metadata.jobs.get("alpha", made.name.rpartition("/")[2])
    assert (job.kind, job.priority_class) == ("voice.import", PriorityClass.CONVERSION)
    voice = await metadata.voices.get("alpha", "singer")
    assert (voice.state, voice.engine, voice.weights_licence) == (
        VoiceState.TRAINING,
        "rvc",
        IMPORTED_LICENCE,
    )
    (claimed,) = await metadata.claim("w1", {"voice.import": 1})
    task = tasks.load_task(claimed.job.task)
    assert isinstance(task, tasks.ImportVoiceTask)
    assert tasks.QUEUE_OF_KIND[task.kind] == "inference"
    assert (task.voice, task.licence) == (voice.name, IMPORTED_LICENCE)
    assert (task.model.name, task.model.display_name, task.model.blob.sha256) == (
        model,
        "singer.pth",
        "aa" * 32,
    )
    assert task.index is not None
    assert task.index.blob.sha256 == "bb" * 32
    await metadata.work.succeed(claimed.fence, imported())
    voice = await metadata.voices.get("alpha", "singer")
    assert (voice.state, voice.content_encoder, voice.rate_hz) == (VoiceState.READY, "contentvec", 40_000)
    assert (voice.display_name, voice.labels, voice.metrics) == ("Ann", {"a": "b"}, {"index_vectors": 9.0})
    assert voice.package is not None
    assert voice.weights_trained


async def test_a_file_that_is_refused_fails_its_voice_and_a_retry_tries_it_again(metadata, bring_in):
    made = await bring_in(await add_file(metadata, "aa" * 32), voice_id="singer")
    job_id = made.name.rpartition("/")[2]
    (claimed,) = await metadata.claim("w1", {"voice.import": 1})
    error = VoxfleetError(Reason.MODEL_CORRUPT, "no model", kind=Kind.INVALID)
    await metadata.work.fail(claimed.fence, error.to_dict(), error.failure)
    job, _ = await metadata.jobs.get("alpha", job_id)
    assert (job.state, job.error["reason"]) == (JobState.FAILED, "MODEL_CORRUPT")
    assert (await metadata.voices.get("alpha", "singer")).state is VoiceState.FAILED
    await metadata.jobs.retry("alpha", job_id)
    assert (await metadata.voices.get("alpha", "singer")).state is VoiceState.TRAINING
    (claimed,) = await metadata.claim("w1", {"voice.import": 1})
    await metadata.work.succeed(claimed.fence, imported())
    assert (await metadata.voices.get("alpha", "singer")).state is VoiceState.READY


async def test_a_cancelled_import_leaves_a_failed_voice(metadata, bring_in):
    made = await bring_in(await add_file(metadata, "aa" * 32), voice_id="singer")
    await metadata.jobs.cancel("alpha", made.name.rpartition("/")[2])
    assert (await metadata.voices.get("alpha", "singer")).state is VoiceState.FAILED


async def test_what_cannot_be_imported_is_refused_and_leaves_nothing(metadata, bring_in):
    file, audio = await add_file(metadata, "aa" * 32), await add_audio(metadata)
    foreign = await add_file(metadata, "cc" * 32, team="beta")
    clone = await make_voice(metadata)
    assert (await refusal(bring_in(audio))).reason is Reason.INVALID_FORMAT
    assert (await refusal(bring_in(file, index_file=audio))).violations[0].field == "index_file"
    assert (await refusal(bring_in(foreign))).reason is Reason.AUDIO_NOT_FOUND
    assert (await refusal(bring_in(file, voice_id=clone.rpartition("/")[2]))).reason is Reason.VOICE_EXISTS
    await metadata.identity.update_team("alpha", {"allowed_licences": ["CC0-1.0"]})
    refused = await refusal(bring_in(file))
    assert (refused.reason, refused.metadata["licence"]) == (Reason.LICENCE_NOT_ALLOWED, IMPORTED_LICENCE)
    assert (await bring_in(file, weights_licence="CC0-1.0", validate_only=True)).kind == "voice.import"
    assert await metadata.jobs.page("alpha", Page(50)) == []
    assert [voice.name for voice in await metadata.voices.page("alpha", Page(50), show_deleted=True)] == [
        clone
    ]


async def test_a_repeat_is_the_same_job_and_its_files_are_in_use(metadata, bring_in):
    file, index = await add_file(metadata, "aa" * 32), await add_file(metadata, "bb" * 32)
    first = await bring_in(file, index_file=index, voice_id="singer", request_id="r")
    assert (await bring_in(file, index_file=index, voice_id="singer", request_id="r")).name == first.name
    other = await refusal(bring_in(index, voice_id="singer", request_id="r"))
    assert other.reason is Reason.REQUEST_ID_REUSED
    for name in (file, index):
        error = await refusal(metadata.audios.delete("alpha", name.rpartition("/")[2]))
        assert (error.reason, error.metadata["used_by"]) == (Reason.AUDIO_IN_USE, first.name)


async def make_singer(metadata, encoder: str) -> str:
    name = await make_rvc_voice(metadata)
    async with metadata.store.tenant("alpha") as tx:
        await tx.update_voice("alpha", "singer", {"content_encoder": encoder})
    return name


async def test_an_export_is_a_job_whose_files_expire_as_outputs_do(metadata, send_out):
    name = await make_singer(metadata, "contentvec")
    made = await send_out(name, format=voice_pb2.VOICE_EXPORT_FORMAT_PTH)
    (claimed,) = await metadata.claim("w1", {"voice.export": 1})
    task = tasks.load_task(claimed.job.task)
    assert isinstance(task, tasks.ExportVoiceTask)
    assert (task.voice.name, task.format) == (name, "pth")
    assert task.voice.package is not None
    files = tuple(
        AudioOutput(blob(sha), 0.0, 0, 0, "", each, "rvc", name, True, "", 0, name, voice_file=True)
        for sha, each in (("11" * 32, "singer.pth"), ("22" * 32, "singer.index"))
    )
    ended = await metadata.work.succeed(claimed.fence, Succeeded(audios=files))
    job, _ = await metadata.jobs.get("alpha", made.name.rpartition("/")[2])
    assert list(job.result["audios"]) == list(ended.audios)
    found = [await metadata.audios.get("alpha", each.rpartition("/")[2]) for each in ended.audios]
    assert [file.display_name for file in found] == ["singer.pth", "singer.index"]
    assert {file.purpose for file in found} == {VOICE_FILE}
    assert all(file.expires_at is not None and not file.measures for file in found)


async def test_what_cannot_be_exported_is_refused_before_there_is_a_job(metadata, send_out):
    name = await make_singer(metadata, "whisper-base")
    error = await refusal(send_out(name, format=voice_pb2.VOICE_EXPORT_FORMAT_PTH))
    assert (error.reason, error.metadata["content_encoder"]) == (Reason.UNSUPPORTED_ENGINE, "whisper-base")
    clone = await make_voice(metadata)
    assert (await refusal(send_out(clone))).reason is Reason.UNSUPPORTED_ENGINE
    assert (await refusal(send_out("teams/alpha/voices/nobody"))).reason is Reason.VOICE_NOT_FOUND
    assert await metadata.jobs.page("alpha", Page(50)) == []
    assert (await send_out(name)).kind == "voice.export"
