"""What trainer and inference share about Ray, without a Ray."""

from __future__ import annotations

import asyncio

import pytest
import ray.exceptions
from ray.exceptions import RayTaskError

from services.common.errors import FailureClass, Reason, VoxfleetError, invalid
from services.common.rayrt.failures import from_ray
from services.common.rayrt.joining import wait_lost
from services.common.rayrt.nodes import facts_of, node_names


def wrapped(cause: Exception) -> Exception:
    """As Ray raises it: an error that is of the wrapper's and of the cause's class at once."""
    return RayTaskError("f", "Traceback …", cause).as_instanceof_cause()


def test_the_error_inside_is_what_comes_out():
    inner = invalid(Reason.AUDIO_SILENT, "nothing is heard", field="clips", threshold_db=-42)
    outer = wrapped(inner)
    assert isinstance(outer, VoxfleetError)
    assert from_ray(outer) is inner
    assert from_ray(RayTaskError("g", "Traceback …", RayTaskError("f", "…", inner))) is inner


def test_an_error_that_is_not_ours_is_a_defect():
    found = from_ray(wrapped(KeyError("missing")))
    assert found.reason is Reason.INTERNAL
    assert "KeyError" in found.message


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (ray.exceptions.ActorDiedError(), FailureClass.NODE),
        (ray.exceptions.WorkerCrashedError(), FailureClass.NODE),
        (ray.exceptions.NodeDiedError("gone"), FailureClass.NODE),
        (ray.exceptions.RaySystemError("no head"), FailureClass.NODE),
        (ConnectionError("refused"), FailureClass.NODE),
        (ray.exceptions.OutOfMemoryError("node"), FailureClass.RESOURCE),
        (ray.exceptions.GetTimeoutError("late"), FailureClass.TRANSIENT),
    ],
)
def test_ray_s_own_failures_are_a_lost_worker(error, failure):
    found = from_ray(error)
    assert (found.reason, found.failure) == (Reason.WORKER_LOST, failure)
    assert found.metadata["ray_error"] == type(error).__name__


def node(node_id: str, host: str, resources: dict[str, float], *, alive: bool = True) -> dict[str, object]:
    return {"NodeID": node_id, "NodeManagerHostname": host, "Alive": alive, "Resources": resources}


def test_facts_of_nodes():
    nodes = [
        node("aaaaaaaaaa", "one", {"CPU": 8.0, "GPU": 4.0, "accelerator_type:H100": 1.0}),
        node("bbbbbbbbbb", "two", {"CPU": 2.0, "GPU": 2.0}),
        node("cccccccccc", "two", {}, alive=False),
        node("dddddddddd", "cpus", {"CPU": 2.0, "accelerator_type:H100": 1.0}),
        node("eeeeeeeeee", "gone", {}, alive=False),
    ]
    facts = facts_of(nodes, {"aaaaaaaaaa": {"GPU": 2.5}, "bbbbbbbbbb": {"CPU": 1.0}})
    assert [(f.name, f.state, f.gpus, f.gpus_free, f.cpus, f.virtual_gpus) for f in facts] == [
        ("nodes/one", "alive", 4.0, 2.5, 8.0, False),
        ("nodes/two", "alive", 2.0, 0.0, 2.0, True),
        ("nodes/two-cccccccc", "dead", 0.0, 0.0, 0.0, False),
        ("nodes/cpus", "alive", 0.0, 0.0, 2.0, False),
        ("nodes/gone", "dead", 0.0, 0.0, 0.0, False),
    ]
    assert [f.gpu_type for f in facts] == ["H100", "", "", "", ""]
    assert facts_of(nodes, {}, True)[0].virtual_gpus


def test_a_type_may_be_told_by_a_label():
    labelled = node("aaaaaaaaaa", "one", {"GPU": 1.0}) | {"Labels": {"ray.io/accelerator-type": "T4"}}
    assert facts_of([labelled], {})[0].gpu_type == "T4"


def test_a_node_that_comes_back_keeps_its_name():
    before = node("aaaaaaaaaa", "gpu-1", {"GPU": 1.0})
    after = node("bbbbbbbbbb", "gpu-1", {"GPU": 1.0})
    assert node_names([before]) == {"aaaaaaaaaa": "nodes/gpu-1"}
    found = node_names([before | {"Alive": False}, after])
    assert found == {"aaaaaaaaaa": "nodes/gpu-1-aaaaaaaa", "bbbbbbbbbb": "nodes/gpu-1"}
    assert node_names([before, after]) == {
        "aaaaaaaaaa": "nodes/gpu-1-aaaaaaaa",
        "bbbbbbbbbb": "nodes/gpu-1-bbbbbbbb",
    }


async def test_the_cluster_is_lost_after_misses_in_a_row_only():
    answers = iter([True, False, False, True, OSError("refused"), False, False])
    asked = []

    def probe() -> bool:
        asked.append(next(answers))
        if isinstance(asked[-1], OSError):
            raise asked[-1]
        return asked[-1]

    async with asyncio.timeout(10):
        await wait_lost(probe=probe, period_s=0.0)
    assert len(asked) == 7


async def test_a_probe_that_hangs_is_a_miss():
    import threading

    release = threading.Event()
    async with asyncio.timeout(10):
        await wait_lost(probe=release.wait, period_s=0.0, timeout_s=0.01)
    release.set()
