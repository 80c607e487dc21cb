"""What the division of GPUs is fed with, and what is made of it."""

import math

import pytest

from services.common.jobs.grpc_ledger import _GrpcWorkStream
from services.common.jobs.model import Capacity, GpuFacts, PoolState, TrainingGpus
from services.common.jobs.wire import gpu_facts_from_proto
from services.metadata.app.grants import (
    Memory,
    aged,
    holding_of,
    merged,
    nodes_of,
    pools_of,
    remember,
    to_tell,
)
from services.metadata.model.fleet import RunningJob
from services.metadata.model.jobs import PriorityClass
from services.metadata.ports.grants import KindLoad, WantingTraining
from services.metadata.scheduling.grants import Grants, HoldingTraining, Load, Node, Pool
from voxfleet.internal.v1 import work_pb2

INTERACTIVE, CONVERSION, BATCH, TRAINING = PriorityClass


def running(job: str, kind: str = "rvc.train", at: PriorityClass = TRAINING, **facts) -> RunningJob:
    known = {"priority": 0, "team": "t", "gpus": 1.0, "size": 1.0, "node": "host", "elapsed_s": 9.0}
    return RunningJob(job, kind, at, yield_asked=facts.pop("yield_asked", False), **(known | facts))


async def test_facts_come_over_the_wire_as_they_were():
    facts = GpuFacts(
        (TrainingGpus("j", 2, "nodes/a", 3.5), TrainingGpus("k", 0)),
        (PoolState("f5", 0.2, 40, 1, 3, 0.4, 2, 1, 77, 1.5, 0.25),),
    )
    sent: list[work_pb2.WorkRequest] = []

    class Call:
        async def write(self, request):
            sent.append(request)

    await _GrpcWorkStream(Call()).offer(Capacity({"f5.item": 1}, gpus=facts), leases_seen=3)
    found = gpu_facts_from_proto(work_pb2.WorkRequest.FromString(sent[0].SerializeToString()).capacity)
    assert found == facts
    assert [one.held_s for one in found.trainings] == [3.5, 0.0]
    assert (found.pools[0].streams_waited_s, found.pools[0].since_begin_s) == (1.5, 0.25)


def test_time_goes_on_since_a_worker_spoke():
    facts = GpuFacts(
        (TrainingGpus("j", 1, "nodes/a", 3.0), TrainingGpus("k", 1)),
        (
            PoolState("f5", 0.5, streams_waiting=1, streams_waited_s=1.0, since_begin_s=2.0),
            PoolState("rvc", 0.5),
        ),
    )
    found = aged(facts, 10.0)
    assert [one.held_s for one in found.trainings] == [13.0, 0.0]
    assert [(pool.streams_waited_s, pool.since_begin_s) for pool in found.pools] == [
        (11.0, 12.0),
        (0.0, -1.0),
    ]


def test_two_processes_with_one_pool_are_added_up_under_the_newer_settings():
    new = PoolState("f5", 0.25, 8, most=4, held_gpus=0.25, streams_waiting=1, since_begin_s=-1.0)
    old = PoolState(
        "f5", 0.5, 1, most=1, held_gpus=0.5, streams_waiting=2, streams_running=1, since_begin_s=7.0
    )
    (found,) = merged([GpuFacts(pools=(new,)), GpuFacts(pools=(old,)), GpuFacts()])
    assert (found.gpus_each, found.places_each, found.most) == (0.25, 8, 4)
    assert (found.held_gpus, found.streams_waiting, found.streams_running) == (0.75, 3, 1)
    assert found.since_begin_s == 7.0


def test_a_training_holds_what_both_sides_know_of():
    jobs = {"a": running("a", priority=5), "b": running("b", yield_asked=True), "c": running("c")}
    known = [TrainingGpus("a", 2, "nodes/a", 4.0), TrainingGpus("b", 1, "nodes/b"), TrainingGpus("c", 1)]
    assert holding_of(known, jobs) == [
        HoldingTraining("a", 2, "nodes/a", 4.0, priority=5),
        HoldingTraining("b", 1, "nodes/b", 0.0, yield_asked=True),
    ]


def test_the_pools_have_their_jobs_and_their_streams():
    states = [PoolState("f5", 0.2, 8, 1, 2, 0.2, 1, 2, 0, 3.0, 4.0), PoolState("rvc", 0.5)]
    loads = [KindLoad("f5.item", BATCH, 20, 9.0), KindLoad("rvc.convert", CONVERSION, 1, 2.0)]
    jobs = [running("x", "f5.item", BATCH), running("y", "f5.item", BATCH), running("t")]
    f5, rvc = pools_of(states, loads, jobs)
    assert f5.loads == {BATCH: Load(20, 2, 9.0), INTERACTIVE: Load(1, 2, 3.0)}
    assert (f5.gpus_each, f5.places_each, f5.most, f5.held_gpus, f5.since_begin_s) == (0.2, 8, 2, 0.2, 4.0)
    assert (rvc.loads, rvc.since_begin_s) == ({CONVERSION: Load(1, 0, 2.0)}, math.inf)


def test_what_is_remembered_goes_on_from_decision_to_decision():
    busy, idle = Pool("f5", {BATCH: Load(1)}, 0.5), Pool("rvc", {}, 0.5)
    first = remember(Memory(), 100.0, [HoldingTraining("a", 1, "n", 1.0)], [], [busy, idle])
    assert (first.left_s, first.busy) == (None, {"f5": 100.0, "rvc": 100.0})
    first = Memory.load(first.dump())
    again = remember(first, 150.0, [], [WantingTraining("a", 1, 999.0)], [idle, busy])
    assert (again.held, again.left, again.left_s) == (frozenset(), {"a": 150.0}, 150.0)
    assert again.busy == {"f5": 150.0, "rvc": 100.0}
    later = remember(Memory.load(again.dump()), 200.0, [], [WantingTraining("a", 1, 999.0)], [idle])
    assert (later.left, later.left_s) == ({"a": 150.0}, 150.0), "when it left, not when it was looked at"
    assert remember(later, 210.0, [], [], [idle]).left == {}


@pytest.mark.parametrize(
    ("asked", "yields", "trainer"), [(False, (), 2.0), (True, (), 1.0), (False, ("a",), 1.0)]
)
def test_what_is_asked_back_is_granted_to_nobody(asked, yields, trainer):
    holding = [HoldingTraining("a", 1, "n", 1.0, yield_asked=asked), HoldingTraining("b", 1, "n", 1.0)]
    assert to_tell(Grants(2, {"f5": 0.5}, yields), holding) == {"f5": 0.5, "trainer": trainer}


def test_nodes_without_gpus_and_those_out_of_service():
    seen = [
        {"name": "a", "gpus": 2.0, "state": "alive"},
        {"name": "b", "state": "alive"},
        {"name": "c", "gpus": 4.0, "state": "draining"},
    ]
    assert nodes_of(seen) == [Node("a", 2), Node("c", 4, alive=False)]
