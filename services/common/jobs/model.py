"""Jobs as workers know them: plain data, no gRPC."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from services.common.jobs.tasks import Blob, Task, TimedWord


@dataclass(frozen=True, slots=True)
class Fence:
    """The right to work on a job, once; every write of an attempt carries it."""

    job_id: str
    attempt: int
    lease_token: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A saved point of a training whose bytes are in S3."""

    blob: Blob
    epoch: int
    step: int
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Lease:
    """One job, leased to this worker for ``lease_s`` seconds from the last heartbeat."""

    fence: Fence
    job: str
    task: Task
    lease_s: float
    traceparent: str = ""
    checkpoints: tuple[Checkpoint, ...] = ()
    """Committed by earlier attempts, newest first."""
    batch_scale: float = 1.0
    """Share of the batch size to use: below 1 after a lack of memory."""
    avoid_nodes: tuple[str, ...] = ()
    """Where it failed lately: to be passed over where another node will do."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an attempt is: a snapshot. ``percent`` is of the whole job, ``remaining_s`` 0 if unknown."""

    phase: str
    step: int = 0
    total_steps: int = 0
    percent: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    message: str = ""
    remaining_s: float = 0.0


class StopKind(enum.Enum):
    """Why an attempt must stop."""

    CANCEL = "cancel"
    """Someone cancelled the job."""
    LOST = "lost"
    """The lease is gone: another attempt may run already."""
    YIELD = "yield"
    """Higher work waits, or the job was paused: save and give back."""
    SHUTDOWN = "shutdown"
    """This process is stopping: save and give back."""


@dataclass(frozen=True, slots=True)
class HeartbeatAck:
    """The ledger took the oldest heartbeat that was not yet answered."""


@dataclass(frozen=True, slots=True)
class UnreadableLease:
    """A lease whose task this release cannot read: one of a newer one, most likely."""

    fence: Fence
    job: str


@dataclass(frozen=True, slots=True)
class FleetOrders:
    """What the operators and the scheduler ask of every worker.

    ``grants`` is how many GPUs belong to each pool; one that is not named keeps to its settings.
    """

    drained_nodes: frozenset[str] = frozenset()
    grants: Mapping[str, float] = field(default_factory=dict)


Message = Lease | UnreadableLease | HeartbeatAck | FleetOrders | tuple[Fence, StopKind]
"""What comes down a work channel."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A node of the Ray cluster."""

    name: str
    state: str
    gpus: float
    gpus_free: float
    cpus: float
    virtual_gpus: bool
    gpu_type: str = ""

    def leaving(self, drained: Collection[str], *, busy: bool) -> NodeFacts:
        """As the ledger is told of it: one of the drained says whether any of our work is left there."""
        if self.state != "alive" or self.name not in drained:
            return self
        return replace(self, state="draining" if busy else "drained")


TRAINER_POOL = "trainer"
"""What grants call the GPUs of trainings; the others are called as their engines are."""


@dataclass(frozen=True, slots=True)
class TrainingGpus:
    """What a running training has of the GPUs; how long it has is no difference between two.

    Args:
        job_id: whose.
        gpus: that it holds or will ask for; 0 where it needs none any more.
        node: where it holds them; empty where it does not.
        held_s: for how long it has.
    """

    job_id: str
    gpus: int
    node: str = ""
    held_s: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class PoolState:
    """What a pool of replicas holds, and the streamed requests that no job stands for.

    Args:
        name: as grants name it.
        gpus_each: share of a GPU of one replica; 0 where it needs none.
        places_each: jobs that a replica runs at once.
        least, most: replicas, by setting.
        held_gpus: what its replicas hold on nodes that are not drained.
        streams_waiting, streams_running: streamed requests without a slot, and with one.
        begun: calls so far.
        streams_waited_s: for how long the oldest of those that wait has.
        since_begin_s: since the last call began; negative where none did.
    """

    name: str
    gpus_each: float
    places_each: int = 1
    least: int = 1
    most: int = 1
    held_gpus: float = 0.0
    streams_waiting: int = 0
    streams_running: int = 0
    begun: int = 0
    streams_waited_s: float = field(default=0.0, compare=False)
    since_begin_s: float = field(default=-1.0, compare=False)


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """Who of a worker's has GPUs: what the scheduler divides them by."""

    trainings: tuple[TrainingGpus, ...] = ()
    pools: tuple[PoolState, ...] = ()


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a worker could take now, by job kind, and the Ray nodes that it sees."""

    free: Mapping[str, int]
    nodes: tuple[NodeFacts, ...] = ()
    default_bundle: str = ""
    gpus: GpuFacts = field(default_factory=GpuFacts)


@dataclass(frozen=True, slots=True)
class SpeechQuality:
    """How well speech came out; see ``voxfleet.v1.SpeechQuality``."""

    word_error_rate: float
    similarity: float
    tries: int
    heard: str
    passed: bool


@dataclass(frozen=True, slots=True)
class Spoken:
    """What spoke before a conversion: a voice or a recording, by name, and the weights that it spoke with."""

    name: str
    weights: str
    weights_trained: bool
    weights_licence: str


@dataclass(frozen=True, slots=True)
class PitchMatch:
    """What a conversion moved the pitch by, by itself; see ``voxfleet.v1.PitchMatch``."""

    semitones: float
    source_hz: float
    voice_hz: float


@dataclass(frozen=True, slots=True)
class AudioOutput:
    """Audio that an attempt made; its bytes are in S3 already."""

    blob: Blob
    duration_s: float
    rate_hz: int
    channels: int
    codec: str
    display_name: str
    engine: str
    weights: str
    weights_trained: bool
    weights_licence: str
    seed: int
    voice: str
    source_audio: str = ""
    watermarked: bool = False
    words: tuple[TimedWord, ...] = ()
    """When each word is said, where that was asked for."""
    quality: SpeechQuality | None = None
    """How well it came out, where that was judged."""
    voice_file: bool = False
    """It is no audio, but a file of an exported voice."""
    spoken: Spoken | None = None
    """What spoke it before it was converted, where something did."""
    pitch_match: PitchMatch | None = None
    """By how much its pitch was moved, where the conversion was to choose that."""


@dataclass(frozen=True, slots=True)
class VoiceOutput:
    """A voice that an attempt trained or imported; its package is in S3 already."""

    package: Blob
    content_encoder: str
    rate_hz: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Succeeded:
    """An attempt that went well, with everything it made."""

    audios: tuple[AudioOutput, ...] = ()
    voice: VoiceOutput | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    curve: tuple[tuple[int, Mapping[str, float]], ...] = ()
    weights: str = ""
    weights_trained: bool = False


@dataclass(frozen=True, slots=True)
class Released:
    """An attempt that was given back unharmed."""

    message: str


Outcome = Succeeded | Released


class AttemptStopped(Exception):  # noqa: N818 - a signal, not an error
    """Raised by a handler that stopped because it was told to."""
