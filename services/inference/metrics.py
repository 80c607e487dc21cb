"""What Prometheus sees of the pools."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from services.common.errors import Reason, VoxfleetError
from services.inference.health import Vitals
from services.inference.model import Replica, ReplicaState, Role

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
VOICES: Final = Counter(
    "voxfleet_pool_voices_total",
    "Calls that were given to a replica with their voice in memory (warm) or not (cold).",
    ["engine", "state"],
)
MEMORY: Final = Gauge(
    "voxfleet_pool_memory_bytes",
    "What the replica that holds most has: rss (its own pages), gpu (its tensors).",
    ["engine", "kind"],
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


def show_pool(role: Role, replicas: Sequence[Replica], waiting: int) -> None:
    """Shows what a pool is made of now; ``waiting`` requests have no slot."""
    for state in ReplicaState:
        REPLICAS.labels(role, state).set(sum(1 for replica in replicas if replica.state is state))
    ready = [replica for replica in replicas if replica.state is ReplicaState.READY]
    SLOTS.labels(role, "used").set(sum(replica.busy for replica in replicas))
    SLOTS.labels(role, "free").set(sum(replica.slots - replica.busy for replica in ready))
    WAITING.labels(role).set(waiting)


def show_memory(role: Role, vitals: Iterable[Vitals]) -> None:
    """Shows what the largest replica holds."""
    seen = list(vitals)
    MEMORY.labels(role, "rss").set(max((each.rss_bytes for each in seen), default=0))
    MEMORY.labels(role, "gpu").set(max((each.gpu_bytes for each in seen), default=0))


def outcome_of(error: BaseException) -> str:
    """The label of a request that did not go well."""
    if isinstance(error, VoxfleetError):
        return "cancelled" if error.reason is Reason.CANCELLED else error.reason.value
    return "cancelled" if not isinstance(error, Exception) else Reason.INTERNAL.value
