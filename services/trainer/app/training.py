"""One leased training, from its clips to its voice.

A training is a run of stages (:func:`services.trainer.model.next_stage` says which is next), each in a
process of its own. The stages hand over through the artefact store, so that the next one may run
elsewhere and a later attempt finds what an earlier one stored. This side reports, records checkpoints
under the attempt's fence, and ends every process whatever happens.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from services.common import telemetry
from services.common.errors import Reason, VoxfleetError, unavailable
from services.common.jobs.model import (
    AttemptStopped,
    Checkpoint,
    FleetOrders,
    NodeFacts,
    Outcome,
    Progress,
    Released,
    StopKind,
    Succeeded,
    TrainingGpus,
    VoiceOutput,
)
from services.common.jobs.tasks import TrainingParameters, TrainTask
from services.common.jobs.worker import Attempt
from services.trainer import metrics, model, records
from services.trainer.app.following import Follower, Limits, unless_stopped
from services.trainer.model import Facts, Phase, Stage
from services.trainer.ports import Backend, Bundles, RunningStage, WorkFiles
from services.trainer.stage import Prepared, Published, Result, Snapshot, StageSpec, Trained

log = logging.getLogger(__name__)

_LOSSES = ("loss_mel", "loss_g", "loss_d")


@dataclass(frozen=True, slots=True)
class Site:
    """Where trainings run: what stages run on, the nodes as last seen, and what is asked of them.

    ``may_hold`` says whether so many GPUs more are granted to trainings.
    """

    backend: Backend
    nodes: Callable[[], tuple[NodeFacts, ...]]
    orders: Callable[[], FleetOrders]
    may_hold: Callable[[int], bool]


class Training:
    """One attempt at a training."""

    def __init__(
        self,
        attempt: Attempt,
        task: TrainTask,
        site: Site,
        files: WorkFiles,
        bundles: Bundles,
        *,
        limits: Limits,
        virtual_gpus: bool,
        checkpoint_s: float,
        watch: metrics.Watch,
    ) -> None:
        """Makes it; :meth:`outcome` does the work. The arguments are those of ``Trainer``."""
        self._attempt, self._task = attempt, task
        self._site, self._files, self._bundles = site, files, bundles
        self._limits, self._watch = limits, watch
        self._virtual, self._checkpoint_s = virtual_gpus, checkpoint_s
        self._job = attempt.lease.job
        self._fence = attempt.lease.fence
        self._checkpoints = list(attempt.lease.checkpoints)
        self._gpus = max(task.parameters.gpus, 1)
        self._stage = Stage.PREPARE
        self._running: RunningStage | None = None
        self._leaves = ""
        self._note = self._batch_note = ""
        self._seen_s = 0.0
        self._steps = self._fallbacks = 0
        self._retrained = False
        self._ended = False
        self._held_since_s = 0.0
        self.gpus_held = 0
        self.gpus_claimed = 0

    @property
    def gpus_wanted(self) -> int:
        """GPUs that this attempt does not hold yet, but will ask for."""
        return self._gpus if self._stage is not Stage.PUBLISH and not self.gpus_held else 0

    @property
    def gpus(self) -> TrainingGpus:
        """What it has of the GPUs, as the scheduler is told of it."""
        job_id = self._fence.job_id
        if self.gpus_held:
            return TrainingGpus(job_id, self.gpus_held, self.node, time.monotonic() - self._held_since_s)
        return TrainingGpus(job_id, self.gpus_wanted)

    @property
    def node(self) -> str:
        """The node that its present stage runs on; empty where it has no place."""
        return self._running.node if self._running is not None else ""

    def heed(self, orders: FleetOrders) -> None:
        """Gives way where its node is drained while it holds GPUs there; it goes on elsewhere.

        What needs no GPU is let end: it is sooner done, and its next stage goes elsewhere.
        """
        if self._stage is Stage.TRAIN and self.node and self.node in orders.drained_nodes:
            self._leaves = self.node
            self._attempt.tell_stop(StopKind.YIELD)

    async def outcome(self) -> Outcome:
        """Runs stage after stage until the voice is there.

        Raises:
            VoxfleetError: how it failed.
            AttemptStopped: it was told to stop.
        """
        spec = await self._spec()
        trained: Trained | None = None
        while (stage := model.next_stage(self._facts(spec))) is not None:
            spec = replace(spec, stage=stage, checkpoints=tuple(self._checkpoints))
            try:
                result = await self._run(spec)
            except VoxfleetError as error:
                spec = self._after_failure(spec, error)
                continue
            except _NoPlaceError:
                return Released(self._no_place_words())
            match result:
                case Prepared():
                    spec = replace(spec, prepared=result, schedule=model.schedule(spec.recipe, result.slices))
                case Trained(stopped=True):
                    return Released(self._saved_words())
                case Trained():
                    trained, spec = result, replace(spec, features=result.features)
                    self._ended = True
                case Published():
                    return await self._succeeded(spec, trained, result)
        raise AssertionError("a training ends with its voice")

    async def _spec(self) -> StageSpec:
        """What is asked, with what earlier attempts left of it."""
        contentvec = await unless_stopped(self._attempt, self._bundles.contentvec())
        recipe = model.settle(
            wish_of(self._task.parameters),
            virtual_gpus=self._virtual,
            has_contentvec=contentvec is not None,
            checkpoint_s=self._checkpoint_s,
        )
        recipe = self._scaled(recipe)
        slices = model.slices_key([audio.blob.sha256 for audio in self._task.audios], recipe)
        features = model.features_key(slices, recipe)
        prepared = records.load_prepared(await self._find(records.prepared_name(slices)))
        return StageSpec(
            stage=Stage.PREPARE,
            job_id=self._fence.job_id,
            attempt=self._fence.attempt,
            task=self._task,
            recipe=recipe,
            slices_key=slices,
            features_key=features,
            prepared=prepared,
            schedule=model.schedule(recipe, prepared.slices) if prepared else None,
            features=records.load_blob(await self._find(records.features_record_name(features))),
            contentvec=contentvec,
            traceparent=telemetry.current_traceparent() or self._attempt.lease.traceparent,
        )

    def _scaled(self, recipe: model.Recipe) -> model.Recipe:
        """The recipe with what share of its batch the ledger lets this attempt have."""
        scaled = model.scaled(recipe, self._attempt.lease.batch_scale)
        if scaled.micro_batch:
            self._batch_note = (
                f"batches of {recipe.batch_size} in parts of {scaled.micro_batch}: memory did not do for more"
            )
        return scaled

    def _facts(self, spec: StageSpec) -> Facts:
        newest = self._checkpoints[0] if self._checkpoints else None
        # Training may end before its schedule does, where it got no better.
        finished = newest is not None and (
            self._ended
            or (spec.schedule is not None and spec.schedule.finished(epoch=newest.epoch, step=newest.step))
        )
        return Facts(spec.prepared is not None, spec.features is not None, finished)

    def _after_failure(self, spec: StageSpec, error: VoxfleetError) -> StageSpec:
        """What to try within this very attempt; raises the error where there is nothing."""
        corrupt = spec.stage is Stage.PUBLISH and error.reason is Reason.CHECKPOINT_CORRUPT
        # Once: a store that damages everything would have us train for ever.
        if corrupt and self._checkpoints and not self._retrained:
            self._retrained, self._ended = True, False
            lost = self._checkpoints.pop(0)
            metrics.FALLBACKS.inc()
            self._tell(
                f"the last checkpoint (step {lost.step}) cannot be read: training goes on from before it"
            )
            return spec
        if spec.stage is not Stage.PREPARE and error.reason is Reason.ARTIFACT_NOT_FOUND:
            # An earlier attempt's file was cleared away: the next attempt looks again, and makes it anew.
            raise unavailable(
                Reason.WORKER_LOST, f"a file of the attempt is gone: {error.message}"
            ) from error
        raise error

    async def _succeeded(self, spec: StageSpec, trained: Trained | None, made: Published) -> Succeeded:
        newest = self._checkpoints[0]
        curve = trained.curve if trained else records.load_curve(await self._find(records.curve_name(newest)))
        figures = {"steps": float(newest.step), "epochs": float(newest.epoch)}
        if trained and trained.resumed_step:
            figures["resumed_step"] = float(trained.resumed_step)
        best = curve[-1][1] if curve else {}
        if best.get("best_step"):
            figures |= {name: round(best[name], 4) for name in ("best_mel_error", "best_step")}
        for name in _LOSSES:
            start, end = model.curve_ends(curve, name)
            figures |= {f"{name}_start": round(start, 4), f"{name}_end": round(end, 4)}
        if spec.prepared is not None:
            figures |= {"audio_s": spec.prepared.audio_s, "slices": float(spec.prepared.slices)}
        await self._files.delete(_spent(spec))
        return Succeeded(
            voice=VoiceOutput(made.package, spec.recipe.content_encoder, made.rate_hz, figures),
            metrics=figures,
            curve=curve,
            weights=spec.recipe.preset,
            weights_trained=True,
        )

    # ---- one stage

    async def _run(self, spec: StageSpec) -> Result:
        """Gives a stage a process, follows it, and ends the process."""
        self._attempt.check_stop()
        self._stage = spec.stage
        trains = spec.stage is Stage.TRAIN
        waiting = "; ".join(filter(None, [self._note, "waiting for a free GPU" if trains else ""]))
        self._report(Snapshot(model.PHASES_OF[spec.stage][0], note=waiting))
        with (
            metrics.RUNNING.labels(spec.stage.value).track_inprogress(),
            telemetry.span(f"stage {spec.stage.value}", job=self._job, gpus=self._gpus if trains else 0),
        ):
            nodes = await self._nodes_for(trains=trains)
            self.gpus_claimed = self._gpus if trains else 0
            try:
                running = await self._site.backend.start(
                    replace(spec, traceparent=telemetry.current_traceparent() or spec.traceparent), nodes
                )
            except BaseException:
                self.gpus_claimed = 0
                raise
            try:
                await self._placed(running)
                self._running = running
                self.heed(self._site.orders())
                self._seen_s = began_s = time.monotonic()
                log.info("%s: stage %s has its place", self._job, spec.stage.value)
                follower = Follower(
                    self._attempt,
                    running,
                    self._limits,
                    observe=self._observe,
                    record=self._record,
                    makes_room=spec.stage is not Stage.PUBLISH,
                )
                if trains:
                    self.gpus_held, self._held_since_s = self._gpus, began_s
                    with self._watch.training(self._job):
                        result = await follower.result()
                else:
                    result = await follower.result()
                took_s = time.monotonic() - began_s
                log.info("%s: stage %s is done after %.1f s", self._job, spec.stage.value, took_s)
                return result
            except VoxfleetError as error:
                if running.node and error.failure.concerns_node:
                    error.metadata.setdefault("node", running.node)
                raise
            finally:
                # Shielded: what holds a GPU is ended even where this task is being cancelled.
                await asyncio.shield(running.end())
                self.gpus_held, self.gpus_claimed, self._running = 0, 0, None

    async def _nodes_for(self, *, trains: bool) -> frozenset[str]:
        """Where a stage may go; waits while there is no such node, or no GPU is granted."""
        deadline_s = time.monotonic() + self._limits.place_s
        while True:
            found = model.nodes_for(
                self._site.nodes(),
                gpus=self._gpus if trains else 0,
                gpu_type=self._task.parameters.gpu_type,
                drained=self._site.orders().drained_nodes,
                avoid=self._attempt.lease.avoid_nodes,
            )
            if found and (not trains or self._site.may_hold(self._gpus)):
                return found
            if time.monotonic() >= deadline_s:
                raise _NoPlaceError
            await unless_stopped(self._attempt, asyncio.sleep(self._limits.poll_s))

    async def _placed(self, running: RunningStage) -> None:
        try:
            await unless_stopped(self._attempt, running.ready(), self._limits.place_s)
        except TimeoutError:
            raise _NoPlaceError from None

    async def _record(self, checkpoint: Checkpoint) -> None:
        """Makes a checkpoint's row under the fence, and deletes the bytes of those that lost theirs."""
        dropped = await self._attempt.record_checkpoint(checkpoint)
        self._checkpoints.insert(0, checkpoint)
        self._watch.saved(self._job)
        # The one just written is what the next stage reads, whatever the ledger's order makes of it.
        doomed = [key for key in dropped if key != checkpoint.blob.key]
        self._checkpoints = [kept for kept in self._checkpoints if kept.blob.key not in doomed]
        await self._files.delete([*doomed, *(records.curve_key(key) for key in doomed)])

    # ---- telling

    def _observe(self, snapshot: Snapshot) -> None:
        now_s = time.monotonic()
        elapsed_s, self._seen_s = now_s - self._seen_s, now_s
        self._note = snapshot.note or self._note
        if self._stage is Stage.TRAIN:
            metrics.GPU_SECONDS.labels(snapshot.phase.value).inc(elapsed_s * self._gpus)
            metrics.FALLBACKS.inc(max(snapshot.fallbacks - self._fallbacks, 0))
            self._fallbacks = snapshot.fallbacks
        if snapshot.phase is Phase.TRAIN:
            self._watch.speed(self._job, snapshot.metrics.get("steps_per_s", 0.0))
            if self._steps:
                metrics.STEPS.inc(max(snapshot.step - self._steps, 0))
            self._steps = snapshot.step
            for name in _LOSSES:
                if name in snapshot.metrics:
                    metrics.LOSS.labels(name.removeprefix("loss_")).set(snapshot.metrics[name])
        self._report(snapshot)

    def _report(self, snapshot: Snapshot) -> None:
        share = snapshot.step / snapshot.total_steps if snapshot.total_steps else 0.0
        speed = snapshot.metrics.get("steps_per_s", 0.0) if snapshot.phase is Phase.TRAIN else 0.0
        left_s = model.remaining_s(snapshot.step, snapshot.total_steps, speed)
        self._attempt.report(
            Progress(
                phase=snapshot.phase.value,
                step=snapshot.step,
                total_steps=snapshot.total_steps,
                percent=round(model.percent(snapshot.phase, share), 2),
                metrics=dict(snapshot.metrics),
                message="; ".join(filter(None, [self._batch_note, snapshot.note or self._note])),
                remaining_s=round(left_s, 1),
            )
        )

    def _tell(self, note: str) -> None:
        log.warning("%s: %s", self._job, note)
        self._note = note

    def _saved_words(self) -> str:
        if self._attempt.stop_kind in (StopKind.CANCEL, StopKind.LOST):
            raise AttemptStopped
        # The ledger takes what yields to have made room for higher work.
        kind = "drain" if self._leaves else (self._attempt.stop_kind or StopKind.YIELD).value
        saved = f"saved at step {self._checkpoints[0].step}" if self._checkpoints else ""
        why = f"{self._leaves} is being drained" if self._leaves else ""
        said = "; ".join(filter(None, [saved, why]))
        return f"{kind}: {said}" if said else kind

    def _no_place_words(self) -> str:
        of_type = f" of type {self._task.parameters.gpu_type}" if self._task.parameters.gpu_type else ""
        return f"no place with {self._gpus} free GPUs{of_type} in {self._limits.place_s:g} s"

    async def _find(self, name: str) -> bytes | None:
        found = self._files.find(self._task.team, self._fence.job_id, name)
        return await unless_stopped(self._attempt, found)


class _NoPlaceError(Exception):
    """The cluster had no room for a stage in time."""


def wish_of(parameters: TrainingParameters) -> model.Wish:
    """What the request says, for :func:`services.trainer.model.settle`."""
    return model.Wish(
        preset=parameters.preset,
        content_encoder=parameters.content_encoder,
        f0_method=parameters.f0_method,
        epochs=parameters.epochs,
        max_steps=parameters.max_steps,
        batch_size=parameters.batch_size,
        learning_rate=parameters.learning_rate,
        save_every=parameters.save_every,
        seed=parameters.seed,
        gpus=parameters.gpus,
    )


def _spent(spec: StageSpec) -> list[str]:
    """Keys of slices and features; records first: a record without its file would mislead an attempt."""
    blobs = [spec.prepared.blob] if spec.prepared else []
    blobs += [spec.features] if spec.features else []
    files = [blob.key for blob in blobs]
    return [key.removesuffix(".safetensors") + ".json" for key in files] + files
