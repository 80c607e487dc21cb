"""The traces' generator: ``python -m bench.simulation.generate`` writes the committed ones anew.

Synthetic and seeded; every distribution is written here. What it models of real clusters: days and weekends,
teams of very different size in several time zones, work that comes in bursts (the voices of a cast, albums,
catalogues, seasons of lines), lognormal sizes, run times that follow size with noise and a factor of the team
that the estimator cannot see, failures, and, in the second trace, floods of up to 100,000 lines.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from bench.simulation.trace import FOLDER, Submitted, Trace, gpu_share, offered, run_s, write

NODES, GPUS_PER_NODE, DAYS, LOAD = 8, 8, 30.0, 0.95
TEAMS = 24
CHUNK_LINES = 100
INTERACTIVE, CONVERSION, BATCH, TRAINING = 1, 2, 3, 4

TRAIN_S_PER_STEP, TRAIN_START_S = 0.5, 60.0
CONVERT_S_PER_S, CONVERT_START_S = 0.35, 8.0
SPEAK_S_PER_CHARACTER, SPEAK_START_S = 0.07, 1.0


@dataclass(frozen=True, slots=True)
class Mix:
    """Which part of the work is of which kind, and how many floods there are in the month."""

    name: str
    seed: int
    convert: float
    speak: float
    floods: int


MIXES = (
    Mix("steady", seed=20260301, convert=0.04, speak=0.07, floods=0),
    Mix("floods", seed=20260302, convert=0.04, speak=0.04, floods=40),
)

Burst = Callable[[np.random.Generator, str, float, float], list[Submitted]]
"""Makes what a team submits at a time, given the factor of its run times."""


def generate(mix: Mix, *, seed: int | None = None, days: float | None = None) -> Trace:
    """A month of this mix at :data:`LOAD` of the cluster; or so many ``days``, or with another seed."""
    seed = mix.seed if seed is None else seed
    days = DAYS if days is None else days
    rng = np.random.default_rng(seed)
    names = [f"team-{number:02d}" for number in range(TEAMS)]
    # A few teams do most of the work.
    activity = 1.0 / np.arange(1, TEAMS + 1) ** 0.7
    activity /= activity.sum()
    zones_h = rng.choice([0.0, 1.0, 6.0, 9.0], size=TEAMS, p=[0.4, 0.3, 0.15, 0.15])
    factors = rng.lognormal(0.0, 0.1, size=TEAMS)
    weights = {name: 2.0 if number % 6 == 5 else 1.0 for number, name in enumerate(names)}
    month_s = days * 86400.0
    capacity = NODES * GPUS_PER_NODE * month_s * LOAD

    def moment(team: int) -> float:
        """A time of submission: busier in the team's afternoon, quieter at weekends."""
        while True:
            at_s = float(rng.uniform(0.0, month_s))
            local_h = (at_s / 3600.0 + zones_h[team]) % 168.0
            busy = 1.0 + 0.5 * np.cos(2 * np.pi * (local_h % 24.0 - 15.0) / 24.0)
            if rng.uniform(0.0, 1.5) < busy * (0.6 if local_h >= 120.0 else 1.0):
                return at_s

    def fill(work: float, burst: Burst) -> list[Submitted]:
        """Bursts of teams' work until there is enough of it."""
        jobs: list[Submitted] = []
        done = 0.0
        while done < work:
            team = int(rng.choice(TEAMS, p=activity))
            made = burst(rng, names[team], moment(team), float(factors[team]))
            done += offered(made)
            jobs += made
        return jobs

    floods: list[Submitted] = []
    for _ in range(round(mix.floods * days / DAYS)):
        # Any team may flood, the small ones as well.
        team = int(rng.integers(TEAMS))
        floods += _flood(rng, names[team], moment(team), float(factors[team]))
    jobs = list(floods)
    jobs += fill(capacity * mix.convert, _conversions)
    jobs += fill(capacity * mix.speak, _lines)
    jobs += fill(capacity - offered(jobs), _trainings)
    jobs = [replace(job, at_s=round(job.at_s, 1), takes_s=round(job.takes_s, 1)) for job in jobs]
    jobs.sort(key=lambda job: job.at_s)
    load = offered(jobs) / (NODES * GPUS_PER_NODE * month_s)
    return Trace(mix.name, seed, NODES, GPUS_PER_NODE, days, load, weights, jobs)


def _fails(rng: np.random.Generator) -> float:
    """Three jobs in a hundred fail once and are tried again, one in a hundred fails for good."""
    dice = rng.uniform()
    if dice < 0.03:
        return float(round(rng.uniform(0.05, 0.95), 3))
    return -float(round(rng.uniform(0.05, 0.95), 3)) if dice < 0.04 else 0.0


def _trainings(rng: np.random.Generator, team: str, at_s: float, factor: float) -> list[Submitted]:
    """One training, or the voices of a cast (4 to 12); 12 in 100 on several GPUs, 3 in 100 as a batch."""
    count = 1 if rng.uniform() < 0.7 else int(rng.integers(4, 13))
    steps = float(np.clip(rng.lognormal(np.log(4000.0), 0.5), 600.0, 40_000.0))
    gpus = int(rng.choice([1, 2, 4, 8], p=[0.88, 0.09, 0.025, 0.005]))
    priority_class = BATCH if rng.uniform() < 0.03 else TRAINING
    jobs = []
    for number in range(count):
        size = round(steps * (rng.uniform(0.8, 1.25) if count > 1 else 1.0))
        takes_s = TRAIN_START_S + TRAIN_S_PER_STEP * size * factor * float(rng.lognormal(0.0, 0.15))
        when_s = at_s + 2.0 * number
        jobs.append(Submitted(when_s, team, "rvc.train", priority_class, gpus, size, takes_s, 0, _fails(rng)))
    return jobs


def _conversions(rng: np.random.Generator, team: str, at_s: float, factor: float) -> list[Submitted]:
    """A song or an episode; or, as a batch, an album of 6 to 30, or a catalogue of 200 to 1,000."""
    dice = rng.uniform()
    count = 1 if dice < 0.8 else int(rng.integers(6, 31) if dice < 0.95 else rng.integers(200, 1001))
    one = INTERACTIVE if rng.uniform() < 0.1 else CONVERSION
    priority_class = one if count == 1 else BATCH
    typical_s = 1200.0 if rng.uniform() < 0.3 else 240.0
    jobs = []
    for _ in range(count):
        size = round(float(np.clip(rng.lognormal(np.log(typical_s), 0.4), 20.0, 1800.0)))
        takes_s = CONVERT_START_S + CONVERT_S_PER_S * size * factor * float(rng.lognormal(0.0, 0.2))
        jobs.append(Submitted(at_s, team, "rvc.convert", priority_class, 0, size, takes_s, 0, _fails(rng)))
    return jobs


def _lines(rng: np.random.Generator, team: str, at_s: float, factor: float) -> list[Submitted]:
    """A few lines that someone waits for; an episode of 100 to 1,000; a season of 5,000 to 30,000."""
    dice = rng.uniform()
    if dice < 0.55:
        return _chunks(rng, team, at_s, int(rng.integers(1, 11)), INTERACTIVE, factor)
    lines = int(rng.integers(100, 1001) if dice < 0.85 else rng.integers(5_000, 30_001))
    return _chunks(rng, team, at_s, lines, BATCH, factor)


def _flood(rng: np.random.Generator, team: str, at_s: float, factor: float) -> list[Submitted]:
    """30,000 to 100,000 lines at once."""
    return _chunks(rng, team, at_s, int(rng.integers(30_000, 100_001)), BATCH, factor)


def _chunks(  # noqa: PLR0917 - one after the other as its callers have them
    rng: np.random.Generator, team: str, at_s: float, lines: int, priority_class: int, factor: float
) -> list[Submitted]:
    """Lines in chunks of :data:`CHUNK_LINES`, each of which one place speaks one after the other."""
    # Lines of one script are of one manner: 60 to 140 characters.
    per_line = float(rng.uniform(60.0, 140.0))
    jobs = []
    while lines > 0:
        count = min(lines, CHUNK_LINES)
        size = round(count * per_line * float(rng.lognormal(0.0, 0.4 / np.sqrt(count))))
        takes_s = SPEAK_START_S + SPEAK_S_PER_CHARACTER * size * factor * float(rng.lognormal(0.0, 0.08))
        jobs.append(Submitted(at_s, team, "f5.item", priority_class, 0, size, takes_s, count, _fails(rng)))
        lines -= count
    return jobs


def summary(trace: Trace) -> dict[str, object]:
    """What a trace holds: jobs, lines and the part of the work of each kind."""
    work: dict[str, float] = {}
    count: dict[str, int] = {}
    for job in trace.jobs:
        work[job.kind] = work.get(job.kind, 0.0) + gpu_share(job.kind, job.gpus) * run_s(job)
        count[job.kind] = count.get(job.kind, 0) + 1
    total = sum(work.values())
    return {
        "name": trace.name,
        "seed": trace.seed,
        "load": round(trace.load, 4),
        "jobs": count,
        "lines": sum(job.lines for job in trace.jobs),
        "part_of_work": {kind: round(value / total, 3) for kind, value in work.items()},
    }


def main() -> int:
    """Writes every trace and says what is in it."""
    for mix in MIXES:
        trace = generate(mix)
        path = FOLDER / f"{mix.name}.xz"
        write(trace, path)
        print(json.dumps({**summary(trace), "size_bytes": path.stat().st_size}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
