"""How long a job will take, learned from those that ended.

Of each kind, jobs are put into buckets by the power of two of their size, and in each bucket the logarithm
of the duration is regressed on the logarithm of the size with exponentially fading sums: durations of
compute jobs are close to lognormal, and most kinds are close to proportional to their size, but need not be.
A bucket with few samples leans on the regression of its whole kind, and a kind with few on a prior that is
written down here (:data:`PRIORS`). How far a new job may be off what is said (the spread) is measured the
same way, from what was said before each sample was learned: out of sample, so what the model misses counts
too.

Sizes are in the kind's own unit. It should be what the duration grows with: steps on one GPU for
``rvc.train``, seconds of audio for ``rvc.convert`` and ``f5.convert``, characters for ``f5.item``.

No clock: samples fade by their number, not by time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

_NORMAL = NormalDist()
_Z90 = _NORMAL.inv_cdf(0.9)
_SQRT2 = math.sqrt(2.0)

FADE = 0.99
"""The weight of a bucket's past at each new sample: about the last hundred count."""

KIND_FADE = 0.998
"""The same for the regression of a whole kind."""

PRIOR_SAMPLES = 4.0
"""How many samples the next wider knowledge counts as."""

SPREAD_MIN, SPREAD_MAX = 0.02, 1.5
"""Bounds of the spread of the logarithm."""


@dataclass(frozen=True, slots=True)
class Prior:
    """What is believed of a kind before any of its jobs ended.

    That is ``seconds_per_unit * size``, within a factor of e^spread; ``unsized_s`` stands for jobs of
    unknown size.
    """

    seconds_per_unit: float
    unsized_s: float
    spread: float = 0.8


PRIORS: Mapping[str, Prior] = {
    # Half an hour for a training of 10 minutes of audio and 200 epochs in batches of 8 (about 4,000 steps).
    "rvc.train": Prior(seconds_per_unit=0.45, unsized_s=1800.0),
    # A song of four minutes in one to two minutes.
    "rvc.convert": Prior(seconds_per_unit=0.3, unsized_s=90.0),
    # A sentence of 100 characters in a few seconds.
    "f5.item": Prior(seconds_per_unit=0.06, unsized_s=8.0),
    # A minute of speech, heard and spoken again, in half a minute.
    "f5.convert": Prior(seconds_per_unit=0.5, unsized_s=30.0),
}
FALLBACK = Prior(seconds_per_unit=1.0, unsized_s=60.0, spread=1.0)


@dataclass(frozen=True, slots=True)
class Distribution:
    """How long something may take, in seconds: the middle, the mean, and where eight in ten lie."""

    median_s: float
    mean_s: float
    p10_s: float
    p90_s: float


@dataclass(frozen=True, slots=True)
class Lognormal:
    """The logarithm of a duration: its middle and its spread."""

    mu: float
    sigma: float

    def distribution(self) -> Distribution:
        """The same in seconds."""
        median_s = math.exp(self.mu)
        factor = math.exp(_Z90 * self.sigma)
        return Distribution(median_s, self.mean_s, median_s / factor, median_s * factor)

    @property
    def mean_s(self) -> float:
        """The mean in seconds."""
        return math.exp(self.mu + self.sigma * self.sigma / 2.0)

    def remaining_s(self, elapsed_s: float, quantiles: Sequence[float]) -> list[float]:
        """Quantiles of what is left, in seconds, given that it has run for ``elapsed_s``.

        Beyond the range of the distribution (it has run longer than nearly all did) what is left is taken as
        in proportion to what has passed: the tail of a lognormal is no better known than that.
        """
        outlived = self.outlives(elapsed_s)
        if outlived < 1e-6:
            return [0.2 * elapsed_s * -math.log(1.0 - quantile) for quantile in quantiles]
        return [
            max(
                0.0,
                math.exp(self.mu + self.sigma * _NORMAL.inv_cdf(1.0 - outlived * (1.0 - quantile)))
                - elapsed_s,
            )
            for quantile in quantiles
        ]

    def remaining_mean_s(self, elapsed_s: float) -> float:
        """The mean of what is left, in seconds."""
        outlived = self.outlives(elapsed_s)
        if outlived < 1e-6:
            return 0.2 * elapsed_s
        if elapsed_s <= 0.0:
            return self.mean_s
        depth = (math.log(elapsed_s) - self.mu) / self.sigma
        share = 0.5 * math.erfc((depth - self.sigma) / _SQRT2) / outlived
        return max(0.0, self.mean_s * share - elapsed_s)

    def outlives(self, elapsed_s: float) -> float:
        """The share of jobs that take longer than ``elapsed_s``."""
        if elapsed_s <= 0.0:
            return 1.0
        return 0.5 * math.erfc((math.log(elapsed_s) - self.mu) / (self.sigma * _SQRT2))


class _Regression:
    """Fading sums of (x, y) about their means, and of the squares of what was missed."""

    __slots__ = ("missed", "mx", "my", "sxx", "sxy", "trials", "weight")

    def __init__(self, state: list[float] | None = None) -> None:
        weight, mx, my, sxx, sxy, trials, missed = state or [0.0] * 7
        self.weight, self.mx, self.my, self.sxx, self.sxy = weight, mx, my, sxx, sxy
        self.trials, self.missed = trials, missed

    def add(self, x: float, y: float, miss: float, fade: float) -> None:
        self.weight = self.weight * fade + 1.0
        dx, dy = x - self.mx, y - self.my
        self.mx += dx / self.weight
        self.my += dy / self.weight
        self.sxx = self.sxx * fade + dx * (x - self.mx)
        self.sxy = self.sxy * fade + dx * (y - self.my)
        self.trials = self.trials * fade + 1.0
        self.missed = self.missed * fade + miss * miss

    def at(self, x: float, wider: float, slope: float) -> tuple[float, float]:
        """The middle at ``x``, leaning on ``wider`` (what the wider model says at our mean) and its slope."""
        steep = (self.sxy + PRIOR_SAMPLES * slope) / (self.sxx + PRIOR_SAMPLES)
        level = (self.weight * self.my + PRIOR_SAMPLES * wider) / (self.weight + PRIOR_SAMPLES)
        return level + steep * (x - self.mx), steep

    def spread(self, wider: float) -> float:
        squares = (self.missed + PRIOR_SAMPLES * wider * wider) / (self.trials + PRIOR_SAMPLES)
        return min(SPREAD_MAX, max(SPREAD_MIN, math.sqrt(squares)))

    def state(self) -> list[float]:
        found = [self.weight, self.mx, self.my, self.sxx, self.sxy, self.trials, self.missed]
        return [round(value, 6) for value in found]


class ServiceTimes:
    """What jobs of a kind and size take.

    Args:
        priors: by kind, what is believed before anything was measured.
    """

    def __init__(self, priors: Mapping[str, Prior] = PRIORS) -> None:
        self._priors = priors
        self._kinds: dict[str, _Regression] = {}
        self._buckets: dict[tuple[str, int], _Regression] = {}

    def observe(self, kind: str, size: float, duration_s: float) -> None:
        """Learns that a job of this kind and size took so long: a whole, successful run of the job."""
        if not duration_s > 0.0 or not math.isfinite(duration_s):
            return
        y = math.log(duration_s)
        miss = y - self.lognormal(kind, size).mu
        # One wild value must not undo a hundred good ones.
        miss = max(-3.0, min(3.0, miss))
        key = (kind, _bucket(size))
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Regression()
        bucket.add(_log(size), y, miss, FADE)
        if size > 0.0:
            whole = self._kinds.get(kind)
            if whole is None:
                whole = self._kinds[kind] = _Regression()
            whole.add(_log(size), y, miss, KIND_FADE)

    def lognormal(self, kind: str, size: float) -> Lognormal:
        """The logarithm of a whole run's duration, for those who compute with it."""
        prior = self._priors.get(kind, FALLBACK)
        x = _log(size)
        bucket = self._buckets.get((kind, _bucket(size)))
        if size <= 0.0:
            if bucket is None:
                return Lognormal(math.log(prior.unsized_s), prior.spread)
            mu, _ = bucket.at(x, math.log(prior.unsized_s), 0.0)
            return Lognormal(mu, bucket.spread(prior.spread))

        def believed(at: float) -> float:
            return math.log(prior.seconds_per_unit) + at

        whole = self._kinds.get(kind)
        if whole is None:
            return Lognormal(believed(x), prior.spread)
        mu, slope = whole.at(x, believed(whole.mx), 1.0)
        spread = whole.spread(prior.spread)
        if bucket is not None:
            wider, _ = whole.at(bucket.mx, believed(whole.mx), 1.0)
            mu, _ = bucket.at(x, wider, slope)
            spread = bucket.spread(spread)
        return Lognormal(mu, spread)

    def predict(self, kind: str, size: float) -> Distribution:
        """How long a whole run will take."""
        return self.lognormal(kind, size).distribution()

    def mean_s(self, kind: str, size: float) -> float:
        """The mean of a whole run, in seconds: what fair share is charged by."""
        return self.lognormal(kind, size).mean_s

    def remaining(self, kind: str, size: float, elapsed_s: float) -> Distribution:
        """How much longer a run will take that has taken ``elapsed_s`` so far."""
        model = self.lognormal(kind, size)
        p10_s, median_s, p90_s = model.remaining_s(elapsed_s, (0.1, 0.5, 0.9))
        return Distribution(median_s, model.remaining_mean_s(elapsed_s), p10_s, p90_s)

    def to_json(self) -> dict[str, Any]:
        """What was learned, as JSON data."""
        buckets: dict[str, dict[str, list[float]]] = {}
        for (kind, bucket), found in self._buckets.items():
            buckets.setdefault(kind, {})[str(bucket)] = found.state()
        return {"kinds": {kind: found.state() for kind, found in self._kinds.items()}, "buckets": buckets}

    @classmethod
    def from_json(cls, state: Mapping[str, Any], priors: Mapping[str, Prior] = PRIORS) -> ServiceTimes:
        """What :meth:`to_json` gave; an empty mapping is a new one."""
        times = cls(priors)
        times._kinds = {kind: _Regression(found) for kind, found in state.get("kinds", {}).items()}
        times._buckets = {
            (kind, int(bucket)): _Regression(found)
            for kind, of_kind in state.get("buckets", {}).items()
            for bucket, found in of_kind.items()
        }
        return times


def _log(size: float) -> float:
    return math.log(size) if size > 0.0 else 0.0


def _bucket(size: float) -> int:
    """The power of two below a size; jobs of unknown size have a bucket of their own."""
    return math.frexp(size)[1] if size > 0.0 else -(10**6)
