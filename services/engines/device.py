"""Which device an engine computes on, and how much of the machine it takes."""

from __future__ import annotations

import torch


def natural_device() -> str:
    """``cuda`` where this process sees a GPU that works, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def limit_threads(threads: int) -> None:
    """Let torch use so many CPU threads: two processes that each take all cores slow one another down."""
    torch.set_num_threads(threads)


def held_bytes() -> int:
    """GPU memory that this process's tensors hold; what torch keeps for later does not count."""
    # Nothing where CUDA was never used: it is not made to begin.
    return int(torch.cuda.memory_allocated())


def exercise(device: str) -> bool:
    """Has a device compute a little; whether the result is right. Errors: torch's own, of a broken device."""
    ones = torch.ones(64, 64, device=device)
    return bool((ones @ ones).sum().item() == 64**3)


def release_memory() -> None:
    """Give GPU memory that torch keeps for later back to the device, as after a call that ran out of it."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
