"""The fleet, its queues, quotas and usage: ``client.fleet``."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator

from google.protobuf import timestamp_pb2

from voxfleet.client import names
from voxfleet.client.aio.calls import Calls
from voxfleet.v1 import fleet_pb2, fleet_pb2_grpc


class FleetGroup:
    """Shows the fleet; operators steer it."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = fleet_pb2_grpc.FleetServiceStub(calls.channel)

    async def get(self) -> fleet_pb2.Fleet:
        """Workers, nodes and GPUs, and what they do."""
        return await self._calls.unary(self._stub.GetFleet, fleet_pb2.GetFleetRequest(), safe=True)

    async def queues(self) -> AsyncIterator[fleet_pb2.Queue]:
        """The queues: how deep, how old."""
        request = fleet_pb2.ListQueuesRequest()
        async for page in self._calls.pages(self._stub.ListQueues, request):
            for queue in page.queues:
                yield queue

    async def quota(self, team: str = "") -> fleet_pb2.Quota:
        """What a team may use; this client's team where none is named."""
        return await self._calls.unary(
            self._stub.GetQuota, fleet_pb2.GetQuotaRequest(name=self._quota_name(team)), safe=True
        )

    async def update_quota(
        self,
        team: str = "",
        *,
        max_gpus: float | None = None,
        max_queued_jobs: int | None = None,
        max_gpu_seconds_per_day: int | None = None,
        weight: float | None = None,
    ) -> fleet_pb2.Quota:
        """Changes what is given of a team's quota; 0 means no bound. Operators only."""
        request = fleet_pb2.UpdateQuotaRequest(
            quota=fleet_pb2.Quota(
                name=self._quota_name(team),
                max_gpus=max_gpus or 0.0,
                max_queued_jobs=max_queued_jobs or 0,
                max_gpu_seconds_per_day=max_gpu_seconds_per_day or 0,
                weight=weight or 0.0,
            )
        )
        given = {
            "max_gpus": max_gpus,
            "max_queued_jobs": max_queued_jobs,
            "max_gpu_seconds_per_day": max_gpu_seconds_per_day,
            "weight": weight,
        }
        request.update_mask.paths.extend(field for field, value in given.items() if value is not None)
        return await self._calls.unary(self._stub.UpdateQuota, request, safe=True)

    async def usage(
        self,
        team: str = "",
        *,
        start: dt.datetime | None = None,
        end: dt.datetime | None = None,
    ) -> fleet_pb2.Usage:
        """What a team used between two times (with time zones); all of it where they are not given."""
        request = fleet_pb2.GetUsageRequest(parent=names.team_name(team or self._calls.config.team))
        if start is not None:
            request.start_time.CopyFrom(_timestamp(start))
        if end is not None:
            request.end_time.CopyFrom(_timestamp(end))
        return await self._calls.unary(self._stub.GetUsage, request, safe=True)

    async def drain(self, node: str) -> fleet_pb2.Node:
        """Takes no new work on a node, and moves what it has. Operators only."""
        request = fleet_pb2.DrainNodeRequest(name=names.node_name(node))
        return await self._calls.unary(self._stub.DrainNode, request, safe=True)

    async def resume(self, node: str) -> fleet_pb2.Node:
        """Lets a drained node work again. Operators only."""
        request = fleet_pb2.ResumeNodeRequest(name=names.node_name(node))
        return await self._calls.unary(self._stub.ResumeNode, request, safe=True)

    async def plan_retention(self, *, max_names: int = 100) -> fleet_pb2.RetentionPlan:
        """What retention would remove if it ran now; changes nothing. Operators only.

        It lists the object store, and has five minutes for that.
        """
        request = fleet_pb2.PlanRetentionRequest(max_names=max_names)
        return await self._calls.unary(self._stub.PlanRetention, request, safe=True, timeout_s=300.0)

    def _quota_name(self, team: str) -> str:
        return f"{names.team_name(team or self._calls.config.team)}/quota"


def _timestamp(moment: dt.datetime) -> timestamp_pb2.Timestamp:
    stamp = timestamp_pb2.Timestamp()
    stamp.FromDatetime(moment)
    return stamp
