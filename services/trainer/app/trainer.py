"""Takes leases, runs an attempt for each, and says how many more it could take."""

from __future__ import annotations

import logging

from services.common.errors import FailureClass, VoxfleetError, internal
from services.common.jobs.model import (
    TRAINER_POOL,
    Capacity,
    FleetOrders,
    GpuFacts,
    NodeFacts,
    Outcome,
    Succeeded,
)
from services.common.jobs.tasks import TrainTask
from services.common.jobs.worker import Attempt
from services.trainer import metrics, model
from services.trainer.app.following import Limits
from services.trainer.app.training import Site, Training
from services.trainer.ports import Backend, Bundles, WorkFiles

log = logging.getLogger(__name__)

KIND = "rvc.train"
_EPSILON = 1e-6


class Trainer:
    """The handler of ``rvc.train`` leases, and their capacity."""

    def __init__(
        self,
        backend: Backend,
        files: WorkFiles,
        bundles: Bundles,
        *,
        limits: Limits | None = None,
        virtual_gpus: bool | None = None,
        checkpoint_s: float = 0.0,
    ) -> None:
        """Makes it; :meth:`refresh` is to be called every second or so.

        Args:
            backend: where stages run.
            files: what attempts stored.
            bundles: the weights that the store has.
            limits: how long it waits.
            virtual_gpus: whether the cluster's GPUs are pretended; None tells it from the nodes.
            checkpoint_s: between checkpoints; 0 is the default of the preset.
        """
        self._backend, self._files, self._bundles = backend, files, bundles
        self._limits = limits or Limits()
        self._virtual = virtual_gpus
        self._checkpoint_s = checkpoint_s
        self._watch = metrics.Watch()
        self._nodes: tuple[NodeFacts, ...] = ()
        self._trainings: set[Training] = set()
        self._orders = FleetOrders()
        self._site = Site(backend, lambda: self._nodes, lambda: self._orders, self._may_hold)

    @property
    def virtual_gpus(self) -> bool:
        """Whether GPUs are pretended: as set, else where no node has a real one."""
        if self._virtual is not None:
            return self._virtual
        return not any(node.gpus > 0 and not node.virtual_gpus for node in self._nodes)

    async def refresh(self) -> None:
        """Looks at the nodes once. Errors: WORKER_LOST."""
        self._nodes = await self._backend.nodes()

    def obey(self, orders: FleetOrders) -> None:
        """Heeds what operators and the scheduler ask for: trainings leave the nodes that are drained."""
        self._orders = orders
        for training in self._trainings:
            training.heed(orders)

    def capacity(self) -> Capacity:
        """How many more trainings could begin now, and the nodes; a drained one counts for nothing."""
        drained = self._orders.drained_nodes
        usable = [node for node in self._nodes if node.state == "alive" and node.name not in drained]
        places = model.free_places(
            [node.gpus_free for node in usable],
            sum(int(node.gpus) for node in usable),
            waiting=sum(training.gpus_wanted for training in self._trainings),
            held=sum(training.gpus_held for training in self._trainings if training.node not in drained),
            granted=self._orders.grants.get(TRAINER_POOL),
        )
        return Capacity(
            {KIND: places},
            nodes=tuple(self._shown(node) for node in self._nodes),
            gpus=GpuFacts(trainings=tuple(training.gpus for training in self._trainings)),
        )

    def _may_hold(self, gpus: int) -> bool:
        """Whether so many more are granted: what Ray has free may have been promised to the pools."""
        granted = self._orders.grants.get(TRAINER_POOL)
        drained = self._orders.drained_nodes
        claimed = sum(one.gpus_claimed for one in self._trainings if one.node not in drained)
        return granted is None or claimed + gpus <= granted + _EPSILON

    def _shown(self, node: NodeFacts) -> NodeFacts:
        left = any(training.node == node.name for training in self._trainings)
        return node.leaving(self._orders.drained_nodes, busy=left)

    async def handle(self, attempt: Attempt) -> Outcome:
        """Does the work of one lease.

        Raises:
            VoxfleetError: how it failed; its class says whether another attempt is worth while.
            AttemptStopped: it was told to stop.
        """
        task = attempt.lease.task
        if not isinstance(task, TrainTask):
            raise internal(f"{attempt.lease.job} is no training: {task.kind}")
        if not self._nodes:
            await self.refresh()
        training = Training(
            attempt,
            task,
            self._site,
            self._files,
            self._bundles,
            limits=self._limits,
            virtual_gpus=self.virtual_gpus,
            checkpoint_s=self._checkpoint_s,
            watch=self._watch,
        )
        self._trainings.add(training)
        outcome = "stopped"
        try:
            made = await training.outcome()
            outcome = "succeeded" if isinstance(made, Succeeded) else "stopped"
            return made
        except VoxfleetError as error:
            outcome = error.reason.value
            if error.failure is FailureClass.NODE:
                metrics.NODE_LOSSES.inc()
            raise
        finally:
            self._trainings.discard(training)
            metrics.ENDED.labels(outcome).inc()
