"""Submits of zero-shot conversions on real Postgres: what is made of them, and what is refused."""

import pytest

from services.common.errors import Reason, VoxfleetError
from services.common.jobs import tasks
from services.common.jobs.model import Succeeded
from services.metadata.adapters.ledger.fleet import FleetQueries
from services.metadata.app.fleet import Fleet
from services.metadata.model.jobs import JobState, PriorityClass
from services.metadata.model.page import Page
from services.metadata.servicers.jobs import SubmitServicer
from tests.integration.metadata.test_ledger import add_audio, make_voice
from tests.integration.metadata.test_races import make_rvc_voice
from voxfleet.v1 import synthesis_pb2


@pytest.fixture
def convert(metadata):
    """Asks for a conversion, as the gateway hands it on."""
    servicer = SubmitServicer(metadata.submit)

    async def ask(audios: list[str], voice: str, **fields):
        request = synthesis_pb2.ConvertAudioRequest(
            parent="teams/alpha", audios=audios, voice=voice, **{"engine": "f5"} | fields
        )
        return await servicer.ConvertAudio(request, None)

    return ask


async def refusal(asked) -> VoxfleetError:
    with pytest.raises(VoxfleetError) as caught:
        await asked
    return caught.value


async def test_one_recording_is_a_job_that_inference_can_take(metadata, convert):
    audio, voice = await add_audio(metadata, duration_s=42.0), await make_voice(metadata)
    parameters = {"speaking": {"preset": "fast", "language": "en"}, "seed": 9}
    made = await convert([audio], voice, parameters=parameters, output={"rate_hz": 16_000})
    job, _ = await metadata.jobs.get("alpha", made.name.rpartition("/")[2])
    assert (job.kind, job.priority_class) == ("f5.convert", PriorityClass.CONVERSION)
    assert (job.gpus, job.size) == (pytest.approx(0.2), 42.0)
    assert await metadata.claim("w1", {"rvc.convert": 1, "f5.item": 1}) == []
    (claimed,) = await metadata.claim("w1", {"f5.convert": 1})
    task = tasks.load_task(claimed.job.task)
    assert isinstance(task, tasks.RespeakTask)
    assert (task.audio.name, task.audio.duration_s, task.audio.display_name) == (audio, 42.0, "clip")
    assert (task.voice.name, task.voice.reference_text) == (voice, "hello")
    assert (task.parameters.steps, task.parameters.seed, task.parameters.language) == (7, 9, "en")
    assert task.output.rate_hz == 16_000
    assert tasks.QUEUE_OF_KIND[task.kind] == "inference"


async def test_several_are_a_batch_of_such_items(metadata, convert):
    audios = [await add_audio(metadata, duration_s=float(length)) for length in (10, 20, 30)]
    made = await convert(audios, await make_voice(metadata))
    batch = made.name.rpartition("/")[2]
    assert made.kind == "batch"
    claimed = await metadata.claim("w1", {"f5.convert": 10})
    assert [tasks.load_task(each.job.task).audio.name for each in claimed] == audios
    items = await metadata.jobs.page("alpha", Page(10), batch=batch)
    assert {(item.kind, item.priority_class) for item in items} == {("f5.convert", PriorityClass.BATCH)}
    assert [item.size for item in items] == [10.0, 20.0, 30.0]
    for each in claimed:
        await metadata.work.succeed(each.fence, Succeeded())
    await metadata.count()
    done, _ = await metadata.jobs.get("alpha", batch)
    assert done.state is JobState.SUCCEEDED


async def test_what_cannot_be_is_refused_and_leaves_nothing(metadata, convert):
    audio, zero_shot, trained = (
        await add_audio(metadata),
        await make_voice(metadata),
        await make_rvc_voice(metadata),
    )
    long = await add_audio(metadata, duration_s=300.5)
    wrong = await refusal(convert([audio], trained))
    assert (wrong.reason, wrong.metadata["engine"]) == (Reason.UNSUPPORTED_ENGINE, "rvc")
    too_long = await refusal(convert([audio, long], zero_shot))
    assert too_long.reason is Reason.AUDIO_TOO_LONG
    assert too_long.metadata == {"duration_s": "300.500", "max_duration_s": "300.0"}
    assert too_long.violations[0].field == "audios[1]"
    unknown = await refusal(convert([audio], zero_shot, engine="bark"))
    assert unknown.reason is Reason.UNSUPPORTED_ENGINE
    assert unknown.metadata == {"engine": "bark", "supported_engines": "rvc, f5"}
    other = await refusal(convert([audio], zero_shot, engine="rvc"))
    assert (other.reason, other.metadata["engine"]) == (Reason.UNSUPPORTED_ENGINE, "f5")
    gone = await refusal(convert([audio], "teams/alpha/voices/none-such"))
    assert gone.reason is Reason.VOICE_NOT_FOUND
    styled = await refusal(convert([audio], zero_shot, parameters={"speaking": {"style": "angry"}}))
    assert styled.reason is Reason.INVALID_ARGUMENT
    assert await metadata.jobs.page("alpha", Page(50)) == []


async def test_without_an_engine_it_is_a_trained_voices(metadata, convert):
    audio, trained = await add_audio(metadata, duration_s=900.0), await make_rvc_voice(metadata)
    for engine in ("", "rvc"):
        assert (await convert([audio], trained, engine=engine)).kind == "rvc.convert"


async def test_a_repeat_is_the_same_job_and_a_preview_is_none(metadata, convert):
    audio, voice = await add_audio(metadata), await make_voice(metadata)
    preview = await convert([audio], voice, validate_only=True, request_id="r")
    assert preview.kind == "f5.convert"
    assert await metadata.jobs.page("alpha", Page(50)) == []
    first = await convert([audio], voice, request_id="r")
    assert (await convert([audio], voice, request_id="r")).name == first.name
    again = await refusal(convert([audio], voice, request_id="r", engine="rvc"))
    assert again.reason is Reason.REQUEST_ID_REUSED


async def test_an_audio_that_waits_to_be_spoken_again_is_in_use(metadata, convert):
    audio = await add_audio(metadata)
    made = await convert([audio], await make_voice(metadata))
    error = await refusal(metadata.audios.delete("alpha", audio.rpartition("/")[2]))
    assert error.reason is Reason.AUDIO_IN_USE
    assert made.name in error.metadata["used_by"]


async def test_the_audio_that_was_made_counts_as_used(metadata, convert, monkeypatch):
    monkeypatch.setattr(FleetQueries, "usage_lag_s", 0.0)
    async with metadata.store.service() as tx:
        await tx._run("make_watermark", name="usage")
    await convert([await add_audio(metadata)], await make_voice(metadata))
    (claimed,) = await metadata.claim("w1", {"f5.convert": 1})
    await metadata.work.succeed(claimed.fence, Succeeded(metrics={"audio_s": 60.0, "work_s": 3.0}))
    async with metadata.store.service() as tx:
        (sample,) = await tx.add_up_usage(100)
    assert (sample.kind, sample.size) == ("f5.convert", 60.0)
    assert (await Fleet(metadata.store).usage("alpha", None, None)).audio_s == 60.0
