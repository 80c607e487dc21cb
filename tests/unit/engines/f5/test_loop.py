"""The loop: what joins and leaves between evaluations, and what goes wrong in one."""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest
import torch

from services.common.errors import FailureClass, Reason, VoxfleetError
from services.engines.f5.flow import Evaluator, Flow, sample
from services.engines.f5.loop import SpeechLoop
from services.engines.f5.packing import Budget

from .conftest import ALONE, TOGETHER

LONG_S = 60.0


@pytest.fixture
def flows(alone, voice):
    """Makes segments of the given lengths, all different."""

    def make(*lengths: int, steps: int = 3, strength: float = 2.0) -> list[Flow]:
        tokens = tuple(range(1, 20))
        return [
            Flow(tokens, voice.mel, voice.frames + length, seed, strength, steps)
            for seed, length in enumerate(lengths)
        ]

    return make


def error(left: torch.Tensor, right: torch.Tensor) -> float:
    assert left.shape == right.shape
    return float((left - right).norm() / right.norm())


class Watched:
    """Stands where evaluations are made; holds them up, counts them, and lets a test spoil them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.spoil = lambda states: None
        advance = Evaluator.advance

        def watched(evaluator, states):
            assert self.gate.wait(LONG_S)
            self.sizes.append(len(states))
            self.spoil(states)
            advance(evaluator, states)

        monkeypatch.setattr(Evaluator, "advance", watched)


@pytest.fixture
def watched(monkeypatch):
    return Watched(monkeypatch)


def test_segments_join_and_leave_without_changing_one_another(loaded, flows, watched):
    loop = SpeechLoop(loaded, TOGETHER)
    first, second = flows(40, 90, steps=6)
    third = flows(60, steps=2)[0]
    expected = [sample(loaded, [flow])[0] for flow in (first, second, third)]
    watched.sizes.clear()
    watched.gate.clear()
    futures = [loop.submit(first)]
    watched.gate.set()
    futures += [loop.submit(second), loop.submit(third)]
    found = [future.result(LONG_S).mel for future in futures]
    assert all(error(one, other) < 1e-3 for one, other in zip(found, expected, strict=True))
    # The short one left while the others went on.
    assert max(watched.sizes) >= 2
    assert sum(watched.sizes) == 6 + 6 + 2
    loop.close()


def test_the_urgent_overtake_in_the_middle_of_a_long_one(loaded, flows, watched):
    loop = SpeechLoop(loaded, ALONE)
    order: list[str] = []
    watched.gate.clear()
    (slow,) = flows(200, steps=32)
    late = loop.submit(slow, rank=2)
    (quick,) = flows(20, steps=2)
    soon = loop.submit(quick, rank=0)
    late.add_done_callback(lambda _: order.append("late"))
    soon.add_done_callback(lambda _: order.append("soon"))
    watched.gate.set()
    late.result(LONG_S)
    assert order == ["soon", "late"]
    assert error(late.result().mel, sample(loaded, [slow])[0]) < 1e-5
    loop.close()


def test_no_memory_halves_what_goes_together_and_nothing_is_lost(loaded, flows, watched):
    loop = SpeechLoop(loaded, TOGETHER)
    several = flows(50, 60, 70, 80, steps=4)
    expected = [sample(loaded, [flow])[0] for flow in several]
    watched.sizes.clear()

    def full(states):
        if len(states) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate too much")

    watched.spoil = full
    watched.gate.clear()
    futures = [loop.submit(flow) for flow in several]
    watched.gate.set()
    found = [future.result(LONG_S).mel for future in futures]
    assert all(error(one, other) < 1e-3 for one, other in zip(found, expected, strict=True))
    assert loop.stats.shrunk >= 1
    assert loop.stats.evaluations == 4 * 4
    loop.close()


def test_what_has_no_room_alone_fails_alone(loaded, flows, watched):
    loop = SpeechLoop(loaded, TOGETHER)
    small, large = flows(30, 300)

    def full(states):
        if any(state.flow is large for state in states):
            raise RuntimeError("CUDA error: out of memory")

    watched.spoil = full
    watched.gate.clear()
    good, bad = loop.submit(small), loop.submit(large)
    watched.gate.set()
    assert error(good.result(LONG_S).mel, sample(loaded, [small])[0]) < 1e-3
    with pytest.raises(VoxfleetError) as caught:
        bad.result(LONG_S)
    assert (caught.value.reason, caught.value.failure) == (Reason.GPU_OUT_OF_MEMORY, FailureClass.RESOURCE)
    loop.close()


def test_one_that_spoils_an_evaluation_is_found_out(loaded, flows, watched):
    loop = SpeechLoop(loaded, TOGETHER)
    good, bad, other = flows(30, 40, 50)

    def spoil(states):
        if any(state.flow is bad and state.step == 1 for state in states):
            raise ValueError("an index is out of range")

    watched.spoil = spoil
    watched.gate.clear()
    futures = [loop.submit(flow) for flow in (good, bad, other)]
    watched.gate.set()
    for flow, future in ((good, futures[0]), (other, futures[2])):
        assert error(future.result(LONG_S).mel, sample(loaded, [flow])[0]) < 1e-3
    with pytest.raises(VoxfleetError) as caught:
        futures[1].result(LONG_S)
    assert caught.value.reason is Reason.SYNTHESIS_FAILED
    assert loop.submit(good).result(LONG_S).work_s > 0, "the loop goes on"
    loop.close()


def test_a_cancelled_segment_leaves_and_the_rest_go_on(loaded, flows, watched):
    loop = SpeechLoop(loaded, TOGETHER)
    staying, leaving = flows(40, 50, steps=8)
    left = threading.Event()
    watched.gate.clear()
    kept = loop.submit(staying)
    gone = loop.submit(leaving, cancelled=left.is_set)
    left.set()
    watched.gate.set()
    with pytest.raises(VoxfleetError) as caught:
        gone.result(LONG_S)
    assert caught.value.reason is Reason.CANCELLED
    assert error(kept.result(LONG_S).mel, sample(loaded, [staying])[0]) < 1e-3
    loop.close()


def test_its_books_say_what_was_padded(loaded, flows):
    loop = SpeechLoop(loaded, Budget(frames=100_000, free_frames=0, efficiency=0.9))
    assert loop.stats.padding_efficiency == 1.0
    for future in [loop.submit(flow) for flow in flows(50, 55, 300, 310)]:
        future.result(LONG_S)
    assert loop.stats.padding_efficiency >= 0.9
    assert loop.stats.frames == 3 * sum(flow.frames for flow in flows(50, 55, 300, 310))
    loop.close()


def test_a_loop_that_is_closed_or_forgotten_ends_its_thread(loaded, flows):
    before = set(threading.enumerate())
    closed, forgotten = SpeechLoop(loaded, ALONE), SpeechLoop(loaded, ALONE)
    (flow,) = flows(30)
    forgotten.submit(flow).result(LONG_S)
    started = set(threading.enumerate()) - before
    assert len(started) == 2
    waiting = closed.submit(flows(400, steps=64)[0])
    closed.close()
    with pytest.raises(VoxfleetError) as caught:
        waiting.result(LONG_S)
    assert caught.value.reason is Reason.CANCELLED
    with pytest.raises(VoxfleetError):
        closed.submit(flow)
    del forgotten
    gc.collect()
    deadline = time.monotonic() + LONG_S
    while any(thread.is_alive() for thread in started):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_seed_means_the_same_in_any_company(loaded, flows):
    (flow,) = flows(70)
    alone_ = sample(loaded, [flow])[0].numpy()
    np.testing.assert_array_equal(sample(loaded, [flow])[0].numpy(), alone_)
