"""When a replica is sick: judged from what is seen of it, with nothing that waits.

``app.watching`` collects what is judged here, ``model.reconcile`` does what follows.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

_GIB = 1 << 30
_SLOWER = 0.5
_FASTER = 0.1
_WHILE_OTHERS_GO_ON = 4.0


class Ailment(enum.StrEnum):
    """Why a replica is to be replaced, as logs and metrics say it."""

    MUTE = "unresponsive"
    HUNG = "hung"
    UNFIT = "failed probe"
    OUT_OF_MEMORY = "out of memory"
    LEAK = "leaked memory"


@dataclass(frozen=True, slots=True)
class HealthPlan:
    """How replicas are watched, and what is held against them.

    Args:
        check_s: between two looks at whether a replica answers, and how much memory it holds.
        check_limit_s: how long that answer may take.
        probe_s: an idle replica that did no real work for so long is given some; 0 for never.
        probe_limit_s: how long that work may take.
        misses: answers in a row, or probes, that may be bad or late.
        hang_factor: times the expected time that a call may be silent.
        hang_floor_s: added to that, for short calls and busy machines.
        first_call_s: how long a call may be silent where none of its kind has been measured.
        out_of_memory: calls in a row that may lack GPU memory.
        rss_bytes: of memory that is a replica's own, at most; 0 for any.
        rss_growth_bytes: of the same, more than when it became ready; 0 for any.
        gpu_bytes: of GPU memory that its tensors hold, at most; 0 for any.
        gpu_growth_bytes: of the same, more than when it became ready; 0 for any.
    """

    check_s: float = 5.0
    check_limit_s: float = 10.0
    probe_s: float = 60.0
    probe_limit_s: float = 30.0
    misses: int = 3
    hang_factor: float = 2.0
    hang_floor_s: float = 60.0
    first_call_s: float = 600.0
    out_of_memory: int = 3
    rss_bytes: int = 0
    rss_growth_bytes: int = 4 * _GIB
    gpu_bytes: int = 0
    gpu_growth_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Vitals:
    """What a replica says of itself when it is asked whether it is there.

    Args:
        rss_bytes: resident memory of its own: shared pages (libraries, the object store) do not count.
        gpu_bytes: GPU memory that live tensors hold; what the allocator keeps for later does not count.
    """

    rss_bytes: int = 0
    gpu_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Condition:
    """What is held against a replica.

    Args:
        missed: health checks in a row without an answer.
        probes_failed: probes in a row that failed or were late.
        overdue: whether a call of it has been silent for longer than it may.
        out_of_memory: calls in a row that lacked GPU memory.
        over_memory: health checks in a row at which it held more memory than it may.
    """

    missed: int = 0
    probes_failed: int = 0
    overdue: bool = False
    out_of_memory: int = 0
    over_memory: int = 0

    @property
    def is_suspect(self) -> bool:
        """Whether another replica is the better choice for new work."""
        return self.missed > 0 or self.probes_failed > 0 or self.out_of_memory > 0


WELL = Condition()
USUAL = HealthPlan()


def ends_for(plan: HealthPlan, condition: Condition) -> Ailment | None:
    """Why a replica is to be ended at once, whatever runs on it: none of its calls would come to its end."""
    if condition.missed >= plan.misses:
        return Ailment.MUTE
    if condition.overdue:
        return Ailment.HUNG
    return Ailment.UNFIT if condition.probes_failed >= plan.misses else None


def leaves_for(plan: HealthPlan, condition: Condition) -> Ailment | None:
    """Why a replica is to be replaced when the calls that run on it have ended."""
    if plan.out_of_memory and condition.out_of_memory >= plan.out_of_memory:
        return Ailment.OUT_OF_MEMORY
    return Ailment.LEAK if condition.over_memory >= plan.misses else None


def holds_too_much(plan: HealthPlan, now: Vitals, when_ready: Vitals) -> bool:
    """Whether a replica holds more memory than it may, or than a healthy one would gain by working."""
    bounds = (
        (plan.rss_bytes, now.rss_bytes),
        (plan.rss_growth_bytes, now.rss_bytes - when_ready.rss_bytes),
        (plan.gpu_bytes, now.gpu_bytes),
        (plan.gpu_growth_bytes, now.gpu_bytes - when_ready.gpu_bytes),
    )
    return any(most and held > most for most, held in bounds)


@dataclass(frozen=True, slots=True)
class Pace:
    """How long calls of one kind have lately taken for their size.

    It errs on the long side: a slower call counts at once, a faster one little by little.

    Args:
        s_per_unit: seconds for a unit of work; 0 where nothing was measured.
        beside: calls that ran on the same replica meanwhile, itself included.
    """

    s_per_unit: float = 0.0
    beside: float = 1.0

    def after(self, work_s: float, size: float, beside: int) -> Pace:
        """The pace with one more call.

        Args:
            work_s: how long the engine was waited for.
            size: of the request, in its kind's own units.
            beside: the fewest calls that ran on its replica meanwhile, itself included.
        """
        if size <= 0.0:
            return self
        found, among = work_s / size, float(max(beside, 1))
        if self.s_per_unit <= 0.0:
            return Pace(found, among)
        weight = _SLOWER if found > self.s_per_unit else _FASTER
        return Pace(
            self.s_per_unit + weight * (found - self.s_per_unit),
            self.beside + weight * (among - self.beside),
        )

    def expected_s(self, size: float, beside: int) -> float | None:
        """How long such a call takes; None where nothing was measured.

        Where more calls share the replica than when it was measured, each is taken to be as much slower:
        so it is on a CPU, and on a GPU it is never more.
        """
        if self.s_per_unit <= 0.0:
            return None
        return self.s_per_unit * size * max(beside / self.beside, 1.0)


def is_overdue(limit_s: float, *, silent_s: float, quiet_s: float) -> bool:
    """Whether a call hangs.

    A call that is silent while others on its replica go on is given longer: the engine may put them first.

    Args:
        limit_s: how long it may be silent; see :func:`silence_limit_s`.
        silent_s: how long it has been.
        quiet_s: how long nothing was heard from its replica at all.
    """
    return silent_s > limit_s * (1.0 if quiet_s > limit_s else _WHILE_OTHERS_GO_ON)


def silence_limit_s(plan: HealthPlan, pace: Pace, size: float, beside: int) -> float:
    """How long a call may send nothing before it is taken to hang.

    Args:
        plan: for the factor and the floor.
        pace: of its kind.
        size: of its request.
        beside: calls on its replica, itself included.
    """
    expected_s = pace.expected_s(size, beside)
    if expected_s is None:
        return plan.first_call_s
    return plan.hang_factor * expected_s + plan.hang_floor_s
