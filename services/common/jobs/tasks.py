"""What a worker is handed: the resolved task of a job.

Metadata makes these in the submitting transaction (names resolved to bytes in S3, defaults filled
in) and stores them as JSON in the job's row; a worker needs nothing else. Readers ignore fields that
they do not know and writers give new fields defaults, so that two releases can work side by side.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class _Task(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Blob(_Task):
    """Bytes in S3: ``key``, SHA-256 (hexadecimal), size in bytes, media type."""

    key: str
    sha256: str
    size_bytes: int
    media_type: str = "application/octet-stream"


class Output(_Task):
    """How the audio is to come; ``rate_hz`` 0 is the engine's own."""

    format: Literal["wav", "flac", "mp3", "opus", "aac"] = "flac"
    rate_hz: int = 0
    bitrate_kbps: int = 0


class SourceAudio(_Task):
    """An audio of the team, by name, with its bytes."""

    name: str
    blob: Blob
    duration_s: float
    display_name: str = ""


class TrainingParameters(_Task):
    """How to train; zero or empty is the worker's default, which depends on the preset."""

    epochs: int = 0
    batch_size: int = 0
    learning_rate: float = 0.0
    save_every: int = 0
    preset: str = ""
    f0_method: str = "fcpe"
    content_encoder: str = ""
    gpus: int = 1
    gpu_type: str = ""
    seed: int = 1234
    max_steps: int = 0


class TrainTask(_Task):
    """Train an RVC voice."""

    kind: Literal["rvc.train"] = "rvc.train"
    team: str
    voice: str
    display_name: str = ""
    audios: tuple[SourceAudio, ...]
    parameters: TrainingParameters = TrainingParameters()


class RvcVoice(_Task):
    """A trained voice and its package; None only while the job waits for the voice's training."""

    name: str
    package: Blob | None = None

    @property
    def package_id(self) -> str:
        """The same for the same weights; empty while there are none."""
        return self.package.sha256 if self.package is not None else ""


class TimedWord(_Task):
    """A word and when it is said, in seconds from the beginning."""

    text: str
    start_s: float
    end_s: float


class F5Voice(_Task):
    """A zero-shot voice: its reference clip, what is said in it, and when, where that is known.

    A clip may be the stretch from ``start_s`` to ``end_s`` of a longer recording; all of it where ``end_s``
    is 0. Without a text it is a recording that is to be listened to first.
    """

    name: str
    reference: Blob
    reference_text: str
    languages: tuple[str, ...] = ()
    reference_words: tuple[TimedWord, ...] = ()
    start_s: float = 0.0
    end_s: float = 0.0

    @property
    def clip_id(self) -> str:
        """The same for two voices that speak from the same sound."""
        return f"{self.reference.sha256}@{self.start_s:.3f}" if self.end_s else self.reference.sha256


class ConversionParameters(_Task):
    """How to convert; see ``voxfleet.v1.ConversionParameters``."""

    pitch_shift: float = 0.0
    index_rate: float = 0.5
    filter_radius: int = 3
    rms_mix_rate: float = 0.25
    protect: float = 0.33
    f0_method: str = ""
    seed: int = 0
    auto_pitch: bool = False


class ConvertTask(_Task):
    """Turn one recording into a trained voice."""

    kind: Literal["rvc.convert"] = "rvc.convert"
    team: str
    audio: SourceAudio
    voice: RvcVoice
    parameters: ConversionParameters = ConversionParameters()
    output: Output = Output()


class QualityGate(_Task):
    """What is good enough; zero means that it is not judged. See ``voxfleet.v1.QualityGate``."""

    max_word_error_rate: float = 0.0
    min_similarity: float = 0.0
    tries: int = 3


class Pronunciation(_Task):
    """A word as it is written, and as it is spelled for the engine."""

    grapheme: str
    alias: str


class SpeakingParameters(_Task):
    """How to speak; see ``voxfleet.v1.SynthesisParameters``. A seed of 0 is chosen by the worker."""

    steps: int = 16
    speed: float = 1.0
    seed: int = 0
    cfg_strength: float = 2.0
    duration_s: float = 0.0
    language: str = ""
    pitch_shift: float = 0.0
    loudness_lufs: float | None = None
    verbatim: bool = False
    word_timestamps: bool = False
    quality: QualityGate | None = None


class SpeakTask(_Task):
    """Speak one text of a batch; where ``converted`` is a trained voice, turn what was spoken into it."""

    kind: Literal["f5.item"] = "f5.item"
    team: str
    text: str
    voice: F5Voice
    parameters: SpeakingParameters = SpeakingParameters()
    output: Output = Output()
    display_name: str = ""
    pronunciations: tuple[Pronunciation, ...] = ()
    converted: RvcVoice | None = None
    conversion: ConversionParameters = ConversionParameters()


class RespeakTask(_Task):
    """Speak again, in a zero-shot voice, what is said in a recording, with its timing."""

    kind: Literal["f5.convert"] = "f5.convert"
    team: str
    audio: SourceAudio
    voice: F5Voice
    parameters: SpeakingParameters = SpeakingParameters()
    output: Output = Output()
    pronunciations: tuple[Pronunciation, ...] = ()


class BatchTask(_Task):
    """A batch: it is never leased, its items are."""

    kind: Literal["batch"] = "batch"
    team: str
    item_kind: str


class PullBundleTask(_Task):
    """Bring a known bundle of weights into the store."""

    kind: Literal["bundle.pull"] = "bundle.pull"
    team: str
    bundle: str
    accepted_licence: bool = False


class VoiceFile(_Task):
    """A file of the team, by name, that holds a voice or a part of one."""

    name: str
    blob: Blob
    display_name: str = ""


class ImportVoiceTask(_Task):
    """Make a voice of files from outside; ``licence`` is what its owner says of its weights."""

    kind: Literal["voice.import"] = "voice.import"
    team: str
    voice: str
    display_name: str = ""
    model: VoiceFile
    index: VoiceFile | None = None
    licence: str = ""


class ExportVoiceTask(_Task):
    """Make files of a trained voice."""

    kind: Literal["voice.export"] = "voice.export"
    team: str
    voice: RvcVoice
    format: Literal["voxfleet", "pth"] = "voxfleet"
    licence: str = ""
    weights_trained: bool = True


Task = Annotated[
    TrainTask
    | ConvertTask
    | SpeakTask
    | RespeakTask
    | BatchTask
    | PullBundleTask
    | ImportVoiceTask
    | ExportVoiceTask,
    Field(discriminator="kind"),
]

_ADAPTER: TypeAdapter[Task] = TypeAdapter(Task)


def load_task(text: str | bytes) -> Task:
    """The task that was stored as JSON. Errors: ValueError where it is none of ours."""
    return _ADAPTER.validate_json(text)


QUEUE_OF_KIND = {
    "rvc.train": "trainer",
    "rvc.convert": "inference",
    "f5.item": "inference",
    "f5.convert": "inference",
    "bundle.pull": "inference",
    # Inference takes what needs no GPU beside its pools: it waits neither for trainings nor for a replica.
    "voice.import": "inference",
    "voice.export": "inference",
    "batch": "none",
}
"""Which queue of workers takes which kind of job; a batch itself is taken by none."""

WITHOUT_GPU = frozenset({"batch", "bundle.pull", "voice.import", "voice.export"})
VOICE_MAKING = frozenset({"rvc.train", "voice.import"})
"""Whose task names the voice that it makes: TRAINING until the job ends."""
