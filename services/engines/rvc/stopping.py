"""How long work is asked to end: a callback that it polls."""

from __future__ import annotations

from collections.abc import Callable

from services.common.errors import FailureClass, Kind, Reason, VoxfleetError

ShouldStop = Callable[[], bool]


def never() -> bool:
    """Nobody asks."""
    return False


def stopped(doing: str) -> VoxfleetError:
    """The error of work that was asked to end before it had a result."""
    return VoxfleetError(
        Reason.CANCELLED, f"stopped while {doing}", kind=Kind.CANCELLED, failure=FailureClass.TRANSIENT
    )
