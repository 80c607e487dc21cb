"""How far forecasts were off, and the interval that nine in ten starts fall into.

For every job that began after it had waited, the logarithm of actual over forecast wait is put into a fading
histogram of its kind, class and width, and of how long the forecast was; sparse ones lean on coarser ones.
The stated start is the forecast times the middle of that histogram, the interval reaches from one of its
quantiles to another. Which quantiles is adapted by what the intervals stated before held (adaptive conformal
inference: Gibbs and Candes 2021): missed too often, they are moved outwards, and the other way round, so that
the long-run coverage is the nominal one whatever the histograms get wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from services.metadata.model.jobs import PriorityClass

NOMINAL = 0.9
STEP = 0.01
"""How far one miss moves the share of misses that the next interval allows itself."""

FADE = 0.995
"""The weight of a histogram's past at each new sample: about the last two hundred count."""

LEAN = 20.0
"""How many samples the next coarser histogram counts as."""

BINS = 96
BIN_WIDTH = 0.0625
"""Bins of the logarithm, from e^-3 to e^3."""

LEAST_S = 1.0
"""Waits shorter than this are alike."""


class Key(NamedTuple):
    """Which forecasts are alike."""

    kind: str
    priority_class: PriorityClass
    width: int
    bucket: int


@dataclass(frozen=True, slots=True)
class Expected:
    """What is said to whoever asks when a job begins and ends: seconds from the moment of asking.

    ``raw_s`` and ``key`` are what :meth:`Calibration.observe` needs to learn from it.
    """

    start_in_s: float
    earliest_s: float
    latest_s: float
    end_in_s: float
    raw_s: float
    key: Key


class _Histogram:
    """Fading counts. Instead of shrinking the old ones at each sample, new ones count for more."""

    __slots__ = ("bins", "unit", "weight")

    def __init__(self, bins: list[float] | None = None) -> None:
        self.bins = bins or [0.0] * BINS
        self.weight = sum(self.bins)
        self.unit = 1.0

    def add(self, value: float, weight: float) -> None:
        self.unit /= FADE**weight
        self.bins[min(BINS - 1, max(0, int(value / BIN_WIDTH + BINS / 2)))] += weight * self.unit
        self.weight += weight * self.unit
        if self.unit > 1e9:
            self.bins = self.counts()
            self.weight, self.unit = sum(self.bins), 1.0

    def counts(self) -> list[float]:
        return [count / self.unit for count in self.bins]

    def leaning(self, wider: list[float]) -> list[float]:
        """Its shares, with the wider ones counted as :data:`LEAN` samples."""
        lean = LEAN * self.unit
        total = self.weight + lean
        return [(count + lean * share) / total for count, share in zip(self.bins, wider, strict=True)]


class Calibration:
    """Turns forecasts into what is said, and learns from what then happened."""

    def __init__(self) -> None:
        self._histograms: dict[tuple[str, ...], _Histogram] = {}
        self._misses: dict[str, float] = {}
        # Before anything was measured a forecast is believed to within a factor of about two.
        spread = [math.exp(-0.5 * (((place + 0.5) * BIN_WIDTH - 3.0) / 0.45) ** 2) for place in range(BINS)]
        self._prior = [share / sum(spread) for share in spread]

    def expect(
        self, kind: str, priority_class: PriorityClass, gpus: float, raw_s: float, takes_s: float
    ) -> Expected:
        """What to say of a job that a forecast puts ``raw_s`` ahead and that takes ``takes_s`` once begun."""
        key = Key(kind, priority_class, _width(gpus), _bucket(raw_s))
        least = 1.0 - NOMINAL
        misses = min(0.5, max(0.002, self._misses.get(_group(key), least)))
        shares = self._shares(key)
        low, middle, high = (math.exp(_quantile(shares, q)) for q in (misses / 2.0, 0.5, 1.0 - misses / 2.0))
        base_s = max(LEAST_S, raw_s)
        start_s = middle * base_s if raw_s > 0.0 else 0.0
        earliest_s = low * base_s if low * base_s > LEAST_S else 0.0
        return Expected(start_s, earliest_s, high * base_s, start_s + takes_s, raw_s, key)

    def observe(self, said: Expected, waited_s: float, weight: float = 1.0) -> None:
        """Learns that a job began ``waited_s`` after this was said of it.

        ``weight`` below one for a job among many that were forecast alike at one moment: they are nearly one
        sample.
        """
        score = math.log(max(LEAST_S, waited_s) / max(LEAST_S, said.raw_s))
        for name in _names(said.key):
            found = self._histograms.get(name)
            if found is None:
                found = self._histograms[name] = _Histogram()
            found.add(score, weight)
        missed = 0.0 if said.earliest_s <= waited_s <= said.latest_s else 1.0
        group = _group(said.key)
        allowed = self._misses.get(group, 1.0 - NOMINAL)
        self._misses[group] = min(0.5, max(0.0, allowed + STEP * weight * (1.0 - NOMINAL - missed)))

    def to_json(self) -> dict[str, Any]:
        """What was learned, as JSON data."""
        return {
            "histograms": [
                [*name, [round(count, 4) for count in found.counts()]]
                for name, found in self._histograms.items()
            ],
            "misses": dict(self._misses),
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Calibration:
        """What :meth:`to_json` gave; an empty mapping is a new one."""
        found = cls()
        found._histograms = {
            tuple(row[:-1]): _Histogram([float(count) for count in row[-1]])
            for row in state.get("histograms", [])
            if len(row[-1]) == BINS
        }
        found._misses = {group: float(value) for group, value in state.get("misses", {}).items()}
        return found

    def _shares(self, key: Key) -> list[float]:
        shares = self._prior
        for name in _names(key):
            found = self._histograms.get(name)
            if found is not None:
                shares = found.leaning(shares)
        return shares


def _group(key: Key) -> str:
    return f"{key.kind}/{int(key.priority_class)}"


def _names(key: Key) -> tuple[tuple[str, ...], ...]:
    """The histograms that a key belongs to, the coarsest first."""
    of_class = (key.kind, str(int(key.priority_class)))
    return of_class, (*of_class, str(key.bucket)), (*of_class, str(key.bucket), str(key.width))


def _width(gpus: float) -> int:
    return max(0, math.frexp(gpus)[1] - 1) if gpus > 1.0 else 0


def _bucket(raw_s: float) -> int:
    """Half the power of two: under 4 s, 16 s, 1 min, 4 min, 17 min, 68 min, ..."""
    return int(math.log2(max(LEAST_S, raw_s)) / 2.0)


def _quantile(shares: list[float], quantile: float) -> float:
    """The logarithm below which this part of the shares lies, linear inside a bin."""
    passed = 0.0
    for place, share in enumerate(shares):
        if passed + share >= quantile and share > 0.0:
            return (place + (quantile - passed) / share) * BIN_WIDTH - BINS * BIN_WIDTH / 2.0
        passed += share
    return BINS * BIN_WIDTH / 2.0
