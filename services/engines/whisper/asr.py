"""Speech recognition with Whisper base through faster-whisper, and the word error rate."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from faster_whisper import WhisperModel
from numpy.typing import NDArray

from services.common.errors import Reason, invalid

_BEAM = 5


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech and its text; times in seconds from the start of the audio."""

    start_s: float
    end_s: float
    text: str
    mean_log_probability: float


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said, in which language (ISO 639-1)."""

    text: str
    segments: tuple[Segment, ...]
    language: str
    language_probability: float


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

    def transcribe(self, samples: NDArray[np.float32], language: str | None = None) -> Transcript:
        """The text of 16 kHz mono audio.

        Args:
            samples: ``[n]`` within -1..1.
            language: ISO 639-1; detected where not given.

        Raises:
            VoxfleetError: ``UNSUPPORTED_LANGUAGE`` where Whisper has none of that name.
        """
        known = self._model.supported_languages
        if language is not None and language not in known:
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
        )
        segments = tuple(
            Segment(float(part.start), float(part.end), part.text.strip(), float(part.avg_logprob))
            for part in found
        )
        text = " ".join(segment.text for segment in segments if segment.text)
        return Transcript(text, segments, info.language, float(info.language_probability))


def word_error_rate(reference: str, hypothesis: str) -> float:
    """Insertions, deletions and substitutions per word of the reference; may exceed 1.

    Both texts pass :func:`normalise` first. An empty reference gives 0 against an empty hypothesis,
    otherwise the number of words in the hypothesis.
    """
    expected, got = normalise(reference).split(), normalise(hypothesis).split()
    costs = list(range(len(got) + 1))
    for row, word in enumerate(expected, start=1):
        diagonal, costs[0] = costs[0], row
        for column, other in enumerate(got, start=1):
            substituted = diagonal + (word != other)
            diagonal = costs[column]
            costs[column] = min(substituted, costs[column] + 1, costs[column - 1] + 1)
    return costs[-1] / max(len(expected), 1)


def normalise(text: str) -> str:
    """Lower case, without punctuation, apostrophes within words dropped, single spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    joined = re.sub(r"(?<=\w)['’](?=\w)", "", folded)
    return " ".join(re.sub(r"[\W_]+", " ", joined).split())
