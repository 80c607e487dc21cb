"""Speech in, the same speech in another voice out (upstream ``infer/modules/vc/pipeline.py``, rewritten)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from services.common.errors import FailureClass, Kind, Reason, VoxfleetError, invalid
from services.engines.rvc import f0 as pitch
from services.engines.rvc.audio import (
    CONTENT_RATE_HZ,
    Floats,
    fit_length,
    frame_levels,
    high_pass,
    mono,
    resample,
    resampled_length,
)
from services.engines.rvc.content import FRAME_SAMPLES, repeat_frames
from services.engines.rvc.retrieval import blend
from services.engines.rvc.stopping import ShouldStop, never, stopped
from services.engines.rvc.voice import Voice

CHUNK_FRAMES = 1000
"""Aim of a chunk, in content frames: 20 s."""
_SEARCH_FRAMES = 200
_LEAST_SCALE = 0.1
_PAD_FRAMES = 50
_FADE_FRAMES = 1
_LEVEL_WINDOW_S = 0.02
_ENVELOPE_HOP_S = 0.5
_MIN_LEVEL = 1e-6
CEILING = 0.99


@dataclass(frozen=True, slots=True)
class ConvertParams:
    """How to convert.

    Args:
        pitch_shift: semitones, -24..24.
        index_rate: share of retrieved features, 0..1.
        filter_radius: frames of the median filter over F0, 0..7; below 3 there is none.
        rms_mix_rate: 1 keeps the output's own loudness envelope, 0 gives it the input's.
        protect: below 0.5, the share of retrieval that unvoiced frames keep: guards breaths and
            sibilants; 0.5 turns that off.
        f0_method: in place of the voice's own.
        speaker: row of the speaker table, for community voices with several.
        seed: the same seed gives the same samples on the same machine.
        chunk_scale: share of the usual length of a chunk, after a lack of memory; down to a tenth.
    """

    pitch_shift: float = 0.0
    index_rate: float = 0.5
    filter_radius: int = 3
    rms_mix_rate: float = 0.25
    protect: float = 0.33
    f0_method: str | None = None
    speaker: int = 0
    seed: int = 0
    chunk_scale: float = 1.0

    def __post_init__(self) -> None:
        limits = (
            ("pitch_shift", -24, 24),
            ("index_rate", 0, 1),
            ("filter_radius", 0, 7),
            ("rms_mix_rate", 0, 1),
            ("protect", 0, 0.5),
            ("chunk_scale", 0, 1),
        )
        for name, low, high in limits:
            if not low <= getattr(self, name) <= high:
                raise invalid(Reason.INVALID_ARGUMENT, f"{name} must be within {low} and {high}", field=name)


def convert(
    voice: Voice,
    samples: NDArray[np.floating],
    rate_hz: int,
    params: ConvertParams | None = None,
    *,
    on_progress: Callable[[float], None] = lambda share: None,
    should_stop: ShouldStop = never,
) -> tuple[Floats, int]:
    """Convert a recording of any length; the model works on 20 s at a time.

    Args:
        voice: of :func:`services.engines.rvc.voice.load_voice`.
        samples: ``[n]`` or ``[channels, n]``, mixed to mono.
        rate_hz: of ``samples``.
        params: the defaults where not given.
        on_progress: called with the share done, 0..1, after each chunk.
        should_stop: polled before each chunk and between its steps.

    Returns:
        Samples ``[round(n * model rate / rate_hz)]`` within ±0.99, and the model's rate.

    Raises:
        VoxfleetError: ``AUDIO_EMPTY``, ``INVALID_FORMAT``, ``INVALID_ARGUMENT``, ``CANCELLED``,
            ``GPU_OUT_OF_MEMORY``, or ``CONVERSION_FAILED`` where the model's output is no sound.
    """
    params = params or ConvertParams()
    config = voice.facts.config
    check_speaker(voice, params)
    tracker = pitch.f0_method(params.f0_method or voice.facts.f0_method, device=voice.device.type)
    whole = mono(samples)
    source = high_pass(resample(whole, rate_hz, CONTENT_RATE_HZ), CONTENT_RATE_HZ)
    per_frame = config.hop * 2
    frames = max(-(-len(source) // FRAME_SAMPLES), 1)
    padded = _pad_reflecting(fit_length(source, frames * FRAME_SAMPLES), _PAD_FRAMES * FRAME_SAMPLES)
    out = np.zeros((frames + _FADE_FRAMES) * per_frame, np.float32)
    ramp = np.linspace(0.0, 1.0, _FADE_FRAMES * per_frame, dtype=np.float32)
    spans = chunk_spans(source, frames, scale=params.chunk_scale)
    for number, (first, last) in enumerate(spans):
        _check(should_stop)
        # One padded window: index 0 of it is content frame first - PAD.
        window = padded[first * FRAME_SAMPLES : (last + 2 * _PAD_FRAMES) * FRAME_SAMPLES]
        own = (_PAD_FRAMES, _PAD_FRAMES + last - first + _FADE_FRAMES)
        made = convert_window(voice, tracker, window, params, number, own=own, should_stop=should_stop)
        place = out[first * per_frame : (last + _FADE_FRAMES) * per_frame]
        if first > 0:
            # The tail of the chunk before already lies here: fade from one into the other.
            made[: len(ramp)] = made[: len(ramp)] * ramp + place[: len(ramp)] * (1 - ramp)
        place[:] = made
        on_progress((number + 1) / len(spans))
    result = fit_length(out, resampled_length(len(whole), rate_hz, config.rate_hz))
    check_numbers(result)
    result = mix_envelopes(source, result, config.rate_hz, params.rms_mix_rate)
    peak = float(np.abs(result).max(initial=0.0))
    return (result * np.float32(CEILING / peak) if peak > CEILING else result), config.rate_hz


def convert_window(
    voice: Voice,
    tracker: pitch.F0Method,
    window: Floats,
    params: ConvertParams,
    number: int,
    *,
    own: tuple[int, int],
    should_stop: ShouldStop,
) -> Floats:
    """Convert one stretch from 16 kHz to the model's rate.

    Args:
        voice: into which.
        tracker: of the pitch.
        window: the stretch with what is heard around it, ``[n * 320]``.
        params: how.
        number: of the stretch in its sound: with the seed it makes the noise.
        own: the content frames whose samples are wanted, from the first to before the second, and not the
            window's last; the rest is context for them.
        should_stop: polled between steps.

    Returns:
        Samples of those frames.
    """
    content = voice.encoder.encode(window)
    _check(should_stop)
    f0_hz = pitch.smooth(tracker.track(window, 2 * len(content)), params.filter_radius)
    _check(should_stop)
    # Upstream's encoder has no frame for the last 20 ms, which lie in the padding, and every frame
    # attends to all others: with one more, no sample would be quite the same.
    content, f0_hz = content[:-1], f0_hz[:-2]
    frames = len(f0_hz)
    f0_hz = pitch.shift(f0_hz, params.pitch_shift)
    features = repeat_frames(content, frames)
    if voice.retrieval is not None and params.index_rate > 0:
        mixed = repeat_frames(blend(voice.retrieval, content, params.index_rate), frames)
        if params.protect < 0.5:
            share = np.where(f0_hz > 0, 1.0, params.protect).astype(np.float32)[:, None]
            mixed = mixed * share + features * (1 - share)
        features = mixed
    device = voice.device
    generator = torch.Generator(device).manual_seed(params.seed * 1_000_003 + number)
    try:
        with torch.inference_mode():
            made = voice.synthesizer.convert(
                torch.from_numpy(features)[None].to(device),
                torch.from_numpy(pitch.coarse(f0_hz))[None].to(device),
                torch.from_numpy(f0_hz)[None].to(device),
                torch.tensor([params.speaker], device=device),
                generator,
                # What only leads in and out is context: the decoder is nearly all of the work.
                only=(2 * own[0], 2 * own[1]),
            )
        return np.array(made[0, 0].float().cpu().numpy(), dtype=np.float32)
    except torch.OutOfMemoryError as error:
        raise VoxfleetError(
            Reason.GPU_OUT_OF_MEMORY,
            "the GPU's memory does not hold a conversion of 20 s; run fewer at once",
            kind=Kind.EXHAUSTED,
            failure=FailureClass.RESOURCE,
        ) from error


def check_numbers(made: Floats) -> None:
    """Refuses what is no sound. Errors: CONVERSION_FAILED."""
    if not np.isfinite(made).all():
        raise VoxfleetError(
            Reason.CONVERSION_FAILED,
            "the voice's model gave samples that are no numbers; train it again",
            kind=Kind.INTERNAL,
            failure=FailureClass.PERMANENT,
        )


def check_speaker(voice: Voice, params: ConvertParams) -> None:
    """Refuses a row that the voice's table of speakers lacks. Errors: INVALID_ARGUMENT."""
    speakers = voice.facts.config.speakers
    if not 0 <= params.speaker < speakers:
        raise invalid(Reason.INVALID_ARGUMENT, f"speaker must be below {speakers}", field="speaker")


def _check(should_stop: ShouldStop) -> None:
    if should_stop():
        raise stopped("converting")


def chunk_spans(source: Floats, frames: int, *, scale: float = 1.0) -> list[tuple[int, int]]:
    """Tile ``0..frames`` with chunks of about 20 s, cut at the quietest frame within 4 s of the aim.

    Both times are multiplied by ``scale``, at least a tenth.
    """
    scale = max(scale, _LEAST_SCALE)
    length, search = round(CHUNK_FRAMES * scale), round(_SEARCH_FRAMES * scale)
    if frames <= length + search:
        return [(0, frames)]
    levels = frame_levels(source, round(_LEVEL_WINDOW_S * CONTENT_RATE_HZ), FRAME_SAMPLES)
    spans: list[tuple[int, int]] = []
    begin = 0
    while frames - begin > length + search:
        aim = begin + length
        cut = aim - search + int(np.argmin(levels[aim - search : aim + search]))
        spans.append((begin, cut))
        begin = cut
    return [*spans, (begin, frames)]


def mix_envelopes(source: Floats, made: Floats, made_rate_hz: int, rate: float) -> Floats:
    """Move the loudness of ``made`` towards that of ``source`` (at 16 kHz), by half seconds.

    ``rate`` 1 leaves ``made`` as it is, 0 gives it the source's envelope (upstream ``change_rms``).
    """
    if rate == 1.0 or len(made) == 0:
        return made
    positions = np.arange(len(made)) / made_rate_hz
    curves = []
    for samples, rate_hz in ((source, CONTENT_RATE_HZ), (made, made_rate_hz)):
        levels = frame_levels(samples, rate_hz, round(_ENVELOPE_HOP_S * rate_hz))
        curves.append(np.interp(positions, np.arange(len(levels)) * _ENVELOPE_HOP_S, levels))
    wanted, own = (np.maximum(curve, _MIN_LEVEL) for curve in curves)
    return np.asarray(made * np.power(wanted / own, 1.0 - rate), dtype=np.float32)


def _pad_reflecting(samples: Floats, margin: int) -> Floats:
    # numpy's reflection repeats itself where the sound is shorter than the margin.
    return np.pad(samples, margin, mode="reflect" if len(samples) > 1 else "edge")
