"""Values that Postgres refuses, and queues and keys in states that a busy fleet comes to."""

import asyncio
import json
import math
import uuid

import psycopg
import pytest

from services.common.errors import FailureClass, Kind, Reason, VoxfleetError
from services.common.jobs import tasks
from services.common.jobs.model import Progress, Released, Succeeded, VoiceOutput
from services.common.rpc.caller import Caller, set_caller
from services.metadata.adapters.statements import SQL
from services.metadata.app.identity import hash_token
from services.metadata.app.listing import page_of
from services.metadata.app.resolving import Line
from services.metadata.model.catalog import VoiceState
from services.metadata.model.jobs import JobState
from services.metadata.model.page import Page
from services.metadata.servicers.jobs import JobServicer
from services.metadata.servicers.resources import TrustServicer
from tests.integration.metadata.test_ledger import blob, claim_one, make_voice, request, train
from voxfleet.v1 import job_pb2, trust_pb2


async def make_batch(metadata, texts):
    voice = await make_voice(metadata)
    lines = [Line(f"l{i}", text, voice, tasks.SpeakingParameters()) for i, text in enumerate(texts)]
    return await metadata.submit.batch(request(), lines, tasks.Output())


async def test_a_loss_that_is_no_number_ends_no_lease(metadata):
    job = await train(metadata)
    fence = (await claim_one(metadata)).fence
    progress = Progress("train", 1, 10, math.nan, {"loss": math.nan, "good": 1.0}, "nul \x00 here", math.inf)
    assert await metadata.work.heartbeat([(fence, progress)]) == []
    now, _ = await metadata.jobs.get("alpha", job.id)
    assert now.progress["metrics"] == {"good": 1.0}
    voice = VoiceOutput(blob("cd" * 32), "whisper-base", 40000, {"end": math.nan})
    curve = ((1, {"loss": math.inf}),)
    ended = await metadata.work.succeed(
        fence, Succeeded(voice=voice, metrics={"loss": math.nan}, curve=curve)
    )
    assert ended.job.state is JobState.SUCCEEDED
    assert (await metadata.voices.get("alpha", "v-anna")).state is VoiceState.READY


async def test_an_error_that_quotes_a_nul_still_ends_its_attempt(metadata):
    await train(metadata)
    fence = (await claim_one(metadata)).fence
    error = {"reason": "INTERNAL", "message": "tag \x00", "metadata": {"tag": "a\x00b"}}
    ended = await metadata.work.fail(fence, error, FailureClass.PERMANENT)
    assert ended.job.error["metadata"]["tag"] == "a\N{REPLACEMENT CHARACTER}b"


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.jobs.page("alpha", Page(5, query="a\x00")),
        lambda m: m.jobs.page("alpha", Page(5, filters={"labels.a": "\x00"})),
        lambda m: m.audios.page("alpha", Page(5, filters={"purpose": "\x00"})),
        lambda m: m.voices.page("alpha", Page(5, query="\x00"), show_deleted=True),
        lambda m: m.audios.open_upload("alpha", "", {"display_name": "\x00"}),
        lambda m: train(m, labels={"a": "\x00"}),
        lambda m: train(m, display_name="\x00"),
        lambda m: m.audios.page("alpha", Page(5, after="not a time|x")),
    ],
)
async def test_a_value_that_cannot_be_stored_is_the_callers_fault(metadata, call):
    with pytest.raises(VoxfleetError) as caught:
        await call(metadata)
    assert caught.value.kind is Kind.INVALID


async def test_a_forged_page_token_of_a_batchs_items_is_refused(metadata):
    batch = await make_batch(metadata, ["one", "two"])
    with pytest.raises(VoxfleetError) as caught:
        await metadata.jobs.page("alpha", Page(5, after="abc"), batch=batch.id)
    assert caught.value.kind is Kind.INVALID


async def test_a_nul_in_one_line_harms_no_other(metadata):
    batch = await make_batch(metadata, ["one", "tw\x00o"])
    first, second = await metadata.jobs.page("alpha", Page(5), batch=batch.id)
    assert (first.state, second.state) == (JobState.QUEUED, JobState.FAILED)
    assert second.error["reason"] == "UNSUPPORTED_CHARACTERS"


async def test_the_hot_statements_never_scan_all_jobs(metadata):
    with psycopg.connect(metadata.url) as connection:
        connection.execute(
            "INSERT INTO jobs (id, team, kind, state, priority_class, task) "
            "SELECT 'j' || g, 'alpha', 'f5.item', CASE WHEN g % 6 = 0 THEN 'QUEUED' ELSE 'SUCCEEDED' END, 3, "
            "jsonb_build_object('text', repeat('x', 200)) FROM generate_series(1, 18000) AS g"
        )
        connection.execute("ANALYZE jobs")
        beats = [{"job_id": f"j{n}", "attempt": 1, "lease_token": None, "progress": None} for n in range(9)]
        lane = {"kind": "f5.item", "priority_class": 3, "team": "alpha", "queue_key": 2**54}
        claim = {
            "kinds": ["f5.item", "rvc.train"],
            "classes": [3, 4],
            "teams": ["alpha", "beta"],
            "counts": [3, 1],
            "after": [0, 0],
            "workers": ["w", "v"],
            "nodes": ["n", "n"],
            "lease_s": 15.0,
            "gpu_types": [""],
            "max_gpus": 8.0,
        }
        fences = {"jobs": ["j1"], "attempts": [1], "tokens": [str(uuid.uuid4())]}
        for name, parameters in {
            "claim": claim,
            "heartbeat": {"beats": json.dumps(beats), "lease_s": 15.0},
            "lock_leases": fences,
            "finish": {"ends": json.dumps(beats)},
            "expired": {"limit": 500},
            "lanes": {},
            "lane_depths": {},
            "running_jobs": {},
            "queue_depths": {},
            "queue_place": lane,
            "starting_batches": {},
            "unended_batches": {},
            "running_by_batch": {"batches": ["j1"]},
            "job_marks": {"jobs": ["j1", "j2"]},
            "events_after": {"jobs": ["j1"], "cursors": [0]},
            "cancel_items": {"job_id": "j1", "limit": 100},
        }.items():
            plan = connection.execute(f"EXPLAIN {SQL[name]}", parameters).fetchall()
            assert not [line for (line,) in plan if "Seq Scan on jobs" in line], name


async def test_a_position_counts_every_teams_jobs(metadata):
    ours = await train(metadata)
    with psycopg.connect(metadata.url) as connection:
        connection.execute(
            "INSERT INTO jobs (id, team, kind, state, priority_class, priority, task) "
            "VALUES ('theirs', 'beta', 'rvc.train', 'QUEUED', 4, 100, '{}'), "
            "('last', 'beta', 'rvc.train', 'QUEUED', 4, -100, '{}')"
        )
    await metadata.ledger.planner.refresh()
    assert (await metadata.jobs.get("alpha", ours.id))[0].position == 1
    assert (await metadata.jobs.get("beta", "last"))[0].position == 2


async def test_a_batch_that_is_cancelled_before_the_roll_up_ends_after_its_items(metadata):
    batch = await make_batch(metadata, ["one", "two"])
    (running,) = await metadata.claim("w1", {"f5.item": 1})
    assert (await metadata.jobs.cancel("alpha", batch.id)).state is JobState.CANCELLING
    waiting = (await metadata.jobs.page("alpha", Page(5), batch=batch.id))[1]
    with pytest.raises(VoxfleetError) as caught:
        await metadata.jobs.retry("alpha", waiting.id)
    assert caught.value.reason is Reason.JOB_STATE_CONFLICT
    await metadata.work.cancelled(running.fence)
    await metadata.count()
    assert (await metadata.jobs.get("alpha", batch.id))[0].state is JobState.CANCELLED


async def test_heartbeats_and_the_cancelling_of_their_batch_do_not_deadlock(metadata):
    for _ in range(5):
        voice = (await metadata.voices.page("alpha", Page(1), show_deleted=False)) or None
        name = voice[0].name if voice else await make_voice(metadata)
        lines = [Line(f"l{i}", "text", name, tasks.SpeakingParameters()) for i in range(300)]
        batch = await metadata.submit.batch(request(), lines, tasks.Output())
        claimed = await metadata.claim("w1", {"f5.item": 300})
        beats = [(each.fence, Progress("speak")) for each in claimed]
        await asyncio.gather(
            *(metadata.work.heartbeat(beats) for _ in range(3)), metadata.jobs.cancel("alpha", batch.id)
        )


async def test_a_deleted_voice_is_not_trained_again(metadata):
    job = await train(metadata)
    await metadata.jobs.cancel("alpha", job.id)
    await metadata.voices.delete("alpha", "v-anna")
    with pytest.raises(VoxfleetError) as caught:
        await metadata.jobs.retry("alpha", job.id)
    assert caught.value.reason is Reason.JOB_STATE_CONFLICT
    assert (await metadata.jobs.get("alpha", job.id))[0].state is JobState.CANCELLED
    await metadata.voices.undelete("alpha", "v-anna")
    assert (await metadata.jobs.retry("alpha", job.id)).state is JobState.QUEUED
    fence = (await claim_one(metadata)).fence
    await metadata.work.release(fence, Released("x"))


async def test_a_revoked_bootstrap_key_stays_revoked_at_the_next_start(metadata):
    (key,) = await metadata.identity.list_keys("alpha", Page(5))
    with pytest.raises(VoxfleetError):
        await metadata.identity.revoke_key("alpha", key.id, operators=False)
    await metadata.identity.revoke_key("alpha", key.id, operators=True)
    await metadata.identity.bootstrap("alpha", "vf_alpha_token")
    with pytest.raises(VoxfleetError) as caught:
        await metadata.identity.authenticate(hash_token("vf_alpha_token"))
    assert caught.value.reason is Reason.UNAUTHENTICATED


async def test_a_member_sees_its_own_team_however_many_there_are(metadata):
    with psycopg.connect(metadata.url) as connection:
        connection.execute("INSERT INTO teams (id) SELECT 'aaa-' || g FROM generate_series(1, 1100) AS g")
    set_caller(Caller(team="beta"))
    found = await TrustServicer(metadata.identity).ListTeams(trust_pb2.ListTeamsRequest(), None)
    assert [team.name for team in found.teams] == ["teams/beta"]
    set_caller(Caller())
    assert (await metadata.identity.create_team("zulu", "Z")).id == "zulu"
    key, _ = await metadata.identity.create_key("zulu", "k", operator=False)
    assert key.team == "zulu"
    with pytest.raises(VoxfleetError) as caught:
        await metadata.identity.create_key("no-such-team", "k", operator=False)
    assert caught.value.reason is Reason.TEAM_NOT_FOUND


async def test_tenants_that_hold_every_connection_of_theirs_stop_no_heartbeat(metadata):
    await train(metadata)
    fence = (await claim_one(metadata)).fence
    all_in = asyncio.Barrier(5)
    done = asyncio.Event()

    async def hold():
        async with metadata.store.tenant("alpha"):
            await all_in.wait()
            await done.wait()

    holders = [asyncio.create_task(hold()) for _ in range(4)]
    await all_in.wait()
    try:
        async with asyncio.timeout(5):
            assert await metadata.work.heartbeat([(fence, None)]) == []
    finally:
        done.set()
        await asyncio.gather(*holders)


def test_a_filter_too_long_to_read_is_refused():
    with pytest.raises(VoxfleetError) as caught:
        page_of(10, "", filter_text="a" + " " * 100_000 + "b")
    assert caught.value.violations[0].field == "filter"


async def test_another_teams_batch_lists_no_items(metadata):
    batch = await make_batch(metadata, ["one"])
    listing = job_pb2.ListJobsRequest(parent="teams/alpha", batch_job=f"teams/beta/jobs/{batch.id}")
    with pytest.raises(VoxfleetError) as caught:
        await JobServicer(metadata.jobs).ListJobs(listing, None)
    assert caught.value.reason is Reason.JOB_NOT_FOUND
