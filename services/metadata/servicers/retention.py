"""The part of ``voxfleet.v1.FleetService`` that tells what retention would remove."""

from __future__ import annotations

from services.common.errors import Reason, invalid
from services.common.rpc.caller import require_operator
from services.metadata.app.retention import Retention
from services.metadata.model.retention import MAX_NAMES, Report
from services.metadata.servicers import convert
from voxfleet.v1 import fleet_pb2

_USUAL_NAMES = 100


class RetentionServicer:
    """``voxfleet.v1.FleetService``: ``PlanRetention``."""

    def __init__(self, retention: Retention) -> None:
        self._retention = retention

    async def PlanRetention(
        self, request: fleet_pb2.PlanRetentionRequest, _: object
    ) -> fleet_pb2.RetentionPlan:
        """A dry run."""
        require_operator()
        if request.max_names < 0:
            raise invalid(Reason.INVALID_ARGUMENT, "max_names must not be negative", field="max_names")
        most_names = min(request.max_names or _USUAL_NAMES, MAX_NAMES)
        return _plan(await self._retention.plan(most_names=most_names))


def _plan(report: Report) -> fleet_pb2.RetentionPlan:
    return fleet_pb2.RetentionPlan(
        create_time=convert.stamp(report.at),
        shares=[
            fleet_pb2.RetentionShare(
                category=fleet_pb2.RetentionCategory.Value(f"RETENTION_CATEGORY_{share.category}"),
                count=share.count,
                size_bytes=share.size_bytes,
                names=share.names,
            )
            for share in report.shares
        ],
        complete=report.complete,
    )
