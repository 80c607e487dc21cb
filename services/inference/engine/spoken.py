"""What an RVC replica does with speech: converts it, as it comes or whole, and finishes it as asked."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from services.common.artifacts.ports import ArtifactStore
from services.common.errors import internal
from services.common.jobs.model import PitchMatch
from services.common.jobs.tasks import ConversionParameters, SpeakingParameters
from services.common.media.resample import StreamResampler
from services.engines.rvc.audio import fit_length
from services.engines.rvc.blocks import SPEECH, BlockConverter
from services.engines.rvc.conversion import ConvertParams, convert
from services.engines.rvc.matching import match, source_range, voice_range
from services.engines.rvc.voice import Voice
from services.inference.calls import Advance, Closed, ConvertSpoken, ConvertStream, Opened, Pcm, Weights
from services.inference.engine.blobs import keep_audio, pcm16, team_id
from services.inference.engine.finishing import Finisher, finished
from services.inference.engine.marking import Marking
from services.inference.engine.running import Emit, Stopped
from services.inference.tags import provenance_tags, speaker_tags

Samples = NDArray[np.float32]
_NOTHING = np.zeros(0, np.float32)


def params_of(asked: ConversionParameters, share: float = 1.0) -> ConvertParams:
    """How to convert, as the library takes it; ``share`` is of the usual length of a chunk."""
    return ConvertParams(
        pitch_shift=asked.pitch_shift,
        index_rate=asked.index_rate,
        filter_radius=asked.filter_radius,
        rms_mix_rate=asked.rms_mix_rate,
        protect=asked.protect,
        f0_method=asked.f0_method or None,
        seed=asked.seed,
        chunk_scale=share,
    )


def matched(
    voice: Voice, asked: ConversionParameters, samples: Samples, rate_hz: int
) -> tuple[ConversionParameters, PitchMatch | None]:
    """How to convert, with the pitch that is to be chosen by what is heard, and what was chosen."""
    if not asked.auto_pitch:
        return asked, None
    heard = source_range(voice, samples, rate_hz, asked.f0_method or None)
    found = match(heard, voice_range(voice), beside=asked.pitch_shift)
    return asked.model_copy(update={"pitch_shift": asked.pitch_shift + found.semitones}), found


def convert_stream(
    voice: Voice, weights: Weights, request: ConvertStream, emit: Emit, *, marking: Marking, stopped: Stopped
) -> None:
    """Converts what is fed, piece by piece; each is answered when it is done, and the end with the rest.

    Raises:
        VoxfleetError: those of :class:`services.engines.rvc.blocks.BlockConverter`.
    """
    finishing = _Finishing(request, voice.facts.config.rate_hz, marking)
    emit(Opened(finishing.rate_hz, 0, request.parameters.seed, weights, watermarked=marking.enabled))
    converter: BlockConverter | None = None
    pitch: PitchMatch | None = None

    def converted(samples: Samples, *, last: bool) -> Pcm:
        nonlocal converter, pitch
        began_s = time.perf_counter()
        if converter is None:
            # The pitch is chosen by the first piece, a sentence or two, and then left where it is.
            how, pitch = matched(voice, request.parameters, samples, request.from_hz)
            converter = BlockConverter(voice, request.from_hz, params_of(how), SPEECH, should_stop=stopped)
        made = finishing.push(converter.push(samples, last=last), last=last)
        return Pcm(pcm16(made), len(made), time.perf_counter() - began_s)

    for data in request.fed:
        emit(converted(samples_of(data), last=False))
    emit(converted(_NOTHING, last=True))
    emit(Closed(pitch_match=pitch))


def convert_spoken(
    voice: Voice,
    weights: Weights,
    request: ConvertSpoken,
    emit: Emit,
    *,
    store: ArtifactStore,
    marking: Marking,
    stopped: Stopped,
) -> None:
    """Converts speech that is there as a whole, and stores it.

    Raises:
        VoxfleetError: those of :func:`services.engines.rvc.conversion.convert`.
    """
    task = request.task
    if task.converted is None:
        raise internal("speech was to be converted into no voice")
    emit(Advance("convert"))
    began_s = time.perf_counter()
    spoken = samples_of(request.spoken)
    how, pitch = matched(voice, task.conversion, spoken, request.from_hz)
    made, rate_hz = convert(
        voice,
        spoken,
        request.from_hz,
        params_of(how, request.share),
        on_progress=lambda share: emit(Advance("convert", share)),
        should_stop=stopped,
    )
    work_s = time.perf_counter() - began_s
    if task.parameters.duration_s:
        made = fit_length(made, round(task.parameters.duration_s * rate_hz))
    made = finished(made, rate_hz, _finish_of(task.parameters.loudness_lufs))
    kept = keep_audio(
        store,
        team_id(task.team),
        made,
        rate_hz,
        task.output,
        tags=provenance_tags("rvc", task.converted.name, request.job) | speaker_tags(request.speaker),
        weights=weights,
        seed=task.parameters.seed,
        work_s=work_s,
        advance=_teller(emit),
        marking=marking,
    )
    emit(replace(kept, pitch_match=pitch))


def samples_of(data: bytes) -> Samples:
    """Float32 [samples] of signed 16-bit little-endian ones."""
    return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768.0)


class _Finishing:
    """What is done to a converted stream: loudness, mark, rate, length."""

    def __init__(self, request: ConvertStream, rate_hz: int, marking: Marking) -> None:
        self.rate_hz = request.rate_hz or rate_hz
        self._finisher = Finisher(rate_hz, _finish_of(request.loudness_lufs))
        self._marker = marking.stream(rate_hz)
        self._resampler = StreamResampler(1, rate_hz, self.rate_hz) if self.rate_hz != rate_hz else None
        self._wanted = round(request.duration_s * self.rate_hz)
        self._sent = 0

    def push(self, samples: Samples, *, last: bool = False) -> Samples:
        samples = self._finisher.push(samples, last)
        if self._marker is not None:
            samples = self._marker(samples, last=last)
        if self._resampler is not None:
            samples = self._resampler(samples[None], last=last)[0]
        if self._wanted and last:
            # Rates that do not divide one another give a sample more or less.
            samples = fit_length(samples, max(self._wanted - self._sent, 0))
        self._sent += len(samples)
        return samples


def _finish_of(loudness_lufs: float | None) -> SpeakingParameters:
    return SpeakingParameters(loudness_lufs=loudness_lufs)


def _teller(emit: Emit) -> Callable[[str, float], None]:
    return lambda phase, share: emit(Advance(phase, share))
