"""What a failed attempt leads to."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import FailureClass
from services.metadata.scheduling.retry import GiveUp, Retry, decide

RETRYABLE = (FailureClass.TRANSIENT, FailureClass.RESOURCE, FailureClass.NODE)
SCALES = [2.0**-n for n in range(7)]


def after(failure, *, attempt=1, max_attempts=100, node="n1", batch_scale=1.0, seed=0, kind="rvc.train"):
    return decide(
        failure,
        attempt=attempt,
        max_attempts=max_attempts,
        node=node,
        batch_scale=batch_scale,
        chance=random.Random(seed),
        kind=kind,
    )


def delays(failure, attempt, count=2_000):
    return [after(failure, attempt=attempt, seed=seed).delay_s for seed in range(count)]


@pytest.mark.parametrize("failure", [FailureClass.INPUT, FailureClass.PERMANENT])
def test_what_waiting_does_not_mend_is_given_up_at_once(failure):
    assert isinstance(after(failure), GiveUp)


@pytest.mark.parametrize("failure", RETRYABLE)
def test_the_last_attempt_is_the_last(failure):
    assert isinstance(after(failure, attempt=3, max_attempts=4), Retry)
    assert isinstance(after(failure, attempt=4, max_attempts=4), GiveUp)
    assert isinstance(after(failure, attempt=9, max_attempts=4), GiveUp)


@pytest.mark.parametrize(
    ("attempt", "ceiling_s"), [(1, 1.0), (2, 2.0), (4, 8.0), (6, 32.0), (7, 60.0), (50, 60.0), (10_000, 60.0)]
)
def test_transient_failures_wait_up_to_twice_as_long_each_time_to_a_minute(attempt, ceiling_s):
    """Full jitter: uniform between nothing and the ceiling, not merely below it."""
    found = sorted(
        after(FailureClass.TRANSIENT, attempt=attempt, max_attempts=10**9, seed=seed).delay_s
        for seed in range(2_000)
    )
    assert 0.0 <= found[0] < 0.01 * ceiling_s
    assert 0.99 * ceiling_s < found[-1] <= ceiling_s
    assert found[500] == pytest.approx(ceiling_s / 4, rel=0.1)
    assert found[1_500] == pytest.approx(ceiling_s * 3 / 4, rel=0.1)


def test_a_transient_failure_changes_nothing_else():
    found = after(FailureClass.TRANSIENT, batch_scale=0.25)
    assert (found.batch_scale, found.avoid_node) == (0.25, "")


@pytest.mark.parametrize("scale", SCALES[:-1])
def test_out_of_memory_halves_the_batch_and_waits_for_nothing(scale):
    found = after(FailureClass.RESOURCE, attempt=9, batch_scale=scale)
    assert found.batch_scale == scale / 2
    assert found.avoid_node == ""
    assert max(delays(FailureClass.RESOURCE, 9)) <= 1.0


def test_a_64th_of_the_batch_is_the_least():
    """Halved from a whole one, the sixth half is the last to be tried."""
    scale, tried = 1.0, []
    while isinstance(found := after(FailureClass.RESOURCE, batch_scale=scale), Retry):
        scale = found.batch_scale
        tried.append(scale)
    assert tried == SCALES[1:]
    assert "0.0156" in found.why


def test_what_has_no_batch_and_lacks_a_resource_is_tried_later_and_elsewhere():
    found = [
        after(FailureClass.RESOURCE, attempt=5, kind="bundle.pull", batch_scale=1.0, seed=seed)
        for seed in range(500)
    ]
    assert {(one.batch_scale, one.avoid_node) for one in found} == {(1.0, "n1")}
    assert 14.0 < max(one.delay_s for one in found) <= 16.0


def test_a_lost_node_is_avoided_and_the_wait_is_short():
    found = after(FailureClass.NODE, batch_scale=0.5)
    assert (found.batch_scale, found.avoid_node) == (0.5, "n1")
    assert 4.5 < max(delays(FailureClass.NODE, 40)) <= 5.0
    assert max(delays(FailureClass.NODE, 1)) <= 1.0


def test_a_node_that_is_not_known_is_not_avoided():
    assert after(FailureClass.NODE, node="").avoid_node == ""


@given(
    failure=st.sampled_from(list(FailureClass)),
    attempt=st.integers(1, 10**6),
    max_attempts=st.integers(1, 10**6),
    node=st.text(max_size=5),
    batch_scale=st.sampled_from(SCALES),
    seed=st.integers(0, 2**64),
    kind=st.sampled_from(["rvc.train", "rvc.convert", "f5.item", "bundle.pull", "of.tomorrow"]),
)
def test_whatever_happens_the_ledger_can_store_it(failure, seed, **facts):
    found = after(failure, seed=seed, **facts)
    assert found == after(failure, seed=seed, **facts)
    if failure not in RETRYABLE or facts["attempt"] >= facts["max_attempts"]:
        assert isinstance(found, GiveUp)
    if isinstance(found, GiveUp):
        assert found.why
        return
    assert 0.0 <= found.delay_s <= 60.0
    # As jobs.batch_scale allows, and exact in its four bytes.
    assert found.batch_scale in SCALES
    assert found.batch_scale <= facts["batch_scale"]
    assert found.avoid_node in ("", facts["node"])
