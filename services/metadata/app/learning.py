"""What the ledger has learned from ended attempts: how long jobs take, and how far forecasts were off.

It is kept in the database, where any process learns and the others read; between two reads each goes by what
it read last. New work that arrives is counted by each process for itself, and forgotten with it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from services.metadata.model.jobs import LeasedJob, PriorityClass
from services.metadata.ports.store import Store, Transaction
from services.metadata.scheduling.calibration import Calibration, Expected, Key
from services.metadata.scheduling.estimates import ServiceTimes
from services.metadata.scheduling.forecast import Arrivals

log = logging.getLogger(__name__)

LEAST_GPUS = 0.05
"""What a job counts as at the least: one that needs no GPU takes a place too."""

_AT_ONCE = 5000
_TIMES, _STARTS = "service_times", "starts"


class Experience:
    """Service times, calibration and arrivals, as far as this process knows.

    Args:
        store: the database.
        reload_s: after which what other processes learned is read.
        clock: seconds, monotonic.
    """

    def __init__(
        self, store: Store, *, reload_s: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._reload_s = reload_s
        self._clock = clock
        self._read_s = float("-inf")
        self.times = ServiceTimes()
        self.calibration = Calibration()
        self.arrivals = Arrivals()

    def cost_of(self, job: LeasedJob) -> float:
        """The GPU-seconds that a job is expected to take, which its team is charged in the fair share."""
        return self.work(job.kind, job.gpus, job.size)

    def work(self, kind: str, gpus: float, size: float) -> float:
        """The GPU-seconds that such a job is expected to take."""
        return max(gpus, LEAST_GPUS) * self.times.mean_s(kind, size)

    def arrived(self, kind: str, priority_class: PriorityClass, team: str, work: float) -> None:
        """So many GPU-seconds of new work were submitted."""
        self.arrivals.add((kind, priority_class, team), work, self._clock())

    async def learn(self) -> int:
        """Adds up what attempts used and learns from them; returns from how many.

        One process at a time does, told apart by the lock on the usage watermark.
        """
        async with self._store.service() as tx:
            samples = await tx.add_up_usage(_AT_ONCE)
            if samples or self._clock() - self._read_s > self._reload_s:
                await self._load(tx)
            for sample in samples:
                if sample.attempt != 1:
                    # What goes on from a checkpoint tells nothing of a whole run, nor what was tried before
                    # of a wait.
                    continue
                if sample.succeeded:
                    self.times.observe(sample.kind, sample.size, sample.duration_s)
                if sample.expected is not None:
                    self.calibration.observe(expected_of(sample.expected), sample.waited_s)
            if samples:
                await tx.save_estimates(_TIMES, self.times.to_json())
                await tx.save_estimates(_STARTS, self.calibration.to_json())
        return len(samples)

    async def _load(self, tx: Transaction) -> None:
        self.times = ServiceTimes.from_json(await tx.load_estimates(_TIMES) or {})
        self.calibration = Calibration.from_json(await tx.load_estimates(_STARTS) or {})
        self._read_s = self._clock()


def expected_json(expected: Expected) -> dict[str, Any]:
    """A forecast as it is kept with its job."""
    return {
        "raw_s": round(expected.raw_s, 3),
        "earliest_s": round(expected.earliest_s, 3),
        "latest_s": round(expected.latest_s, 3),
        "start_in_s": round(expected.start_in_s, 3),
        "end_in_s": round(expected.end_in_s, 3),
        "key": list(expected.key),
    }


def expected_of(kept: Mapping[str, Any]) -> Expected:
    """The other way round."""
    kind, priority_class, width, bucket = kept["key"]
    return Expected(
        start_in_s=kept["start_in_s"],
        earliest_s=kept["earliest_s"],
        latest_s=kept["latest_s"],
        end_in_s=kept["end_in_s"],
        raw_s=kept["raw_s"],
        key=Key(kind, PriorityClass(priority_class), width, bucket),
    )
