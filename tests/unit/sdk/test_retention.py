"""``fleet.plan_retention`` and ``voxfleet fleet retention --dry-run``."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from tests.unit.sdk.conftest import Face
from tests.unit.sdk.server import Double
from voxfleet.cli.main import app
from voxfleet.v1 import fleet_pb2


class Planned(Double):
    """A gateway that says what would go."""

    def PlanRetention(self, request: Any, context: grpc.ServicerContext) -> fleet_pb2.RetentionPlan:
        self.note("PlanRetention", request, context)
        share = fleet_pb2.RetentionShare(
            category=fleet_pb2.RETENTION_CATEGORY_JOBS,
            count=3,
            size_bytes=10,
            names=["teams/acme/jobs/j-0001"],
        )
        return fleet_pb2.RetentionPlan(shares=[share], complete=False)


@pytest.fixture
def double() -> Planned:
    return Planned()


async def test_both_clients_ask_for_so_many_names(face: Face, double: Planned) -> None:
    plan = await face.call(face.client.fleet.plan_retention, max_names=7)
    assert [share.count for share in plan.shares] == [3]
    assert [request.max_names for request in double.asked("PlanRetention")] == [7]


def test_the_command_lists_what_would_go(
    endpoint: str, double: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOXFLEET_ENDPOINT", endpoint)
    monkeypatch.setenv("VOXFLEET_TOKEN", "vf-test")
    run = CliRunner()
    told = run.invoke(app, ["fleet", "retention", "--dry-run", "--json"], catch_exceptions=False)
    assert told.exit_code == 0
    (share,) = json.loads(told.stdout)["shares"]
    assert (share["category"], share["count"]) == ("RETENTION_CATEGORY_JOBS", "3")

    plain = run.invoke(app, ["fleet", "retention", "--dry-run", "--names", "1"], catch_exceptions=False)
    assert plain.exit_code == 0
    assert "JOBS\t3\t10" in plain.stdout
    assert "teams/acme/jobs/j-0001" in plain.output
    assert "there is more" in plain.output
    assert double.asked("PlanRetention")[-1].max_names == 1

    # What goes, goes by itself: nobody is to think that this command did it.
    assert run.invoke(app, ["fleet", "retention"]).exit_code == 2
    assert len(double.asked("PlanRetention")) == 2
