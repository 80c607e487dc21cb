"""What a failed attempt leads to: another one, later or elsewhere or with less, or the end.

Delays are exponential with full jitter, ``uniform(0, min(cap, base * 2 ** n))``: Marc Brooker, "Exponential
Backoff and Jitter", AWS Architecture Blog, 2015. There it does the least work of the variants compared, and
a thousand jobs that failed together do not come back together.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from services.common.errors import FailureClass

BASE_S = 1.0
CAP_S = 60.0
NODE_CAP_S = 5.0
"""Another node is not overloaded because one died: no need to wait for long."""

LEAST_SCALE = 1.0 / 64.0
"""A job that runs out of memory with a 64th of its batch does not fit."""

_WITHOUT_BATCH = frozenset({"bundle.pull", "voice.import", "voice.export"})


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again.

    Args:
        delay_s: not before this time has passed.
        batch_scale: the part of its usual batch that the next attempt uses.
        avoid_node: where the next attempt is not to run if another node will do; empty: anywhere.
    """

    delay_s: float
    batch_scale: float
    avoid_node: str = ""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Do not try again; ``why`` is the second half of "it is not tried again: …"."""

    why: str


def decide(
    failure: FailureClass,
    *,
    attempt: int,
    max_attempts: int,
    node: str,
    batch_scale: float,
    chance: random.Random,
    kind: str = "",
) -> Retry | GiveUp:
    """What a failed attempt leads to.

    Args:
        failure: the class of the failure.
        attempt: the number of the attempt that failed, from 1.
        max_attempts: how many there may be.
        node: where it failed; empty where that is not known.
        batch_scale: the part of its usual batch that it used: 1, 1/2, ... 1/64.
        chance: where jitter comes from.
        kind: of the job. One without a batch that lacked a resource is tried later and elsewhere instead.
    """
    if failure is FailureClass.INPUT:
        return GiveUp("the request or its audio is at fault")
    if failure is FailureClass.PERMANENT:
        return GiveUp("waiting does not mend this failure")
    if attempt >= max_attempts:
        return GiveUp(f"attempt {attempt} of {max_attempts} was the last")
    if failure is FailureClass.RESOURCE and kind not in _WITHOUT_BATCH:
        if batch_scale / 2.0 < LEAST_SCALE:
            return GiveUp(f"it ran out of memory with {batch_scale:.3g} of its usual batch")
        # The smaller batch is the remedy, not the time that passes.
        return Retry(chance.uniform(0.0, BASE_S), batch_scale / 2.0)
    cap_s = NODE_CAP_S if failure is FailureClass.NODE else CAP_S
    # The exponent is bounded first: two to the power of a large attempt is no float.
    delay_s = chance.uniform(0.0, min(cap_s, BASE_S * 2.0 ** min(max(attempt, 1) - 1, 30)))
    elsewhere = failure in (FailureClass.NODE, FailureClass.RESOURCE)
    return Retry(delay_s, batch_scale, node if elsewhere else "")
