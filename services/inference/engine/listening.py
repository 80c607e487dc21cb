"""What an F5 replica hears in a reference clip: its words, when each is said, whether they fit its text."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import numpy as np

from services.common.artifacts.ports import ArtifactStore
from services.common.errors import Reason, VoxfleetError, invalid
from services.common.jobs.tasks import TimedWord
from services.common.media.decode import decode
from services.common.media.resample import resample
from services.engines.f5.reference import RATE_HZ as REFERENCE_HZ
from services.engines.f5.reference import check_sound, prepare
from services.engines.f5.wording import spoken
from services.engines.whisper import recordings
from services.engines.whisper.alignment import silences, timed
from services.engines.whisper.asr import RATE_HZ, Recogniser, whisper_language
from services.engines.whisper.bundle import whisper_base
from services.engines.whisper.excerpts import best_stretch
from services.engines.whisper.scoring import character_error_rate, word_error_rate, words_in
from services.inference.calls import Excerpt, Heard, Listen
from services.inference.engine.blobs import fetch

log = logging.getLogger(__name__)

MIN_VOICED_S = 0.5
AUDIO_FIELD = "reference_audio"
TEXT_FIELD = "reference_text"
_EXCERPT_FROM_S = 45.0
"""As much of a recording is heard: on a CPU it takes seconds."""


class Ear:
    """Whisper, loaded when somebody first listens, once for a replica.

    Args:
        cache_dir: of the node; the model is put together there.
        device: ``cpu`` or ``cuda``; where that does not work it is the CPU after all.
        threads: CPU threads of one call.
    """

    def __init__(self, cache_dir: Path, *, device: str = "cpu", threads: int = 1) -> None:
        self._cache_dir = cache_dir
        self._device = device
        self._threads = threads
        self._recogniser: Recogniser | None = None
        self._lock = threading.Lock()

    def recogniser(self) -> Recogniser:
        """The recogniser. Errors: MODEL_NOT_FOUND, MODEL_CORRUPT."""
        with self._lock:
            if self._recogniser is None:
                self._recogniser = self._loaded(whisper_base(self._cache_dir))
            return self._recogniser

    def _loaded(self, model_dir: Path) -> Recogniser:
        """On the device where that works: its runtime wants CUDA libraries that may be absent."""
        if self._device != "cpu":
            try:
                recogniser = Recogniser(model_dir, device=self._device, threads=self._threads)
                # The libraries are looked for with the first work, not before.
                recogniser.transcribe(np.zeros(RATE_HZ, np.float32), "en")
                return recogniser
            except (RuntimeError, ValueError) as error:
                log.warning("Whisper does not run on %s and takes the CPU: %s", self._device, error)
        return Recogniser(model_dir, threads=self._threads)


def in_words(text: str, language: str) -> str:
    """The text with its numbers and the like in words (BCP-47 language), as they are spoken and compared."""
    return spoken(text, language, verbatim=False, pronunciations=())


def listen(store: ArtifactStore, ear: Ear, request: Listen) -> Heard:
    """Hears a reference clip; a text that is found out has its numbers in words.

    Args:
        store: has the clip.
        ear: hears it.
        request: which, and what is said to be in it.

    Raises:
        VoxfleetError: of the clip (field ``reference_audio``): AUDIO_NOT_FOUND, INVALID_FORMAT,
            AUDIO_EMPTY, AUDIO_SILENT, AUDIO_TOO_SHORT, AUDIO_TOO_LONG, SPEECH_NOT_HEARD where nobody
            speaks in it and no text was given; of the text (``reference_text``): TRANSCRIPT_MISMATCH
            (``heard``, ``word_error_rate``, ``max_word_error_rate``), TEXT_EMPTY, TEXT_TOO_LONG.
            MODEL_NOT_FOUND where Whisper is not installed.
    """
    audio = decode(fetch(store, request.blob, Reason.AUDIO_NOT_FOUND))
    samples, rate_hz = audio.samples, audio.rate_hz
    check_sound(samples, rate_hz)
    recogniser = ear.recogniser()
    at_16_khz = resample(samples, rate_hz, RATE_HZ)
    # Of noise or music Whisper makes words that nobody said.
    voiced_s = recogniser.voiced_s(at_16_khz)
    found = recogniser.transcribe(
        at_16_khz if voiced_s >= MIN_VOICED_S else at_16_khz[:0],
        whisper_language(recogniser, request.language),
        timed=True,
    )
    if not request.text and not words_in(found.text):
        raise _nothing_heard(voiced_s)
    language = request.language or found.language
    heard = in_words(found.text, language)
    text = request.text or heard
    expected = in_words(text, language)
    rate = word_error_rate(expected, heard)
    # Where Whisper is weak in a language it gets most words wrong, and most of their letters right.
    apart = min(rate, character_error_rate(expected, heard))
    if 0 < request.max_word_error_rate < apart:
        raise _mismatch(found.text, rate, request.max_word_error_rate)
    words = timed(text, found.words, len(samples) / rate_hz, silences(samples, rate_hz))
    # Made ready as for speaking, and thrown away: what is wrong with it is said now and not at first use.
    prepare(request.blob.sha256, samples, rate_hz, text, words=words)
    return Heard(text, found.language, words, rate)


def excerpt(store: ArtifactStore, ear: Ear, request: Excerpt) -> Heard:
    """Finds a stretch to speak from in the beginning of a recording; its numbers are in words.

    Args:
        store: has the recording.
        ear: hears it.
        request: which.

    Raises:
        VoxfleetError: AUDIO_NOT_FOUND, INVALID_FORMAT; SPEECH_NOT_HEARD where nobody speaks two seconds
            without a long pause; those of :func:`services.engines.f5.reference.prepare`; MODEL_NOT_FOUND
            where Whisper is not installed.
    """
    audio = decode(fetch(store, request.blob, Reason.AUDIO_NOT_FOUND), rate_hz=REFERENCE_HZ)
    samples = audio.samples[: round(_EXCERPT_FROM_S * REFERENCE_HZ)]
    found = recordings.listen(ear.recogniser(), samples, REFERENCE_HZ, language=request.language)
    stretch = best_stretch(found.words, len(samples) / REFERENCE_HZ)
    if stretch is None:
        raise _nothing_heard(sum(word.end_s - word.start_s for word in found.words))
    text = in_words(stretch.text, request.language or found.language)
    words = () if text != stretch.text else tuple(_earlier(word, stretch.start_s) for word in stretch.words)
    cut = samples[round(stretch.start_s * REFERENCE_HZ) : round(stretch.end_s * REFERENCE_HZ)]
    # As in listening: what is wrong with it is said now.
    prepare(request.blob.sha256, cut, REFERENCE_HZ, text, words=words or None)
    return Heard(text, found.language, words, 0.0, stretch.start_s, stretch.end_s)


def _earlier(word: TimedWord, by_s: float) -> TimedWord:
    return word.model_copy(update={"start_s": word.start_s - by_s, "end_s": word.end_s - by_s})


def _nothing_heard(voiced_s: float) -> VoxfleetError:
    return invalid(
        Reason.SPEECH_NOT_HEARD,
        "nobody is heard to speak in the clip: give a clearer one, or write what is said in it",
        field=AUDIO_FIELD,
        user_message="No speech was heard in the recording.",
        voiced_s=f"{voiced_s:.2f}",
    )


def _mismatch(heard: str, rate: float, most: float) -> VoxfleetError:
    shown = heard[:200] or "nothing"
    return invalid(
        Reason.TRANSCRIPT_MISMATCH,
        f"the text is not what is said in the clip, which sounds like: {shown!r}; "
        "write exactly what is said, or leave the text empty",
        field=TEXT_FIELD,
        user_message="The text does not match the recording.",
        heard=heard[:1000],
        word_error_rate=f"{rate:.3f}",
        max_word_error_rate=f"{most:g}",
    )
