"""Webhooks on real Postgres, delivered over real HTTP to receivers on loopback."""

import asyncio
import collections
import contextlib
import datetime as dt
import json
import random

import psycopg
import pytest
from google.protobuf import json_format
from psycopg.rows import dict_row

from services.common.errors import FailureClass, Reason, VoxfleetError
from services.common.jobs.model import Succeeded, VoiceOutput
from services.metadata.adapters.http_sender import HttpSender
from services.metadata.adapters.postgres import PostgresStore
from services.metadata.app.webhooks import Outbox, Webhooks, WebhookSettings
from services.metadata.model.jobs import JobState
from services.metadata.model.page import Page
from services.metadata.model.webhooks import RETRY_AFTER_S, Answer, DeliveryEnd
from tests.integration.metadata.test_ledger import blob, claim_one, train
from tests.integration.metadata.test_order import batch_of
from tests.plugins.receiver import Receiver, receiving
from voxfleet.client.webhooks import verify
from voxfleet.v1 import job_pb2

SETTINGS = WebhookSettings(allow_private=True, timeout_s=10.0, land_s=10.0, poll_s=0.05)


class Later:
    """A clock that runs ahead of the real one by as much as a test says."""

    ahead_s = 0.0

    def __call__(self) -> dt.datetime:
        return dt.datetime.now(dt.UTC) + dt.timedelta(seconds=self.ahead_s)


class Desk:
    """A ledger with webhooks: who makes them, who delivers, who receives, and the time."""

    def __init__(self, metadata, store: PostgresStore, sender, receiver: Receiver, clock: Later) -> None:
        self.metadata = metadata
        self.store = store
        self.sender = sender
        self.receiver = receiver
        self.clock = clock
        self.webhooks = Webhooks(metadata.store, SETTINGS)
        self.outbox = self.process()

    def process(self, settings: WebhookSettings = SETTINGS, sender=None) -> Outbox:
        """A deliverer, as a process of its own would have it."""
        return Outbox(self.store, sender or self.sender, settings, clock=self.clock, chance=random.Random(1))

    async def hook(self, path: str = "", *states: JobState, team: str = "alpha"):
        """A webhook on the receiver, or on another's address."""
        url = path if path.startswith("http") else self.receiver.url + path
        return await self.webhooks.create(team, url, states, request_id="", fingerprint="")

    def rows(self, query: str, *parameters) -> list[dict]:
        """Read by the owner of the tables."""
        with psycopg.connect(self.metadata.url, autocommit=True, row_factory=dict_row) as connection:
            return connection.execute(query, parameters).fetchall()

    def run(self, statement: str, *parameters) -> None:
        """Written by the owner of the tables."""
        with psycopg.connect(self.metadata.url, autocommit=True) as connection:
            connection.execute(statement, parameters)

    @property
    def deliveries(self) -> list[dict]:
        """Every row of the outbox."""
        return self.rows("SELECT * FROM webhook_deliveries ORDER BY created_at, id")

    def end_jobs(self, count: int, *, team: str = "alpha") -> None:
        """Jobs that waited and have ended, in one statement and transaction each way."""
        self.run(
            "INSERT INTO jobs (id, team, kind, state, priority_class, task) SELECT gen_random_uuid()::text, "
            "%s, 'rvc.convert', 'QUEUED', 2, '{}' FROM generate_series(1, %s)",
            *(team, count),
        )
        self.run(
            "UPDATE jobs SET state = 'CANCELLED', ended_at = now() WHERE team = %s AND state = 'QUEUED'", team
        )

    @property
    def types(self) -> collections.Counter[str]:
        """What the receiver was told, by type."""
        return collections.Counter(json.loads(each.body)["type"] for each in self.receiver.received)


@pytest.fixture
async def desk(metadata):
    clock = Later()
    store, sender = PostgresStore(metadata.url, pool_size=4, now=clock), HttpSender(allow_private=True)
    with receiving() as receiver:
        yield Desk(metadata, store, sender, receiver, clock)
    await sender.close()
    await store.close()


async def test_a_delivery_is_signed_verifiable_and_tells_the_job(desk):
    made = await desk.hook("/hook?a=b")
    job = await train(desk.metadata)
    assert await desk.outbox.drain() == 0, "it has not ended"
    claimed = await claim_one(desk.metadata)
    voice = VoiceOutput(blob("cd" * 32), "whisper-base", 40000, {})
    curve = tuple((step, {"loss": 1.0}) for step in range(1000))
    made_so = Succeeded(voice=voice, metrics={"loss_mel_end": 1.5}, curve=curve)
    await desk.metadata.work.succeed(claimed.fence, made_so)
    assert await desk.outbox.drain() == 1
    (got,) = desk.receiver.received
    assert (got.path, got.headers["content-type"]) == ("/hook?a=b", "application/json")
    message = verify(made.secret, got.headers, got.body)
    assert (message["type"], message["id"]) == ("job.succeeded", got.headers["webhook-id"])
    told = json_format.ParseDict(message["job"], job_pb2.Job())
    assert (told.name, told.state, told.attempt) == (job.name, job_pb2.JOB_STATE_SUCCEEDED, 1)
    assert (told.result.voice, told.result.metrics["loss_mel_end"]) == ("teams/alpha/voices/v-anna", 1.5)
    assert not told.result.curve, "long, and GetJob has it"
    assert told.start_time.seconds
    assert told.end_time.seconds >= told.start_time.seconds
    (row,) = desk.deliveries
    assert (row["id"], row["outcome"], row["attempts"], row["status"]) == (message["id"], "DELIVERED", 1, 204)
    assert await desk.outbox.drain() == 0


async def test_what_is_committed_is_delivered_and_what_is_rolled_back_is_not(desk):
    await desk.hook()
    job = await train(desk.metadata)
    end = "UPDATE jobs SET state = 'CANCELLED', ended_at = now() WHERE id = %s"
    with psycopg.connect(desk.metadata.url) as connection:
        connection.execute("SET ROLE voxfleet_worker")
        connection.execute(end, (job.id,))
        assert await desk.outbox.drain() == 0, "it is not committed yet"
        connection.rollback()
        assert await desk.outbox.drain() == 0
        connection.execute("SET ROLE voxfleet_worker")
        connection.execute(end, (job.id,))
        connection.commit()
    assert await desk.outbox.drain() == 1
    assert desk.types == {"job.cancelled": 1}


async def test_states_are_chosen_and_a_tenants_own_change_is_told(desk):
    await desk.hook("/ends")
    await desk.hook("/starts", JobState.RUNNING, JobState.QUEUED)
    waiting = await train(desk.metadata, voice="v-wait")
    await desk.metadata.jobs.cancel("alpha", waiting.id)
    await train(desk.metadata, voice="v-run")
    claimed = await claim_one(desk.metadata)
    await desk.metadata.work.fail(claimed.fence, {"reason": "WORKER_LOST"}, FailureClass.NODE)
    await desk.outbox.drain()
    seen = sorted((each.path, json.loads(each.body)["type"]) for each in desk.receiver.received)
    assert seen == [("/ends", "job.cancelled"), ("/starts", "job.queued"), ("/starts", "job.running")]


async def test_a_batch_is_told_once_and_its_items_not_at_all(desk):
    await desk.hook()
    batch = await batch_of(desk.metadata, 5)
    for each in await desk.metadata.claim("w1", {"f5.item": 10}):
        await desk.metadata.work.succeed(each.fence, Succeeded(weights="w", weights_trained=False))
    await desk.metadata.count()
    assert await desk.outbox.drain() == 1
    (got,) = desk.receiver.received
    job = json_format.ParseDict(json.loads(got.body)["job"], job_pb2.Job())
    assert (job.name, job.kind, job.batch_counts.succeeded) == (batch.name, "batch", 5)


async def test_an_endpoint_that_answers_500_gets_it_again_and_then_once(desk):
    made = await desk.hook()
    desk.receiver.answers.extend([500, 503])
    desk.end_jobs(1)
    for tries in (1, 2, 3):
        assert await desk.outbox.drain() == 1
        assert await desk.outbox.drain() == 0, "the next try has its time"
        assert len(desk.receiver.received) == tries
        if tries < 3:
            (row,) = desk.deliveries
            assert (row["outcome"], row["attempts"]) == ("", tries)
            (seen,) = await desk.webhooks.page("alpha", Page(10))
            assert (seen.status.pending, seen.status.failures) == (1, tries)
            assert seen.status.last_error == ("HTTP 500", "HTTP 503")[tries - 1]
            assert row["status"] == (500, 503)[tries - 1]
            planned_s = RETRY_AFTER_S[tries - 1]
            assert row["due_at"] > desk.clock() + dt.timedelta(seconds=0.7 * planned_s)
            desk.clock.ahead_s += 1.2 * planned_s
    desk.clock.ahead_s += 80_000
    assert await desk.outbox.drain() == 0, "what has arrived is sent no more"
    assert len({each.headers["webhook-id"] for each in desk.receiver.received}) == 1
    assert len({each.headers["webhook-timestamp"] for each in desk.receiver.received}) == 3
    for each in desk.receiver.received:
        verify(made.secret, each.headers, each.body, tolerance_s=float("inf"))
    (row,) = desk.deliveries
    assert (row["outcome"], row["attempts"]) == ("DELIVERED", 3)


async def test_a_deliverer_that_was_killed_is_taken_over_and_comes_too_late(desk):
    class Deaf:
        """As a process that was killed between its claim and its answer."""

        async def post(self, url, headers, body):
            await asyncio.Event().wait()

    await desk.hook()
    desk.end_jobs(1)
    killed, heir = desk.process(sender=Deaf()), desk.process()
    assert await killed.turn() == 1
    assert await heir.drain() == 0, "the lease holds"
    desk.clock.ahead_s += SETTINGS.timeout_s + SETTINGS.lease_s - 5
    assert await heir.drain() == 0, "the lease holds still"
    (late,) = killed._flying.values()
    (flight,) = killed._flying
    flight.cancel()
    desk.clock.ahead_s += 10
    assert await heir.turn() == 1
    # The killed one was only slow: what it says now, while another sends, is not heeded; nor after that.
    for _ in range(2):
        async with desk.store.service() as tx:
            assert await tx.end_deliveries([DeliveryEnd(late, Answer(500), "", 1.0)]) == 0
        assert await heir.drain() == 0
    assert len(desk.receiver.received) == 1
    (row,) = desk.deliveries
    assert (row["outcome"], row["claims"]) == ("DELIVERED", 2)


async def test_several_processes_share_the_work_and_double_nothing(desk):
    await desk.hook()
    await desk.hook("/second")
    desk.end_jobs(60)
    several = [desk.process() for _ in range(3)]
    shares = await asyncio.gather(*(each.drain() for each in several))
    assert sum(shares) == 120
    assert sum(share > 0 for share in shares) > 1, "it was one's work, nothing is shown"
    received = [each.headers["webhook-id"] for each in desk.receiver.received]
    assert len(set(received)) == len(received) == 120


async def test_a_teams_dead_endpoint_holds_up_no_other_team(desk):
    small = WebhookSettings(
        allow_private=True, timeout_s=60.0, slots=8, per_team=6, per_webhook=4, poll_s=0.05, land_s=0.0
    )
    with receiving() as dead:
        dead.open.clear()
        for number in range(4):
            await desk.hook(f"{dead.url}/{number}")
        desk.end_jobs(50)
        await desk.hook(team="beta")
        desk.end_jobs(20, team="beta")
        running = asyncio.create_task(desk.process(small).run())
        try:
            async with asyncio.timeout(30):
                while len(desk.receiver.received) < 20:
                    await asyncio.sleep(0.02)
            assert desk.types == {"job.cancelled": 20}
            # None of the dead one's has an answer or ran out of time, and it has no more than its share.
            assert len(dead.received) <= 6
            assert {row["attempts"] for row in desk.deliveries if row["team"] == "alpha"} == {0}
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running


async def test_a_webhook_that_fails_without_end_rests_and_is_given_up_after_a_day(desk):
    await desk.hook()
    desk.receiver.answers.extend([500] * 1000)
    desk.end_jobs(30)
    began = desk.clock.ahead_s
    for _ in range(5):
        await desk.outbox.drain()
        desk.clock.ahead_s += 10
    (now,) = desk.rows("SELECT * FROM webhooks")
    assert now["failures"] >= 5
    assert now["paused_until"] is not None
    rested = len(desk.receiver.received)
    assert rested < 30, "it rests before each of them was tried"
    while desk.clock.ahead_s < began + 90_000:
        desk.clock.ahead_s += 1_800
        await desk.outbox.drain()
        await desk.outbox.sweep()
    assert {row["outcome"] for row in desk.deliveries} == {"DEAD"}
    (seen,) = await desk.webhooks.page("alpha", Page(10))
    assert (seen.status.given_up, seen.status.pending, seen.status.last_error) == (30, 0, "HTTP 500")
    assert all((row["done_at"] is not None and row["error"]) or row["status"] for row in desk.deliveries)
    tries = collections.Counter(each.headers["webhook-id"] for each in desk.receiver.received)
    assert max(tries.values()) <= len(RETRY_AFTER_S) + 1
    assert len(desk.receiver.received) < 200, "a dead receiver costs next to nothing"

    desk.receiver.answers.clear()
    desk.end_jobs(1)
    desk.clock.ahead_s += 600
    assert await desk.outbox.drain() == 1, "it is tried with what comes later"
    (now,) = desk.rows("SELECT * FROM webhooks")
    assert (now["failures"], now["paused_until"]) == (0, None)


async def test_one_that_answers_410_wants_no_more(desk):
    await desk.hook()
    desk.receiver.answers.append(410)
    desk.end_jobs(1)
    await desk.outbox.drain()
    desk.end_jobs(3)
    assert await desk.outbox.drain() == 0
    assert [row["outcome"] for row in desk.deliveries] == ["DEAD"], "nothing more is written for it"
    (found,) = await desk.webhooks.page("alpha", Page(10))
    assert found.status.disabled_at is not None
    assert (found.status.pending, found.status.given_up, found.status.last_error) == (0, 1, "HTTP 410")


async def test_deleting_a_webhook_drops_what_waits_for_it(desk):
    gone = await desk.hook()
    kept = await desk.hook("/kept")
    desk.end_jobs(5)
    await desk.webhooks.delete("alpha", gone.id)
    assert await desk.outbox.drain() == 5
    assert {each.path for each in desk.receiver.received} == {"/kept"}
    await desk.outbox.sweep(limit=2)
    assert {row["webhook_id"] for row in desk.deliveries} == {kept.id}
    with pytest.raises(VoxfleetError) as caught:
        await desk.webhooks.delete("alpha", gone.id)
    assert caught.value.reason is Reason.WEBHOOK_NOT_FOUND


async def test_old_deliveries_are_deleted_in_small_batches_and_open_ones_are_not(desk):
    await desk.hook()
    desk.end_jobs(7)
    await desk.outbox.drain()
    desk.clock.ahead_s += SETTINGS.keep_s - 60
    desk.end_jobs(1)
    backlog = await desk.outbox.sweep(limit=3)
    assert (len(desk.deliveries), backlog.count) == (8, 1)
    desk.clock.ahead_s += 120
    await desk.outbox.sweep(limit=3)
    (left,) = desk.deliveries
    assert left["outcome"] == ""


async def test_what_is_in_flight_at_a_stop_is_waited_for_and_noted(desk):
    await desk.hook()
    desk.end_jobs(1)
    desk.receiver.open.clear()
    running = asyncio.create_task(desk.process().run())
    async with asyncio.timeout(30):
        while not desk.receiver.received:
            await asyncio.sleep(0.02)
    running.cancel()
    asyncio.get_running_loop().call_later(0.1, desk.receiver.open.set)
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [row["outcome"] for row in desk.deliveries] == ["DELIVERED"]


async def test_another_team_sees_no_webhook_and_no_delivery(desk):
    mine, theirs = await desk.hook("/alpha"), await desk.hook("/beta", team="beta")
    desk.end_jobs(1, team="beta")
    await desk.outbox.drain()
    assert [each.path for each in desk.receiver.received] == ["/beta"], "another team's jobs are not told"
    assert await desk.webhooks.page("beta", Page(10)) == [theirs]
    with pytest.raises(VoxfleetError) as caught:
        await desk.webhooks.delete("beta", mine.id)
    assert caught.value.reason is Reason.WEBHOOK_NOT_FOUND
    # Statements that forgot their own checks still see nothing, and write nothing.
    desk.end_jobs(1)
    async with desk.metadata.store.tenant("beta") as tx:
        assert await tx.get_webhook("alpha", mine.id) is None
        assert await tx.list_webhooks("alpha", Page(10)) == []
        assert not await tx.delete_webhook("alpha", mine.id)
    with psycopg.connect(desk.metadata.url) as connection:
        connection.execute("SET ROLE voxfleet_tenant")
        connection.execute("SELECT set_config('voxfleet.team', 'beta', false)")
        assert connection.execute("SELECT id FROM webhooks").fetchall() == [(theirs.id,)]
        seen = connection.execute("SELECT DISTINCT team FROM webhook_deliveries").fetchall()
        assert seen == [("beta",)]
        connection.commit()
        for forbidden in (
            "INSERT INTO webhook_deliveries (team, webhook_id, state, job) VALUES ('alpha', 'w', '', '{}')",
            "INSERT INTO webhooks (team, id, url, secret) VALUES ('alpha', 'w', 'http://x', 's')",
            "UPDATE webhook_deliveries SET due_at = now()",
            "DELETE FROM webhook_deliveries",
            "UPDATE webhooks SET url = 'http://x'",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(forbidden)
            connection.rollback()
            connection.execute("SET ROLE voxfleet_tenant")
            connection.execute("SELECT set_config('voxfleet.team', 'beta', false)")
    assert len(await desk.webhooks.page("alpha", Page(10))) == 1


async def test_a_repeat_of_a_create_makes_one_webhook_and_a_team_has_so_many(desk):
    webhooks = Webhooks(desk.metadata.store, WebhookSettings(most=3))

    async def create(request_id: str, fingerprint: str = "f"):
        return await webhooks.create(
            "alpha", "https://example.com/", [], request_id=request_id, fingerprint=fingerprint
        )

    made = await asyncio.gather(*(create("r-1") for _ in range(5)))
    assert len({(each.id, each.secret) for each in made}) == 1
    with pytest.raises(VoxfleetError) as caught:
        await create("r-1", "another body")
    assert caught.value.reason is Reason.REQUEST_ID_REUSED
    several = await asyncio.gather(*(create(f"r-{n}") for n in range(2, 8)), return_exceptions=True)
    assert sum(isinstance(each, VoxfleetError) for each in several) == 4
    assert {each.reason for each in several if isinstance(each, VoxfleetError)} == {Reason.QUOTA_EXCEEDED}
    first = await webhooks.page("alpha", Page(2))
    rest = await webhooks.page("alpha", Page(2, after=first[-1].id))
    assert [each.id for each in [*first, *rest]] == sorted(each.id for each in [*first, *rest])
    assert (len(first), len(rest)) == (2, 1)


async def test_without_webhooks_the_ledgers_hot_path_runs_no_trigger(desk):
    def triggers(change: str) -> set[str]:
        desk.run(
            "INSERT INTO jobs (id, team, kind, state, priority_class, task) "
            "VALUES (gen_random_uuid()::text, 'beta', 'rvc.convert', 'QUEUED', 2, '{}')"
        )
        plan = "\n".join(row["QUERY PLAN"] for row in desk.rows(f"EXPLAIN (ANALYZE) {change}"))
        return {line.split()[1].rstrip(":") for line in plan.splitlines() if line.startswith("Trigger")}

    end = "UPDATE jobs SET state = 'CANCELLED', ended_at = now() WHERE state = 'QUEUED'"
    start = (
        "UPDATE jobs SET state = 'RUNNING', lease_token = gen_random_uuid() "
        "WHERE state = 'QUEUED' AND team = 'beta'"
    )
    assert triggers(end) == triggers(start) == set()
    await desk.hook(team="alpha")
    assert triggers(end) == {"jobs_to_webhooks"}, "a look, as another team has one"
    assert triggers(start) == set(), "nobody asked for starts"
    desk.run("UPDATE jobs SET parent_id = 'b' WHERE state = 'QUEUED'")
    assert triggers(end + " AND parent_id IS NOT NULL") == set(), "items have no say"
    assert desk.deliveries == []
    await desk.hook("", JobState.RUNNING)
    assert triggers(start) == {"jobs_to_webhooks"}


async def test_a_copied_database_that_lost_its_flags_gets_them_again(desk):
    await desk.hook()
    desk.run("ALTER SEQUENCE webhooks_of_ends RESTART")
    desk.end_jobs(1)
    assert desk.deliveries == [], "the flag is down"
    async with desk.store.service() as tx:
        await tx.arm_webhooks()
    desk.end_jobs(1)
    assert await desk.outbox.drain() == 1
