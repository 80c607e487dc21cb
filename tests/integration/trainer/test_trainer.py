"""Trainings on a real Ray head: whole, cancelled, killed and resumed, yielded. The order is the story's."""

from __future__ import annotations

import os
import signal
import time
import urllib.request

import psutil
import pytest

from services.common.artifacts.model import work_prefix
from services.engines.rvc.package import unpack_voice
from services.engines.rvc.voice import load_weights_of, read_facts
from tests.polling import until
from tests.processes import RANKS, children_running
from voxfleet.internal.v1 import work_pb2

pytestmark = pytest.mark.timeout(300)


def metrics(site) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{site.metrics_port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line[:1] not in ("#", "")
    }


def test_a_training_makes_a_voice_and_holds_a_whole_gpu_for_its_gpu_phases_alone(site, tmp_path):
    site.until(lambda: site.ledger.free == 2)
    assert site.ledger.virtual_gpus is True
    assert site.ledger.hello[0].queue == "trainer"
    site.ledger.lease("whole", site.task(max_steps=30))
    site.until(lambda: site.ledger.gpus_free == 1.0 and site.ledger.step("whole") > 0)
    ended = site.end_of("whole")

    assert ended.WhichOneof("outcome") == "succeeded", ended
    made = ended.succeeded
    assert (made.weights, made.weights_trained) == ("tiny_40k", True)
    assert (made.voice.content_encoder, made.voice.rate_hz) == ("whisper-base", 40_000)
    assert made.voice.metrics["steps"] == 30
    assert made.voice.metrics["loss_mel_end"] > 0
    assert [point.step for point in made.curve] == list(range(1, 31))
    phases = [phase for job, phase, _ in site.ledger.seen if job == "whole"]
    assert phases == sorted(
        phases, key=["fetch", "slice", "f0", "features", "train", "index", "publish"].index
    )
    percents = [progress.percent for progress in site.ledger.progress["whole"]]
    assert percents == sorted(percents)
    before = [gpus for job, phase, gpus in site.ledger.seen if phase in ("fetch", "slice", "f0")]
    assert set(before) == {2.0}
    assert {gpus for job, phase, gpus in site.ledger.seen if phase == "train"} <= {1.0, 2.0}

    package = tmp_path / "voice.zip"
    site.store.get_file(made.voice.package.key, package, sha256=made.voice.package.sha256)
    unpack_voice(package, tmp_path / "voice")
    facts = read_facts(tmp_path / "voice")
    assert facts.training["steps"] == 30
    assert load_weights_of(tmp_path / "voice", facts)

    left = [listed.key.rsplit("/", 1)[-1] for listed in site.store.list_prefix(work_prefix("blue", "whole"))]
    assert all(name.startswith("ckpt-") for name in left)
    assert sum(name.endswith(".safetensors") for name in left) <= 2
    site.until(lambda: site.actors() == [] and site.ledger.free == 2)
    seen = metrics(site)
    assert seen['voxfleet_trainings_total{outcome="succeeded"}'] == 1
    assert seen["voxfleet_training_checkpoints_total"] >= 1
    assert seen['voxfleet_training_gpu_seconds_total{phase="train"}'] > 0
    assert seen["voxfleet_training_checkpoint_age_seconds"] == 0


def test_a_cancel_stops_within_seconds_and_leaves_nothing_behind(site):
    site.ledger.lease("cancelled", site.task(max_steps=5_000))
    site.until(lambda: site.ledger.step("cancelled") > 3)
    assert len(site.actors()) == 1
    began = time.monotonic()
    site.ledger.notify("cancelled", work_pb2.NOTICE_KIND_CANCEL)
    ended = site.end_of("cancelled", timeout_s=20.0)
    took_s = time.monotonic() - began
    assert ended.WhichOneof("outcome") == "cancelled"
    assert site.actors() == []
    assert took_s < 15
    site.until(lambda: site.ledger.free == 2 and site.ledger.gpus_free == 2.0)


def test_a_killed_actor_is_a_lost_node_and_the_next_attempt_resumes(site):
    site.ledger.lease("killed", site.task(max_steps=5_000))
    site.until(lambda: len(site.ledger.checkpoints.get("killed", [])) == 2)
    (actor,) = site.actors()
    os.kill(actor, signal.SIGKILL)
    ended = site.end_of("killed")
    assert ended.failed.failure_class == "node"
    assert ended.failed.error.reason == "WORKER_LOST"
    newest = site.ledger.checkpoints["killed"][0].step
    assert newest > 0
    # What lost its row lost its bytes; what has one is there.
    kept = {listed.key for listed in site.store.list_prefix(work_prefix("blue", "killed"))}
    assert not kept & set(site.ledger.dropped)
    assert {row.blob.key for row in site.ledger.checkpoints["killed"]} <= kept

    told = len(site.ledger.progress["killed"])
    site.ledger.lease("killed", site.task(max_steps=newest + 10), attempt=2)
    ended = site.end_of("killed", attempt=2)
    assert ended.WhichOneof("outcome") == "succeeded", ended
    said = site.ledger.progress["killed"][told:]
    assert {progress.phase for progress in said}.isdisjoint({"fetch", "slice", "f0"})
    assert any(f"resumed at step {newest}" in progress.message for progress in said)
    assert ended.succeeded.voice.metrics["steps"] == newest + 10
    # The curve is whole: the first attempt's points came with its checkpoint.
    steps = [point.step for point in ended.succeeded.curve]
    assert (steps[0], steps[-1]) == (1, newest + 10)
    assert steps == sorted(steps)


def test_a_corrupt_newest_checkpoint_falls_back_and_says_so(site):
    site.ledger.lease("corrupt", site.task(max_steps=5_000))
    site.until(lambda: len(site.ledger.checkpoints.get("corrupt", [])) == 2)
    site.ledger.notify("corrupt", work_pb2.NOTICE_KIND_YIELD)
    ended = site.end_of("corrupt")
    assert ended.WhichOneof("outcome") == "released"
    newest, older = site.ledger.checkpoints["corrupt"]
    assert f"saved at step {newest.step}" in ended.released.message
    site.store.delete(newest.blob.key)
    site.store.put_bytes(newest.blob.key, b"junk")
    site.ledger.lease("corrupt", site.task(max_steps=newest.step + 5), attempt=2)
    ended = site.end_of("corrupt", attempt=2)
    assert ended.WhichOneof("outcome") == "succeeded", ended
    said = " ".join(progress.message for progress in site.ledger.progress["corrupt"])
    assert f"step {newest.step} cannot be used (ARTIFACT_CORRUPT)" in said
    assert f"resumed at step {older.step}" in said


def test_two_trainings_hold_two_gpus_and_a_bad_clip_fails_alone(site):
    site.ledger.lease("one", site.task(max_steps=5_000))
    site.ledger.lease("two", site.task("clip_es", max_steps=5_000))
    site.until(lambda: site.ledger.step("one") > 0 and site.ledger.step("two") > 0)
    site.until(lambda: site.ledger.gpus_free == 0.0 and site.ledger.free == 0)
    assert len(site.actors()) == 2
    for job in ("one", "two"):
        site.ledger.notify(job, work_pb2.NOTICE_KIND_CANCEL)
        site.end_of(job)
    site.ledger.lease("unknown", site.task(f0_method="rmvpe"))
    ended = site.end_of("unknown")
    assert ended.failed.error.reason == "UNSUPPORTED_ENGINE"
    assert ended.failed.failure_class == "input"
    site.until(lambda: site.actors() == [] and site.ledger.gpus_free == 2.0)


def test_one_training_holds_two_gpus_and_its_end_leaves_no_process_of_either(site):
    site.ledger.lease("pair", site.task(max_steps=5_000, gpus=2))
    site.until(lambda: site.ledger.step("pair") > 1 and site.ledger.gpus_free == 0.0)
    (actor,) = site.actors()
    first = [child.pid for child in children_running(RANKS, actor)]
    assert len(first) == 1
    site.until(lambda: len(site.ledger.checkpoints.get("pair", [])) > 0)
    os.kill(actor, signal.SIGKILL)
    ended = site.end_of("pair")
    assert ended.failed.error.reason == "WORKER_LOST"
    site.until(lambda: not any(map(psutil.pid_exists, first)))

    newest = site.ledger.checkpoints["pair"][0].step
    site.ledger.lease("pair", site.task(max_steps=newest + 3, gpus=2), attempt=2)
    ended = site.end_of("pair", attempt=2)
    assert ended.WhichOneof("outcome") == "succeeded", ended
    assert ended.succeeded.voice.metrics["steps"] == newest + 3
    assert ended.succeeded.voice.metrics["resumed_step"] == newest
    site.until(lambda: site.actors() == [] and site.ledger.gpus_free == 2.0)


def test_a_lost_head_fails_the_attempt_as_of_its_node_and_ends_the_process(site):
    site.ledger.lease("headless", site.task(max_steps=5_000))
    site.until(lambda: site.ledger.step("headless") > 0)
    assert site.ray.pid is not None
    tree = psutil.Process(site.ray.pid).children(recursive=True)
    os.kill(site.ray.pid, signal.SIGKILL)
    ended = site.end_of("headless")
    assert ended.failed.failure_class == "node"
    until(lambda: site.process.poll() is not None, 60.0)
    assert site.process.returncode == os.EX_TEMPFAIL
    _, alive = psutil.wait_procs(tree, timeout=20)
    assert [process.cmdline() for process in alive] == []
