"""Why a job waits: one code and one sentence, from what is known of it and of the fleet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Explanation(NamedTuple):
    """Why a job waits; an empty code: it does not."""

    code: str
    sentence: str


@dataclass(frozen=True, slots=True)
class SeenNode:
    """A node as the fleet shows it: ``state`` is alive, draining, drained or dead."""

    name: str
    gpus: float
    gpu_type: str
    state: str


@dataclass(frozen=True, slots=True)
class Case:
    """What is known of a queued job.

    Args:
        kind: of job.
        gpus: that it holds once it runs; whole ones are of one node.
        gpu_type: that it asks for; empty: any.
        paused: by its owner.
        waits_for: jobs that it depends on and that have not succeeded.
        back_off_s: until it may be tried again; 0: now.
        last_error: of the attempt before.
        preempted: whether it gave its place to higher work.
        takers: live workers that take its kind.
        nodes: of the fleet, dead ones included.
        quota: why its team may begin nothing more just now, in words; empty: it may.
        free: places for its kind that no job holds.
        ahead_own: jobs of its team before it, in its class.
        ahead_others: jobs of other teams before it, in its class.
        ahead_higher: jobs of higher classes.
    """

    kind: str
    gpus: float = 0.0
    gpu_type: str = ""
    paused: bool = False
    waits_for: Sequence[str] = ()
    back_off_s: float = 0.0
    last_error: str = ""
    preempted: bool = False
    takers: int = 1
    nodes: Sequence[SeenNode] = ()
    quota: str = ""
    free: int = 0
    ahead_own: int = 0
    ahead_others: int = 0
    ahead_higher: int = 0


def explain(case: Case) -> Explanation:
    """The first thing that stands in its way: what its owner did, what it depends on, then the fleet."""
    return (
        _by_itself(case)
        or _by_the_fleet(case)
        or (Explanation("QUOTA", f"its team is at its quota: {case.quota}") if case.quota else None)
        or _by_the_queue(case)
    )


def _by_itself(case: Case) -> Explanation | None:
    if case.paused:
        return Explanation("PAUSED", "it was paused; ResumeJob lets it go on")
    if case.waits_for:
        first, more = case.waits_for[0], len(case.waits_for) - 1
        others = f" and {_many(more, 'other job')}" if more else ""
        return Explanation("DEPENDENCY", f"it waits until {first}{others} succeeded")
    if case.back_off_s > 0:
        why = f" ({case.last_error})" if case.last_error else ""
        return Explanation(
            "BACK_OFF", f"its last attempt failed{why}: the next is in {case.back_off_s:.0f} s"
        )
    return None


def _by_the_fleet(case: Case) -> Explanation | None:
    if not case.takers:
        return Explanation("NO_WORKER", f"no worker that takes {case.kind} was heard of in the last minute")
    whole = int(case.gpus) if case.gpus >= 1 else 0
    alive = [node for node in case.nodes if node.state != "dead"]
    if not alive:
        # A worker that has not told of its nodes yet takes what it takes.
        return None
    fitting = [
        node
        for node in alive
        if node.gpus >= whole and (not case.gpu_type or (node.gpus > 0 and node.gpu_type == case.gpu_type))
    ]
    if not fitting:
        of_type = f" of type {case.gpu_type}" if case.gpu_type else ""
        has = ", ".join(
            f"{node.name} has {node.gpus:g}{f' of type {node.gpu_type}' if node.gpu_type else ''}"
            for node in alive[:4]
        )
        return Explanation("NO_SUCH_GPU", f"no node has {_many(max(whole, 1), 'GPU')}{of_type}: {has}")
    if all(node.state in ("draining", "drained") for node in fitting):
        named = ", ".join(node.name for node in fitting[:4])
        return Explanation("DRAINING", f"every node that it fits on is drained by an operator: {named}")
    return None


def _by_the_queue(case: Case) -> Explanation:
    if case.preempted:
        return Explanation("PREEMPTED", "it made room for higher work and goes on from its last checkpoint")
    if case.ahead_others:
        return Explanation(
            "FAIR_SHARE",
            f"{_many(case.ahead_others, 'job')} of other teams in its class are before it: teams take turns",
        )
    if case.ahead_higher:
        return Explanation(
            "GPU_BUSY", f"{_many(case.ahead_higher, 'job')} of higher classes are served before it"
        )
    if case.ahead_own:
        return Explanation("GPU_BUSY", f"{_many(case.ahead_own, 'job')} of its own team are before it")
    if case.free > 0:
        return Explanation("", "a place is free for it: it is about to begin")
    return Explanation("GPU_BUSY", "it is next; every place that fits it is taken")


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
