"""When to repeat a call, and after how long: pure decisions."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from voxfleet.client.errors import VoxfleetError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a safe call is repeated, and how long a cut stream is looked after.

    Args:
        attempts: tries of a call in all; of a resumed stream, tries in a row that bring nothing new.
        initial_backoff_s: upper bound of the first wait; it doubles with each.
        max_backoff_s: upper bound of any wait that the server did not ask for.
        reconnect_s: how long a watch goes on trying while nothing comes.
    """

    attempts: int = 5
    initial_backoff_s: float = 0.2
    max_backoff_s: float = 5.0
    reconnect_s: float = 120.0

    def backoff_s(
        self,
        failures: int,
        retry_after_s: float | None = None,
        *,
        draw: Callable[[], float] = random.random,
    ) -> float:
        """Seconds to wait after so many failures in a row (1 after the first).

        The server's own word stands, with up to a tenth more so that clients do not come back all at
        once. Else exponential with jitter between half and all of the bound.
        """
        if retry_after_s is not None:
            return retry_after_s * (1.0 + 0.1 * draw())
        bound = min(self.max_backoff_s, self.initial_backoff_s * 2.0 ** min(failures - 1, 30))
        return bound * (0.5 + 0.5 * draw())

    def repeats(self, error: VoxfleetError, failures: int, *, safe: bool) -> bool:
        """Whether a unary call is tried again: only what is safe to repeat, only after UNAVAILABLE."""
        return safe and error.code == "UNAVAILABLE" and failures < self.attempts


class Patience:
    """How long a stream that keeps breaking is opened again; anything that comes from it renews it.

    Args:
        policy: how long, and how often.
        reconnect_s: gives up after so many seconds without anything new; by ``policy.attempts`` where None.
    """

    def __init__(self, policy: RetryPolicy, reconnect_s: float | None = None) -> None:
        self._policy = policy
        self._reconnect_s = reconnect_s
        self._failures = 0
        self._first_failure_s = 0.0

    def renew(self) -> None:
        """Something new came."""
        self._failures = 0

    def wait_s(self, error: VoxfleetError) -> float:
        """Seconds to wait before the stream is opened again; raises the error when that is over."""
        self._failures += 1
        if self._failures == 1:
            self._first_failure_s = time.monotonic()
        if self._reconnect_s is None:
            over = self._failures >= self._policy.attempts
        else:
            over = time.monotonic() - self._first_failure_s >= self._reconnect_s
        if over:
            raise error
        return self._policy.backoff_s(self._failures, error.retry_after_s)
