"""``bench.scheduler``: replays are whole and repeatable, and the scores notice a worse scheduler."""

import math
from dataclasses import replace

import pytest

from bench.scheduler import Replay, UnmeasurableError, figures, replay
from bench.simulation import placing, scores
from bench.simulation.generate import MIXES, generate
from bench.simulation.jobs import Window
from bench.simulation.simulator import Simulation
from bench.simulation.trace import FOLDER, Submitted, Trace, offered, read, write
from services.metadata.model.jobs import PriorityClass
from services.metadata.scheduling.calibration import Calibration

MOST_BYTES = 1_500_000


@pytest.fixture(scope="module")
def trace() -> Trace:
    """Ten hours of the second committed trace, whole bursts and all."""
    return read(FOLDER / "floods.xz", days=10 / 24)


@pytest.fixture(scope="module")
def replayed(trace: Trace) -> Simulation:
    simulation = Simulation(trace)
    simulation.run()
    return simulation


def starts(simulation: Simulation) -> list[tuple[float, float]]:
    return [(job.first_s, job.ended_s) for job in simulation.jobs]


def test_every_job_begins_after_its_submission_and_ends_after_its_run_time(replayed, trace):
    assert len(replayed.jobs) == len(trace.jobs) > 1000
    for job in replayed.jobs:
        assert job.first_s >= job.submitted.at_s
        runs_s = abs(job.submitted.fails or 1.0) * job.submitted.takes_s
        assert job.ended_s >= job.first_s + min(runs_s, job.submitted.takes_s) - 1e-6


def test_no_more_work_is_done_at_once_than_there_are_gpus(replayed):
    changes = sorted(
        change
        for job in replayed.jobs
        if job.kind == "rvc.train" and job.lease == 1
        for change in ((job.first_s, job.gpus), (job.ended_s, -job.gpus))
    )
    held = most = 0.0
    for _, gpus in changes:
        held += gpus
        most = max(most, held)
    assert 0 < most <= replayed.world.cluster.total
    # Every GPU was given back, and every wait was counted out again.
    assert not any(replayed.world.running.values())
    assert (
        sum(replayed.world.cluster.idle().values())
        + sum(len(gpus) for gpus in replayed.world.cluster.pools.values())
        == replayed.world.cluster.total
    )


def test_all_the_work_is_done_once(replayed, trace):
    # Beyond what the jobs take there is only what trainings spend on going on, and a second at the least.
    assert offered(trace.jobs) <= replayed.busy_gpu_s <= 1.02 * offered(trace.jobs)


def test_the_same_trace_gives_the_same_starts_ends_and_forecasts(replayed, trace):
    again = Simulation(trace)
    again.run()
    assert starts(again) == starts(replayed)
    assert [job.said for job in again.jobs] == [job.said for job in replayed.jobs]


def test_a_seed_makes_the_same_trace_and_another_seed_another():
    mix = MIXES[0]
    one, same, other = (generate(mix, seed=seed, days=1.0) for seed in (7, 7, 8))
    assert one == same
    assert one.jobs != other.jobs
    assert one.load == pytest.approx(0.95, abs=0.03)


class Broken(Calibration):
    """What it says of a start is four times too long, and its interval with it."""

    def expect(self, *args, **kwargs):
        said = super().expect(*args, **kwargs)
        return replace(
            said,
            start_in_s=4 * said.start_in_s,
            earliest_s=4 * said.earliest_s,
            latest_s=4 * said.latest_s,
        )

    def observe(self, said, waited_s, weight=1.0):
        """It learns nothing either."""


def test_a_broken_forecast_is_noticed_by_the_scores_and_changes_no_start(replayed, trace):
    broken = Simulation(trace, calibration=Broken())
    broken.run()
    good, bad = scores.eta(replayed.jobs), scores.eta(broken.jobs)
    assert bad.median_error > 1.2 * good.median_error
    assert bad.coverage < good.coverage - 0.1
    assert starts(broken) == starts(replayed)


def test_the_oracle_is_told_run_times_and_foretells_nothing(trace):
    oracle = Simulation(replace(trace, jobs=trace.jobs[:500]), oracle=True)
    oracle.run()
    for job in oracle.jobs:
        assert job.said is None
        if not job.submitted.fails:
            assert job.takes.mean_s == pytest.approx(job.submitted.takes_s, rel=0.01)
    assert math.isnan(scores.eta(oracle.jobs).median_error)


def test_a_job_alone_has_no_slowdown_and_one_that_waits_has():
    alone = Submitted(0.0, "a", "rvc.train", 4, 8, 4000, 1000.0, 0, 0.0)
    trace = Trace(
        "few", 0, 1, 8, 1.0, 0.1, {"a": 1.0, "b": 1.0}, [alone, replace(alone, team="b", at_s=10.0)]
    )
    simulation = Simulation(trace)
    simulation.run()
    first, second = simulation.jobs
    assert scores.bounded_slowdown(first) == pytest.approx(1.0)
    assert second.first_s == pytest.approx(first.ended_s, abs=60.0)
    assert scores.bounded_slowdown(second) == pytest.approx((first.ended_s - 10.0 + 1000.0) / 1000.0, rel=0.1)


def test_a_training_that_needs_a_whole_node_gets_one_though_small_ones_keep_coming():
    small = Submitted(0.0, "a", "rvc.train", 4, 1, 4000, 1000.0, 0, 0.0)
    jobs = [replace(small, at_s=20.0 * number) for number in range(1000)]
    wide = replace(small, team="b", at_s=3000.0, gpus=8)
    trace = Trace(
        "wide", 0, 2, 8, 1.0, 0.9, {"a": 1.0, "b": 1.0}, sorted([*jobs, wide], key=lambda job: job.at_s)
    )
    simulation = Simulation(trace)
    simulation.run()
    found = next(job for job in simulation.jobs if job.gpus == 8)
    assert found.waited_s < 3000.0


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.xz")), ids=lambda path: path.stem)
def test_a_committed_trace_is_a_month_on_64_gpus_at_95_percent(path, tmp_path):
    trace = read(path)
    assert path.stat().st_size < MOST_BYTES
    assert (trace.nodes * trace.gpus_per_node, trace.days) == (64, 30.0)
    assert offered(trace.jobs) / (64 * 30 * 86400) == pytest.approx(0.95, abs=0.005)
    write(replace(trace, jobs=trace.jobs[:2000]), tmp_path / "again.xz")
    assert read(tmp_path / "again.xz").jobs == trace.jobs[:2000]


def found(
    name: str, *, oracle: bool, slowdown: float = 2.0, jobs: int = 500, coverage: float = 0.9
) -> Replay:
    eta = scores.Eta(jobs, 0.2, coverage)
    return Replay(name, oracle, {"batch": slowdown}, eta, {}, 0.9, 0.95, 0, jobs, 1.0)


def test_the_figures_are_those_of_the_worst_trace():
    replays = [
        found("a", oracle=False, slowdown=2.2, coverage=0.93),
        found("a", oracle=True),
        found("b", oracle=False, slowdown=2.4, coverage=0.86),
        found("b", oracle=True),
    ]
    measured = figures(replays)
    assert measured["slowdown_vs_oracle"] == pytest.approx(1.2)
    assert measured["eta_interval_coverage"] == pytest.approx(0.86)


def test_where_nothing_waited_there_is_no_figure():
    with pytest.raises(UnmeasurableError, match="only 3 jobs waited"):
        figures([found("a", oracle=False, jobs=3), found("a", oracle=True)])


def test_a_job_that_never_ends_is_no_measurement(trace, monkeypatch):
    monkeypatch.setattr(Simulation, "run", lambda _: None)
    with pytest.raises(UnmeasurableError, match="never ended"):
        replay(trace, oracle=False, progress=lambda _: None)


def test_unequal_shares_have_a_lower_index():
    def index(*got: float) -> float:
        return scores.jain(Window("f5.item", PriorityClass.BATCH, list(got)))

    assert index(3.0, 3.0) == pytest.approx(1.0)
    assert index(4.0, 0.0) == pytest.approx(0.5)
    assert index(3.0, 3.0) > index(4.0, 2.0) > index(6.0, 0.0)


def test_a_reserved_node_takes_only_what_is_gone_in_time():
    running = [placing.Training("0", 8, 100.0), placing.Training("1", 8, 50.0)]
    kept = placing.reserve({"0": 0, "1": 0}, running, 8)
    assert kept == placing.Reservation("1", 8, 50.0, 0)
    assert placing.may_use("1", 1, 40.0, kept)
    assert not placing.may_use("1", 1, 60.0, kept)
    assert placing.may_use("0", 1, 60.0, kept)
    assert placing.place({"0": 3, "1": 2, "2": 0}, 2) == "1"
