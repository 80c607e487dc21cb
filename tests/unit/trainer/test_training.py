"""The controller: stages in order, checkpoints under the fence, stops, failures."""

from __future__ import annotations

import asyncio

import pytest

from services.common.artifacts.memory_store import MemoryArtifactStore
from services.common.artifacts.model import work_key
from services.common.errors import FailureClass, Kind, Reason, VoxfleetError, unavailable
from services.common.jobs.model import (
    AttemptStopped,
    FleetOrders,
    NodeFacts,
    Released,
    StopKind,
    Succeeded,
    TrainingGpus,
)
from services.common.jobs.tasks import Blob
from services.trainer import model, records
from services.trainer.app.following import Limits
from services.trainer.app.training import wish_of
from services.trainer.model import Phase, Stage
from services.trainer.stage import Prepared, Published, Snapshot
from tests.unit.trainer.conftest import HASH, JOB, TEAM, blob, checkpoint


def error(reason, kind=Kind.INTERNAL, failure=None):
    return VoxfleetError(reason, "as the test wants it", kind=kind, failure=failure)


async def test_a_training_runs_its_three_stages_and_hands_over(play):
    run = play(max_steps=6, batch_size=8)
    await run.prepare(slices=16)
    train = await run.next_stage(Stage.TRAIN)
    assert (train.spec.schedule.steps_per_epoch, train.spec.schedule.max_steps) == (2, 6)
    train.train(3, total=6)
    progress = await run.seen(lambda p: p.step == 3)
    assert progress.phase == "train"
    assert progress.percent == pytest.approx(10 + 86 / 2)
    assert progress.remaining_s == pytest.approx(1.5 + model.PUBLISH_S)
    run.finish_training(train, checkpoint(6, epoch=3))
    publish = await run.publish()
    made = await run.outcome()

    assert isinstance(made, Succeeded)
    assert made.voice.package.sha256 == HASH
    assert made.voice.rate_hz == 40_000
    assert made.voice.content_encoder == "whisper-base"
    assert made.weights == "tiny_40k"
    assert made.metrics["steps"] == 6
    assert made.metrics["loss_mel_start"] > made.metrics["loss_mel_end"]
    assert len(made.curve) == 6
    assert publish.spec.checkpoints[0].step == 6
    assert [stage.ended for stage in run.backend.stages] == [True] * 3
    assert [c.step for c in run.ledger.recorded] == [6]


async def test_only_the_training_stage_counts_as_holding_gpus(play):
    run = play()
    assert run.trainer.capacity().free == {"rvc.train": 0}  # nothing is known of the nodes yet
    prepare = await run.next_stage(Stage.PREPARE, placed=False)
    assert run.trainer.capacity().free == {"rvc.train": 1}  # two are free, one is spoken for
    prepare.placed.set()
    prepare.say(Snapshot(Phase.F0, result=Prepared(blob("slices-x.safetensors"), 8, 30.0)))
    train = await run.next_stage(Stage.TRAIN)
    train.train(1)
    await run.seen(lambda p: p.step == 1)
    # Ray has not noticed yet that one is taken: still only one is offered.
    assert run.trainer.capacity().free == {"rvc.train": 1}
    run.finish_training(train, checkpoint(100, epoch=100))
    publish = await run.next_stage(Stage.PUBLISH)
    assert run.trainer.capacity().free == {"rvc.train": 2}
    assert not publish.ended


async def test_a_stored_preparation_is_used_by_the_next_attempt(play):
    store = MemoryArtifactStore()
    first = play(store=store)
    stage = await first.next_stage(Stage.PREPARE)
    prepared = Prepared(blob(records.slices_name(stage.spec.slices_key)), 8, 30.0)
    name = records.prepared_name(stage.spec.slices_key)
    store.put_bytes(work_key(TEAM, JOB, 1, name), records.dump_prepared(prepared))
    second = play(store=store, number=2)
    train = await second.next_stage(Stage.TRAIN)
    assert train.spec.prepared == prepared
    # Another F0 method is another content key.
    third = play(store=store, number=3, f0_method="pm")
    await third.next_stage(Stage.PREPARE)


async def test_a_finished_checkpoint_needs_no_gpu_any_more(play):
    store = MemoryArtifactStore()
    probe = play(store=store, max_steps=6)
    spec = (await probe.next_stage(Stage.PREPARE)).spec
    prepared = Prepared(blob(records.slices_name(spec.slices_key)), 16, 30.0)
    for name, data in (
        (records.prepared_name(spec.slices_key), records.dump_prepared(prepared)),
        (records.features_record_name(spec.features_key), records.dump_blob(blob("features-x.safetensors"))),
        ("ckpt-6.curve.json", records.dump_curve(((1, {"loss_mel": 9.0}), (6, {"loss_mel": 3.0})))),
    ):
        store.put_bytes(work_key(TEAM, JOB, 1, name), data)
    run = play((checkpoint(6, epoch=3), checkpoint(4, epoch=2)), store=store, number=2, max_steps=6)
    await run.publish()
    made = await run.outcome()
    assert [stage.spec.stage for stage in run.backend.stages] == [Stage.PUBLISH]
    assert (made.metrics["loss_mel_start"], made.metrics["loss_mel_end"]) == (9.0, 3.0)


async def test_a_finished_checkpoint_that_cannot_be_read_is_trained_again_once(play):
    store = MemoryArtifactStore()
    probe = play(store=store, max_steps=6)
    spec = (await probe.next_stage(Stage.PREPARE)).spec
    prepared = Prepared(blob("slices-x.safetensors"), 16, 30.0)
    for name, data in (
        (records.prepared_name(spec.slices_key), records.dump_prepared(prepared)),
        (records.features_record_name(spec.features_key), records.dump_blob(blob("features-x.safetensors"))),
    ):
        store.put_bytes(work_key(TEAM, JOB, 1, name), data)
    run = play((checkpoint(6, epoch=3), checkpoint(4, epoch=2)), store=store, number=2, max_steps=6)
    corrupt = error(Reason.CHECKPOINT_CORRUPT, Kind.DATA_LOSS)
    (await run.next_stage(Stage.PUBLISH)).say(Snapshot(Phase.INDEX, error=corrupt))
    train = await run.next_stage(Stage.TRAIN)
    assert [c.step for c in train.spec.checkpoints] == [4]
    assert any("(step 6) cannot be read" in p.message for p in run.attempt.reports)
    run.finish_training(train, checkpoint(6, epoch=3, attempt=2))
    (await run.next_stage(Stage.PUBLISH)).say(Snapshot(Phase.INDEX, error=corrupt))
    with pytest.raises(VoxfleetError) as raised:
        await run.outcome()
    assert raised.value.reason is Reason.CHECKPOINT_CORRUPT


async def test_checkpoints_are_recorded_in_order_and_the_dropped_ones_deleted(play):
    run = play(max_steps=100)
    await run.prepare()
    train = await run.next_stage(Stage.TRAIN)
    for step in (10, 20, 30):
        key = work_key(TEAM, JOB, 1, records.checkpoint_name(step))
        run.store.put_bytes(key, b"state")
        run.store.put_bytes(records.curve_key(key), b"[]")
        train.saved(checkpoint(step))
        train.train(step)
        await run.seen(lambda p, step=step: p.step == step)
    run.finish_training(train, checkpoint(100, epoch=50))
    await run.next_stage(Stage.PUBLISH)
    assert [c.step for c in run.ledger.recorded] == [10, 20, 30, 100]
    left = sorted(item.key.rsplit("/", 1)[-1] for item in run.store.list_prefix(f"teams/{TEAM}/work/"))
    assert left == ["ckpt-30.curve.json", "ckpt-30.safetensors"]


async def test_training_goes_on_while_metadata_is_down(play):
    run = play(max_steps=100)
    await run.prepare()
    train = await run.next_stage(Stage.TRAIN)
    run.ledger.error = unavailable(Reason.SERVICE_UNAVAILABLE, "metadata restarts")
    train.saved(checkpoint(10))
    train.train(10)
    await run.seen(lambda p: p.step == 10)
    train.train(11)
    await run.seen(lambda p: p.step == 11)
    assert train.acknowledged == 0
    run.ledger.error = None
    train.train(12)
    train.train(13)
    await run.seen(lambda p: p.step == 13)
    assert [c.step for c in run.ledger.recorded] == [10]
    assert train.acknowledged == 1


async def test_a_result_waits_until_its_checkpoint_is_recorded(play):
    run = play(max_steps=100)
    await run.prepare()
    train = await run.next_stage(Stage.TRAIN)
    run.ledger.error = unavailable(Reason.SERVICE_UNAVAILABLE, "metadata restarts")
    run.finish_training(train, checkpoint(100, epoch=50))
    train.train(100)  # a poll after the result: it was not taken for the end
    await run.seen(lambda p: p.step == 100 and p.metrics != {})
    assert run.backend.begun.empty()
    run.ledger.error = None
    run.finish_training(train, checkpoint(100, epoch=50))
    await run.next_stage(Stage.PUBLISH)


async def test_a_lost_lease_at_a_checkpoint_ends_the_stage(play):
    run = play(max_steps=100)
    await run.prepare()
    train = await run.next_stage(Stage.TRAIN)
    run.ledger.error = error(Reason.LEASE_LOST, Kind.ABORTED)
    train.saved(checkpoint(10))
    train.train(10)
    with pytest.raises(VoxfleetError) as raised:
        await run.outcome()
    assert raised.value.reason is Reason.LEASE_LOST
    assert train.ended


@pytest.mark.parametrize("kind", [StopKind.YIELD, StopKind.SHUTDOWN])
async def test_a_yield_saves_first_and_then_gives_back(play, kind):
    run = play(max_steps=100)
    await run.prepare()
    train = await run.next_stage(Stage.TRAIN)
    train.train(5)
    await run.seen(lambda p: p.step == 5)
    run.stop(kind)
    await asyncio.wait_for(train.asked_to_stop.wait(), 5)
    assert train.save
    assert not train.ended
    run.finish_training(train, checkpoint(7), stopped=True)
    outcome = await run.outcome()
    assert isinstance(outcome, Released)
    assert "step 7" in outcome.message
    assert [c.step for c in run.ledger.recorded] == [7]
    assert train.ended


async def test_a_cancel_while_it_makes_room_does_not_wait_for_the_save(play):
    run = play(max_steps=100, limits=Limits(poll_s=0.001, yield_s=60.0, cancel_s=0.01))
    await run.prepare()
    train = await run.next_stage(Stage.TRAIN)
    train.train(5)
    await run.seen(lambda p: p.step == 5)
    run.stop(StopKind.YIELD)
    await asyncio.wait_for(train.asked_to_stop.wait(), 5)
    run.stop(StopKind.CANCEL)
    train.train(6)  # it still saves, and never ends by itself
    with pytest.raises(AttemptStopped):
        await run.outcome()
    assert run.attempt.stop_kind is StopKind.CANCEL
    assert train.ended


async def test_a_voice_that_is_being_packed_needs_no_room_and_is_let_end(play):
    run = play(max_steps=6)
    await run.prepare()
    run.finish_training(await run.next_stage(Stage.TRAIN), checkpoint(6, epoch=3))
    publish = await run.next_stage(Stage.PUBLISH)
    run.stop(StopKind.YIELD)
    publish.say(Snapshot(Phase.INDEX))
    await run.seen(lambda p: p.phase == "index")
    package = Published(Blob(key="k", sha256=HASH, size_bytes=9), 40_000)
    publish.say(Snapshot(Phase.PUBLISH, result=package))
    assert isinstance(await run.outcome(), Succeeded)
    assert not publish.asked_to_stop.is_set()


def two_nodes(a_free: float = 1.0, b_free: float = 1.0) -> tuple[NodeFacts, ...]:
    return (
        NodeFacts("nodes/a", "alive", 1.0, a_free, 8.0, True),
        NodeFacts("nodes/b", "alive", 1.0, b_free, 8.0, True),
    )


A_DRAINED = FleetOrders(frozenset({"nodes/a"}))


async def test_a_training_on_a_drained_node_saves_and_leaves(play):
    run = play(max_steps=100, nodes=two_nodes())
    await run.prepare()
    train = await run.next_stage(Stage.TRAIN)
    train.train(5)
    await run.seen(lambda p: p.step == 5)
    assert (train.nodes, train.node) == ({"nodes/a", "nodes/b"}, "nodes/a")
    run.trainer.obey(FleetOrders(frozenset({"nodes/b"})))
    assert not run.attempt.stopping
    run.trainer.obey(A_DRAINED)
    await asyncio.wait_for(train.asked_to_stop.wait(), 5)
    assert train.save
    assert {node.name: node.state for node in run.trainer.capacity().nodes} == {
        "nodes/a": "draining",
        "nodes/b": "alive",
    }
    run.finish_training(train, checkpoint(7), stopped=True)
    outcome = await run.outcome()
    assert outcome == Released("drain: saved at step 7; nodes/a is being drained")
    assert run.trainer.capacity().nodes[0].state == "drained"
    # It goes on elsewhere, from where it was.
    again = play((checkpoint(7),), number=2, max_steps=100, nodes=two_nodes(), orders=A_DRAINED)
    assert (await again.next_stage(Stage.PREPARE)).nodes == {"nodes/b"}


async def test_what_prepares_on_a_drained_node_is_let_end_and_trains_elsewhere(play):
    run = play(nodes=two_nodes())
    prepare = await run.next_stage(Stage.PREPARE)
    prepare.say(Snapshot(Phase.SLICE))
    await run.seen(lambda p: p.phase == "slice")
    run.trainer.obey(A_DRAINED)
    assert run.trainer.capacity().nodes[0].state == "draining"
    assert not run.attempt.stopping
    prepare.say(Snapshot(Phase.F0, result=Prepared(blob("slices-x.safetensors"), 8, 30.0)))
    train = await run.next_stage(Stage.TRAIN)
    assert train.nodes == {"nodes/b"}


async def test_a_stage_that_was_placed_as_its_node_was_drained_leaves_at_once(play):
    run = play(nodes=two_nodes())
    await run.prepare()
    train = await run.next_stage(Stage.TRAIN, placed=False)
    run.trainer.obey(A_DRAINED)
    train.placed.set()
    train.train(1)
    await asyncio.wait_for(train.asked_to_stop.wait(), 5)


async def test_drained_nodes_and_grants_bound_what_is_offered(play):
    run = play(nodes=two_nodes())
    await run.prepare()
    train = await run.next_stage(Stage.TRAIN)
    train.train(1)
    await run.seen(lambda p: p.step == 1)
    free = [run.trainer.capacity().free["rvc.train"]]
    for orders in (
        A_DRAINED,
        FleetOrders(frozenset({"nodes/b"})),
        FleetOrders(frozenset({"nodes/a", "nodes/b"})),
        FleetOrders(grants={"trainer": 1.0, "rvc": 1.0}),
        FleetOrders(grants={"rvc": 1.0}),
    ):
        run.trainer.obey(orders)
        free.append(run.trainer.capacity().free["rvc.train"])
    # Ray does not know yet that the first one's GPU is taken.
    assert free == [1, 1, 0, 0, 0, 1]


async def test_a_training_takes_no_gpu_that_is_not_granted(play):
    """Ray may have one free that belongs to the pools."""
    run = play(nodes=two_nodes(), orders=FleetOrders(grants={"trainer": 0.0}), max_steps=6)
    await run.prepare()
    await run.seen(lambda p: "waiting for a free GPU" in p.message)
    (facts,) = run.trainer.capacity().gpus.trainings
    assert facts == TrainingGpus("job-1", 1), "it waits"
    assert [stage.spec.stage for stage in run.backend.stages] == [Stage.PREPARE]
    run.trainer.obey(FleetOrders(grants={"trainer": 1.0}))
    train = await run.next_stage(Stage.TRAIN)
    train.train(1)
    await run.seen(lambda p: p.step == 1)
    (facts,) = run.trainer.capacity().gpus.trainings
    assert facts == TrainingGpus("job-1", 1, "nodes/a")
    assert facts.held_s > 0
    assert not run.trainer._may_hold(1), "it holds all that is granted"
    run.finish_training(train, checkpoint(6, epoch=3))
    await run.next_stage(Stage.PUBLISH)
    assert run.trainer.capacity().gpus.trainings == (TrainingGpus("job-1", 0),)


async def test_a_grant_that_does_not_come_gives_the_job_back(play):
    run = play(limits=Limits(poll_s=0.001, place_s=0.05), orders=FleetOrders(grants={"trainer": 0.0}))
    await run.prepare()
    assert isinstance(await run.outcome(), Released)


async def test_a_training_waits_for_a_node_that_will_do(play):
    run = play(nodes=two_nodes(), orders=FleetOrders(frozenset({"nodes/a", "nodes/b"})))
    await run.seen(lambda p: p.phase == "fetch")
    assert run.backend.begun.empty()
    run.trainer.obey(A_DRAINED)
    assert (await run.next_stage(Stage.PREPARE)).nodes == {"nodes/b"}


async def test_a_type_of_gpu_that_is_not_there_gives_the_job_back(play):
    run = play(limits=Limits(poll_s=0.001, place_s=0.01), gpu_type="H200")
    await run.prepare()
    assert await run.outcome() == Released("no place with 1 free GPUs of type H200 in 0.01 s")


async def test_the_nodes_where_it_failed_are_passed_over(play):
    run = play(nodes=two_nodes(), avoid_nodes=("nodes/a", "some-controller"))
    assert (await run.next_stage(Stage.PREPARE)).nodes == {"nodes/b"}
    alone = play(avoid_nodes=("nodes/a",))
    assert (await alone.next_stage(Stage.PREPARE)).nodes == {"nodes/a"}


async def test_a_cancel_saves_nothing_and_ends_the_process(play):
    run = play(max_steps=100)
    await run.prepare()
    train = await run.next_stage(Stage.TRAIN)
    train.train(5)
    await run.seen(lambda p: p.step == 5)
    run.stop(StopKind.CANCEL)
    await asyncio.wait_for(train.asked_to_stop.wait(), 5)
    assert not train.save
    train.say(Snapshot(Phase.TRAIN, 5, 100, error=error(Reason.CANCELLED, Kind.CANCELLED)))
    with pytest.raises(AttemptStopped):
        await run.outcome()
    assert train.ended
    assert run.trainer.capacity().free == {"rvc.train": 2}


async def test_a_stage_that_does_not_stop_is_ended(play):
    run = play(limits=Limits(poll_s=0.001, cancel_s=0.01))
    await run.prepare()
    train = await run.next_stage(Stage.TRAIN)
    train.train(5)
    await run.seen(lambda p: p.step == 5)
    run.stop(StopKind.CANCEL)  # it never answers again
    with pytest.raises(AttemptStopped):
        await run.outcome()
    assert train.ended


async def test_a_lost_lease_asks_nothing_and_ends_the_process(play):
    run = play()
    await run.prepare()
    train = await run.next_stage(Stage.TRAIN)
    train.train(5)
    await run.seen(lambda p: p.step == 5)
    run.stop(StopKind.LOST)
    with pytest.raises(AttemptStopped):
        await run.outcome()
    assert train.ended
    assert not train.asked_to_stop.is_set()


async def test_a_stop_while_waiting_for_a_gpu_frees_the_place(play):
    run = play()
    await run.prepare()
    train = await run.next_stage(Stage.TRAIN, placed=False)
    assert "waiting for a free GPU" in run.attempt.reports[-1].message
    run.stop(StopKind.CANCEL)
    with pytest.raises(AttemptStopped):
        await run.outcome()
    assert train.ended


async def test_no_free_gpu_in_time_gives_the_job_back(play):
    run = play(limits=Limits(poll_s=0.001, place_s=0.01))
    prepare = await run.next_stage(Stage.PREPARE)
    prepare.say(Snapshot(Phase.F0, result=Prepared(blob("slices-x.safetensors"), 8, 30.0)))
    train = await run.next_stage(Stage.TRAIN, placed=False)
    assert isinstance(await run.outcome(), Released)
    assert train.ended


async def test_out_of_gpu_memory_is_the_ledgers_to_halve(play):
    run = play(batch_size=8, max_steps=100)
    await run.prepare(slices=16)
    train = await run.next_stage(Stage.TRAIN)
    oom = error(Reason.GPU_OUT_OF_MEMORY, Kind.EXHAUSTED)
    train.say(Snapshot(Phase.TRAIN, 12, 100, error=oom))
    with pytest.raises(VoxfleetError) as raised:
        await run.outcome()
    assert raised.value.failure is FailureClass.RESOURCE
    assert raised.value.metadata["node"] == "nodes/a"
    assert train.ended


async def test_a_scaled_attempt_takes_less_at_once_and_says_so(play):
    run = play((checkpoint(10),), number=2, batch_size=8, batch_scale=0.5, max_steps=100)
    await run.prepare(slices=16)
    train = await run.next_stage(Stage.TRAIN)
    assert (train.spec.recipe.batch_size, train.spec.recipe.micro_batch) == (8, 4)
    assert train.spec.schedule.steps_per_epoch == 2
    assert [c.step for c in train.spec.checkpoints] == [10]
    train.train(11)
    progress = await run.seen(lambda p: p.step == 11)
    assert "batches of 8 in parts of 4" in progress.message
    plain = play(batch_size=1)
    assert (await plain.next_stage(Stage.PREPARE)).spec.recipe.micro_batch == 0
    assert not any("batches" in progress.message for progress in plain.attempt.reports)


async def test_a_dead_worker_fails_the_attempt_as_of_its_node(play):
    run = play()
    await run.prepare()
    train = await run.next_stage(Stage.TRAIN)
    train.say(error(Reason.WORKER_LOST, Kind.UNAVAILABLE, FailureClass.NODE))
    with pytest.raises(VoxfleetError) as raised:
        await run.outcome()
    assert raised.value.failure is FailureClass.NODE
    assert raised.value.metadata["node"] == "nodes/a"
    assert train.ended


async def test_a_silent_stage_counts_as_lost(play):
    run = play(limits=Limits(poll_s=0.001, silence_s=0.01))
    await run.next_stage(Stage.PREPARE)
    with pytest.raises(VoxfleetError) as raised:
        await run.outcome()
    assert (raised.value.reason, raised.value.failure) == (Reason.WORKER_LOST, FailureClass.NODE)
    assert run.backend.stages[0].ended


async def test_a_step_that_hangs_counts_as_lost(play):
    run = play(limits=Limits(poll_s=0.001, stall_s=0.02), max_steps=100)
    await run.prepare(slices=16)
    train = await run.next_stage(Stage.TRAIN)
    async with asyncio.timeout(5):
        # Its process answers, and always the same.
        while not run.running.done():
            train.train(11)
            await asyncio.sleep(0.001)
    with pytest.raises(VoxfleetError) as raised:
        await run.outcome()
    assert (raised.value.reason, raised.value.failure) == (Reason.WORKER_LOST, FailureClass.NODE)
    assert "no step after 11" in raised.value.message
    assert train.ended


async def test_a_file_that_is_gone_is_worth_another_attempt(play):
    run = play()
    await run.prepare()
    train = await run.next_stage(Stage.TRAIN)
    train.say(Snapshot(Phase.FEATURES, error=error(Reason.ARTIFACT_NOT_FOUND, Kind.NOT_FOUND)))
    with pytest.raises(VoxfleetError) as raised:
        await run.outcome()
    assert raised.value.failure is FailureClass.TRANSIENT


async def test_a_clip_at_fault_is_never_tried_again(play):
    run = play()
    prepare = await run.next_stage(Stage.PREPARE)
    prepare.say(Snapshot(Phase.SLICE, error=error(Reason.AUDIO_SILENT, Kind.INVALID)))
    with pytest.raises(VoxfleetError) as raised:
        await run.outcome()
    assert (raised.value.reason, raised.value.failure) == (Reason.AUDIO_SILENT, FailureClass.INPUT)
    assert "node" not in raised.value.metadata


async def test_a_note_of_a_stage_reaches_the_progress_and_stays(play):
    run = play(max_steps=100)
    await run.prepare()
    train = await run.next_stage(Stage.TRAIN)
    train.say(Snapshot(Phase.TRAIN, 1, 100, note="the checkpoint at step 20 cannot be used", fallbacks=1))
    train.train(2)
    progress = await run.seen(lambda p: p.step == 2)
    assert "step 20 cannot be used" in progress.message


async def test_what_the_request_says_reaches_the_recipe(play):
    run = play(
        epochs=5, batch_size=3, learning_rate=2e-4, save_every=2, preset="v2_48k", f0_method="dio",
        content_encoder="contentvec", gpus=2, seed=7, max_steps=40,
    )  # fmt: skip
    stage = await run.next_stage(Stage.PREPARE)
    recipe = stage.spec.recipe
    assert recipe == model.settle(
        wish_of(stage.spec.task.parameters), virtual_gpus=True, has_contentvec=False
    )
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate, recipe.save_every) == (5, 3, 2e-4, 2)
    assert (recipe.preset, recipe.f0_method, recipe.content_encoder) == ("v2_48k", "dio", "contentvec")
    assert (recipe.gpus, recipe.seed, recipe.max_steps) == (2, 7, 40)


async def test_a_finished_training_clears_slices_and_features_away(play):
    run = play(max_steps=6)
    await run.prepare()
    for name in ("slices-x", "features-x"):
        for end in (".json", ".safetensors"):
            run.store.put_bytes(work_key(TEAM, JOB, 1, name + end), b"{}")
    run.finish_training(await run.next_stage(Stage.TRAIN), checkpoint(6, epoch=3))
    await run.publish()
    await run.outcome()
    assert list(run.store.list_prefix(f"teams/{TEAM}/work/")) == []
