"""Who is next, what may begin, and what waits for what, on real Postgres."""

import asyncio
import json

import psycopg
import pytest

from services.common.errors import FailureClass, Reason, VoxfleetError
from services.common.jobs import tasks
from services.common.jobs.model import Succeeded, VoiceOutput
from services.metadata.app.resolving import Line
from services.metadata.model.fleet import Quota
from services.metadata.model.jobs import JobState
from services.metadata.model.page import Page
from tests.integration.metadata.test_ledger import add_audio, blob, make_voice, request, train


async def batch_of(metadata, count: int, **changes):
    found = await metadata.voices.page("alpha", Page(10), show_deleted=False)
    ready = [voice.name for voice in found if voice.engine == "f5"]
    name = ready[0] if ready else await make_voice(metadata)
    lines = [Line(f"l{i}", f"text {i}", name, tasks.SpeakingParameters()) for i in range(count)]
    return await metadata.submit.batch(request(**changes), lines, tasks.Output())


async def put_quota(metadata, quota: Quota) -> None:
    async with metadata.store.service() as tx:
        await tx.put_quota(quota)


def others_job(metadata, team: str = "beta", count: int = 1, gpus: float = 0.2) -> None:
    """Jobs of another team, as its own submits would have left them."""
    with psycopg.connect(metadata.url) as connection:
        connection.execute(
            "INSERT INTO jobs (id, team, kind, state, priority_class, task, gpus) SELECT %s || g, %s, "
            "'f5.item', 'QUEUED', 3, '{}', %s FROM generate_series(1, %s) AS g",
            (f"{team}-", team, gpus, count),
        )


async def test_items_that_were_copied_are_like_any_others(metadata):
    voice = await make_voice(metadata)
    odd = 'tab\there, back\\slash, "quote", new\nline, \\N, é, \U0001f600'
    texts = [odd, "", *(f"text {i}" for i in range(300))]
    lines = [Line(f"l{i}", text, voice, tasks.SpeakingParameters()) for i, text in enumerate(texts)]
    batch = await metadata.submit.batch(request(), lines, tasks.Output())
    items = await metadata.jobs.page("alpha", Page(1000), batch=batch.id)
    assert [item.item_id for item in items] == [line.id for line in lines]
    assert (items[0].task["text"], items[0].spec["text"]) == (odd, odd)
    assert (items[1].state, items[1].error["reason"]) == (JobState.FAILED, "TEXT_EMPTY")
    assert batch.counts["total"] == 302
    assert batch.counts["failed"] == 1
    async with metadata.store.service() as tx:
        events = await tx.events_after({item.id: 0 for item in items})
    assert {len(found) for found in events.values()} == {1}
    claimed = await metadata.claim("w1", {"f5.item": 3})
    assert [each.job.item_id for each in claimed] == ["l0", "l2", "l3"]


async def test_a_flood_delays_another_team_by_one_turn_at_most(metadata):
    await batch_of(metadata, 500)
    first = await metadata.claim("w1", {"f5.item": 20})
    assert {each.job.team for each in first} == {"alpha"}
    others_job(metadata)
    turns = [(await metadata.claim("w1", {"f5.item": 1}))[0].job.team for _ in range(2)]
    assert "beta" in turns


async def test_priority_and_its_change_after_the_submit(metadata):
    await batch_of(metadata, 3)
    urgent = await batch_of(metadata, 2, priority=10)
    late = await batch_of(metadata, 2)
    (first,) = await metadata.claim("w1", {"f5.item": 1})
    assert first.job.parent_id == urgent.id
    await metadata.jobs.update("alpha", late.id, {"priority": 50})
    second = await metadata.claim("w1", {"f5.item": 2})
    assert {each.job.parent_id for each in second} == {late.id}


async def test_a_quota_of_gpus_is_hard_and_what_is_freed_is_used(metadata):
    await batch_of(metadata, 10)
    await put_quota(metadata, Quota("alpha", max_gpus=0.4))
    offers = [metadata.claim(f"w{n}", {"f5.item": 10}) for n in range(4)]
    claimed = [each for found in await asyncio.gather(*offers) for each in found]
    assert len(claimed) == 2, "two fifths of a GPU are two places"
    assert await metadata.claim("w9", {"f5.item": 10}) == []
    await metadata.work.succeed(claimed[0].fence, Succeeded())
    (more,) = await metadata.claim("w9", {"f5.item": 10})
    assert more.job.team == "alpha"
    others_job(metadata)
    assert [each.job.team for each in await metadata.claim("w9", {"f5.item": 10})] == ["beta"]


async def test_a_quota_of_waiting_jobs_refuses_a_submit_whole(metadata):
    await batch_of(metadata, 3)
    await put_quota(metadata, Quota("alpha", max_queued_jobs=5))
    with pytest.raises(VoxfleetError) as caught:
        await batch_of(metadata, 3)
    assert caught.value.reason is Reason.QUEUE_FULL
    assert caught.value.metadata["queued_jobs"] == "3"
    assert len(await metadata.jobs.page("alpha", Page(50))) == 1
    await batch_of(metadata, 2)


async def test_a_conversion_waits_for_the_training_of_its_voice(metadata):
    audio = await add_audio(metadata)
    training = await train(metadata)

    async def convert(*after: str):
        return await metadata.submit.convert(
            request(depends_on=after),
            [audio],
            "teams/alpha/voices/v-anna",
            tasks.ConversionParameters(),
            tasks.Output(),
        )

    with pytest.raises(VoxfleetError) as caught:
        await convert()
    assert caught.value.reason is Reason.VOICE_NOT_READY
    waiting = await convert(training.name)
    assert await metadata.claim("w1", {"rvc.convert": 1}) == []

    (claimed,) = await metadata.claim("w1", {"rvc.train": 1})
    output = VoiceOutput(blob("cd" * 32), "whisper-base", 40000, {})
    await metadata.work.succeed(claimed.fence, Succeeded(voice=output))
    await metadata.count()
    (after,) = await metadata.claim("w1", {"rvc.convert": 1})
    assert after.job.id == waiting.id
    assert json.loads(after.job.task)["voice"]["package"]["sha256"] == "cd" * 32


async def test_what_waits_for_a_failed_job_fails_in_turn(metadata):
    audio = await add_audio(metadata)
    first = await batch_of(metadata, 2)
    second = await batch_of(metadata, 2, depends_on=(first.name,))
    third = await metadata.submit.train(
        request(depends_on=(second.name,)), "v-late", [audio], tasks.TrainingParameters(), force=False
    )
    claimed = await metadata.claim("w1", {"f5.item": 10})
    assert {each.job.parent_id for each in claimed} == {first.id}
    for each in claimed:
        await metadata.work.fail(each.fence, {"reason": "SYNTHESIS_FAILED"}, FailureClass.INPUT)
    await metadata.count()
    for job, state in ((first, JobState.FAILED), (second, JobState.FAILED), (third, JobState.FAILED)):
        now, _ = await metadata.jobs.get("alpha", job.id)
        assert now.state is state
    assert now.error["reason"] == "DEPENDENCY_FAILED"
    items = await metadata.jobs.page("alpha", Page(5), batch=second.id)
    assert {item.state for item in items} == {JobState.CANCELLED}
    with pytest.raises(VoxfleetError) as caught:
        await batch_of(metadata, 1, depends_on=(first.name,))
    assert caught.value.reason is Reason.DEPENDENCY_FAILED


async def test_a_batch_begins_when_what_it_waits_for_has_succeeded(metadata):
    first = await batch_of(metadata, 150)
    second = await batch_of(metadata, 150, depends_on=(first.name,))
    while claimed := [e for e in await metadata.claim("w1", {"f5.item": 100}) if e.job.parent_id == first.id]:
        for each in claimed:
            await metadata.work.succeed(each.fence, Succeeded())
    await metadata.count()
    (begun,) = await metadata.claim("w1", {"f5.item": 1})
    assert begun.job.parent_id == second.id


async def test_the_failed_items_of_an_ended_batch_run_again(metadata):
    batch = await batch_of(metadata, 3)
    claimed = await metadata.claim("w1", {"f5.item": 3})
    await metadata.work.succeed(claimed[0].fence, Succeeded())
    for each in claimed[1:]:
        await metadata.work.fail(each.fence, {"reason": "SYNTHESIS_FAILED"}, FailureClass.INPUT)
    await metadata.count()
    assert (await metadata.jobs.get("alpha", batch.id))[0].state is JobState.SUCCEEDED
    again = await metadata.jobs.retry("alpha", batch.id)
    assert again.state is JobState.QUEUED
    for each in await metadata.claim("w1", {"f5.item": 3}):
        await metadata.work.succeed(each.fence, Succeeded())
    await metadata.count()
    done, _ = await metadata.jobs.get("alpha", batch.id)
    assert done.state is JobState.SUCCEEDED
    assert (done.counts["succeeded"], done.counts["failed"], done.counts["cancelled"]) == (3, 0, 0)


async def test_lack_of_memory_halves_the_batch_and_a_lost_node_is_avoided(metadata):
    job = await train(metadata)
    (claimed,) = await metadata.claim("w1", {"rvc.train": 1})
    await metadata.work.fail(claimed.fence, {"reason": "GPU_OUT_OF_MEMORY"}, FailureClass.RESOURCE)
    with psycopg.connect(metadata.url) as connection:
        connection.execute("UPDATE jobs SET not_before = now()")
    (claimed,) = await metadata.claim("w1", {"rvc.train": 1})
    assert claimed.job.batch_scale == 0.5
    await metadata.work.fail(claimed.fence, {"reason": "WORKER_LOST"}, FailureClass.NODE)
    with psycopg.connect(metadata.url) as connection:
        connection.execute("UPDATE jobs SET not_before = now()")
    assert await metadata.claim("w1", {"rvc.train": 1}) == [], "its node is avoided"
    (claimed,) = await metadata.claim("w2", {"rvc.train": 1})
    assert claimed.job.avoid_nodes == ("node-of-w1",)
    _, attempts = await metadata.jobs.get("alpha", job.id)
    assert [(a.outcome, a.failure_class) for a in attempts] == [
        ("FAILED", "resource"),
        ("FAILED", "node"),
        ("", ""),
    ]


async def test_pausing_a_batch_holds_its_items_and_resuming_lets_them_go(metadata):
    batch = await batch_of(metadata, 4)
    await metadata.claim("w1", {"f5.item": 1})
    await metadata.jobs.pause("alpha", batch.id)
    assert await metadata.claim("w1", {"f5.item": 4}) == []
    await metadata.jobs.resume("alpha", batch.id)
    assert len(await metadata.claim("w1", {"f5.item": 4})) == 3
