"""What Prometheus sees of the pools."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from services.common.errors import Reason, VoxfleetError

REPLICAS: Final = Gauge("voxfleet_pool_replicas", "Engine replicas, by state.", ["engine", "state"])
SLOTS: Final = Gauge("voxfleet_pool_slots", "Slots of ready replicas, used and free.", ["engine", "state"])
WAITING: Final = Gauge("voxfleet_pool_waiting", "Requests that wait for a slot.", ["engine"])
WAIT_SECONDS: Final = Histogram(
    "voxfleet_pool_wait_seconds",
    "Time from a request to its slot.",
    ["engine", "rank"],
    buckets=(0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 300),
)
ENDED: Final = Counter(
    "voxfleet_pool_replicas_ended_total", "Replicas that ended, by why.", ["engine", "reason"]
)
CALLS: Final = Counter(
    "voxfleet_inference_requests_total",
    "Requests to the engines; the outcome is ok, cancelled or the error's reason.",
    ["engine", "kind", "outcome"],
)
RTF: Final = Histogram(
    "voxfleet_inference_rtf",
    "Seconds of work for a second of audio.",
    ["engine", "kind"],
    buckets=(0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.35, 0.6, 1, 2, 5, 10),
)
FIRST_AUDIO: Final = Histogram(
    "voxfleet_synthesis_first_audio_seconds",
    "Time from a streamed request to its first samples.",
    buckets=(0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2, 3, 5, 10, 30),
)


def outcome_of(error: BaseException) -> str:
    """The label of a request that did not go well."""
    if isinstance(error, VoxfleetError):
        return "cancelled" if error.reason is Reason.CANCELLED else error.reason.value
    return "cancelled" if not isinstance(error, Exception) else Reason.INTERNAL.value
