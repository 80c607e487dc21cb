"""``voxfleet.v1.FleetService``: the fleet, its queues, quotas and usage; operators steer it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format, timestamp_pb2

from services.common import names
from services.common.errors import Reason, invalid, not_found
from services.common.jobs.tasks import QUEUE_OF_KIND
from services.common.rpc.caller import current_caller, require_operator
from services.metadata.app.fleet import QUOTA_FIELDS, Fleet
from services.metadata.model.fleet import Quota
from services.metadata.servicers import convert
from services.metadata.servicers.resources import check_mask
from voxfleet.v1 import fleet_pb2, job_pb2


class FleetServicer:
    """``voxfleet.v1.FleetService``."""

    def __init__(self, fleet: Fleet, version: str) -> None:
        self._fleet = fleet
        self._version = version

    async def GetFleet(self, _request: fleet_pb2.GetFleetRequest, _: object) -> fleet_pb2.Fleet:
        """Workers, and the Ray nodes that they see."""
        view = await self._fleet.view()
        return fleet_pb2.Fleet(
            workers=[
                fleet_pb2.Worker(
                    name=row.worker,
                    queue=row.queue,
                    node=row.node,
                    running=row.running,
                    free=sum(row.free.values()),
                    last_seen_time=convert.stamp(row.last_seen),
                )
                for row in view.workers
            ],
            nodes=[_node(node) for node in view.nodes],
            version=self._version,
            default_bundles=sorted({row.default_bundle for row in view.workers if row.default_bundle}),
        )

    async def ListQueues(
        self, _request: fleet_pb2.ListQueuesRequest, _: object
    ) -> fleet_pb2.ListQueuesResponse:
        """Queues by kind of job and class; there are few, so one page holds them."""
        return fleet_pb2.ListQueuesResponse(
            queues=[
                fleet_pb2.Queue(
                    name=f"{QUEUE_OF_KIND.get(depth.kind, 'none')}/{depth.kind}",
                    priority_class=job_pb2.PriorityClass.Value(f"PRIORITY_CLASS_{depth.priority_class.name}"),
                    queued=depth.queued,
                    running=depth.running,
                    oldest_wait_s=depth.oldest_wait_s,
                )
                for depth in await self._fleet.queues()
            ]
        )

    async def GetQuota(self, request: fleet_pb2.GetQuotaRequest, _: object) -> fleet_pb2.Quota:
        """What a team may use: one's own, an operator any."""
        team = names.parse_quota(request.name)
        _check_own(team)
        return _quota(await self._fleet.quota(team))

    async def UpdateQuota(self, request: fleet_pb2.UpdateQuotaRequest, _: object) -> fleet_pb2.Quota:
        """Changes what a team may use."""
        require_operator()
        team = names.parse_quota(request.quota.name, field="quota.name")
        paths = check_mask(request.update_mask.paths, QUOTA_FIELDS)
        changes = {path: getattr(request.quota, path) for path in paths}
        return _quota(await self._fleet.update_quota(team, changes))

    async def GetUsage(self, request: fleet_pb2.GetUsageRequest, _: object) -> fleet_pb2.Usage:
        """What a team used: one's own, an operator any."""
        team = names.parse_team(request.parent)
        _check_own(team)
        start = _moment(request.start_time, "start_time") if request.HasField("start_time") else None
        end = _moment(request.end_time, "end_time") if request.HasField("end_time") else None
        used = await self._fleet.usage(team, start, end)
        return fleet_pb2.Usage(
            gpu_seconds=used.gpu_seconds,
            audio_seconds=used.audio_s,
            jobs=used.jobs,
            stored_bytes=used.stored_bytes,
        )

    async def DrainNode(self, request: fleet_pb2.DrainNodeRequest, _: object) -> fleet_pb2.Node:
        """Takes no new work on a node."""
        require_operator()
        return _node(await self._fleet.drain(names.parse_node(request.name)))

    async def ResumeNode(self, request: fleet_pb2.ResumeNodeRequest, _: object) -> fleet_pb2.Node:
        """Lets a drained node work again."""
        require_operator()
        return _node(await self._fleet.resume(names.parse_node(request.name)))


def _check_own(team: str) -> None:
    """Another team's figures do not exist for a member. Errors: TEAM_NOT_FOUND."""
    caller = current_caller()
    if team != caller.team and not (caller.operator or caller.is_service):
        raise not_found(Reason.TEAM_NOT_FOUND, f"teams/{team}")


def _moment(stamp: timestamp_pb2.Timestamp, field: str) -> dt.datetime:
    """A time of the request. Errors: INVALID_ARGUMENT where it is none (AIP-142: years 1 to 9999)."""
    try:
        return stamp.ToDatetime(dt.UTC)
    except (ValueError, OverflowError):
        raise invalid(Reason.INVALID_ARGUMENT, f"{field} is no time", field=field) from None


def _quota(quota: Quota) -> fleet_pb2.Quota:
    return fleet_pb2.Quota(
        name=f"teams/{quota.team}/quota",
        max_gpus=quota.max_gpus,
        max_queued_jobs=quota.max_queued_jobs,
        max_gpu_seconds_per_day=quota.max_gpu_seconds_per_day,
        weight=quota.weight,
    )


def _node(node: Mapping[str, Any]) -> fleet_pb2.Node:
    """A node as a worker, perhaps of another release, told it."""
    return json_format.ParseDict(dict(node), fleet_pb2.Node(), ignore_unknown_fields=True)
