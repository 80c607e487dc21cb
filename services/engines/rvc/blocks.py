"""Conversion of sound that arrives in pieces: each block is heard in its context and faded into the next.

A block is converted together with what came before it and a little of what comes after, as a chunk of
:func:`services.engines.rvc.conversion.convert` is; what the model makes of the context is thrown away, but
for 20 ms in which two blocks are faded into one another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.common.media.resample import StreamResampler
from services.engines.rvc import f0 as pitch
from services.engines.rvc.audio import CONTENT_RATE_HZ, Floats, fit_length, high_pass, resampled_length
from services.engines.rvc.content import FRAME_SAMPLES
from services.engines.rvc.conversion import (
    CEILING,
    ConvertParams,
    check_numbers,
    check_speaker,
    chunk_spans,
    convert_window,
    mix_envelopes,
)
from services.engines.rvc.stopping import ShouldStop, never, stopped
from services.engines.rvc.voice import Voice

_FADE_FRAMES = 1
_FILTER_FRAMES = 25
"""By which the high-pass filter has died away: half a second."""
_NOTHING = np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """How sound that arrives in pieces is cut, in content frames of 20 ms.

    Args:
        before: heard before a block, and of the sound mirrored where it has not that much.
        ahead: heard after a block before it is converted: how far the output is behind.
        least: of a block.
    """

    before: int = 50
    ahead: int = 15
    least: int = 1


SPEECH = BlockPlan()
"""For sentence after sentence: 0.3 s of each wait for the next, mostly a pause."""


class BlockConverter:
    """Converts sound that arrives in pieces.

    Args:
        voice: into which.
        rate_hz: of the pieces.
        params: the defaults where not given.
        plan: how it is cut.
        should_stop: polled before each block and between its steps.

    Raises:
        VoxfleetError: INVALID_ARGUMENT; from :meth:`push` those of
            :func:`services.engines.rvc.conversion.convert`.
    """

    def __init__(
        self,
        voice: Voice,
        rate_hz: int,
        params: ConvertParams | None = None,
        plan: BlockPlan = SPEECH,
        *,
        should_stop: ShouldStop = never,
    ) -> None:
        self._voice = voice
        self._params = params or ConvertParams()
        check_speaker(voice, self._params)
        self._plan = plan
        self._should_stop = should_stop
        self._tracker = pitch.f0_method(
            self._params.f0_method or voice.facts.f0_method, device=voice.device.type
        )
        self._from_hz = rate_hz
        self._resampler = StreamResampler(1, rate_hz, CONTENT_RATE_HZ) if rate_hz != CONTENT_RATE_HZ else None
        self._per_frame = voice.facts.config.hop * 2
        # What is still needed of the source at 16 kHz; its first sample is that of content frame _first.
        self._source = _NOTHING
        self._first = 0
        self._given = 0
        self._done = 0
        self._made = 0
        self._number = 0
        self._tail = _NOTHING
        self._gain = 1.0

    @property
    def rate_hz(self) -> int:
        """Of what comes out."""
        return self._voice.facts.config.rate_hz

    def push(self, samples: Floats, *, last: bool = False) -> Floats:
        """Takes the next piece and returns what is ready, perhaps nothing; all the rest with the last.

        Args:
            samples: float32, ``[n]``.
            last: whether no more come.

        Returns:
            Samples within ±0.99; ``round(n * model rate / rate_hz)`` in all, as :func:`convert` gives.
        """
        self._take(samples, last=last)
        available = self._first + len(self._source) // FRAME_SAMPLES
        end = available if last else available - self._plan.ahead - _FADE_FRAMES
        made = [_NOTHING]
        if end > self._done and (last or end - self._done >= self._plan.least):
            frames = end - self._done
            begin = self._done
            part = self._heard(begin, end)
            for first, past in chunk_spans(part, frames, scale=self._params.chunk_scale):
                made.append(self._block(begin + first, begin + past, available, last=last))
            self._forget()
        if last:
            made.append(self._tail)
        out = np.concatenate(made)
        if last:
            whole = resampled_length(self._given, self._from_hz, self.rate_hz)
            out = fit_length(out, whole - self._made)
        self._made += len(out)
        return out

    def _take(self, samples: Floats, *, last: bool) -> None:
        self._given += len(samples)
        if self._resampler is not None:
            samples = self._resampler(samples[None], last=last)[0]
        self._source = np.concatenate([self._source, samples])
        if last:
            whole = resampled_length(self._given, self._from_hz, CONTENT_RATE_HZ)
            frames = max(-(-whole // FRAME_SAMPLES), 1) if whole else 0
            wanted = whole - self._first * FRAME_SAMPLES
            padded = (frames - self._first) * FRAME_SAMPLES
            self._source = fit_length(fit_length(self._source, wanted), padded)

    def _heard(self, first: int, past: int) -> Floats:
        """The source of some content frames without its rumble; the filter hears what is around them."""
        low = max(first - _FILTER_FRAMES, self._first)
        high = past + _FILTER_FRAMES
        span = slice((low - self._first) * FRAME_SAMPLES, (high - self._first) * FRAME_SAMPLES)
        filtered = high_pass(self._source[span], CONTENT_RATE_HZ)
        return filtered[(first - low) * FRAME_SAMPLES : (past - low) * FRAME_SAMPLES]

    def _block(self, first: int, past: int, available: int, *, last: bool) -> Floats:
        """Some content frames, converted; the fade into what follows stays behind."""
        if self._should_stop():
            raise stopped("converting")
        before = self._plan.before
        low, high = max(first - before, 0), min(past + before, available)
        beyond = past + before - high if last else 0
        window = np.pad(
            self._heard(low, high),
            ((before - (first - low)) * FRAME_SAMPLES, beyond * FRAME_SAMPLES),
            # numpy's reflection repeats itself where the sound is shorter than the margin.
            mode="reflect",
        )
        made = convert_window(
            self._voice,
            self._tracker,
            window,
            self._params,
            self._number,
            # The context too: how loud a block's ends are is judged by half seconds.
            own=(0, len(window) // FRAME_SAMPLES - 1),
            should_stop=self._should_stop,
        )
        check_numbers(made)
        made = mix_envelopes(window, made, self.rate_hz, self._params.rms_mix_rate)
        begin, length = before * self._per_frame, (past - first) * self._per_frame
        kept = self._levelled(made[begin : begin + length + _FADE_FRAMES * self._per_frame])
        fade = len(self._tail)
        if fade:
            ramp = np.linspace(0.0, 1.0, fade, dtype=np.float32)
            kept[:fade] = kept[:fade] * ramp + self._tail * (1 - ramp)
        self._tail = kept[length:]
        self._done = past
        self._number += 1
        return kept[:length]

    def _levelled(self, made: Floats) -> Floats:
        """As loud as the ceiling lets it be: what was too loud once stays that much quieter."""
        peak = float(np.abs(made).max(initial=0.0))
        if peak * self._gain > CEILING:
            self._gain = CEILING / peak
        return made * np.float32(self._gain)

    def _forget(self) -> None:
        """Drops what no block will hear any more."""
        keep = max(self._done - self._plan.before - _FILTER_FRAMES, self._first)
        self._source = self._source[(keep - self._first) * FRAME_SAMPLES :]
        self._first = keep
