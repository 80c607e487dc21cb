"""The operators' side: nodes and their state, queues, quotas, what was used."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from services.common.errors import Reason, VoxfleetError, invalid, not_found
from services.metadata.model.fleet import QueueDepth, Quota, Usage, WorkerRow
from services.metadata.model.page import Page
from services.metadata.ports.store import Store

QUOTA_FIELDS: Final = ("max_gpus", "max_queued_jobs", "max_gpu_seconds_per_day", "weight")
_BEGINNING: Final = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True, slots=True)
class FleetView:
    """Workers that were heard of lately, and the nodes that they see."""

    workers: tuple[WorkerRow, ...]
    nodes: tuple[Mapping[str, Any], ...]


class Fleet:
    """The use cases of operators."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def view(self) -> FleetView:
        """The fleet as its workers last told it, with the nodes that operators drained."""
        async with self._store.service() as tx:
            workers = await tx.live_workers()
            drained = await tx.drained_nodes()
        return FleetView(tuple(workers), seen_nodes(workers, drained))

    async def queues(self) -> list[QueueDepth]:
        """How deep and old the queues are, over all teams."""
        async with self._store.service() as tx:
            return await tx.queue_depths()

    async def quota(self, team: str) -> Quota:
        """What a team may use. Errors: TEAM_NOT_FOUND."""
        await self._check_team(team)
        async with self._store.tenant(team) as tx:
            return await tx.get_quota(team)

    async def update_quota(self, team: str, changes: Mapping[str, Any]) -> Quota:
        """Changes the named fields of a team's quota; 0 is no bound, a weight is above 0.

        A lowered bound stops no running job and fails no waiting one: nothing more begins, or is taken in,
        until the team is below it.

        Errors: TEAM_NOT_FOUND, INVALID_ARGUMENT.
        """
        for field, value in changes.items():
            if not 0 <= value < math.inf or (field == "weight" and value == 0):
                above = "above 0" if field == "weight" else "0 (no bound) or more"
                raise invalid(Reason.INVALID_ARGUMENT, f"{field} must be {above}", field=f"quota.{field}")
        await self._check_team(team)
        async with self._store.service() as tx:
            # One change at a time, and none while a submit is measured against it.
            await tx.lock_submits(team)
            quota = replace(await tx.get_quota(team), **dict(changes))
            await tx.put_quota(quota)
        return quota

    async def usage(self, team: str, start: dt.datetime | None, end: dt.datetime | None) -> Usage:
        """What a team used in a span: GPU-seconds held within it, and the jobs and audio that it ended with.

        Errors: TEAM_NOT_FOUND, INVALID_ARGUMENT where it ends before it begins.
        """
        start = start or _BEGINNING
        end = end or dt.datetime.now(dt.UTC)
        if end < start:
            raise invalid(Reason.INVALID_ARGUMENT, "end_time is before start_time", field="end_time")
        await self._check_team(team)
        async with self._store.service() as tx:
            return await tx.usage(team, start, end)

    async def drain(self, node: str) -> Mapping[str, Any]:
        """Takes no new work on a node and has what runs there go elsewhere; a repeat changes nothing.

        Errors: NODE_NOT_FOUND.
        """
        return await self._set_drained(node, drained=True)

    async def resume(self, node: str) -> Mapping[str, Any]:
        """Lets a drained node work again; a repeat changes nothing. Errors: NODE_NOT_FOUND."""
        return await self._set_drained(node, drained=False)

    async def _set_drained(self, node: str, *, drained: bool) -> Mapping[str, Any]:
        async with self._store.service() as tx:
            workers = await tx.live_workers()
            before = await tx.drained_nodes()
            if not any(found["name"] == node for found in seen_nodes(workers, before)):
                raise _no_such_node(node)
            await tx.drain_node(node, drained=drained)
        after = before | {node} if drained else before - {node}
        found = [one for one in seen_nodes(workers, after) if one["name"] == node]
        return found[0] if found else {"name": node, "state": "dead"}

    async def _check_team(self, team: str) -> None:
        async with self._store.tenant(team) as tx:
            if not await tx.list_teams(Page(size=1)):
                raise not_found(Reason.TEAM_NOT_FOUND, f"teams/{team}")


def seen_nodes(workers: Sequence[WorkerRow], drained: Iterable[str]) -> tuple[Mapping[str, Any], ...]:
    """Every node that a worker sees or an operator drained, by name, with its state.

    A drained node is ``draining`` until every worker that sees it says that nothing of it is left there
    (it reports the node as ``drained``); then it is ``drained``. Whether a node is to take work is the
    operators' word alone: a worker that has not heard it yet changes nothing.
    """
    told: dict[str, list[Mapping[str, Any]]] = {}
    for worker in workers:
        for node in worker.nodes:
            told.setdefault(str(node["name"]), []).append(node)
    out = frozenset(drained)
    for name in out:
        told.setdefault(name, [])
    return tuple(
        {**(reports[-1] if reports else {}), "name": name, "state": _state(reports, drained=name in out)}
        for name, reports in sorted(told.items())
    )


def _state(reports: Sequence[Mapping[str, Any]], *, drained: bool) -> str:
    states = [str(report.get("state", "alive")) for report in reports]
    living = [state for state in states if state != "dead"]
    if states and not living:
        return "dead"
    if not drained:
        return "alive"
    return "drained" if all(state == "drained" for state in living) else "draining"


def _no_such_node(node: str) -> VoxfleetError:
    return not_found(Reason.NODE_NOT_FOUND, node)
