"""The stages on real speech, in this process: what they store, how they resume, how they stop."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from services.common.artifacts.memory_store import MemoryArtifactStore
from services.common.artifacts.model import content_key
from services.common.errors import FailureClass, Reason, VoxfleetError, unavailable
from services.common.jobs.tasks import Blob, SourceAudio, TrainingParameters, TrainTask
from services.engines.rvc.package import pack_voice, unpack_voice
from services.engines.rvc.voice import load_weights_of, read_facts
from services.trainer import model
from services.trainer.app.training import wish_of
from services.trainer.model import Phase, Stage
from services.trainer.stage import Prepared, Published, StageSpec, Trained
from services.trainer.stages.context import StageContext, Telling, stage_folder
from services.trainer.stages.prepare import Slices, TrackedF0, prepare
from services.trainer.stages.publish import publish
from services.trainer.stages.runner import StageKit, StageRunner, unexpected
from services.trainer.stages.steps import Ground
from services.trainer.stages.training import CheckpointSaver, train
from tests.processes import RANKS, children_running

CLIP = Path(__file__).parents[2] / "fixtures" / "speech" / "clip_en_1.flac"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


class Bench:
    """One job's stages, one after another."""

    def __init__(self, cache: Path, folder: Path, *, clips: int = 1, **parameters: object) -> None:
        self.store = MemoryArtifactStore()
        self.cache, self.folder = cache, folder
        data = CLIP.read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        stored = self.store.put_bytes(content_key("blue", sha256), data)
        clip = Blob(key=stored.key, sha256=sha256, size_bytes=len(data))
        task = TrainTask(
            team="blue",
            voice="teams/blue/voices/v",
            audios=(SourceAudio(name="teams/blue/audios/a", blob=clip, duration_s=3.0),) * clips,
            parameters=TrainingParameters.model_validate(
                {"f0_method": "swift", "batch_size": 4, "max_steps": 4} | parameters
            ),
        )
        recipe = model.settle(
            wish_of(task.parameters), virtual_gpus=True, has_contentvec=False, checkpoint_s=3600.0
        )
        slices = model.slices_key([sha256] * clips, recipe)
        features = model.features_key(slices, recipe)
        self.spec = StageSpec(Stage.PREPARE, "job-1", 1, task, recipe, slices, features)

    def context(self, spec: StageSpec, telling: Telling | None = None) -> StageContext:
        folder = self.folder / f"{len(list(self.folder.iterdir()))}"
        folder.mkdir()
        phase = model.PHASES_OF[spec.stage][0]
        return StageContext(spec, self.store, folder, self.cache, 1, telling or Telling(phase))

    def prepare(self) -> Prepared:
        made = prepare(self.context(self.spec))
        self.spec = replace(
            self.spec,
            stage=Stage.TRAIN,
            prepared=made,
            schedule=model.schedule(self.spec.recipe, made.slices),
        )
        return made

    def train(self, telling: Telling | None = None, **changes: object) -> Trained:
        return train(self.context(replace(self.spec, **changes), telling))

    def publish(self, trained: Trained) -> Published:
        spec = replace(
            self.spec,
            stage=Stage.PUBLISH,
            features=trained.features,
            checkpoints=(trained.checkpoint,),
        )
        return publish(self.context(spec))


@pytest.fixture
def bench(cache, tmp_path):
    return lambda **parameters: Bench(cache, tmp_path, **parameters)


def test_clips_become_a_voice(bench, tmp_path):
    work = bench()
    prepared = work.prepare()
    assert prepared.slices == 1
    assert prepared.audio_s == pytest.approx(3.25, abs=0.5)
    telling = Telling(Phase.FEATURES)
    trained = work.train(telling)
    assert (trained.stopped, trained.device) == (False, "cpu")
    assert (trained.checkpoint.step, trained.checkpoint.epoch) == (4, 4)
    assert [step for step, _ in trained.curve] == [1, 2, 3, 4]
    assert trained.curve[0][1]["loss_mel"] > 0
    snapshot = telling.snapshot(0)
    assert (snapshot.phase, snapshot.step, snapshot.total_steps) == (Phase.TRAIN, 4, 4)
    assert snapshot.checkpoints[-1][1] == trained.checkpoint
    assert telling.snapshot(snapshot.checkpoints[-1][0]).checkpoints == ()

    published = work.publish(trained)
    again = work.publish(trained)
    assert published == again  # the same voice is the same bytes
    assert published.package.key == content_key("blue", published.package.sha256)
    package = tmp_path / "voice.zip"
    work.store.get_file(published.package.key, package)
    unpack_voice(package, tmp_path / "voice")
    facts = read_facts(tmp_path / "voice")
    assert set(facts.files) == {"model.safetensors", "index.faiss"}
    assert facts.training["steps"] == 4
    assert load_weights_of(tmp_path / "voice", facts)
    assert pack_voice(tmp_path / "voice", tmp_path / "again.zip") == published.package.sha256


def test_a_resume_goes_on_where_it_was_and_keeps_the_curve(bench):
    work = bench(max_steps=6)
    work.prepare()
    whole = work.train()
    stopped = work.train(schedule=replace(work.spec.schedule, max_steps=3), attempt=2)
    assert stopped.checkpoint.step == 3
    telling = Telling(Phase.FEATURES)
    resumed = work.train(telling, checkpoints=(stopped.checkpoint,), features=stopped.features, attempt=3)
    assert "resumed at step 3" in telling.snapshot(0).note
    assert resumed.checkpoint.step == 6
    losses = [[metrics["loss_mel"] for _, metrics in made.curve] for made in (whole, resumed)]
    assert losses[0] == losses[1]
    # The states are the same but for the number of epochs in their parameters.
    assert resumed.checkpoint.attempt == 3


def test_a_corrupt_checkpoint_falls_back_to_the_one_before_and_says_so(bench):
    work = bench()
    work.prepare()
    good = work.train(schedule=replace(work.spec.schedule, max_steps=2))
    bad = work.train(schedule=replace(work.spec.schedule, max_steps=3), attempt=2).checkpoint
    work.store.corrupt_for_test(bad.blob.key, b"not a state")
    telling = Telling(Phase.FEATURES)
    made = work.train(telling, checkpoints=(bad, good.checkpoint), features=good.features, attempt=3)
    snapshot = telling.snapshot(0)
    assert snapshot.fallbacks == 1
    assert "step 3 cannot be used (ARTIFACT_CORRUPT)" in snapshot.note
    assert "resumed at step 2" in snapshot.note
    assert [step for step, _ in made.curve] == [1, 2, 3, 4]


def test_a_damaged_state_under_an_honest_hash_is_not_used_either(bench):
    work = bench()
    work.prepare()
    good = work.train(schedule=replace(work.spec.schedule, max_steps=2))
    data = bytearray(work.store.get_bytes(good.checkpoint.blob.key))
    data[len(data) // 2] ^= 0xFF
    kept = work.store.put_bytes("teams/blue/work/job-1/1/ckpt-3.safetensors", bytes(data))
    bad = replace(good.checkpoint, blob=Blob(key=kept.key, sha256=kept.sha256, size_bytes=len(data)), step=3)
    telling = Telling(Phase.FEATURES)
    work.train(telling, checkpoints=(bad, good.checkpoint), features=good.features, attempt=2)
    assert "step 3 cannot be used (CHECKPOINT_CORRUPT)" in telling.snapshot(0).note


def test_where_no_checkpoint_is_left_training_starts_anew_and_says_so(bench):
    work = bench()
    work.prepare()
    lost = work.train().checkpoint
    work.store.delete(lost.blob.key)
    telling = Telling(Phase.FEATURES)
    made = work.train(telling, checkpoints=(lost,), attempt=2)
    assert "starts anew from step 0" in telling.snapshot(0).note
    assert [step for step, _ in made.curve] == [1, 2, 3, 4]


def test_a_store_that_is_down_is_no_reason_to_start_anew(bench, monkeypatch):
    work = bench()
    work.prepare()
    made = work.train()
    reads = work.store.get_file

    def down(key, path, *, sha256=""):
        if key == made.checkpoint.blob.key:
            raise unavailable(Reason.STORAGE_UNAVAILABLE, "the store is down")
        return reads(key, path, sha256=sha256)

    monkeypatch.setattr(work.store, "get_file", down)
    with pytest.raises(VoxfleetError) as raised:
        work.train(checkpoints=(made.checkpoint,), features=made.features, attempt=2)
    assert raised.value.reason is Reason.STORAGE_UNAVAILABLE


@pytest.mark.parametrize("save", [True, False])
def test_a_stop_ends_training_with_a_checkpoint_or_without(bench, save):
    work = bench(max_steps=10_000, save_every=5_000)
    work.prepare()
    telling = Telling(Phase.FEATURES)

    class StopAtTwo(Telling):
        def tell(self, phase, step=0, *rest, **named):
            super().tell(phase, step, *rest, **named)
            if step == 2:
                self.ask_stop(save=save)

    telling = StopAtTwo(Phase.FEATURES)
    made = work.train(telling)
    assert made.stopped
    assert (made.checkpoint.step if made.checkpoint else None) == (2 if save else None)


def test_a_stop_before_training_raises_cancelled(bench):
    work = bench()
    telling = Telling(Phase.FETCH)
    telling.ask_stop(save=True)
    with pytest.raises(VoxfleetError) as raised:
        prepare(work.context(work.spec, telling))
    assert raised.value.reason is Reason.CANCELLED


def test_a_lack_of_gpu_memory_halves_what_is_taken_at_once_and_says_so(bench, monkeypatch):
    import torch

    from services.engines.rvc.synthesizer import Synthesizer

    forward = Synthesizer.forward

    def crowded(self, content, *args, **named):
        if len(content) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return forward(self, content, *args, **named)

    monkeypatch.setattr(Synthesizer, "forward", crowded)
    work = bench(max_steps=2, clips=2)
    assert work.prepare().slices == 2
    telling = Telling(Phase.FEATURES)
    trained = work.train(telling)
    assert trained.checkpoint.step == 2
    assert "1 of a batch's 4 rows at a time: memory did not do for more" in telling.snapshot(0).note


def test_a_memory_that_holds_no_row_is_of_class_resource(bench, monkeypatch):
    import torch

    from services.engines.rvc.synthesizer import Synthesizer

    def full(self, *args, **named):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(Synthesizer, "forward", full)
    work = bench(max_steps=2)
    work.prepare()
    with pytest.raises(VoxfleetError) as raised:
        work.train()
    error = raised.value
    assert (error.reason, error.failure) == (Reason.GPU_OUT_OF_MEMORY, FailureClass.RESOURCE)
    assert error.metadata == {"batch_size": "4"}


@pytest.mark.parametrize("saves", [True, False])
def test_a_loss_that_is_no_number_goes_back_and_on_at_half_the_rate(bench, monkeypatch, saves):
    from services.engines.rvc import training

    take = training.train_step
    spoilt = []

    def spoils_once(state, share, group):
        metrics = take(state, share, group)
        if state.step == 4 and not spoilt:
            spoilt.append(state.step)
            metrics.loss_g.fill_(float("nan"))
        return metrics

    monkeypatch.setattr(training, "train_step", spoils_once)
    work = bench(max_steps=6, **({"save_every": 2} if saves else {}))
    work.prepare()
    telling = Telling(Phase.FEATURES)
    trained = work.train(telling)
    assert spoilt == [4]
    assert (trained.checkpoint.step, trained.stopped) == (6, False)
    assert f"back to step {2 if saves else 0}, with half the learning rate" in telling.snapshot(0).note
    assert trained.curve[-1][1]["lr"] == pytest.approx(model.TINY_LEARNING_RATE / 2, rel=0.01)
    assert [step for step, _ in trained.curve] == [1, 2, 3, 4, 5, 6]


def test_a_loss_that_stays_no_number_fails_and_the_last_checkpoint_is_sound(bench, monkeypatch):
    from services.engines.rvc import training

    take = training.train_step

    def spoils(state, share, group):
        metrics = take(state, share, group)
        if state.step >= 3:
            metrics.loss_g.fill_(float("nan"))
        return metrics

    monkeypatch.setattr(training, "train_step", spoils)
    work = bench(max_steps=6, save_every=1)
    work.prepare()
    telling = Telling(Phase.FEATURES)
    with pytest.raises(VoxfleetError) as raised:
        work.train(telling)
    assert raised.value.reason is Reason.TRAINING_DIVERGED
    saved = [checkpoint.step for _, checkpoint in telling.snapshot(0).checkpoints]
    assert max(saved) == 2


def test_two_ranks_train_in_two_processes_and_leave_none(bench):
    work = bench(max_steps=3, clips=2, gpus=2)
    work.prepare()
    telling = Telling(Phase.FEATURES)
    trained = work.train(telling)
    assert (trained.checkpoint.step, trained.stopped) == (3, False)
    assert [step for step, _ in trained.curve] == [1, 2, 3]
    assert not children_running(RANKS)
    resumed = work.train(
        checkpoints=(trained.checkpoint,),
        features=trained.features,
        schedule=replace(work.spec.schedule, max_steps=5, epochs=5),
        attempt=2,
    )
    assert (resumed.checkpoint.step, resumed.resumed_step) == (5, 3)


def test_a_rank_that_dies_fails_the_stage_and_leaves_none(bench, monkeypatch):
    from services.engines.rvc import training

    take = training.train_step

    def kills_the_other(state, share, group):
        if state.step == 1:
            for child in children_running(RANKS):
                child.kill()
        return take(state, share, group)

    monkeypatch.setattr(training, "train_step", kills_the_other)
    work = bench(max_steps=50, clips=2, gpus=2)
    work.prepare()
    with pytest.raises(VoxfleetError) as raised:
        work.train()
    assert (raised.value.reason, raised.value.failure) == (Reason.WORKER_LOST, FailureClass.TRANSIENT)
    assert not children_running(RANKS)


def test_a_lack_of_memory_outside_of_the_steps_is_of_that_class_too(bench):
    error = unexpected(RuntimeError("CUDA error: out of memory"), bench().spec)
    assert (error.reason, error.failure) == (Reason.GPU_OUT_OF_MEMORY, FailureClass.RESOURCE)
    assert unexpected(RuntimeError("a bug"), bench().spec).failure is FailureClass.PERMANENT


def test_an_upload_that_fails_is_told_later_and_not_lost(bench, monkeypatch):
    work = bench()
    work.prepare()
    context = work.context(work.spec)
    from services.engines.rvc import pipeline

    config = pipeline.preset("tiny_40k", content_width=512)
    state = pipeline.new_state(config, pipeline.TrainParams(epochs=1))
    stores, down = context.store.put_file, threading.Event()
    down.set()

    def put_file(key, path, **named):
        if down.is_set():
            raise unavailable(Reason.STORAGE_UNAVAILABLE, "the store is down")
        return stores(key, path, **named)

    monkeypatch.setattr(context.store, "put_file", put_file)
    ground = Ground(context.folder, config, state.params, "cpu")
    with CheckpointSaver(context, model.Curve(), ground) as saver:
        saver.save(state, must=False)
        with pytest.raises(VoxfleetError):
            saver.save(state, must=True)
        down.clear()
        saver.save(state, must=True)
        saver.save(state, must=True)  # nothing new: nothing is stored again
        assert saver.last.step == 0
    assert len(context.telling.snapshot(0).checkpoints) == 1


def test_slices_come_back_as_they_were(tmp_path):
    rng = np.random.default_rng(1)
    parts = [rng.standard_normal(n).astype(np.float32) for n in (400, 900)]
    quiet = [part[::2] for part in parts]
    tracks = [np.array([100.0, 0.0, 110.0], np.float32), np.array([200.0], np.float32)]
    Slices(parts, quiet, tracks, "swift").save(tmp_path / "slices")
    back = Slices.load(tmp_path / "slices")
    assert back.f0_method == "swift"
    for before, after in ((parts, back.samples), (quiet, back.samples_16k), (tracks, back.f0_hz)):
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    known = TrackedF0(back)
    assert known.track(quiet[0], 2).tolist() == [100.0, 0.0]
    assert known.track(quiet[1], 3).tolist() == [200.0] * 3
    assert known.track(np.zeros(50, np.float32), 4).tolist() == [0.0] * 4
    with pytest.raises(VoxfleetError):
        known.track(quiet[0] + 1, 2)
    (tmp_path / "slices").write_bytes(b"junk")
    with pytest.raises(VoxfleetError) as raised:
        Slices.load(tmp_path / "slices")
    assert raised.value.reason is Reason.ARTIFACT_CORRUPT


def test_folders_of_dead_processes_are_cleared_and_those_of_live_ones_kept(tmp_path):
    left = tmp_path / "left"
    left.mkdir()
    (left / "ckpt-5").write_bytes(b"x")
    with stage_folder(tmp_path) as one:
        assert not left.exists()
        with stage_folder(tmp_path) as two:
            assert one.exists()
            assert two != one
        assert not two.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_runner_tells_its_error_and_answers_while_it_works(bench, cache):
    work = bench()
    broken = replace(work.spec, task=work.spec.task.model_copy(update={"audios": ()}))
    runner = StageRunner(StageKit(lambda: work.store, cache), broken)
    runner.begin()
    runner._thread.join(60)
    assert runner.poll(0).error.reason is Reason.AUDIO_SILENT

    unforeseen = StageRunner(StageKit(lambda: 1 / 0, cache), work.spec)
    unforeseen.begin()
    unforeseen._thread.join(60)
    error = unforeseen.poll(0).error
    assert error.reason is Reason.TRAINING_FAILED
    assert "ZeroDivisionError" in error.message
