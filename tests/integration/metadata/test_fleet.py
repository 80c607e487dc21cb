"""Quotas, usage and nodes, on a real Postgres."""

from __future__ import annotations

import datetime as dt

import psycopg
import pytest

from services.common.errors import Kind, Reason, VoxfleetError
from services.common.rpc.caller import Caller, set_caller
from services.metadata.adapters.ledger.fleet import FleetQueries
from services.metadata.app.fleet import Fleet
from services.metadata.model.fleet import Quota, WorkerRow
from services.metadata.servicers.fleet import FleetServicer
from voxfleet.v1 import fleet_pb2

NODES = (
    {"name": "nodes/big", "state": "alive", "gpus": 8.0, "gpus_free": 8.0, "cpus": 32.0, "gpu_type": "H200"},
    {"name": "nodes/small", "state": "dead"},
)


@pytest.fixture
def fleet(metadata):
    return Fleet(metadata.store)


@pytest.fixture
def servicer(fleet):
    yield FleetServicer(fleet, "0.1.0")
    set_caller(Caller())


async def tell(metadata, worker, *nodes):
    row = WorkerRow(worker, "trainer", "host", "1", {}, nodes, "", 0, dt.datetime.now(dt.UTC))
    await metadata.work.put_worker(row)


async def add_attempt(
    url, number, started, ended, *, gpus=1.0, outcome="SUCCEEDED", team="alpha", audio_s=0.0
):
    """An attempt that has ended, with its job."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(
            "INSERT INTO jobs (id, team, kind, state, priority_class, task, result) "
            "VALUES (%s, %s, 'f5.item', 'SUCCEEDED', 3, '{}', "
            "jsonb_build_object('metrics', jsonb_build_object('audio_s', %s::float8)))",
            (f"job-{number}", team, audio_s),
        )
        await connection.execute(
            "INSERT INTO job_attempts (job_id, attempt, team, worker, started_at, ended_at, kind, outcome, "
            "gpus) VALUES (%s, 1, %s, 'w', %s, %s, 'f5.item', %s, %s)",
            (f"job-{number}", team, started, ended, outcome, gpus),
        )


async def test_a_quota_changes_by_its_named_fields_alone(fleet):
    assert await fleet.quota("alpha") == Quota("alpha")
    await fleet.update_quota("alpha", {"max_gpus": 4.0, "max_queued_jobs": 10})
    changed = await fleet.update_quota("alpha", {"weight": 2.5, "max_gpus": 0.0})
    assert changed == Quota("alpha", max_gpus=0.0, max_queued_jobs=10, weight=2.5)
    assert await fleet.quota("alpha") == changed
    assert await fleet.quota("beta") == Quota("beta")


@pytest.mark.parametrize(
    ("field", "value"),
    [("weight", 0.0), ("weight", float("nan")), ("max_gpus", -1.0), ("max_queued_jobs", -1)],
)
async def test_an_impossible_quota_is_refused(fleet, field, value):
    with pytest.raises(VoxfleetError) as caught:
        await fleet.update_quota("alpha", {field: value})
    assert (caught.value.reason, caught.value.violations[0].field) == (
        Reason.INVALID_ARGUMENT,
        f"quota.{field}",
    )


async def test_a_team_that_is_not_there_has_no_quota_and_no_usage(fleet):
    for call in (
        fleet.quota("gamma"),
        fleet.update_quota("gamma", {"weight": 2}),
        fleet.usage("gamma", None, None),
    ):
        with pytest.raises(VoxfleetError) as caught:
            await call
        assert (caught.value.reason, caught.value.kind) == (Reason.TEAM_NOT_FOUND, Kind.NOT_FOUND)


async def test_members_see_their_own_figures_and_change_none(servicer):
    set_caller(Caller(team="beta"))
    assert (await servicer.GetQuota(fleet_pb2.GetQuotaRequest(name="teams/beta/quota"), None)).weight == 1.0
    with pytest.raises(VoxfleetError) as caught:
        await servicer.GetQuota(fleet_pb2.GetQuotaRequest(name="teams/alpha/quota"), None)
    assert caught.value.reason is Reason.TEAM_NOT_FOUND
    with pytest.raises(VoxfleetError) as caught:
        await servicer.GetUsage(fleet_pb2.GetUsageRequest(parent="teams/alpha"), None)
    assert caught.value.reason is Reason.TEAM_NOT_FOUND
    change = fleet_pb2.UpdateQuotaRequest(quota={"name": "teams/beta/quota", "weight": 9})
    change.update_mask.paths.append("weight")
    for call in (
        servicer.UpdateQuota(change, None),
        servicer.DrainNode(fleet_pb2.DrainNodeRequest(name="nodes/big"), None),
        servicer.ResumeNode(fleet_pb2.ResumeNodeRequest(name="nodes/big"), None),
    ):
        with pytest.raises(VoxfleetError) as caught:
            await call
        assert caught.value.reason is Reason.PERMISSION_DENIED
    set_caller(Caller(team="alpha", operator=True))
    assert (await servicer.UpdateQuota(change, None)).weight == 9
    assert (await servicer.GetQuota(fleet_pb2.GetQuotaRequest(name="teams/beta/quota"), None)).weight == 9
    change.update_mask.paths[:] = ["name"]
    with pytest.raises(VoxfleetError, match="cannot be updated"):
        await servicer.UpdateQuota(change, None)


def at(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(f"{text}:00+00:00")


@pytest.mark.parametrize("added_up", [False, True])
async def test_gpu_seconds_are_counted_to_the_second_and_by_their_days(
    metadata, fleet, monkeypatch, added_up
):
    # Over midnight; within a day; another team's; one that failed and one that was given back.
    await add_attempt(metadata.url, 1, at("2025-03-01T23:00"), at("2025-03-02T01:00"), gpus=2.0, audio_s=5.0)
    await add_attempt(metadata.url, 2, at("2025-03-02T10:00"), at("2025-03-02T10:30"), outcome="FAILED")
    await add_attempt(metadata.url, 3, at("2025-03-02T10:00"), at("2025-03-02T11:00"), team="beta")
    await add_attempt(metadata.url, 4, at("2025-03-03T06:00"), at("2025-03-03T07:00"), outcome="RELEASED")
    monkeypatch.setattr(FleetQueries, "usage_lag_s", 0.0)
    if added_up:
        async with metadata.store.service() as tx:
            await tx._run("make_watermark", name="usage")
            # In one look; the real one takes an hour at a time.
            for _ in range(60):
                await tx.add_up_usage(1000)
        async with await psycopg.AsyncConnection.connect(metadata.url) as connection:
            rows = await connection.execute(
                "SELECT day::text, gpu_seconds, jobs FROM gpu_usage WHERE team = 'alpha' ORDER BY day"
            )
            assert await rows.fetchall() == [
                ("2025-03-01", 7200.0, 0),
                ("2025-03-02", 7200.0 + 1800.0, 2),
                ("2025-03-03", 3600.0, 0),
            ]

    async def used(start: str, end: str) -> tuple[float, int]:
        found = await fleet.usage("alpha", at(start), at(end))
        return found.gpu_seconds, found.jobs

    assert await used("2025-03-01T00:00", "2025-03-04T00:00") == (19_800.0, 2)
    assert await used("2025-03-02T00:00", "2025-03-03T00:00") == (9_000.0, 2)
    assert await used("2025-03-01T23:30", "2025-03-02T00:30") == (2 * 3600.0, 0)
    assert await used("2025-03-02T00:30", "2025-03-03T06:30") == (2 * 1800.0 + 1800.0 + 1800.0, 2)
    assert await used("2025-03-02T10:10", "2025-03-02T10:20") == (600.0, 0)
    assert await used("2025-03-02T12:00", "2025-03-02T12:00") == (0.0, 0)
    whole = await fleet.usage("alpha", None, None)
    assert (whole.gpu_seconds, whole.jobs) == (19_800.0, 2)
    assert whole.audio_s == (5.0 if added_up else 0.0)
    with pytest.raises(VoxfleetError, match="before"):
        await used("2025-03-02T00:00", "2025-03-01T00:00")


async def test_an_attempt_that_ended_counts_against_the_days_quota_before_it_is_added_up(metadata, fleet):
    await fleet.update_quota("alpha", {"max_gpu_seconds_per_day": 60})
    now = dt.datetime.now(dt.UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    await add_attempt(metadata.url, 1, midnight - dt.timedelta(seconds=600), now)
    async with metadata.store.leases() as rows:
        (use,) = await rows.quota_uses()
    held_s = (now - midnight).total_seconds()
    assert use.gpu_seconds == pytest.approx(held_s, abs=0.01)
    assert use.full == (held_s >= 60)


async def test_a_node_is_draining_until_every_worker_says_that_nothing_is_left_there(metadata, fleet):
    await tell(metadata, "trainer-1", *NODES)
    await tell(metadata, "inference-1", *NODES)

    async def states():
        return {node["name"]: node["state"] for node in (await fleet.view()).nodes}

    assert await states() == {"nodes/big": "alive", "nodes/small": "dead"}
    assert (await fleet.drain("nodes/big"))["state"] == "draining"
    assert (await fleet.drain("nodes/big"))["state"] == "draining"
    await tell(metadata, "trainer-1", {**NODES[0], "state": "drained"})
    assert (await states())["nodes/big"] == "draining"
    await tell(metadata, "inference-1", {**NODES[0], "state": "draining"})
    assert (await states())["nodes/big"] == "draining"
    await tell(metadata, "inference-1", {**NODES[0], "state": "drained"})
    found = (await fleet.view()).nodes[0]
    assert (found["state"], found["gpus"], found["gpu_type"]) == ("drained", 8.0, "H200")
    # A worker that has not heard yet that it works again does not keep it out.
    assert (await fleet.resume("nodes/big"))["state"] == "alive"
    assert (await states())["nodes/big"] == "alive"
    with pytest.raises(VoxfleetError) as caught:
        await fleet.drain("nodes/none")
    assert (caught.value.reason, caught.value.kind) == (Reason.NODE_NOT_FOUND, Kind.NOT_FOUND)


async def test_a_drained_node_that_nobody_sees_is_still_shown_and_can_be_resumed(metadata, fleet, servicer):
    await tell(metadata, "trainer-1", *NODES)
    await fleet.drain("nodes/big")
    await metadata.work.drop_worker("trainer-1")
    set_caller(Caller(team="alpha", operator=True))
    shown = await servicer.GetFleet(fleet_pb2.GetFleetRequest(), None)
    assert [(node.name, node.state) for node in shown.nodes] == [("nodes/big", "drained")]
    await servicer.ResumeNode(fleet_pb2.ResumeNodeRequest(name="nodes/big"), None)
    assert (await fleet.view()).nodes == ()
