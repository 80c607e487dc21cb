"""From a text to finished speech: worded, spoken, judged, shaped, timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from services.common.jobs.model import SpeechQuality
from services.common.jobs.tasks import F5Voice, Pronunciation, SpeakingParameters, TimedWord
from services.common.media.resample import StreamResampler
from services.engines.f5.planning import RATE_HZ, Reference, SynthesisItem
from services.engines.f5.synthesis import STREAMING, F5Model
from services.engines.f5.wording import spoken
from services.engines.whisper.alignment import words_of
from services.inference.engine import quality
from services.inference.engine.finishing import Finisher, finished
from services.inference.engine.listening import Ear
from services.inference.engine.marking import Marking
from services.inference.engine.quality import Judge, best_of, judges
from services.inference.engine.running import Stopped
from services.inference.languages import language_of

Samples = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Asked:
    """A text to be spoken.

    Args:
        text: as it is written.
        voice: whose it is.
        reference: that voice's prepared clip.
        parameters: how; the seed is not 0.
        pronunciations: of lexicons.
        rank: who goes first.
        default_language: BCP-47, where neither the request nor the voice names one.
    """

    text: str
    voice: F5Voice
    reference: Reference
    parameters: SpeakingParameters
    pronunciations: Sequence[Pronunciation] = ()
    rank: int = 0
    default_language: str = ""

    @property
    def language(self) -> str:
        """BCP-47: what was asked for, else the voice's own, else the default; empty where none says."""
        return language_of(self.parameters, self.voice) or self.default_language


@dataclass(frozen=True, slots=True)
class Voiced:
    """Finished speech.

    Args:
        audio: [samples] at 24 kHz, float32; not marked yet.
        spoken_text: the text as it was spoken.
        seed: that made it: another than was asked for where a quality gate chose so.
        work_s: what it cost, further tries included.
        words: when each is said, where that was asked for.
        quality: how well it came out, where that was asked for.
    """

    audio: Samples
    spoken_text: str
    seed: int
    work_s: float
    words: tuple[TimedWord, ...] = ()
    quality: SpeechQuality | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """The next samples of a stream, at the rate that was asked for, and what they cost."""

    audio: Samples
    work_s: float


@dataclass(frozen=True, slots=True)
class Voicing:
    """What speaks and what listens.

    Args:
        model: who speaks.
        ear: who listens, for word times and the quality gate.
        judge: of the quality gate.
        clip_of: a voice's clip, as recorded.
        marking: of streams; whole outputs are marked as they are stored.
    """

    model: F5Model
    ear: Ear
    judge: Judge
    clip_of: Callable[[F5Voice], quality.Reference]
    marking: Marking

    def whole(self, asked: Asked, cancelled: Stopped) -> Voiced:
        """A text, whole.

        Raises:
            VoxfleetError: those of :meth:`F5Model.plan` and :meth:`F5Model.render`; MODEL_NOT_FOUND where
                it is to be judged or timed and there is no recogniser.
        """
        text = worded(asked)
        made = _spoken(self, asked, text, cancelled)
        audio = finished(made.audio, RATE_HZ, asked.parameters)
        words = _words(self, asked, text, made.audio)
        return Voiced(audio, text, made.seed, made.work_s, words, made.quality)

    def stream(self, asked: Asked, rate_hz: int, cancelled: Stopped) -> Stream:
        """A text as it is spoken, at a rate. Errors: those of :meth:`F5Model.plan`, at once."""
        return Stream(self, asked, rate_hz, cancelled)


class Stream:
    """One text that is sent while it is spoken.

    With a quality gate it is spoken whole, as often as the gate wants, before the first sample goes out.

    Args:
        voicing: what speaks.
        asked: the text, and how.
        rate_hz: of the samples.
        cancelled: asked between evaluations.
    """

    def __init__(self, voicing: Voicing, asked: Asked, rate_hz: int, cancelled: Stopped) -> None:
        self._voicing = voicing
        self._asked = asked
        self._rate_hz = rate_hz
        self._cancelled = cancelled
        self._heard: list[Samples] = []
        self.spoken_text = worded(asked)
        self.seed = asked.parameters.seed
        self.quality: SpeechQuality | None = None
        plan = voicing.model.plan(_item(asked, self.spoken_text), streaming=STREAMING)
        self._is_judged = judges(asked.parameters.quality)
        self.chunks = 1 if self._is_judged else len(plan.segments)

    def pieces(self) -> Iterator[Piece]:
        """The samples, in as many pieces as there are chunks; one that holds none is left out.

        Raises:
            VoxfleetError: those of :meth:`F5Model.render`.
        """
        parameters = self._asked.parameters
        finisher = Finisher(RATE_HZ, parameters)
        marker = self._voicing.marking.stream(RATE_HZ)
        resampler = StreamResampler(1, RATE_HZ, self._rate_hz) if self._rate_hz != RATE_HZ else None
        work_s = 0.0
        for number, piece in enumerate(self._spoken(), start=1):
            last = number == self.chunks
            if parameters.word_timestamps:
                self._heard.append(piece.audio)
            samples = finisher.push(piece.audio, last)
            if marker is not None:
                samples = marker(samples, last=last)
            if resampler is not None:
                samples = resampler(samples[None], last=last)[0]
            # What is held back must not lose its cost.
            work_s += piece.work_s
            if len(samples):
                yield Piece(samples, work_s)
                work_s = 0.0

    def words(self) -> tuple[TimedWord, ...]:
        """When each word was said, once all has been; empty where nobody asked."""
        if not self._heard:
            return ()
        return _words(self._voicing, self._asked, self.spoken_text, np.concatenate(self._heard))

    def _spoken(self) -> Iterator[Piece]:
        if self._is_judged:
            made = _spoken(self._voicing, self._asked, self.spoken_text, self._cancelled)
            self.seed, self.quality = made.seed, made.quality
            yield Piece(made.audio, made.work_s)
            return
        item = _item(self._asked, self.spoken_text)
        for one in self._voicing.model.stream(item, cancelled=self._cancelled, rank=self._asked.rank):
            yield Piece(one.audio, one.stats.wall_s)


def worded(asked: Asked) -> str:
    """The text as it is to be spoken: lexicons applied, numbers in words unless asked otherwise."""
    return spoken(
        asked.text,
        asked.language,
        verbatim=asked.parameters.verbatim,
        pronunciations=asked.pronunciations,
    )


@dataclass(frozen=True, slots=True)
class _Made:
    audio: Samples
    seed: int
    work_s: float
    quality: SpeechQuality | None


def _spoken(voicing: Voicing, asked: Asked, text: str, cancelled: Stopped) -> _Made:
    """What is spoken, as often as its gate wants; neither shaped nor marked."""
    work_s = 0.0

    def speak(seed: int) -> Samples:
        nonlocal work_s
        plan = voicing.model.plan(replace(_item(asked, text), seed=seed))
        made = voicing.model.render([plan], cancelled=cancelled, rank=asked.rank)[0]
        work_s += made.stats.wall_s
        return made.audio

    gate, seed = asked.parameters.quality, asked.parameters.seed
    if gate is None or not judges(gate):
        audio = speak(seed)
        return _Made(audio, seed, work_s, None)
    clip = voicing.clip_of(asked.voice)
    kept = best_of(
        speak,
        # As it was spoken: a voice whose pitch is moved is less like itself, as was asked for.
        lambda audio: voicing.judge.judge(
            audio, RATE_HZ, text, gate, reference=clip, language=asked.language
        ),
        gate,
        seed,
    )
    return _Made(kept.spoken, kept.seed, work_s, kept.quality)


def _words(voicing: Voicing, asked: Asked, text: str, audio: Samples) -> tuple[TimedWord, ...]:
    if not asked.parameters.word_timestamps:
        return ()
    return words_of(voicing.ear.recogniser(), audio, RATE_HZ, text, asked.language)


def _item(asked: Asked, text: str) -> SynthesisItem:
    parameters = asked.parameters
    return SynthesisItem(
        text=text,
        reference=asked.reference,
        steps=parameters.steps,
        cfg_strength=parameters.cfg_strength,
        speed=parameters.speed,
        seed=parameters.seed,
        duration_s=parameters.duration_s or None,
    )
