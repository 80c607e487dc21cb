"""The ledger on real Postgres: claims, fences, expiry, batches, watching."""

import asyncio
import itertools

import psycopg
import pytest

from services.common.errors import FailureClass, Reason, VoxfleetError
from services.common.jobs import tasks
from services.common.jobs.model import Checkpoint, Progress, Released, StopKind, Succeeded, VoiceOutput
from services.metadata import migrate
from services.metadata.app.resolving import Line
from services.metadata.app.submit import Request
from services.metadata.model.catalog import Reference, Voice, VoiceState
from services.metadata.model.jobs import BATCH_TRANSITIONS, TRANSITIONS, JobState
from services.metadata.model.page import Page

SHA = "ab" * 32


def blob(sha: str = SHA) -> tasks.Blob:
    return tasks.Blob(
        key=f"teams/alpha/sha256/{sha[:2]}/{sha}", sha256=sha, size_bytes=10, media_type="audio/flac"
    )


def request(request_id: str = "", fingerprint: str = "f1", **changes) -> Request:
    return Request(team="alpha", request_id=request_id, fingerprint=fingerprint, spec={}, **changes)


async def add_audio(metadata, *, duration_s: float = 60.0, trainable: bool = True, sha: str = SHA) -> str:
    upload = await metadata.audios.open_upload("alpha", "", {"display_name": "clip"})
    audio = await metadata.audios.commit(
        "alpha",
        upload.id,
        blob(sha),
        {"duration_s": duration_s, "snr_db": 9.5},
        {"trainable": trainable, "grade": "A" if trainable else "D", "reasons": ["too noisy"]},
    )
    return audio.name


async def train(metadata, *, voice: str = "v-anna", request_id: str = "", **changes):
    audio = await add_audio(metadata)
    return await metadata.submit.train(
        request(request_id, **changes), voice, [audio], tasks.TrainingParameters(), force=False
    )


async def claim_one(metadata, kind: str = "rvc.train"):
    (claimed,) = await metadata.claim("w1", {kind: 1})
    return claimed


async def make_voice(metadata, voice_id: str = "zero-shot") -> str:
    audio = await add_audio(metadata, duration_s=10.0)
    voice = Voice("alpha", voice_id, "Zero", "f5", VoiceState.READY, references=(Reference(audio, "hello"),))
    return (await metadata.voices.create(voice, request_id="", fingerprint="")).name


async def test_a_training_is_claimed_once_and_publishes_its_voice(metadata):
    job = await train(metadata)
    assert (job.state, job.attempt) == (JobState.QUEUED, 0)
    assert (await metadata.voices.get("alpha", "v-anna")).state is VoiceState.TRAINING

    first = await claim_one(metadata)
    assert await metadata.claim("w2", {"rvc.train": 5}) == []
    assert tasks.load_task(first.job.task).kind == "rvc.train"

    ended = await metadata.work.succeed(
        first.fence,
        Succeeded(voice=VoiceOutput(blob("cd" * 32), "whisper-base", 40000, {"loss_mel_end": 1.5})),
    )
    assert ended.job.state is JobState.SUCCEEDED
    voice = await metadata.voices.get("alpha", "v-anna")
    assert (voice.state, voice.package.sha256, voice.rate_hz) == (VoiceState.READY, "cd" * 32, 40000)


async def test_a_stale_fence_changes_nothing(metadata):
    job = await train(metadata)
    stale = (await claim_one(metadata)).fence
    await metadata.work.release(stale, Released("shutdown"))
    fresh = (await claim_one(metadata)).fence
    assert fresh.attempt == stale.attempt + 1
    writes = [
        lambda: metadata.work.succeed(stale, Succeeded()),
        lambda: metadata.work.fail(stale, {"reason": "INTERNAL"}, FailureClass.PERMANENT),
        lambda: metadata.work.release(stale, Released("x")),
        lambda: metadata.work.cancelled(stale),
        lambda: metadata.work.record_checkpoint(stale, Checkpoint(blob(), 1, 10)),
    ]
    for write in writes:
        with pytest.raises(VoxfleetError) as caught:
            await write()
        assert caught.value.reason is Reason.LEASE_LOST
    assert await metadata.work.heartbeat([(stale, None)]) == [(stale, StopKind.LOST)]
    assert await metadata.work.heartbeat([(fresh, None)]) == []
    now, _ = await metadata.jobs.get("alpha", job.id)
    assert (now.state, now.attempt) == (JobState.RUNNING, 2)


async def test_an_expired_lease_returns_the_job_with_its_checkpoints(metadata):
    metadata.ledger.dispatcher.lease_s = 0.05
    job = await train(metadata)
    claimed = await claim_one(metadata)
    await metadata.work.record_checkpoint(claimed.fence, Checkpoint(blob(), 3, 30))
    async with asyncio.timeout(10):
        while await metadata.work.expire() == 0:
            await asyncio.sleep(0.02)
    async with asyncio.timeout(10):
        while not (again := await metadata.claim("w2", {"rvc.train": 1})):
            await asyncio.sleep(0.05)
    assert again[0].fence.attempt == 2
    assert [(row.step, row.epoch) for row in again[0].checkpoints] == [(30, 3)]
    _, attempts = await metadata.jobs.get("alpha", job.id)
    assert attempts[0].error["reason"] == "WORKER_LOST"


async def test_old_checkpoints_are_dropped_and_their_keys_returned(metadata):
    await train(metadata)
    claimed = await claim_one(metadata)
    dropped = []
    for step in (10, 20, 30):
        saved = blob().model_copy(update={"key": f"k{step}"})
        dropped += await metadata.work.record_checkpoint(claimed.fence, Checkpoint(saved, 1, step))
    assert dropped == ["k10"]


async def test_retries_by_failure_class(metadata):
    await train(metadata, voice="v-one")
    fence = (await claim_one(metadata)).fence
    ended = await metadata.work.fail(fence, {"reason": "WORKER_LOST"}, FailureClass.NODE)
    assert (ended.job.state, ended.job.waiting_reason) == (JobState.QUEUED, "BACK_OFF")
    assert await metadata.claim("w1", {"rvc.train": 1}) == [], "it backs off first"

    await train(metadata, voice="v-two")
    fence = (await claim_one(metadata)).fence
    ended = await metadata.work.fail(fence, {"reason": "QUALITY_TOO_LOW"}, FailureClass.INPUT)
    assert ended.job.state is JobState.FAILED
    assert (await metadata.voices.get("alpha", "v-two")).state is VoiceState.FAILED


async def test_cancel_waiting_and_running(metadata):
    waiting = await train(metadata, voice="v-wait")
    assert (await metadata.jobs.cancel("alpha", waiting.id)).state is JobState.CANCELLED
    assert (await metadata.voices.get("alpha", "v-wait")).state is VoiceState.FAILED

    running = await train(metadata, voice="v-run")
    fence = (await claim_one(metadata)).fence
    assert (await metadata.jobs.cancel("alpha", running.id)).state is JobState.CANCELLING
    assert await metadata.work.heartbeat([(fence, None)]) == [(fence, StopKind.CANCEL)]
    assert (await metadata.work.cancelled(fence)).job.state is JobState.CANCELLED
    retried = await metadata.jobs.retry("alpha", running.id)
    assert retried.state is JobState.QUEUED
    assert (await metadata.voices.get("alpha", "v-run")).state is VoiceState.TRAINING


async def test_identical_concurrent_submits_make_one_job(metadata):
    audio = await add_audio(metadata)

    async def submit():
        return await metadata.submit.train(
            request("r-1"), "v-same", [audio], tasks.TrainingParameters(), force=False
        )

    jobs = await asyncio.gather(*(submit() for _ in range(20)))
    assert len({job.id for job in jobs}) == 1
    assert len(await metadata.jobs.page("alpha", Page(50))) == 1
    with pytest.raises(VoxfleetError) as caught:
        await metadata.submit.train(
            request("r-1", fingerprint="other"), "v-same", [audio], tasks.TrainingParameters(), force=False
        )
    assert caught.value.reason is Reason.REQUEST_ID_REUSED


@pytest.mark.parametrize(
    ("duration_s", "trainable", "force", "reason"),
    [
        (5.0, True, True, Reason.AUDIO_TOO_SHORT),
        (60.0, False, False, Reason.QUALITY_TOO_LOW),
        (60.0, False, True, None),
    ],
)
async def test_the_quality_gate(metadata, duration_s, trainable, force, reason):
    audio = await add_audio(metadata, duration_s=duration_s, trainable=trainable)
    submit = metadata.submit.train(request("r"), "v-gate", [audio], tasks.TrainingParameters(), force=force)
    if reason is None:
        assert (await submit).state is JobState.QUEUED
        return
    with pytest.raises(VoxfleetError) as caught:
        await submit
    assert caught.value.reason is reason
    # Nothing is left: no job, no voice, and the request id may be used again.
    assert await metadata.jobs.page("alpha", Page(50)) == []
    assert await metadata.voices.page("alpha", Page(50), show_deleted=True) == []


async def test_a_foreign_teams_names_do_not_exist(metadata):
    audio = await add_audio(metadata)
    foreign = Request(team="beta", request_id="", fingerprint="", spec={})
    with pytest.raises(VoxfleetError) as caught:
        await metadata.submit.train(foreign, "v-theft", [audio], tasks.TrainingParameters(), force=True)
    assert caught.value.reason is Reason.AUDIO_NOT_FOUND


async def test_row_level_security_stands_behind_the_checks(metadata):
    await add_audio(metadata)
    async with metadata.store.tenant("beta") as tx:
        # A query that forgot its own check still sees nothing of another team.
        assert await tx.get_audio("alpha", "any") is None
        assert await tx.list_audios("alpha", Page(10)) == []
    async with metadata.store.tenant("alpha") as tx:
        assert len(await tx.list_audios("alpha", Page(10))) == 1


async def test_a_batch_with_one_bad_item_succeeds(metadata):
    voice = await make_voice(metadata)
    texts = ["one", "", "three"]
    lines = [Line(f"l{i}", text, voice, tasks.SpeakingParameters()) for i, text in enumerate(texts)]
    batch = await metadata.submit.batch(request(), lines, tasks.Output())
    claimed = await metadata.claim("w1", {"f5.item": 10})
    assert [each.job.item_id for each in claimed] == ["l0", "l2"]
    for each in claimed:
        await metadata.work.succeed(each.fence, Succeeded(weights="w", weights_trained=False))
    await metadata.count()
    done, _ = await metadata.jobs.get("alpha", batch.id)
    assert done.state is JobState.SUCCEEDED
    assert (done.counts["total"], done.counts["succeeded"], done.counts["failed"]) == (3, 2, 1)
    items = await metadata.jobs.page("alpha", Page(10), batch=batch.id)
    assert [item.state for item in items] == [JobState.SUCCEEDED, JobState.FAILED, JobState.SUCCEEDED]
    assert items[1].error["reason"] == "TEXT_EMPTY"


async def test_a_batch_fails_only_if_every_item_failed(metadata):
    voice = await make_voice(metadata)
    lines = [Line(str(i), " ", voice, tasks.SpeakingParameters()) for i in range(2)]
    batch = await metadata.submit.batch(request(), lines, tasks.Output())
    await metadata.count()
    done, _ = await metadata.jobs.get("alpha", batch.id)
    assert (done.state, done.error["reason"]) == (JobState.FAILED, "BATCH_ALL_FAILED")


async def test_cancelling_a_batch_cancels_its_items(metadata):
    voice = await make_voice(metadata)
    lines = [Line(str(i), "text", voice, tasks.SpeakingParameters()) for i in range(4)]
    batch = await metadata.submit.batch(request(), lines, tasks.Output())
    (running,) = await metadata.claim("w1", {"f5.item": 1})
    await metadata.count()
    await metadata.jobs.cancel("alpha", batch.id)
    assert await metadata.work.heartbeat([(running.fence, None)]) == [(running.fence, StopKind.CANCEL)]
    await metadata.work.cancelled(running.fence)
    await metadata.count()
    done, _ = await metadata.jobs.get("alpha", batch.id)
    assert (done.state, done.counts["cancelled"]) == (JobState.CANCELLED, 4)


async def test_watching_resumes_at_a_cursor_without_gap_or_repeat(metadata):
    job = await train(metadata)
    fence = (await claim_one(metadata)).fence
    await metadata.work.heartbeat([(fence, Progress("train", 1, 10))])
    await metadata.work.succeed(fence, Succeeded())

    async def events(cursor: int) -> list[int]:
        return [
            seen.event.seq
            async for seen in metadata.jobs.watch("alpha", job.id, cursor)
            if seen and seen.event
        ]

    feed = asyncio.create_task(metadata.ledger.feed.run())
    whole = await events(0)
    assert whole == [1, 2, 3, 4]
    for cursor in range(5):
        assert await events(cursor) == whole[cursor:]
    feed.cancel()


@pytest.mark.parametrize("kind", ["rvc.train", "batch"])
async def test_every_illegal_transition_is_refused_in_sql(metadata, kind):
    legal = BATCH_TRANSITIONS if kind == "batch" else TRANSITIONS
    job = await train(metadata)
    with psycopg.connect(metadata.url, autocommit=True) as connection:
        connection.execute("ALTER TABLE jobs DROP CONSTRAINT jobs_check")
        for before, after in itertools.product(JobState, JobState):
            with connection.transaction(force_rollback=True):
                connection.execute("ALTER TABLE jobs DISABLE TRIGGER USER")
                connection.execute("UPDATE jobs SET state = %s, kind = %s", (before.value, kind))
                connection.execute("ALTER TABLE jobs ENABLE TRIGGER USER")
                change = ("UPDATE jobs SET state = %s WHERE id = %s", (after.value, job.id))
                if before is after or (before, after) in legal:
                    connection.execute(*change)
                    continue
                with pytest.raises(psycopg.errors.CheckViolation, match="illegal job transition"):
                    connection.execute(*change)


async def test_deleting_audio_in_use_is_refused_and_garbage_is_collected_after(metadata):
    voice = await make_voice(metadata)
    audio_id = (await metadata.voices.get("alpha", "zero-shot")).references[0].audio.rpartition("/")[2]
    with pytest.raises(VoxfleetError) as caught:
        await metadata.audios.delete("alpha", audio_id)
    assert (caught.value.reason, caught.value.metadata["used_by"]) == (Reason.AUDIO_IN_USE, voice)
    await metadata.voices.delete("alpha", "zero-shot")
    await metadata.audios.delete("alpha", audio_id)
    with psycopg.connect(metadata.url) as connection:
        condemned = connection.execute("SELECT key FROM artifacts WHERE condemned_at IS NOT NULL").fetchall()
    assert condemned == [(blob().key,)]  # what becomes of that: test_sweeper.py


def test_migrations_from_many_processes_at_once(postgres_server, fresh_database):
    import concurrent.futures

    url = fresh_database()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert {future.result() for future in [pool.submit(migrate.migrate, url) for _ in range(4)]} == {
            migrate.newest_revision()
        }
    assert migrate.current_revision(url) == migrate.newest_revision()
