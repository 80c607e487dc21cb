"""When a replica is sick."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from services.inference.health import (
    Ailment,
    Condition,
    HealthPlan,
    Pace,
    Vitals,
    ends_for,
    holds_too_much,
    is_overdue,
    leaves_for,
    silence_limit_s,
)

PLAN = HealthPlan(misses=3, out_of_memory=3, hang_floor_s=60.0, first_call_s=600.0)
MIB = 1 << 20


def test_what_ends_a_replica_at_once() -> None:
    assert ends_for(PLAN, Condition()) is None
    assert ends_for(PLAN, Condition(missed=2, probes_failed=2, out_of_memory=9, over_memory=9)) is None
    assert ends_for(PLAN, Condition(missed=3)) is Ailment.MUTE
    assert ends_for(PLAN, Condition(overdue=True)) is Ailment.HUNG
    assert ends_for(PLAN, Condition(probes_failed=3)) is Ailment.UNFIT
    assert ends_for(PLAN, Condition(missed=3, overdue=True)) is Ailment.MUTE


def test_what_replaces_it_when_its_calls_have_ended() -> None:
    assert leaves_for(PLAN, Condition(out_of_memory=2, over_memory=2, missed=9)) is None
    assert leaves_for(PLAN, Condition(out_of_memory=3)) is Ailment.OUT_OF_MEMORY
    assert leaves_for(PLAN, Condition(over_memory=3)) is Ailment.LEAK
    assert leaves_for(replace(PLAN, out_of_memory=0), Condition(out_of_memory=99)) is None


@pytest.mark.parametrize(
    ("bound", "held", "too_much"),
    [
        ({"rss_bytes": 300 * MIB}, Vitals(301 * MIB), True),
        ({"rss_bytes": 300 * MIB}, Vitals(300 * MIB), False),
        ({"rss_growth_bytes": 100 * MIB}, Vitals(301 * MIB), True),
        ({"rss_growth_bytes": 100 * MIB}, Vitals(300 * MIB), False),
        ({"gpu_bytes": 50 * MIB}, Vitals(200 * MIB, 51 * MIB), True),
        ({"gpu_bytes": 50 * MIB}, Vitals(200 * MIB, 50 * MIB), False),
        ({"gpu_growth_bytes": 10 * MIB}, Vitals(200 * MIB, 21 * MIB), True),
        ({"gpu_growth_bytes": 10 * MIB}, Vitals(200 * MIB, 20 * MIB), False),
        ({}, Vitals(10**12, 10**12), False),
    ],
)
def test_memory_has_bounds_and_a_bounded_growth(bound: dict[str, int], held: Vitals, too_much: bool) -> None:
    plan = HealthPlan(**{"rss_growth_bytes": 0} | bound)
    assert holds_too_much(plan, held, Vitals(200 * MIB, 10 * MIB)) is too_much


def test_a_call_may_be_silent_for_twice_what_it_should_take() -> None:
    assert silence_limit_s(PLAN, Pace(), 1e9, 1) == 600.0, "nothing was measured"
    pace = Pace().after(20.0, 100.0, 1)
    assert silence_limit_s(PLAN, pace, 100.0, 1) == pytest.approx(100.0)
    assert silence_limit_s(PLAN, pace, 1000.0, 1) == pytest.approx(460.0)
    assert silence_limit_s(PLAN, pace, 0.0, 1) == 60.0
    assert silence_limit_s(PLAN, pace, 100.0, 4) == pytest.approx(220.0), "four share what one had"


def test_a_pace_that_was_measured_in_company_expects_company() -> None:
    pace = Pace().after(80.0, 100.0, 4)
    assert pace.expected_s(100.0, 4) == pytest.approx(80.0)
    assert pace.expected_s(100.0, 1) == pytest.approx(80.0), "too long at worst, never too short"
    assert pace.expected_s(100.0, 8) == pytest.approx(160.0)


def test_a_slower_call_counts_at_once_and_a_faster_one_little_by_little() -> None:
    pace = Pace().after(10.0, 10.0, 1)
    assert pace.after(30.0, 10.0, 1).s_per_unit == pytest.approx(2.0)
    assert pace.after(1.0, 10.0, 1).s_per_unit == pytest.approx(0.91)
    assert pace.after(5.0, 0.0, 1) == pace, "what has no size says nothing"


def test_a_replica_that_shares_its_time_is_never_thought_to_hang() -> None:
    """Ten seconds alone, n times that among n: whatever was measured before, the limit is never below."""
    for measured in itertools.product((1, 3, 32), repeat=3):
        pace = Pace()
        for among in measured:
            pace = pace.after(10.0 * among, 5.0, among)
        for among in (1, 2, 8, 32, 64):
            expected_s = pace.expected_s(5.0, among)
            assert expected_s is not None
            assert 2.0 * expected_s >= 10.0 * among, (measured, among)


def test_a_call_that_others_go_before_is_given_longer() -> None:
    assert not is_overdue(10.0, silent_s=10.0, quiet_s=10.0)
    assert is_overdue(10.0, silent_s=10.1, quiet_s=10.1)
    assert not is_overdue(10.0, silent_s=39.0, quiet_s=0.5)
    assert is_overdue(10.0, silent_s=40.1, quiet_s=0.5)
