"""One code and one sentence for each thing that can be in a job's way."""

from dataclasses import replace

import pytest

from services.metadata.scheduling.explain import Case, SeenNode, explain

NODE = SeenNode("nodes/a", 4.0, "H200", "alive")
PLAIN = Case("rvc.train", gpus=1.0, nodes=(NODE,))


@pytest.mark.parametrize(
    ("case", "code", "words"),
    [
        (replace(PLAIN, paused=True), "PAUSED", "ResumeJob"),
        (replace(PLAIN, waits_for=("teams/a/jobs/x",)), "DEPENDENCY", "teams/a/jobs/x succeeded"),
        (replace(PLAIN, waits_for=("teams/a/jobs/x", "y", "z")), "DEPENDENCY", "x and 2 other jobs"),
        (
            replace(PLAIN, back_off_s=12.4, last_error="WORKER_LOST"),
            "BACK_OFF",
            "(WORKER_LOST): the next is in 12",
        ),
        (replace(PLAIN, takers=0), "NO_WORKER", "takes rvc.train"),
        (replace(PLAIN, gpus=8.0), "NO_SUCH_GPU", "no node has 8 GPUs: nodes/a has 4 of type H200"),
        (replace(PLAIN, gpu_type="L4"), "NO_SUCH_GPU", "1 GPU of type L4"),
        (replace(PLAIN, nodes=(replace(NODE, state="draining"),)), "DRAINING", "nodes/a"),
        (replace(PLAIN, nodes=(replace(NODE, state="drained"),)), "DRAINING", "operator"),
        (replace(PLAIN, quota="it holds 4 of 4 GPUs"), "QUOTA", "4 of 4"),
        (replace(PLAIN, preempted=True), "PREEMPTED", "checkpoint"),
        (replace(PLAIN, ahead_others=1, ahead_own=3), "FAIR_SHARE", "1 job of other teams"),
        (replace(PLAIN, ahead_higher=2), "GPU_BUSY", "2 jobs of higher classes"),
        (replace(PLAIN, ahead_own=2), "GPU_BUSY", "own team"),
        (PLAIN, "GPU_BUSY", "next"),
        (replace(PLAIN, free=1), "", "about to begin"),
    ],
)
def test_each_cause_has_its_code_and_says_it_in_a_sentence(case, code, words):
    found = explain(case)
    assert found.code == code
    assert words in found.sentence
    assert "\n" not in found.sentence


def test_what_its_owner_can_change_is_said_before_what_only_time_can():
    everything = replace(
        PLAIN,
        paused=True,
        waits_for=("x",),
        back_off_s=5.0,
        takers=0,
        gpu_type="none",
        quota="full",
        preempted=True,
        ahead_others=1,
    )
    order = []
    for cure in (
        {"paused": False},
        {"waits_for": ()},
        {"back_off_s": 0.0},
        {"takers": 1},
        {"gpu_type": ""},
        {"quota": ""},
        {"preempted": False},
        {"ahead_others": 0},
    ):
        order.append(explain(everything).code)
        everything = replace(everything, **cure)
    assert order == [
        "PAUSED", "DEPENDENCY", "BACK_OFF", "NO_WORKER", "NO_SUCH_GPU", "QUOTA", "PREEMPTED", "FAIR_SHARE",
    ]  # fmt: skip


def test_a_node_that_is_dead_and_one_without_gpus_hold_no_job_that_asks_for_a_type():
    dead = replace(NODE, name="nodes/dead", gpu_type="L4", state="dead")
    bare = SeenNode("nodes/bare", 0.0, "L4", "alive")
    assert explain(replace(PLAIN, gpu_type="L4", nodes=(dead, bare, NODE))).code == "NO_SUCH_GPU"
    # Shares of a GPU go where the pool is, whatever its nodes say of whole ones.
    assert explain(Case("f5.item", gpus=0.2, nodes=(bare,))).code == "GPU_BUSY"


def test_a_drained_node_matters_only_where_no_other_fits():
    drained = replace(NODE, name="nodes/b", state="drained")
    assert explain(replace(PLAIN, nodes=(NODE, drained))).code == "GPU_BUSY"
    small = replace(NODE, gpus=1.0)
    assert explain(replace(PLAIN, gpus=2.0, nodes=(small, drained))).code == "DRAINING"
