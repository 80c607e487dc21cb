"""Stages as Ray actors: every Ray call of the trainer, but for joining and leaving the cluster.

An actor lives for one stage. Only TRAIN asks for GPUs, whole ones. An actor belongs to this process:
should this one die, Ray ends its actors.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import ray
import ray.exceptions

from services.common.errors import Reason, VoxfleetError, unavailable
from services.common.jobs.model import NodeFacts
from services.common.rayrt.calls import in_thread
from services.common.rayrt.failures import from_ray
from services.common.rayrt.nodes import node_facts, node_names, only_on
from services.trainer.model import Stage
from services.trainer.stage import Snapshot, StageSpec
from services.trainer.stages.runner import Seat, StageKit, StageRunner

log = logging.getLogger(__name__)

_CLOSE_S = 4.0
_KILL_S = 5.0
_NODES_S = 10.0
_GONE_S = 15.0
_ASK_AGAIN_S = 0.05


@dataclass(frozen=True, slots=True)
class Places:
    """What stages ask of a node.

    Args:
        cpus: of PREPARE and PUBLISH.
        train_cpus: of TRAIN, beside its GPUs.
    """

    cpus: float = 1.0
    train_cpus: float = 1.0


class RayStageRunner(StageRunner):
    """The runner in an actor: it knows on which node it is."""

    def begin(self) -> Seat:
        """See :class:`services.trainer.stages.runner.StageRunner`."""
        return replace(super().begin(), node_id=ray.get_runtime_context().get_node_id())


class RayBackend:
    """The trainer's stages on the cluster that this process has joined.

    Args:
        kit: what every stage's process is given.
        places: what it asks for.
        virtual_gpus: what to say of the nodes' GPUs; None tells it of each.
    """

    def __init__(
        self, kit: StageKit, places: Places | None = None, *, virtual_gpus: bool | None = None
    ) -> None:
        self._kit = kit
        self._places = places or Places()
        self._virtual = virtual_gpus
        self._actor = cast("Any", ray.remote(RayStageRunner))

    async def start(self, spec: StageSpec, nodes: frozenset[str]) -> RayStage:
        """See :class:`services.trainer.ports.Backend`."""
        names = await self._names()
        ids = [node_id for node_id, name in names.items() if name in nodes]
        if not ids:
            raise unavailable(Reason.WORKER_LOST, f"{', '.join(sorted(nodes)) or 'every node'} is gone")
        trains = spec.stage is Stage.TRAIN
        threads = str(self._kit.threads)
        handle = self._actor.options(
            num_gpus=spec.recipe.gpus if trains else 0,
            num_cpus=self._places.train_cpus if trains else self._places.cpus,
            # Ray chooses among them: a pending stage takes whichever has room first.
            label_selector=only_on(ids) if len(ids) < len(names) else {},
            # A stage that dies is begun anew by the ledger's next attempt, never behind its back.
            max_restarts=0,
            max_task_retries=0,
            runtime_env={
                "env_vars": {
                    "OMP_NUM_THREADS": threads,
                    "MKL_NUM_THREADS": threads,
                    # Without it an actor that asks for no GPU sees every GPU of the node.
                    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
                }
            },
        ).remote(self._kit, spec)
        return RayStage(handle, names)

    async def _names(self) -> dict[str, str]:
        """The names of the living nodes by Ray's ids of them. Errors: WORKER_LOST."""

        def look() -> dict[str, str]:
            found = cast("Any", ray.nodes)()
            names = node_names(found)
            return {node["NodeID"]: names[node["NodeID"]] for node in found if node["Alive"]}

        try:
            return await in_thread(look, _NODES_S)
        except Exception as error:
            raise from_ray(error) from error

    async def nodes(self) -> tuple[NodeFacts, ...]:
        """See :class:`services.trainer.ports.Backend`."""
        try:
            return await in_thread(lambda: node_facts(self._virtual), _NODES_S)
        except Exception as error:
            raise from_ray(error) from error


class RayStage:
    """A stage in an actor.

    Args:
        handle: of the actor.
        names: of the nodes by Ray's ids.
    """

    def __init__(self, handle: Any, names: Mapping[str, str]) -> None:
        self._handle = handle
        self._names = names
        self._seat: Seat | None = None

    @property
    def node(self) -> str:
        """See :class:`services.trainer.ports.RunningStage`."""
        return self._names.get(self._seat.node_id, "") if self._seat is not None else ""

    async def ready(self) -> None:
        """See :class:`services.trainer.ports.RunningStage`."""
        self._seat = await _answer(self._handle.begin.remote())

    async def poll(self, acknowledged: int) -> Snapshot:
        """See :class:`services.trainer.ports.RunningStage`."""
        return cast("Snapshot", await _answer(self._handle.poll.remote(acknowledged)))

    async def ask_stop(self, *, save: bool) -> None:
        """See :class:`services.trainer.ports.RunningStage`."""
        await _answer(self._handle.ask_stop.remote(save=save))

    async def end(self) -> None:
        """See :class:`services.trainer.ports.RunningStage`."""
        if self._seat is not None:
            try:
                await asyncio.wait_for(_answer(self._handle.close.remote()), _CLOSE_S)
            except (VoxfleetError, TimeoutError) as error:
                log.info("%s did not close by itself: %s", self._seat, error)
        try:
            await in_thread(lambda: ray.kill(self._handle, no_restart=True), _KILL_S)
            await asyncio.wait_for(self._gone(), _GONE_S)
        except TimeoutError:
            log.warning("%s may still run: its end could not be seen", self._seat)
        except ray.exceptions.RayError as error:
            log.warning("%s could not be killed: %s", self._seat, error)

    async def _gone(self) -> None:
        """Waits until the actor answers no more and its process is gone, where that can be seen from here.

        A kill is sent, not awaited: a call may overtake it, and Ray calls an actor dead before it is.
        """
        while True:
            try:
                await _answer(self._handle.poll.remote(0))
            except VoxfleetError:
                if self._seat is None or self._seat.is_gone():
                    return
            await asyncio.sleep(_ASK_AGAIN_S)


async def _answer(ref: Awaitable[Any]) -> Any:
    try:
        return await ref
    except (ray.exceptions.RayError, VoxfleetError, ConnectionError) as error:
        raise from_ray(error) from None
