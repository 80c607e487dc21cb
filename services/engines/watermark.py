"""An inaudible mark in generated speech: a keyed pattern of small gains, and the search for it.

Spread spectrum on log magnitudes (Cox, Kilian, Leighton and Shamoon 1997; for audio Kirovski and Malvar
2003). Each bin of each frame between 300 Hz and 7 kHz is a chip with a sign that only the key tells. Its
gain is changed by up to 1.7 dB, at low frequencies a third of that, and only as far as the chip counts for
the search (informed embedding: one far above or below its neighbours is left alone). A gain leaves silence
silent, and what it adds has the spectrum of what masks it. The search needs neither the original nor a
beginning: the pattern repeats every 1.024 s, so that any two seconds hold it twice.

numpy alone: no model, no GPU. Nothing here survives a change of pace or pitch.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.common.media.resample import resample

Samples = NDArray[np.float32]
Matrix = NDArray[np.float32]

HOP_S: Final = 0.016
"""Between two frames; a frame is twice as long, so its bins are 31.25 Hz apart at every rate."""
_BIN_HZ: Final = 1.0 / (2 * HOP_S)
_FIRST_BIN: Final = 10
_BINS: Final = 214
_PERIOD: Final = 64
"""Frames after which the pattern repeats."""

_GAIN_DB: Final = (0.45, 1.35)
_GAIN_HZ: Final = (500.0, 2000.0)
"""The gains at and below, at and above these frequencies; between them they rise linearly."""
_EAGER: Final = 1.5
_MOST: Final = 1.25
_BEND_DB: Final = 5.0
"""How far from its neighbours' mean a chip begins to count for less."""

DETECT_HZ: Final = 16_000
"""The rate at which the mark is looked for: audio that has it already is not resampled."""
_PHASES: Final = 4
"""Places within a hop at which the pattern may begin: at most 2 ms beside the right one."""
_FLOOR_DB: Final = 55.0
"""Chips further below the loudest are not looked at: coders replace them."""
_RUN: Final = 8
"""Periods that are judged together, besides all of them: a file may be marked in one part only."""
_STRETCH: Final = 32
FALSE_ALARM: Final = 2e-4
"""The chance that a recording without the mark is said to carry it."""
_UNEVEN_HZ: Final = 48_000
_BLOCK_S: Final = 8.0


@dataclass(frozen=True, slots=True)
class Detection:
    """What a search found.

    Args:
        present: whether the mark is there.
        confidence: 0 to 1, and one half where ``present`` turns.
        score: in standard deviations of what chance gives.
    """

    present: bool
    confidence: float
    score: float


class Marker:
    """Marks a stream, block by block; what comes out lags by at most 48 ms until the last block.

    Args:
        rate_hz: of the samples; a multiple of 62.5 (each rate of an engine is).
        key: what the pattern is made of; who does not have it can neither find nor forge the mark.

    Raises:
        ValueError: a rate whose frames would not be whole samples.
    """

    def __init__(self, rate_hz: int, key: str = "") -> None:
        if not is_even(rate_hz):
            raise ValueError(f"at {rate_hz} Hz a frame is no whole number of samples")
        self._hop = round(rate_hz * HOP_S)
        self._window = _window(2 * self._hop)
        self._signs = _signs(key)
        self._gains = _gains_db(min(_BINS, self._hop - _FIRST_BIN))
        self._frame = 0
        self._before: Matrix | None = None
        self._carry = np.zeros(self._hop, np.float32)
        # One hop of silence ahead: each sample lies in two frames.
        self._buffer = np.zeros(self._hop, np.float32)
        self._waiting = np.zeros(0, np.float32)

    def __call__(self, block: Samples, *, last: bool = False) -> Samples:
        """Takes mono samples and returns those that are done: as many in all as were given in all."""
        samples = np.asarray(block, np.float32)
        self._waiting = np.concatenate([self._waiting, samples])
        self._buffer = np.concatenate([self._buffer, samples])
        if last:
            # Whole hops, and one more for the second frame of the last samples.
            missing = -self._buffer.size % self._hop + self._hop
            self._buffer = np.concatenate([self._buffer, np.zeros(missing, np.float32)])
        added = self._added(last=last)
        if last:
            added = added[: self._waiting.size]
        done, self._waiting = self._waiting[: added.size] + added, self._waiting[added.size :]
        return done

    def _added(self, *, last: bool) -> Samples:
        """What is to be added to the samples that wait, as far as it is known."""
        frames = self._buffer.size // self._hop - 1
        # A frame is judged beside the next one.
        ready = frames if last else frames - 1
        if ready <= 0:
            return np.zeros(0, np.float32)
        shown = np.lib.stride_tricks.sliding_window_view(self._buffer, 2 * self._hop)[:: self._hop][:frames]
        spectrum = np.fft.rfft(shown * self._window)[:, _FIRST_BIN : _FIRST_BIN + self._gains.size]
        levels = _levels_db(spectrum)
        before = levels[:1] if self._before is None else self._before
        after = levels[-1:] if last else levels[ready:]
        rows = np.concatenate([before, levels[:ready], after])
        signs = self._signs[(self._frame + np.arange(ready)) % _PERIOD, : self._gains.size]
        eager = np.minimum(_EAGER / np.cosh(_standing_out(rows) / _BEND_DB) ** 2, _MOST)
        change = np.zeros((ready, self._hop + 1), np.complex64)
        change[:, _FIRST_BIN : _FIRST_BIN + self._gains.size] = spectrum[:ready] * (
            10.0 ** (signs * eager * self._gains / 20.0) - 1.0
        )
        parts = (np.fft.irfft(change, 2 * self._hop) * self._window).astype(np.float32)
        halves = parts.reshape(ready, 2, self._hop)
        added = halves[:, 0].copy()
        added[0] += self._carry
        added[1:] += halves[:-1, 1]
        self._carry = halves[-1, 1].copy()
        self._before = levels[ready - 1 : ready]
        self._buffer = self._buffer[ready * self._hop :]
        first, self._frame = self._frame == 0, self._frame + ready
        # The first half of the first frame is the silence ahead.
        flat: Samples = added.reshape(-1)
        return flat[self._hop :] if first else flat


def mark(samples: Samples, rate_hz: int, key: str = "") -> Samples:
    """The samples with the mark in them.

    Args:
        samples: float32, mono, shape [samples].
        rate_hz: theirs; 8 kHz or more.
        key: see :class:`Marker`.

    Returns:
        As many samples; the difference lies some 30 dB below them, and is nothing in silence.
    """
    if not is_even(rate_hz):
        even = resample(samples, rate_hz, _UNEVEN_HZ)
        added = resample(mark(even, _UNEVEN_HZ, key) - even, _UNEVEN_HZ, rate_hz)
        marked = samples.astype(np.float32, copy=True)
        size = min(marked.size, added.size)
        marked[:size] += added[:size]
        return marked
    marker = Marker(rate_hz, key)
    # In blocks: the spectra of half an hour at once would fill gigabytes.
    size = round(_BLOCK_S * rate_hz)
    done = [
        marker(samples[at : at + size], last=at + size >= samples.size)
        for at in range(0, max(samples.size, 1), size)
    ]
    return np.concatenate(done)


def detect(samples: Samples, rate_hz: int, key: str = "") -> Detection:
    """Looks for the mark, wherever it begins and however much of the recording it fills.

    The signs of a key are independent of every recording without it, so a score is a sum of independent
    terms of known variance: its chance is the normal law's, times the number of places that were tried.

    Args:
        samples: float32, mono, shape [samples]; about 2 s of speech or more.
        rate_hz: theirs.
        key: that it was marked with.
    """
    heard = resample(samples, rate_hz, DETECT_HZ)
    signs = np.conj(np.fft.rfft(_signs(key), axis=0))
    best, trials = 0.0, 0
    for phase in range(_PHASES):
        periods = _folded(heard[round(phase * HOP_S * DETECT_HZ / _PHASES) :])
        for run in _runs(periods):
            trials += _PERIOD
            power = float(np.sum(run * run, dtype=np.float64))
            if power > 0.0:
                matches = np.fft.irfft(np.sum(np.fft.rfft(run, axis=0) * signs, axis=1), _PERIOD)
                best = max(best, float(matches.max()) / math.sqrt(power))
    chance = min(1.0, trials * 0.5 * math.erfc(best / math.sqrt(2.0)))
    return Detection(
        present=trials > 0 and chance <= FALSE_ALARM,
        confidence=FALSE_ALARM / (FALSE_ALARM + chance) if trials else 0.0,
        score=best,
    )


def is_even(rate_hz: int) -> bool:
    """Whether a stream of this rate can be marked as it is: its frames are whole numbers of samples."""
    return rate_hz >= 8_000 and (rate_hz * HOP_S).is_integer()


def _folded(samples: Samples) -> Matrix:
    """What each period of the signal says of each chip, shape [periods, frames of one, bins]."""
    hop = round(HOP_S * DETECT_HZ)
    found = []
    for stretch in _stretches(samples, hop):
        frames = np.lib.stride_tricks.sliding_window_view(stretch, 2 * hop)[::hop]
        spectrum = np.fft.rfft(frames * _window(2 * hop))[:, _FIRST_BIN : _FIRST_BIN + _BINS]
        levels = _levels_db(spectrum)
        loud = levels > levels.max() - _FLOOR_DB
        rows = np.concatenate([levels[:1], levels, levels[-1:]])
        values = np.tanh(_standing_out(rows) / _BEND_DB) * loud
        missing = -len(values) % _PERIOD
        found.append(np.pad(values, ((0, missing), (0, 0))).reshape(-1, _PERIOD, _BINS))
    return np.concatenate(found) if found else np.zeros((0, _PERIOD, _BINS), np.float32)


def _stretches(samples: Samples, hop: int) -> Iterator[Samples]:
    """The signal in pieces of whole periods, so that memory does not grow with it; none of a silent one."""
    size = _STRETCH * _PERIOD * hop
    for start in range(0, samples.size, size):
        # A frame reaches one hop beyond its own.
        piece = samples[start : start + size + hop]
        if piece.size >= 2 * hop and np.any(piece):
            yield piece


def _runs(periods: Matrix) -> Iterator[Matrix]:
    """All periods together, and where there are many each eight of them, half overlapping."""
    if len(periods):
        yield periods.sum(axis=0)
    if len(periods) > _RUN:
        for start in range(0, len(periods) - _RUN // 2, _RUN // 2):
            yield periods[start : start + _RUN].sum(axis=0)


def _standing_out(rows: Matrix) -> Matrix:
    """By how many decibels a chip exceeds the mean of its four neighbours; one row less at either end."""
    wide = np.pad(rows, ((0, 0), (1, 1)), mode="edge")
    beside = wide[:-2, 1:-1] + wide[2:, 1:-1] + wide[1:-1, :-2] + wide[1:-1, 2:]
    return (wide[1:-1, 1:-1] - beside / 4).astype(np.float32, copy=False)


def _levels_db(spectrum: NDArray[np.complexfloating]) -> Matrix:
    levels: Matrix = (20.0 * np.log10(np.abs(spectrum) + 1e-7)).astype(np.float32)
    return levels


def _gains_db(bins: int) -> Matrix:
    frequencies = (_FIRST_BIN + np.arange(bins)) * _BIN_HZ
    gains: Matrix = np.interp(frequencies, _GAIN_HZ, _GAIN_DB).astype(np.float32)
    return gains


@functools.lru_cache(maxsize=8)
def _signs(key: str) -> Matrix:
    """The key's pattern of ±1, shape [frames of a period, bins]."""
    drawn = hashlib.shake_256(f"voxfleet-mark-1:{key}".encode()).digest(_PERIOD * _BINS // 8)
    bits = np.unpackbits(np.frombuffer(drawn, np.uint8))
    return (2.0 * bits - 1.0).reshape(_PERIOD, _BINS).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _window(size: int) -> Samples:
    """A sine: squared, and half overlapping, it adds up to one."""
    window: Samples = np.sin(np.pi * (np.arange(size) + 0.5) / size).astype(np.float32)
    return window
