"""What Prometheus sees of training."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import Counter, Gauge

RUNNING: Final = Gauge("voxfleet_trainings_running", "Trainings being worked on, by stage.", ["stage"])
STEPS_PER_S: Final = Gauge("voxfleet_training_steps_per_second", "Speed of the trainings, added up.")
LOSS: Final = Gauge("voxfleet_training_loss", "The newest loss of any training, by kind.", ["loss"])
STEPS: Final = Counter("voxfleet_training_steps_total", "Steps trained.")
CHECKPOINTS: Final = Counter("voxfleet_training_checkpoints_total", "Checkpoints recorded.")
CHECKPOINT_AGE: Final = Gauge(
    "voxfleet_training_checkpoint_age_seconds",
    "Work at risk: since the last checkpoint (or the start) of the training that saved longest ago; "
    "0 where none trains.",
)
GPU_SECONDS: Final = Counter(
    "voxfleet_training_gpu_seconds_total", "GPU-seconds held by trainings, by phase.", ["phase"]
)
ENDED: Final = Counter(
    "voxfleet_trainings_total",
    "Attempts that ended; the outcome is succeeded, stopped or a reason.",
    ["outcome"],
)
FALLBACKS: Final = Counter(
    "voxfleet_training_checkpoint_fallbacks_total", "Resumes that could not use the newest checkpoint."
)
NODE_LOSSES: Final = Counter("voxfleet_training_node_losses_total", "Stages lost with their worker or node.")


class Watch:
    """The gauges of several trainings at once: sums and the worst, never a label for each job."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._speed: dict[str, float] = {}
        self._saved: dict[str, float] = {}
        CHECKPOINT_AGE.set_function(self.checkpoint_age_s)

    def checkpoint_age_s(self) -> float:
        """Seconds since the least recent save among the trainings that run."""
        with self._lock:
            return self._clock() - min(self._saved.values()) if self._saved else 0.0

    @contextmanager
    def training(self, job: str) -> Iterator[None]:
        """A training holds GPUs meanwhile."""
        with self._lock:
            self._saved[job] = self._clock()
        try:
            yield
        finally:
            with self._lock:
                self._saved.pop(job, None)
                self._speed.pop(job, None)
                STEPS_PER_S.set(sum(self._speed.values()))

    def speed(self, job: str, steps_per_s: float) -> None:
        """How fast a training is."""
        with self._lock:
            if job in self._saved:
                self._speed[job] = steps_per_s
                STEPS_PER_S.set(sum(self._speed.values()))

    def saved(self, job: str) -> None:
        """A training has just recorded a checkpoint."""
        with self._lock:
            if job in self._saved:
                self._saved[job] = self._clock()
        CHECKPOINTS.inc()
