"""Speech recognition with Whisper base through faster-whisper: what is said, and when."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.vad import VadOptions, get_speech_timestamps
from numpy.typing import NDArray

from services.common.errors import Reason, invalid
from services.common.jobs.tasks import TimedWord

RATE_HZ = 16_000
_BEAM = 5
_LEAST_VOICED_S = 0.1
_VOICED = VadOptions(min_silence_duration_ms=300, speech_pad_ms=0)


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech and its text; times in seconds from the start of the audio."""

    start_s: float
    end_s: float
    text: str
    mean_log_probability: float


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said, in which language (ISO 639-1), and when each word was, where that was asked for."""

    text: str
    segments: tuple[Segment, ...]
    language: str
    language_probability: float
    words: tuple[TimedWord, ...] = ()


class Recogniser:
    """Whisper base, loaded once.

    Args:
        model_dir: the folder of :func:`services.engines.whisper.bundle.whisper_base`.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads of one call.
    """

    def __init__(self, model_dir: Path, *, device: str = "cpu", threads: int = 1) -> None:
        compute = "int8" if device == "cpu" else "float16"
        self._model = WhisperModel(str(model_dir), device=device, compute_type=compute, cpu_threads=threads)

    def knows(self, language: str) -> bool:
        """Whether it was trained on a language (ISO 639-1)."""
        return language in self._model.supported_languages

    def voiced_s(self, samples: NDArray[np.float32]) -> float:
        """Seconds of 16 kHz mono audio in which somebody speaks, as Silero's detector hears it."""
        if len(samples) == 0:
            return 0.0
        spans = get_speech_timestamps(samples, _VOICED, sampling_rate=RATE_HZ)
        return sum(int(span["end"]) - int(span["start"]) for span in spans) / RATE_HZ

    def hear(
        self, samples: NDArray[np.float32], language: str | None = None, *, timed: bool = False
    ) -> Transcript:
        """What is said, as :meth:`transcribe`; nothing where nobody speaks: Whisper finds words in noise."""
        if self.voiced_s(samples) < _LEAST_VOICED_S:
            samples = samples[:0]
        return self.transcribe(samples, language, timed=timed)

    def transcribe(
        self, samples: NDArray[np.float32], language: str | None = None, *, timed: bool = False
    ) -> Transcript:
        """The text of 16 kHz mono audio.

        Args:
            samples: ``[n]`` within -1..1.
            language: ISO 639-1; detected where not given.
            timed: whether to say when each word is said, which costs a second pass of the decoder.

        Raises:
            VoxfleetError: ``UNSUPPORTED_LANGUAGE`` where Whisper has none of that name.
        """
        if language is not None and not self.knows(language):
            raise invalid(
                Reason.UNSUPPORTED_LANGUAGE,
                f"Whisper does not know the language {language!r}; give an ISO 639-1 code",
                field="language",
                language=language,
            )
        if len(samples) == 0:
            return Transcript("", (), language or "", 0.0)
        # No fallback over temperatures and no carried context: the same audio gives the same text.
        found, info = self._model.transcribe(
            samples,
            language=language,
            beam_size=_BEAM,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=False,
            word_timestamps=timed,
        )
        parts = list(found)
        segments = tuple(
            Segment(float(part.start), float(part.end), part.text.strip(), float(part.avg_logprob))
            for part in parts
        )
        text = " ".join(segment.text for segment in segments if segment.text)
        words = tuple(
            TimedWord(text=word.word.strip(), start_s=float(word.start), end_s=float(word.end))
            for part in parts
            for word in part.words or ()
            if word.word.strip()
        )
        return Transcript(text, segments, info.language, float(info.language_probability), words)


def whisper_language(recogniser: Recogniser, language: str) -> str | None:
    """The ISO 639-1 code of a BCP-47 tag, where Whisper knows it."""
    primary = re.split("[-_]", language)[0].lower()
    return primary if primary and recogniser.knows(primary) else None
