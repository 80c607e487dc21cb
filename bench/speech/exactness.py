"""How far a batch is from each of its segments alone."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from services.engines.f5.flow import Flow, sample
from services.engines.f5.model import MEL_CHANNELS, LoadedF5

_STEPS = 4
_MEL_MEAN, _MEL_DEVIATION = -2.0, 2.0


def worst_batched_error(loaded: LoadedF5, batches: int, *, seed: int = 0) -> float:
    """The worst relative error (L2, over a segment's new frames) in so many ragged batches.

    In each, one segment is watched, and its neighbours are far longer or shorter, louder than any speech, or
    full of text.
    """
    chance = random.Random(seed)  # noqa: S311 - a sample
    worst = 0.0
    for number in range(batches):
        watched = _flow(loaded, chance, frames=chance.randrange(120, 700), level=1.0)
        neighbours = [
            _flow(
                loaded,
                chance,
                frames=chance.choice([100, 130, 1400, 2000]),
                level=chance.choice([0.0, 1.0, 30.0]),
            )
            for _ in range(chance.randrange(1, 4))
        ]
        place = number % (len(neighbours) + 1)
        batch = [*neighbours[:place], watched, *neighbours[place:]]
        worst = max(worst, _error(sample(loaded, batch)[place], sample(loaded, [watched])[0], watched))
    return worst


@dataclass(frozen=True, slots=True)
class HalfErrors:
    """Of bfloat16 in ragged batches, over its own error (alone, against float32 alone); the worst of each.

    Args:
        vs_single: a batch's difference from bfloat16 alone.
        vs_exact: a batch's error against float32 alone: 1 where batching costs no accuracy.
    """

    vs_single: float
    vs_exact: float


def half_errors(exact: LoadedF5, half: LoadedF5, batches: int, *, seed: int = 1) -> HalfErrors:
    """How far bfloat16 in batches of three is from bfloat16 alone, and from float32."""
    chance = random.Random(seed)  # noqa: S311 - a sample
    worst = HalfErrors(0.0, 0.0)
    for _ in range(batches):
        flows = [_flow(exact, chance, frames=chance.randrange(120, 700), level=1.0) for _ in range(3)]
        together = sample(half, flows)
        for flow, batched in zip(flows, together, strict=True):
            alone = sample(half, [flow])[0]
            truth = sample(exact, [flow])[0]
            own = _error(alone, truth, flow)
            worst = HalfErrors(
                max(worst.vs_single, _error(batched, alone, flow) / own),
                max(worst.vs_exact, _error(batched, truth, flow) / own),
            )
    return worst


def _flow(loaded: LoadedF5, chance: random.Random, *, frames: int, level: float) -> Flow:
    generator = torch.Generator().manual_seed(chance.randrange(2**31))
    kept = min(90, frames - 20)
    mel = torch.randn(kept, MEL_CHANNELS, generator=generator) * _MEL_DEVIATION * level + _MEL_MEAN
    tokens = [chance.randrange(1, len(loaded.vocabulary)) for _ in range(chance.randrange(5, frames // 2))]
    return Flow(tokens, mel, frames, chance.randrange(2**31), 2.0, _STEPS)


def _error(found: torch.Tensor, truth: torch.Tensor, flow: Flow) -> float:
    made = slice(len(flow.mel), None)
    return float((found[made] - truth[made]).norm() / truth[made].norm())
