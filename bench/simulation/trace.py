"""Traces: who submitted what and when, and how long it really took.

A file is xz over text: one line of JSON (name, seed, cluster, teams, the names of the columns), then one line
of integers per column. Times are in tenths of a second; ``at`` is the difference to the job before.
"""

from __future__ import annotations

import json
import lzma
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

KINDS = ("rvc.train", "rvc.convert", "f5.item")
COLUMNS = ("at", "team", "kind", "class", "gpus", "size", "takes", "lines", "fails")
FOLDER = Path(__file__).parent.parent / "traces"


@dataclass(frozen=True, slots=True)
class Submitted:
    """One job of a trace.

    ``takes_s`` is its true run time, ``lines`` how many lines of a batch it stands for, ``fails`` the part of
    the run after which its first attempt fails: 0 never, negative for good.
    """

    at_s: float
    team: str
    kind: str
    priority_class: int
    gpus: int
    size: int
    takes_s: float
    lines: int
    fails: float


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace and the cluster that it was made for."""

    name: str
    seed: int
    nodes: int
    gpus_per_node: int
    days: float
    load: float
    weights: dict[str, float]
    jobs: list[Submitted]


def write(trace: Trace, path: Path) -> None:
    """Writes a trace; the same trace gives the same text."""
    teams = list(trace.weights)
    head = {
        "name": trace.name,
        "seed": trace.seed,
        "nodes": trace.nodes,
        "gpus_per_node": trace.gpus_per_node,
        "days": trace.days,
        "load": round(trace.load, 4),
        "teams": trace.weights,
        "columns": COLUMNS,
    }
    rows: list[tuple[int, ...]] = []
    before = 0
    for job in trace.jobs:
        at = round(job.at_s * 10)
        rows.append(
            (
                at - before,
                teams.index(job.team),
                KINDS.index(job.kind),
                job.priority_class,
                job.gpus,
                job.size,
                round(job.takes_s * 10),
                job.lines,
                round(job.fails * 1000),
            )
        )
        before = at
    lines = [json.dumps(head)] + [",".join(map(str, column)) for column in zip(*rows, strict=True)]
    path.write_bytes(lzma.compress("\n".join(lines).encode(), preset=9 | lzma.PRESET_EXTREME))


def read(path: Path, *, days: float | None = None) -> Trace:
    """Reads a trace, or its first ``days``. Errors: ValueError where it is none."""
    first, *lines = lzma.decompress(path.read_bytes()).decode().split("\n")
    head = json.loads(first)
    if tuple(head["columns"]) != COLUMNS or len(lines) != len(COLUMNS):
        raise ValueError(f"{path}: not a trace of the columns {', '.join(COLUMNS)}")
    columns = [list(map(int, line.split(","))) for line in lines]
    columns[0] = list(accumulate(columns[0]))
    teams = list(head["teams"])
    until = days * 864_000 if days is not None else float("inf")
    jobs = [
        Submitted(
            at / 10, teams[team], KINDS[kind], priority_class, gpus, size, takes / 10, lines_, fails / 1000
        )
        for at, team, kind, priority_class, gpus, size, takes, lines_, fails in zip(*columns, strict=True)
        if at < until
    ]
    return Trace(
        head["name"],
        head["seed"],
        head["nodes"],
        head["gpus_per_node"],
        min(head["days"], days or head["days"]),
        head["load"],
        head["teams"],
        jobs,
    )


def gpu_share(kind: str, gpus: int) -> float:
    """The GPUs that a job of a kind holds: whole ones for a training, a part of one for inference."""
    return {"rvc.convert": 1 / 3, "f5.item": 1 / 5}.get(kind, float(gpus))


def offered(jobs: list[Submitted]) -> float:
    """The GPU-seconds that jobs take, with what failed attempts waste."""
    total = 0.0
    for job in jobs:
        total += gpu_share(job.kind, job.gpus) * run_s(job)
    return total


def run_s(job: Submitted) -> float:
    """Seconds that a job runs over all its attempts: a training goes on from its checkpoint."""
    if job.fails < 0:
        return -job.fails * job.takes_s
    if job.kind == "rvc.train":
        return job.takes_s
    return (1.0 + job.fails) * job.takes_s
