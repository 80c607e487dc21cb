"""What is done to speech after it is spoken: its pitch moved, its loudness set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from services.common.jobs.tasks import SpeakingParameters

if TYPE_CHECKING:
    from services.common.media.limiter import TruePeakLimiter
    from services.common.media.loudness import LoudnessMeter
    from services.engines.pitch import PitchShifter

Samples = NDArray[np.float32]

CEILING_DBTP = -1.0
MOST_GAIN_DB = 40.0
"""What is quieter still is no speech, and is not made loud."""
_MOST_DRIVE_DB = 20.0
"""How far speech is driven into the limiter; more only makes it rough."""
_RELEASES_S = (0.06, 0.02, 0.004)
"""Of the limiter, gentlest first: a loudness that is out of its reach is tried with the next."""
_TRIES = 6
_CLOSE_ENOUGH_LU = 0.1
_SPEED_DB_PER_S = 0.5
"""How fast the gain of a stream may move: nobody hears it pump."""
_HEARD_S = 0.4
"""One gating block of BS.1770: what can be heard of a stream before its first sample goes out."""


def finished(samples: Samples, rate_hz: int, parameters: SpeakingParameters) -> Samples:
    """Speech with the pitch and the loudness that were asked for.

    Args:
        samples: float32, [samples], the whole output.
        rate_hz: theirs.
        parameters: ``pitch_shift`` and ``loudness_lufs`` of them.

    Returns:
        float32, [samples], exactly as long. Where a loudness is asked for, it is met to 0.5 LU with a true
        peak of at most -1 dBTP; silence stays silence, what would need more than 40 dB of gain gets that, and
        speech beyond about -9 LUFS, which such peaks do not allow, comes as near as it can.
    """
    if parameters.pitch_shift:
        from services.engines.pitch import PitchShifter

        samples = PitchShifter(rate_hz, parameters.pitch_shift).push(samples, last=True)
    if parameters.loudness_lufs is not None:
        samples = _made_loud(samples, rate_hz, parameters.loudness_lufs)
    return samples


class Finisher:
    """The same for speech that is sent while it is spoken.

    End to end it gives as many samples as it takes; up to 1.25 s wait inside where the pitch is moved, and
    0.4 s at the beginning where a loudness is set. The loudness cannot be known before the end: the gain is
    fixed from what has been heard before the first sample goes out, later follows the gated loudness of all
    that has been heard, by at most 0.5 dB a second, and a limiter keeps the true peak under -1 dBTP. A
    stream therefore ends near the loudness asked for, and not exactly at it.

    Args:
        rate_hz: of the samples.
        parameters: ``pitch_shift`` and ``loudness_lufs`` of them.
    """

    def __init__(self, rate_hz: int, parameters: SpeakingParameters) -> None:
        self._pitch: PitchShifter | None = None
        self._level: _Leveller | None = None
        if parameters.pitch_shift:
            from services.engines.pitch import PitchShifter

            self._pitch = PitchShifter(rate_hz, parameters.pitch_shift)
        if parameters.loudness_lufs is not None:
            self._level = _Leveller(rate_hz, parameters.loudness_lufs)

    def push(self, samples: Samples, last: bool) -> Samples:
        """Takes float32 [samples] and returns what is ready, perhaps none; all the rest with the last."""
        if self._pitch is not None:
            samples = self._pitch.push(samples, last=last)
        if self._level is not None:
            samples = self._level.push(samples, last=last)
        return samples


class _Leveller:
    """A gain that follows the loudness of a stream, and a limiter behind it."""

    def __init__(self, rate_hz: int, target_lufs: float) -> None:
        from services.common.media.limiter import TruePeakLimiter
        from services.common.media.loudness import LoudnessMeter

        self._rate_hz = rate_hz
        self._target_lufs = target_lufs
        self._meter: LoudnessMeter = LoudnessMeter(rate_hz)
        self._limiter: TruePeakLimiter = TruePeakLimiter(rate_hz, CEILING_DBTP)
        self._held: Samples | None = np.zeros(0, np.float32)
        self._gain_db: float | None = None

    def push(self, samples: Samples, *, last: bool) -> Samples:
        if self._held is not None:
            samples = np.concatenate([self._held, samples])
            if len(samples) < _HEARD_S * self._rate_hz and not last:
                self._held = samples
                return np.zeros(0, np.float32)
            self._held = None
        self._meter.add(samples[None])
        return self._limiter.push(samples * self._gains(len(samples)), last=last)

    def _gains(self, count: int) -> Samples:
        """The gain of each of the next samples, as a factor."""
        from services.common.media.loudness import SILENCE_LUFS

        before_db, lufs = self._gain_db, self._meter.lufs
        if lufs <= SILENCE_LUFS:
            # Nothing was said yet.
            return np.full(count, 10.0 ** ((before_db or 0.0) / 20.0), np.float32)
        wanted_db = _gain_db(self._target_lufs, lufs)
        if before_db is None:
            before_db = wanted_db
        most_db = _SPEED_DB_PER_S * count / self._rate_hz
        self._gain_db = min(max(wanted_db, before_db - most_db), before_db + most_db)
        curve = np.linspace(before_db, self._gain_db, count, endpoint=False)
        return np.asarray(10.0 ** (curve / 20.0), np.float32)


def _made_loud(samples: Samples, rate_hz: int, target_lufs: float) -> Samples:
    from services.common.media.limiter import TruePeakLimiter
    from services.common.media.loudness import SILENCE_LUFS, integrated_lufs

    lufs = integrated_lufs(samples, rate_hz)
    if lufs <= SILENCE_LUFS:
        return samples
    # What would need more gain than is given is as loud as that gain makes it.
    target_lufs = lufs + _gain_db(target_lufs, lufs)
    out = samples
    for release_s in _RELEASES_S:
        gain_db, slope = target_lufs - lufs, 1.0
        heard_lufs, step_db = lufs, 0.0
        for attempt in range(_TRIES):
            limiter = TruePeakLimiter(rate_hz, CEILING_DBTP, release_s)
            out = limiter.push(samples * np.float32(10.0 ** (gain_db / 20.0)), last=True)
            before_lufs, heard_lufs = heard_lufs, integrated_lufs(out, rate_hz)
            missing_lu = target_lufs - heard_lufs
            if missing_lu <= _CLOSE_ENOUGH_LU:
                return out
            # The limiter takes some of the loudness back, ever more of it: that is asked of it again.
            if attempt:
                slope = max(0.2, min(1.0, (heard_lufs - before_lufs) / step_db))
            step_db = min(missing_lu / slope, target_lufs - lufs + _MOST_DRIVE_DB - gain_db)
            if step_db <= 0:
                break
            gain_db += step_db
    return out


def _gain_db(target_lufs: float, lufs: float) -> float:
    return min(MOST_GAIN_DB, target_lufs - lufs)
