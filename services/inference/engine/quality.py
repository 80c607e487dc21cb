"""Whether speech came out well enough, and speaking again with other seeds where it did not."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from services.common import limits
from services.common.jobs.model import SpeechQuality
from services.common.jobs.tasks import QualityGate
from services.common.media.resample import resample
from services.engines.similarity import Embedding, SpeakerEncoder, likeness
from services.engines.whisper.asr import RATE_HZ, Transcript, whisper_language
from services.engines.whisper.scoring import word_error_rate
from services.inference.engine.listening import Ear, in_words

_REFERENCES = 64

T = TypeVar("T")
Samples = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Judgement:
    """How well one try came out; what was not judged is 0."""

    word_error_rate: float = 0.0
    similarity: float = 0.0
    heard: str = ""


@dataclass(frozen=True, slots=True)
class Reference:
    """The clip that a voice speaks from.

    Args:
        id: two of one id are the same clip; its voice is remembered by it.
        audio: [samples].
        rate_hz: theirs.
    """

    id: str
    audio: Samples
    rate_hz: int


class Judge:
    """Hears what was spoken and whose voice it is.

    Args:
        ear: the recogniser.
        device: of the speaker encoder: ``cpu`` or ``cuda``.
    """

    def __init__(self, ear: Ear, *, device: str = "cpu") -> None:
        self._ear = ear
        self._device = device
        self._encoder: SpeakerEncoder | None = None
        self._voices: OrderedDict[str, Embedding | None] = OrderedDict()
        self._lock = threading.Lock()

    def judge(
        self,
        samples: Samples,
        rate_hz: int,
        text: str,
        gate: QualityGate,
        *,
        reference: Reference,
        language: str = "",
    ) -> Judgement:
        """How well a text came out; only what the gate asks about is judged.

        Args:
            samples: [samples], what was spoken.
            rate_hz: theirs.
            text: what was to be said, as it was spoken.
            gate: says what is asked about.
            reference: of the voice.
            language: BCP-47; detected where empty.

        Raises:
            VoxfleetError: MODEL_NOT_FOUND where Whisper or the speaker encoder is not installed.
        """
        rate, heard, similarity = 0.0, "", 0.0
        if gate.max_word_error_rate > 0:
            found = self._hear(samples, rate_hz, language)
            spoken_in = language or found.language
            heard = found.text
            rate = word_error_rate(in_words(text, spoken_in), in_words(heard, spoken_in))
        if gate.min_similarity > 0:
            similarity = self._likeness(samples, rate_hz, reference)
        return Judgement(rate, similarity, heard)

    def _hear(self, samples: Samples, rate_hz: int, language: str) -> Transcript:
        recogniser = self._ear.recogniser()
        return recogniser.hear(resample(samples, rate_hz, RATE_HZ), whisper_language(recogniser, language))

    def _likeness(self, samples: Samples, rate_hz: int, reference: Reference) -> float:
        # The encoder is small and its package promises nothing about threads: one at a time.
        with self._lock:
            if self._encoder is None:
                self._encoder = SpeakerEncoder(self._device)
            if reference.id not in self._voices:
                self._voices[reference.id] = self._encoder.embed(reference.audio, reference.rate_hz)
                while len(self._voices) > _REFERENCES:
                    self._voices.popitem(last=False)
            self._voices.move_to_end(reference.id)
            return likeness(self._encoder.embed(samples, rate_hz), self._voices[reference.id])


def judges(gate: QualityGate | None) -> bool:
    """Whether a gate asks about anything."""
    return gate is not None and (gate.max_word_error_rate > 0 or gate.min_similarity > 0)


def shortfall(judgement: Judgement, gate: QualityGate) -> float:
    """How far from good enough: 0 where it is, else the sum of what each measure lacks."""
    lacks = 0.0
    if gate.max_word_error_rate > 0:
        lacks += max(0.0, judgement.word_error_rate - gate.max_word_error_rate)
    if gate.min_similarity > 0:
        lacks += max(0.0, gate.min_similarity - judgement.similarity)
    return lacks


def seed_of_try(seed: int, number: int) -> int:
    """The seed of a try: the first has the request's own, the others follow from it.

    Args:
        seed: of the request, not 0.
        number: from 1.

    Returns:
        1 to ``limits.MAX_SEED``.
    """
    if number == 1:
        return seed
    digest = hashlib.sha256(f"{seed}:{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % limits.MAX_SEED + 1


@dataclass(frozen=True, slots=True)
class Kept(Generic[T]):
    """The try that is kept, its seed, and what is said of it."""

    spoken: T
    seed: int
    quality: SpeechQuality


def best_of(
    speak: Callable[[int], T], judge: Callable[[T], Judgement], gate: QualityGate, seed: int
) -> Kept[T]:
    """Speaks until it is good enough, or as often as the gate allows; the best is kept.

    Args:
        speak: with a seed.
        judge: one try.
        gate: what is good enough.
        seed: of the first try; the others follow from it.

    Returns:
        The first try that is good enough, else the one that lacks least; of two that are alike the first.

    Raises:
        Whatever ``speak`` and ``judge`` raise.
    """
    most = min(max(gate.tries, 1), limits.TRIES[1])
    ranked: list[tuple[tuple[float, float, float], T, int, Judgement]] = []
    for number in range(1, most + 1):
        seed_now = seed_of_try(seed, number)
        spoken = speak(seed_now)
        judgement = judge(spoken)
        lacks = shortfall(judgement, gate)
        rank = (lacks, judgement.word_error_rate, -judgement.similarity)
        # One is kept and not all: a try of a long text is tens of megabytes.
        ranked = [min([*ranked, (rank, spoken, seed_now, judgement)], key=lambda entry: entry[0])]
        if lacks == 0.0:
            break
    rank, spoken, seed_now, judgement = ranked[0]
    quality = SpeechQuality(
        judgement.word_error_rate, judgement.similarity, number, judgement.heard, rank[0] == 0.0
    )
    return Kept(spoken, seed_now, quality)
