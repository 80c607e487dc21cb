"""What a failed attempt leads to."""

from __future__ import annotations

import random
from dataclasses import dataclass

from services.common.errors import FailureClass


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again."""

    delay_s: float
    batch_scale: float
    avoid_node: str = ""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Do not."""


def decide(
    failure: FailureClass,
    *,
    attempt: int,
    max_attempts: int,
    node: str,
    batch_scale: float,
    chance: random.Random,
) -> Retry | GiveUp:
    """What a failed attempt leads to."""
    if attempt >= max_attempts or failure in (FailureClass.INPUT, FailureClass.PERMANENT):
        return GiveUp()
    delay_s = min(60.0, 2.0 ** max(0, attempt - 1)) * chance.uniform(0.5, 1.0)
    if failure is FailureClass.RESOURCE:
        return Retry(delay_s, batch_scale / 2) if batch_scale > 1 / 64 else GiveUp()
    return Retry(delay_s, batch_scale, node if failure is FailureClass.NODE else "")
