"""Artefacts: what nobody uses goes in its time, what somebody begins to use never does."""

import asyncio
import uuid

import pytest

from services.common.artifacts.minio_store import MinioArtifactStore
from services.common.artifacts.model import bundle_key, staging_key, work_key
from services.common.errors import Kind, Reason, VoxfleetError, unavailable
from services.common.jobs.model import Succeeded
from services.common.rpc.caller import Caller, set_caller
from services.metadata.model.retention import DAY_S, Category, Due, Mark, RetentionSettings
from services.metadata.servicers.retention import RetentionServicer
from tests.integration.metadata.keeping import Keeping
from tests.integration.metadata.test_retention import Failing
from voxfleet.v1 import fleet_pb2

LOOK_S = RetentionSettings().second_look_s


@pytest.fixture
async def keeping(fresh_database, template_database, s3_settings):
    # A bucket of its own: a sweep looks at all there is.
    artifacts = MinioArtifactStore(s3_settings.model_copy(update={"bucket": f"t-{uuid.uuid4().hex[:16]}"}))
    artifacts.ensure_bucket()
    found = Keeping(fresh_database(template_database), artifacts)
    await found.begin()
    yield found
    await found.close()


async def run(keeping, *, looks=0, full=False):
    """A run, and after it so many more, each a look later; returns the report of the first."""
    report = await keeping.retention.sweep(full=full)
    for _ in range(looks):
        keeping.clock.move(s=LOOK_S)
        await keeping.retention.sweep(full=full)
    return report


async def seen(keeping, audio):
    """Whether its team sees an audio."""
    async with keeping.store.tenant(audio.team) as tx:
        return await tx.get_audio(audio.team, audio.id) is not None


def error_of(caught):
    return caught.value.reason, caught.value.kind


async def test_an_unused_upload_goes_after_a_day_and_not_a_second_before(keeping):
    audio = await keeping.upload()
    keeping.clock.move(s=DAY_S - 1)
    report = await run(keeping)
    assert (report.names(Category.INPUTS), report.names(Category.UPLOADS)) == ((), ())
    assert await seen(keeping, audio)

    keeping.clock.move(s=1)
    report = await run(keeping)
    assert report.names(Category.INPUTS) == (audio.name,)
    assert not await seen(keeping, audio)
    assert keeping.stored() == {audio.blob.key}  # hidden, and kept until it was looked at again, twice

    keeping.clock.move(s=LOOK_S - 1)
    await run(keeping)
    assert keeping.count("audios") == 1
    keeping.clock.move(s=1)
    await run(keeping)
    assert keeping.count("audios") == 0
    keeping.clock.move(s=LOOK_S - 1)
    assert (await run(keeping)).names(Category.BYTES) == ()
    keeping.clock.move(s=1)
    assert (await run(keeping)).names(Category.BYTES) == (audio.blob.key,)
    assert keeping.stored() == set()
    # The row stays a day, for those who stored the same bytes before they went; then nothing is left.
    assert keeping.count("artifacts") == 1
    keeping.clock.move(days=1)
    await run(keeping, full=True)
    assert keeping.count("artifacts") == 0


async def test_outputs_go_after_seven_days(keeping):
    await keeping.finished(outputs=[b"song"])
    (name,) = (f"teams/alpha/audios/{row[0]}" for row in keeping.sql("SELECT id FROM audios"))
    keeping.clock.move(days=7, s=-1)
    assert (await run(keeping)).names(Category.OUTPUTS) == ()
    keeping.clock.move(s=1)
    assert (await run(keeping, looks=2)).names(Category.OUTPUTS) == (name,)
    assert keeping.stored() == set()
    assert keeping.count("jobs") == 1


async def test_what_a_voice_or_an_open_job_uses_stays_as_long_as_it_does(keeping):
    audios = {
        name: await keeping.upload(name.encode())
        for name in ("spoken", "deleted", "trained", "queued", "running", "paused", "blocked", "unused")
    }
    keeping.reference(audios["spoken"])
    keeping.reference(audios["deleted"], voice="gone", state="DELETED")
    keeping.sql(
        "INSERT INTO voices (team, id, engine, state, training_audios) "
        "VALUES ('alpha', 'new', 'rvc', 'TRAINING', %s)",
        [audios["trained"].name],
    )
    await keeping.add(task=keeping.source_task(audios["running"]))
    fence = await keeping.start()
    await keeping.add(task=keeping.source_task(audios["queued"]))
    paused = await keeping.add(task=keeping.source_task(audios["paused"]))
    keeping.sql("UPDATE jobs SET paused = true WHERE id = %s", paused)
    await keeping.add(task=keeping.source_task(audios["blocked"]), depends_on=(paused,))
    keeping.clock.move(days=2)
    # Expired only: the lease of the running one would be, too, but nobody sweeps that here.
    report = await run(keeping, looks=2)
    assert set(report.names(Category.INPUTS)) == {audios["unused"].name, audios["deleted"].name}
    assert keeping.stored() == {
        audio.blob.key for name, audio in audios.items() if name not in ("unused", "deleted")
    }

    await keeping.work.succeed(fence, Succeeded())
    keeping.sql("UPDATE voices SET state = 'READY' WHERE id = 'new'")
    assert set((await run(keeping)).names(Category.INPUTS)) == {
        audios["running"].name,
        audios["trained"].name,
    }


async def test_bytes_that_a_task_names_stay_though_no_row_does(keeping):
    """A clip whose voice and audio were deleted while lines that are to be spoken from it still wait."""
    audio = await keeping.upload()
    voice = {"name": "teams/alpha/voices/v", "reference": audio.blob.model_dump(), "reference_text": "hello"}
    job = await keeping.add("f5.item", {"kind": "f5.item", "team": "alpha", "text": "a", "voice": voice})
    await keeping.audios.delete("alpha", audio.id)
    await run(keeping, looks=3)
    assert keeping.stored() == {audio.blob.key}
    keeping.sql("UPDATE jobs SET state = 'CANCELLED', ended_at = now() WHERE id = %s", job)
    # It was found in use and is no more condemned; the listing of the store finds that no row names it.
    keeping.clock.move(days=2)
    await run(keeping, looks=2, full=True)
    assert keeping.stored() == set()


async def test_content_stays_while_a_second_audio_has_it(keeping):
    first, second = await keeping.upload(b"same"), await keeping.upload(b"same", ttl_s=10 * DAY_S)
    keeping.clock.move(days=2)
    assert (await run(keeping, looks=3)).names(Category.INPUTS) == (first.name,)
    assert keeping.stored() == {second.blob.key}
    assert keeping.sql("SELECT condemned_at FROM artifacts") == [(None,)]
    keeping.clock.move(days=9)
    await run(keeping, looks=2)
    assert keeping.stored() == set()


async def test_an_audio_that_a_submit_had_seen_comes_back(keeping):
    """The submit reads the audio, the sweeper condemns it, the submit commits its job."""
    audio = await keeping.upload()
    keeping.clock.move(days=2)
    async with keeping.store.tenant("alpha") as tx:
        assert await tx.get_audio("alpha", audio.id) is not None
        assert (await run(keeping)).names(Category.INPUTS) == (audio.name,)
        job = await keeping.add(task=keeping.source_task(audio))
    assert not await seen(keeping, audio)
    await run(keeping, looks=2)
    assert await seen(keeping, audio)
    assert keeping.stored() == {audio.blob.key}
    keeping.sql("UPDATE jobs SET state = 'CANCELLED', ended_at = now() WHERE id = %s", job)
    await run(keeping, looks=2)
    assert keeping.stored() == set()


async def test_condemned_content_is_revived_by_whoever_names_it_again(keeping):
    first = await keeping.upload(b"again")
    await keeping.audios.delete("alpha", first.id)
    keeping.clock.move(s=LOOK_S)  # due by now
    second = await keeping.upload(b"again")
    assert (await run(keeping, looks=3)).names(Category.BYTES) == ()
    assert keeping.stored() == {second.blob.key}


async def test_a_commit_that_has_begun_is_passed_over(keeping):
    """The writer holds the row when the sweeper comes to decide."""
    first = await keeping.upload(b"again")
    await keeping.audios.delete("alpha", first.id)
    keeping.clock.move(s=LOOK_S)
    async with keeping.store.tenant("alpha") as tx:
        await tx.put_artifact("alpha", first.blob)
        assert (await run(keeping)).names(Category.BYTES) == ()
        await tx.add_audio(first)
    assert (await run(keeping, looks=2)).names(Category.BYTES) == ()
    assert keeping.artifacts.get_bytes(first.blob.key) == b"again"


async def test_a_commit_waits_for_a_decision_and_is_told_what_became_of_the_bytes(keeping):
    """The sweeper holds the row when the writer comes; then it deletes the bytes; then they are gone."""
    first = await keeping.upload(b"again")
    await keeping.audios.delete("alpha", first.id)
    keeping.clock.move(s=LOOK_S)
    due = Due(LOOK_S, 480)
    async with keeping.store.service() as tx:
        page = await tx.due_artifacts(due, Mark(), 10)
        locked = await tx.lock_artifacts(due, page)
        assert await tx.used_artifacts(locked) == set()
        writing = asyncio.create_task(commit(keeping, first))
        async with asyncio.timeout(20):
            while not keeping.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
                await asyncio.sleep(0.02)
        claim = await tx.sweep_artifacts(locked)
    with pytest.raises(VoxfleetError) as caught:
        await writing
    # Workers and clients repeat this one until it passes.
    assert error_of(caught) == (Reason.STORAGE_UNAVAILABLE, Kind.UNAVAILABLE)

    await keeping.bytes.delete([first.blob.key])
    async with keeping.store.service() as tx:
        await tx.note_gone(locked, claim)
    with pytest.raises(VoxfleetError) as caught:
        await commit(keeping, first)
    assert error_of(caught) == (Reason.ARTIFACT_NOT_FOUND, Kind.NOT_FOUND)

    keeping.put(b"again")
    await commit(keeping, first)
    keeping.clock.move(days=3)
    keeping.reference(first)
    await run(keeping, looks=2, full=True)
    assert keeping.artifacts.get_bytes(first.blob.key) == b"again"


async def commit(keeping, audio):
    async with keeping.store.tenant("alpha") as tx:
        await tx.put_artifact("alpha", audio.blob)
        await tx.add_audio(audio)


async def test_writers_and_sweepers_at_once_lose_no_byte(keeping):
    """Ten contents are committed and deleted over and over while two processes sweep without a pause."""
    keeping.settings = settings = RetentionSettings(second_look_s=0, delete_s=30)
    sweepers = [keeping.make(settings=settings) for _ in range(2)]
    done = False
    refused = []

    async def sweep(sweeper):
        runs = 0
        while not done:
            runs += len((await sweeper.sweep(full=False)).names(Category.BYTES))
        return runs

    async def write(number):
        data = f"content {number % 10}".encode()
        for _ in range(4):
            try:
                audio = await keeping.upload(data)
            except VoxfleetError as error:
                refused.append(error.reason)
                continue
            # What a row names is there.
            assert keeping.artifacts.get_bytes(audio.blob.key) == data
            if number < 10:
                await keeping.audios.delete("alpha", audio.id)

    sweeping = [asyncio.create_task(sweep(each)) for each in sweepers]
    await asyncio.gather(*(write(number) for number in range(14)))
    done = True
    swept = sum(await asyncio.gather(*sweeping))
    assert swept > 0
    assert set(refused) <= {Reason.STORAGE_UNAVAILABLE, Reason.ARTIFACT_NOT_FOUND}
    named = keeping.sql("SELECT DISTINCT key FROM artifacts JOIN audios USING (team, sha256)")
    assert {row[0] for row in named} <= keeping.stored()


async def test_an_orphan_goes_when_it_is_old_enough(keeping):
    blob = keeping.put(b"stored, and its attempt died before the commit")
    part = staging_key("alpha", "u-0001", 0)
    checkpoint = work_key("alpha", "job-1", 2, "g-1.pt")
    for key in (part, checkpoint):
        keeping.artifacts.put_bytes(key, b"x")
    job, upload = await keeping.add(), await keeping.audios.open_upload("alpha", "", {})
    kept = {
        keeping.put(b"of another deployment", team="stranger").key,
        work_key("alpha", job, 1, "g-1.pt"),
        staging_key("alpha", upload.id, 0),
        bundle_key("f5", "model.safetensors"),
        "teams/alpha/archive/jobs/2026-01-01/a.jsonl.gz",
        "teams/alpha/elsewhere/x",
    }
    for key in kept:
        keeping.artifacts.put_bytes(key, b"of another deployment")
    times = {listed.key: listed.modified_at for listed in keeping.artifacts.list_prefix("")}
    keeping.sql("UPDATE uploads SET expires_at = '9999-01-01'")

    keeping.clock.at = min(times[key] for key in (blob.key, part, checkpoint))
    keeping.clock.move(s=DAY_S - 1)
    assert (await run(keeping, full=True)).names(Category.ORPHANS) == ()
    keeping.clock.at = max(times.values())
    keeping.clock.move(s=DAY_S)
    report = await run(keeping, full=True)
    assert set(report.names(Category.ORPHANS)) == {blob.key, part, checkpoint}
    assert keeping.stored("") == kept


async def test_an_output_whose_row_comes_late_is_not_lost(keeping):
    """Stored long ago by an attempt that still holds its lease: its row is committed while it is swept."""
    output = keeping.output(b"late")
    await keeping.add()
    fence = await keeping.start()
    keeping.clock.move(days=1, s=3600)
    failing = Failing(keeping.bytes)
    caught = []

    async def finish(*_):
        with pytest.raises(VoxfleetError) as error:
            await keeping.work.succeed(fence, Succeeded(audios=(output,)))
        caught.append(error_of(error))

    failing.before["delete"] = finish
    report = await keeping.make(stored=failing).sweep()
    assert report.names(Category.ORPHANS) == (output.blob.key,)
    assert caught == [(Reason.STORAGE_UNAVAILABLE, Kind.UNAVAILABLE)]
    # The next attempt stores it again, which is what a repeated attempt does.
    keeping.output(b"late")
    ended = await keeping.work.succeed(fence, Succeeded(audios=(output,)))
    assert len(ended.audios) == 1
    keeping.clock.move(days=2)
    await run(keeping, looks=2, full=True)
    assert keeping.artifacts.get_bytes(output.blob.key) == b"late"


async def test_a_row_that_lost_its_last_reference_unseen_is_found(keeping):
    audio = await keeping.upload()
    keeping.sql("ALTER TABLE audios DISABLE TRIGGER audios_condemn")
    await keeping.audios.delete("alpha", audio.id)
    keeping.clock.move(days=2)
    await run(keeping, looks=1, full=True)
    assert keeping.stored() == set()


async def test_the_package_that_a_voice_no_longer_has_is_condemned(keeping):
    blob, newer = keeping.put(b"package"), keeping.put(b"newer")
    async with keeping.store.service() as tx:
        await tx.put_artifact("alpha", blob)
        await tx.put_artifact("alpha", newer)
    keeping.sql(
        "INSERT INTO voices (team, id, engine, state, package_sha256) "
        "VALUES ('alpha', 'v', 'rvc', 'READY', %s)",
        blob.sha256,
    )
    keeping.clock.move(days=400)
    await run(keeping, looks=2, full=True)
    assert blob.key in keeping.stored()
    keeping.put(b"newer")
    async with keeping.store.service() as tx:
        await tx.put_artifact("alpha", newer)
        await tx.update_voice("alpha", "v", {"package_sha256": newer.sha256})
    await run(keeping, looks=1)
    assert keeping.stored() == {newer.key}


async def test_an_upload_that_was_not_completed_goes_with_its_parts(keeping):
    upload = await keeping.audios.open_upload("alpha", "u-0001", {})
    keeping.artifacts.put_bytes(staging_key("alpha", upload.id, 0), b"12345678")
    await keeping.audios.advance_upload("alpha", upload.id, 0, 8)
    keeping.sql("UPDATE uploads SET expires_at = %s", keeping.clock.start)
    keeping.clock.move(s=-1)
    assert (await run(keeping)).names(Category.UPLOADS) == ()
    keeping.clock.move(s=1)
    async with keeping.store.tenant("alpha") as tx:
        await tx.get_upload("alpha", upload.id, lock=True)  # it is being committed
        assert (await run(keeping)).names(Category.UPLOADS) == ()

    failing = Failing(keeping.bytes)
    told = []

    async def go_on(*_):
        for call in (
            keeping.audios.advance_upload("alpha", upload.id, 8, 16),
            keeping.audios.commit("alpha", upload.id, keeping.put(b"all"), {}, {}),
        ):
            with pytest.raises(VoxfleetError) as caught:
                await call
            told.append(caught.value.reason)

    failing.before["delete_prefix"] = go_on
    report = await keeping.make(stored=failing).sweep(full=False)
    assert report.names(Category.UPLOADS) == ("teams/alpha/uploads/u-0001",)
    assert told == [Reason.UPLOAD_NOT_FOUND] * 2
    assert not keeping.stored("teams/alpha/staging/")
    assert keeping.count("uploads") == 0
    await keeping.audios.open_upload("alpha", "u-0001", {})  # the name is free again


async def test_what_the_store_would_not_delete_is_deleted_later(keeping):
    audio, upload = await keeping.upload(), await keeping.audios.open_upload("alpha", "u-0001", {})
    keeping.artifacts.put_bytes(staging_key("alpha", upload.id, 0), b"x")
    await keeping.audios.delete("alpha", audio.id)
    keeping.clock.move(days=2)
    failing = Failing(keeping.bytes)

    async def down(*_):
        raise unavailable(Reason.STORAGE_UNAVAILABLE, "down")

    failing.before = {"delete": down, "delete_prefix": down}
    broken = keeping.make(stored=failing)
    before = keeping.stored()
    report = await broken.sweep(full=False)
    assert (report.names(Category.BYTES), report.names(Category.UPLOADS)) == ((), ())
    assert keeping.stored() == before
    # Claimed by that process: another takes over once it must have died over that.
    keeping.clock.move(s=4 * keeping.settings.delete_s - 1)
    assert (await run(keeping)).names(Category.BYTES) == ()
    keeping.clock.move(s=1)
    report = await run(keeping)
    assert report.names(Category.BYTES) == (audio.blob.key,)
    assert "teams/alpha/uploads/u-0001" in report.names(Category.UPLOADS)
    assert keeping.stored() == set()


async def test_a_late_sweeper_does_not_call_gone_what_another_claimed(keeping):
    audio = await keeping.upload()
    await keeping.audios.delete("alpha", audio.id)
    keeping.clock.move(s=LOOK_S)
    due = Due(LOOK_S, 480)
    async with keeping.store.service() as tx:
        locked = await tx.lock_artifacts(due, await tx.due_artifacts(due, Mark(), 10))
        late = await tx.sweep_artifacts(locked)
    keeping.clock.move(s=480)
    async with keeping.store.service() as tx:
        locked = await tx.lock_artifacts(due, await tx.due_artifacts(due, Mark(), 10))
        claim = await tx.sweep_artifacts(locked)
        await tx.note_gone(locked, late)
    assert keeping.sql("SELECT gone_at FROM artifacts") == [(None,)]
    async with keeping.store.service() as tx:
        await tx.note_gone(locked, claim)
    assert keeping.sql("SELECT gone_at IS NULL FROM artifacts") == [(False,)]


async def test_a_key_that_is_not_of_content_is_left_alone(keeping):
    """A row that names another's object, by a defect or by malice, does not take that away."""
    victim = keeping.put(b"victim", team="beta")
    audio = await keeping.upload()
    keeping.sql("UPDATE artifacts SET key = %s", victim.key)
    await keeping.audios.delete("alpha", audio.id)
    keeping.clock.move(s=LOOK_S)
    await run(keeping, looks=1)
    assert victim.key in keeping.stored()


async def test_a_dry_run_changes_nothing_and_names_what_the_next_run_removes(keeping):
    await everything(keeping)
    before = keeping.dump()
    plan = await keeping.retention.plan(most_names=1000)
    assert keeping.dump() == before
    assert all(share.count for share in plan.shares), plan
    assert plan.complete

    done = await keeping.retention.sweep()
    for planned, removed in zip(plan.shares, done.shares, strict=True):
        assert sorted(planned.names) == sorted(removed.names)
        assert (planned.count, planned.size_bytes) == (removed.count, removed.size_bytes)
    for share in plan.shares:
        if share.category in (Category.BYTES, Category.ORPHANS):
            assert not set(share.names) & keeping.stored()
    after = await keeping.retention.plan(most_names=1000)
    # What the run removed made request ids due; nothing else.
    assert {share.category for share in after.shares if share.count} == {Category.REQUESTS}

    few = await keeping.retention.plan(most_names=0)
    assert [share.count for share in few.shares] == [share.count for share in after.shares]
    assert all(not share.names for share in few.shares)


async def test_operators_alone_may_ask_for_the_plan(keeping):
    await everything(keeping)
    servicer = RetentionServicer(keeping.retention)
    try:
        set_caller(Caller(team="alpha"))
        with pytest.raises(VoxfleetError) as caught:
            await servicer.PlanRetention(fleet_pb2.PlanRetentionRequest(), None)
        assert caught.value.reason is Reason.PERMISSION_DENIED
        set_caller(Caller(team="alpha", operator=True))
        plan = await servicer.PlanRetention(fleet_pb2.PlanRetentionRequest(max_names=1), None)
        with pytest.raises(VoxfleetError) as caught:
            await servicer.PlanRetention(fleet_pb2.PlanRetentionRequest(max_names=-1), None)
        assert caught.value.reason is Reason.INVALID_ARGUMENT
    finally:
        set_caller(Caller())
    expected = await keeping.retention.plan()
    assert [share.category for share in plan.shares] == [
        value for value in fleet_pb2.RetentionCategory.values() if value
    ]
    assert [(each.count, each.size_bytes) for each in plan.shares] == [
        (each.count, each.size_bytes) for each in expected.shares
    ]
    assert all(len(each.names) == 1 for each in plan.shares)


async def everything(keeping):
    """Something due of every category, and beside it something that is not."""
    for name in ("in-1", "in-2"):
        await keeping.upload(name.encode())
    keeping.reference(await keeping.upload(b"spoken"))
    deleted = await keeping.upload(b"deleted")
    await keeping.audios.delete("alpha", deleted.id)
    await keeping.finished("rvc.train", outputs=[b"out"], checkpoint=b"weights", request_id="r-1")
    await keeping.finished(outputs=[b"two", b"three"], team="alpha")
    await keeping.batch(30)
    await keeping.add(request_id="open")
    keeping.put(b"orphan")
    keeping.artifacts.put_bytes(work_key("alpha", "job-0", 1, "g.pt"), b"work")
    keeping.artifacts.put_bytes(staging_key("alpha", "u-0", 0), b"part")
    gone = await keeping.finished(request_id="r-gone")
    for table, column in (("jobs", "id"), ("job_events", "job_id"), ("job_attempts", "job_id")):
        keeping.sql(f"DELETE FROM {table} WHERE {column} = %s", gone)
    keeping.clock.move(days=31)
    await keeping.upload(b"young")
    await keeping.finished(outputs=[b"new"])
