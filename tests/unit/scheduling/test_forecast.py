"""Forecasts of waits: computed forward from what stands in a pool, then put right by what was seen."""

import math
import random

import pytest

from services.metadata.model.jobs import PriorityClass
from services.metadata.scheduling.calibration import Calibration, Expected
from services.metadata.scheduling.estimates import Lognormal, ServiceTimes
from services.metadata.scheduling.forecast import Arrivals, LaneLoad, Outlook, PoolLoad, Running, Waiting

BATCH, TRAINING, INTERACTIVE = PriorityClass.BATCH, PriorityClass.TRAINING, PriorityClass.INTERACTIVE
HOUR = Lognormal(math.log(3600.0), 0.05)


def lane(
    team: str, jobs: int, *, of: PriorityClass = TRAINING, start: float = 0.0, **more: float
) -> LaneLoad:
    """So many hours of one GPU each."""
    return LaneLoad(of, team, jobs, float(jobs), 3600.0 * jobs, start, **more)


def pool(*lanes: LaneLoad, gpus: float = 4.0, elapsed_s: float = 0.0) -> PoolLoad:
    running = [Running(1.0, HOUR, elapsed_s) for _ in range(int(gpus))]
    return PoolLoad(gpus, 0.0, 1.0, running, lanes)


def start_s(load: PoolLoad, team: str, ahead: float = 0.0, of: PriorityClass = TRAINING) -> float:
    return Outlook(load).start_in_s(Waiting(of, team, 1.0, ahead))


def test_where_a_place_is_free_and_nothing_waits_a_job_begins_at_once():
    assert start_s(PoolLoad(4.0, 1.0, 1.0, [Running(1.0, HOUR, 0.0)] * 3, []), "a") == 0.0


def test_the_longer_jobs_have_run_the_sooner_the_next_begins():
    waits = [start_s(pool(elapsed_s=elapsed_s), "a") for elapsed_s in (0.0, 1800.0, 3000.0)]
    assert waits == sorted(waits, reverse=True)
    assert waits[0] == pytest.approx(3600.0, rel=0.1)
    assert waits[2] == pytest.approx(600.0, rel=0.3)


def test_what_its_own_team_has_before_it_is_waited_for():
    one = start_s(pool(lane("a", 4)), "a", ahead=4 * 3600.0)
    many = start_s(pool(lane("a", 40)), "a", ahead=40 * 3600.0)
    assert one == pytest.approx(2 * 3600.0, rel=0.2)
    assert many == pytest.approx(11 * 3600.0, rel=0.1)


def test_a_flood_of_another_team_costs_a_turn_and_not_the_flood():
    alone, beside = start_s(pool(), "a"), start_s(pool(lane("b", 100_000)), "a")
    assert alone < beside <= alone + 3600.0


def test_work_of_a_higher_class_goes_first_and_of_a_lower_one_does_not():
    base = start_s(pool(), "a", of=BATCH)
    assert start_s(pool(lane("b", 8, of=TRAINING)), "a", of=BATCH) == pytest.approx(base, rel=0.01)
    assert start_s(pool(lane("b", 8, of=INTERACTIVE)), "a", of=BATCH) > base + 3600.0


def test_what_arrives_for_others_meanwhile_is_reckoned_with():
    quiet = start_s(pool(lane("a", 40)), "a", ahead=40 * 3600.0)
    busy = start_s(pool(lane("a", 40), lane("b", 0, arriving=1.0)), "a", ahead=40 * 3600.0)
    assert busy > 1.1 * quiet


def test_a_pool_that_may_grow_gets_the_gpus_of_others_as_they_end():
    ends = [Running(1.0, HOUR, elapsed_s) for elapsed_s in (3000.0, 1200.0)]
    load = PoolLoad(2.0, 0.0, 0.2, [], [], lag_s=20.0, coming=ends, asked_s=40.0)
    assert start_s(load, "a", of=BATCH) == pytest.approx(620.0, rel=0.1)
    # What is idle comes first, and for work that others make way for nobody's end is waited for.
    assert start_s(PoolLoad(2.0, 0.0, 0.2, [], [], lag_s=20.0, coming=ends, idle=1.0), "a", of=BATCH) <= 21.0
    assert start_s(load, "a", of=INTERACTIVE) == pytest.approx(40.0, abs=1.0)


def test_rates_fade_and_are_of_their_kind():
    arrivals = Arrivals(memory_s=3600.0)
    for minute in range(600):
        arrivals.add(("rvc.train", TRAINING, "a"), 120.0, 60.0 * minute)
    rate = arrivals.rates("rvc.train", 36_000.0)[TRAINING, "a"]
    assert rate == pytest.approx(2.0, rel=0.05)
    assert arrivals.rates("f5.item", 36_000.0) == {}
    assert arrivals.rates("rvc.train", 36_000.0 + 7200.0)[TRAINING, "a"] < 0.2 * rate


def say(calibration: Calibration, raw_s: float) -> Expected:
    return calibration.expect("rvc.train", TRAINING, 1.0, raw_s, 100.0)


@pytest.mark.parametrize(("bias", "spread"), [(1.0, 0.2), (3.0, 0.5), (0.4, 0.8)])
def test_what_is_said_is_put_right_and_its_interval_covers_nine_in_ten(bias: float, spread: float):
    dice = random.Random(5)
    calibration, covered, errors = Calibration(), 0, []
    for number in range(4000):
        raw_s = math.exp(dice.uniform(4.0, 9.0))
        said = say(calibration, raw_s)
        waited_s = raw_s * bias * math.exp(dice.gauss(0.0, spread))
        if number >= 1000:
            covered += said.earliest_s <= waited_s <= said.latest_s
            errors.append(math.log(said.start_in_s / waited_s))
        calibration.observe(said, waited_s)
    assert covered / 3000 == pytest.approx(0.9, abs=0.03)
    assert sum(errors) / 3000 == pytest.approx(0.0, abs=0.1)


def test_intervals_widen_when_the_world_becomes_less_certain():
    dice = random.Random(6)
    calibration = Calibration()
    for _ in range(2000):
        calibration.observe(say(calibration, 600.0), 600.0 * math.exp(dice.gauss(0.0, 0.05)))
    narrow = say(calibration, 600.0)
    missed = 0
    for number in range(2000):
        said, waited_s = say(calibration, 600.0), 600.0 * math.exp(dice.gauss(0.0, 0.8))
        missed += number >= 1000 and not said.earliest_s <= waited_s <= said.latest_s
        calibration.observe(said, waited_s)
    wide = say(calibration, 600.0)
    assert wide.latest_s / wide.earliest_s > 3 * narrow.latest_s / narrow.earliest_s
    assert missed / 1000 == pytest.approx(0.1, abs=0.03)


def test_what_was_learned_survives_being_stored():
    dice = random.Random(7)
    calibration, times = Calibration(), ServiceTimes()
    for _ in range(500):
        calibration.observe(say(calibration, 300.0), dice.uniform(200.0, 900.0))
        times.observe("rvc.train", 4000.0, dice.uniform(1500.0, 2500.0))
    same = Calibration.from_json(calibration.to_json())
    assert say(same, 300.0).start_in_s == pytest.approx(say(calibration, 300.0).start_in_s, rel=0.01)
    assert say(same, 300.0).latest_s == pytest.approx(say(calibration, 300.0).latest_s, rel=0.02)
    kept = ServiceTimes.from_json(times.to_json())
    assert kept.mean_s("rvc.train", 4000.0) == pytest.approx(times.mean_s("rvc.train", 4000.0), rel=1e-3)


def test_service_times_are_learned_by_size_with_their_spread():
    dice = random.Random(8)
    times = ServiceTimes()
    for _ in range(3000):
        size = math.exp(dice.uniform(6.0, 10.0))
        times.observe("rvc.train", size, 60.0 + 0.5 * size * math.exp(dice.gauss(0.0, 0.2)))
    for size in (500.0, 4000.0, 20_000.0):
        found = times.lognormal("rvc.train", size)
        assert math.exp(found.mu) == pytest.approx(60.0 + 0.5 * size, rel=0.12)
        assert found.sigma == pytest.approx(0.2, abs=0.08)


def test_what_is_left_of_a_run_shrinks_and_never_ends_before_now():
    left = [HOUR.remaining_mean_s(elapsed_s) for elapsed_s in (0.0, 1800.0, 3500.0)]
    assert left == sorted(left, reverse=True)
    assert left[1] == pytest.approx(1800.0, rel=0.02)
    assert all(HOUR.remaining_s(elapsed_s, (0.1,))[0] >= 0.0 for elapsed_s in (0.0, 3600.0, 9000.0))
