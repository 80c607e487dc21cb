"""What an engine replica is asked for, and what it answers: plain data that crosses processes."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, SupportsIndex

from services.common.jobs.model import PitchMatch, SpeechQuality
from services.common.jobs.tasks import (
    Blob,
    ConversionParameters,
    ConvertTask,
    F5Voice,
    Pronunciation,
    RespeakTask,
    RvcVoice,
    SpeakingParameters,
    SpeakTask,
    TimedWord,
)
from services.engines.bundles.manifest import Manifest
from services.inference.model import Role

if TYPE_CHECKING:
    from typing_extensions import Buffer


@dataclass(frozen=True, slots=True)
class Weights:
    """What made an output, as its provenance says it.

    Args:
        name: of the bundle or the voice.
        trained: whether the weights were ever trained.
        licence: SPDX id of their licence; empty where nobody stated one.
    """

    name: str
    trained: bool
    licence: str

    @property
    def label(self) -> str:
        """The name as people read it: it says so where the weights are untrained."""
        return self.name if self.trained else f"{self.name} (untrained weights)"


@dataclass(frozen=True, slots=True)
class Speaker:
    """What spoke before a conversion: a voice or a recording, by name, and its weights."""

    name: str
    weights: Weights


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What a replica is to hold.

    Args:
        role: the engine.
        bundle: the weights (F5): a stored bundle's complete manifest, or None for the small random ones,
            which the replica makes itself.
        more: stored bundles for languages that ``bundle`` lacks (F5), the first that has one first.
        contentvec: the stored ContentVec bundle, where there is one (RVC).
    """

    role: Role
    bundle: Manifest | None = None
    more: tuple[Manifest, ...] = ()
    contentvec: Manifest | None = None


@dataclass(frozen=True, slots=True)
class Speaking:
    """A bundle that a replica speaks with (F5).

    Args:
        weights: its own.
        languages: BCP-47 tags that they were made for; empty where nobody said.
        characters: the single characters that they know; empty where that does not apply.
    """

    weights: Weights
    languages: tuple[str, ...] = ()
    characters: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """A replica that is ready.

    Args:
        role: the engine.
        weights: of its first bundle (F5), or nothing in particular (RVC: each voice has its own).
        device: ``cuda`` or ``cpu``.
        slots: calls that it takes at once.
        node: where it runs, as the ledger calls it; of an engine that cannot tell, its host.
        pid: its process there.
        speaking: every bundle that it speaks with, the default first (F5).
        broken: bundles that it was to hold beside the default and could not load, and why.
    """

    role: Role
    weights: Weights
    device: str
    slots: int
    node: str
    pid: int
    speaking: tuple[Speaking, ...] = ()
    broken: tuple[tuple[str, str], ...] = ()


# ---- requests; the ``size`` of each is how much work it is, in units of its kind's own


@dataclass(frozen=True, slots=True)
class StreamSpeech:
    """Speak one text, piece by piece.

    Args:
        text: what to say.
        voice: in whose voice.
        parameters: how; its seed is not 0.
        rate_hz: of the samples; 0 for the engine's own.
        pronunciations: what the request's lexicons say of the text's words, the first lexicon's first.
        allowed: licences of the weights that its team may use; any where there are none.
        marked: whether it carries the mark where outputs do; not where it is to be converted first.
    """

    text: str
    voice: F5Voice
    parameters: SpeakingParameters
    rate_hz: int = 0
    pronunciations: tuple[Pronunciation, ...] = ()
    allowed: tuple[str, ...] = ()
    marked: bool = True

    @property
    def size(self) -> float:
        """Bytes of text times steps and tries."""
        return _speaking(self.text, self.parameters)


@dataclass(frozen=True, slots=True)
class Speak:
    """Speak one text, for the job ``job``; the task's seed is not 0.

    It is stored, unless it is to be converted: then it is answered as a stream of one piece.
    ``allowed`` are the licences of the weights that its team may use, any where there are none.
    """

    job: str
    task: SpeakTask
    allowed: tuple[str, ...] = ()

    @property
    def size(self) -> float:
        """Bytes of text times steps and tries."""
        return _speaking(self.task.text, self.task.parameters)


@dataclass(frozen=True, slots=True)
class Convert:
    """Turn one recording into a trained voice, for the job ``job``.

    ``share`` is of the usual length of a chunk, worked on at a time: below 1 after a lack of memory.
    """

    job: str
    task: ConvertTask
    share: float = 1.0

    @property
    def size(self) -> float:
        """Seconds of audio."""
        return self.task.audio.duration_s


@dataclass(frozen=True, slots=True)
class ConvertStream:
    """Turn sound into a trained voice while it comes: each piece that is fed is answered with one of Pcm.

    Args:
        voice: the trained voice.
        from_hz: of the pieces, signed 16-bit little-endian mono.
        parameters: how; its seed is not 0.
        rate_hz: of the answer; 0 for the voice's own.
        loudness_lufs: as of speech.
        duration_s: of the answer, to the sample; 0 for as long as what came.
        fed: the pieces, where the work is done; empty on the way there.
    """

    voice: RvcVoice
    from_hz: int
    parameters: ConversionParameters
    rate_hz: int = 0
    loudness_lufs: float | None = None
    duration_s: float = 0.0
    fed: Iterable[bytes] = field(default=(), compare=False)

    @property
    def size(self) -> float:
        """A stream is as long as it is fed: one is as much work as another."""
        return 1.0


@dataclass(frozen=True, slots=True)
class ConvertSpoken:
    """Turn what was spoken of a text into a trained voice, for the job ``job``, and store it.

    Args:
        job: whose it is.
        task: with ``converted``; its seeds are not 0.
        spoken: signed 16-bit little-endian mono samples.
        from_hz: theirs.
        speaker: what spoke.
        share: as of :class:`Convert`.
    """

    job: str
    task: SpeakTask
    spoken: bytes
    from_hz: int
    speaker: Speaker
    share: float = 1.0

    @property
    def size(self) -> float:
        """Seconds of speech."""
        return len(self.spoken) / 2 / self.from_hz


@dataclass(frozen=True, slots=True)
class Respeak:
    """Speak a recording again in a zero-shot voice, for the job ``job``; the task's seed is not 0.

    ``allowed`` are the licences that its team may use, any where there are none: which weights speak is
    known only once the recording has been heard.
    """

    job: str
    task: RespeakTask
    allowed: tuple[str, ...] = ()

    @property
    def size(self) -> float:
        """Seconds of audio times steps."""
        return self.task.audio.duration_s * self.task.parameters.steps


@dataclass(frozen=True, slots=True)
class Listen:
    """Hear what is said in a reference clip.

    Args:
        blob: the clip.
        text: what is said in it, where somebody wrote that.
        language: BCP-47; detected where empty.
        max_word_error_rate: a given text that differs from what is heard by more than this, in its words and
            in their letters, is refused; 0 for no such check.
    """

    blob: Blob
    text: str = ""
    language: str = ""
    max_word_error_rate: float = 0.0

    @property
    def size(self) -> float:
        """Bytes of the clip."""
        return float(self.blob.size_bytes)


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Find a stretch of a recording that a voice can speak from, and hear what is said in it.

    Args:
        blob: the recording.
        language: BCP-47; detected where empty.
    """

    blob: Blob
    language: str = ""

    @property
    def size(self) -> float:
        """However long the recording is, as much of it is heard."""
        return 1.0


@dataclass(frozen=True, slots=True)
class Probe:
    """Do a little real work, to show that it can be done; its end is all that is answered."""

    @property
    def size(self) -> float:
        """One probe is as much work as another."""
        return 1.0


Request = StreamSpeech | Speak | Convert | ConvertStream | ConvertSpoken | Respeak | Listen | Excerpt | Probe


def _speaking(text: str, parameters: SpeakingParameters) -> float:
    tries = parameters.quality.tries if parameters.quality is not None else 1
    return float(len(text.encode()) * parameters.steps * max(tries, 1))


# ---- events, in the order in which a call sends them


@dataclass(frozen=True, slots=True)
class Advance:
    """How far it is: ``phase`` (fetch, load, listen, convert, speak, encode, store), ``share`` 0..1 of it."""

    phase: str
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Opened:
    """The text is sound and its speech begins: samples a second, chunks of text, seed, weights, mark.

    ``speaker`` is what spoke, where that is converted.
    """

    rate_hz: int
    chunks: int
    seed: int
    weights: Weights
    watermarked: bool = False
    speaker: Speaker | None = None


@dataclass(frozen=True, slots=True)
class Pcm:
    """The next samples: signed 16-bit little-endian mono; ``work_s`` is what they cost."""

    data: bytes
    samples: int
    work_s: float

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[object, ...]:
        """Its bytes travel beside the pickle (PEP 574): in it they would be copied several times."""
        return _pcm_of, (pickle.PickleBuffer(self.data), self.samples, self.work_s)


def _pcm_of(data: Buffer, samples: int, work_s: float) -> Pcm:
    return Pcm(bytes(data), samples, work_s)


@dataclass(frozen=True, slots=True)
class Made:
    """The audio is in the store."""

    blob: Blob
    duration_s: float
    rate_hz: int
    channels: int
    codec: str
    seed: int
    weights: Weights
    work_s: float
    words: tuple[TimedWord, ...] = ()
    quality: SpeechQuality | None = None
    watermarked: bool = False
    pitch_match: PitchMatch | None = None


@dataclass(frozen=True, slots=True)
class Closed:
    """A stream's samples have all been sent: its words and quality where asked for, its text as spoken.

    ``seed`` is that of the try that was sent: a quality gate may have chosen another than was announced.
    ``pitch_match`` is what a conversion was to choose.
    """

    words: tuple[TimedWord, ...] = ()
    quality: SpeechQuality | None = None
    spoken_text: str = ""
    seed: int = 0
    pitch_match: PitchMatch | None = None


@dataclass(frozen=True, slots=True)
class Heard:
    """What is said in a reference clip.

    Args:
        text: as it was given, else as it was heard.
        language: ISO 639-1.
        words: of the text, with their times in the clip.
        word_error_rate: of the text against what was heard.
        start_s: where the clip begins in its recording (an excerpt).
        end_s: where it ends there; 0 where it is all of it.
    """

    text: str
    language: str
    words: tuple[TimedWord, ...]
    word_error_rate: float
    start_s: float = 0.0
    end_s: float = 0.0


Event = Advance | Opened | Pcm | Made | Closed | Heard
