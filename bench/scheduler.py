"""Replays a month on 64 GPUs: what not knowing run times costs, and how good the forecasts are.

Each trace is replayed twice, by the same policy: as the product runs it, and told every job's true run time
(the oracle). ``slowdown_vs_oracle`` is the mean bounded slowdown of a class over that of the oracle, the
worst class of all traces. ``eta_median_error`` is the median of |expected - actual wait| / actual wait, as
said at its submission, over the jobs that waited (or of which it was said that they would), and
``eta_interval_coverage`` the part of them that began within the stated interval; both of the worst trace.
``fairness`` is Jain's index of the GPU time that teams with work waiting got for their weight.

What is simulated and what is the product's own code is told in docs/benchmarks/scheduler.md.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench.failures import UnmeasurableError
from bench.simulation import scores
from bench.simulation.simulator import Simulation
from bench.simulation.trace import FOLDER, Trace, read

LEAST_WAITED = 100
"""Of fewer jobs that waited no error of a forecast can be told."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What one replay of a trace gave; ``parts``: the scores of forecasts by class and by length of wait."""

    name: str
    oracle: bool
    slowdowns: dict[str, float]
    eta: scores.Eta
    parts: dict[str, scores.Eta]
    fairness: float
    utilisation: float
    yields: int
    jobs: int
    took_s: float


def replay(trace: Trace, *, oracle: bool, progress: Callable[[str], None]) -> Replay:
    """Replays a trace once. Errors: UnmeasurableError where a job did not end."""
    began_s = time.monotonic()
    what = f"{trace.name}, {'oracle' if oracle else 'as the product does'}"
    simulation = Simulation(
        trace, oracle=oracle, progress=lambda share: progress(f"{what}: {100 * share:.0f} %")
    )
    simulation.run()
    lost = sum(job.ended_s < 0.0 for job in simulation.jobs)
    if lost or len(simulation.jobs) != len(trace.jobs):
        raise UnmeasurableError(f"{what}: {lost} of {len(trace.jobs)} jobs never ended")
    took_s = time.monotonic() - began_s
    progress(f"{what}: {len(trace.jobs)} jobs in {took_s:.0f} s")
    return Replay(
        trace.name,
        oracle,
        scores.slowdowns(simulation),
        scores.eta(simulation.jobs),
        scores.eta_parts(simulation.jobs),
        scores.fairness(simulation.windows),
        simulation.busy_gpu_s / (simulation.world.cluster.total * simulation.world.now_s),
        simulation.yields,
        len(simulation.jobs),
        took_s,
    )


def figures(replays: Sequence[Replay]) -> dict[str, object]:
    """The figures of all replays. Errors: UnmeasurableError where one cannot be had."""
    ratios: dict[str, float] = {}
    by_trace: dict[str, object] = {}
    ours = [found for found in replays if not found.oracle]
    for found in ours:
        truth = next(other for other in replays if other.oracle and other.name == found.name)
        if found.eta.jobs < LEAST_WAITED:
            raise UnmeasurableError(f"{found.name}: only {found.eta.jobs} jobs waited")
        for name, slowdown in found.slowdowns.items():
            ratios[f"{found.name}.{name}"] = slowdown / truth.slowdowns[name]
        by_trace[found.name] = {
            "jobs": found.jobs,
            "slowdown": _rounded(found.slowdowns),
            "slowdown_oracle": _rounded(truth.slowdowns),
            "eta_jobs": found.eta.jobs,
            "eta_median_error": round(found.eta.median_error, 4),
            "eta_interval_coverage": round(found.eta.coverage, 4),
            "eta_parts": {
                name: [part.jobs, round(part.median_error, 3), round(part.coverage, 3)]
                for name, part in found.parts.items()
            },
            "fairness": round(found.fairness, 4),
            "utilisation": round(found.utilisation, 4),
            "yields": found.yields,
        }
    fairness = min(found.fairness for found in ours)
    measured = {
        "slowdown_vs_oracle": max(ratios.values()),
        "eta_median_error": max(found.eta.median_error for found in ours),
        # The one that is farthest from what is promised.
        "eta_interval_coverage": max(
            (found.eta.coverage for found in ours), key=lambda part: abs(part - 0.9)
        ),
        "fairness": fairness,
    }
    if not all(map(math.isfinite, measured.values())):
        raise UnmeasurableError(f"no number: {measured}")
    return {**_rounded(measured), "ratios": _rounded(ratios), "traces": by_trace}


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def _one(path: Path, days: float | None, seed: int | None, oracle: bool) -> Replay:
    trace = read(path, days=days)
    if seed is not None:
        from bench.simulation.generate import MIXES, generate

        mix = next(mix for mix in MIXES if mix.name == trace.name)
        trace = generate(mix, seed=seed, days=days)
    return replay(trace, oracle=oracle, progress=lambda line: print(line, file=sys.stderr, flush=True))


def main() -> int:
    """Replays the traces and prints one JSON object, last, on one line."""
    names = sorted(path.stem for path in FOLDER.glob("*.xz"))
    parser = argparse.ArgumentParser(prog="bench.scheduler", description=__doc__)
    parser.add_argument("--trace", action="append", choices=names, help="a committed one; default: all")
    parser.add_argument("--days", type=float, help="only the first so many of each")
    parser.add_argument("--seed", type=int, help="makes the traces' mixes anew with this seed")
    parser.add_argument("--processes", type=int, default=2, help="replays at once")
    arguments = parser.parse_args()
    tasks = [
        (FOLDER / f"{name}.xz", arguments.days, arguments.seed, oracle)
        for name in arguments.trace or names
        for oracle in (False, True)
    ]
    try:
        if not tasks:
            raise UnmeasurableError(f"no trace in {FOLDER}")
        with ProcessPoolExecutor(max_workers=max(1, arguments.processes)) as pool:
            replays = list(pool.map(_one, *zip(*tasks, strict=True)))
        found = figures(replays)
    except UnmeasurableError as error:
        print(f"not measured: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"days": arguments.days or 30, "seed": arguments.seed, **found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
