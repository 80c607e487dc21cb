"""Which segments are evaluated together next: a pure choice, made anew before every evaluation.

Segments come and go between evaluations, as sequences do in continuous batching of language models (Yu et
al., "Orca", OSDI 2022): nobody waits for a batch to be full, and a lone request waits for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Waiting:
    """A segment that is not done.

    Args:
        number: counts up in the order of arrival.
        rank: who goes first; lower goes first.
        frames: its length, the reference's included.
        guided: only like may go together.
        passed_over: evaluations of others since its own last, or since it came.
    """

    number: int
    rank: int
    frames: int
    guided: bool = True
    passed_over: int = 0


@dataclass(frozen=True, slots=True)
class Budget:
    """How much one evaluation may hold.

    Args:
        segments: at most.
        frames: padded ones at most, over all segments. A longer segment goes alone.
        free_frames: padded ones that cost no more time than fewer: up to there padding is welcome.
        efficiency: the least share of real frames beyond that.
        patience: evaluations after which a segment that was passed over goes before every rank.
    """

    segments: int = 64
    frames: int = 64_000
    free_frames: int = 0
    efficiency: float = 0.9
    patience: int = 64

    def halved(self, padded_frames: int) -> Budget:
        """Half of what was just too much, or of what was allowed, whichever is less; at least one frame."""
        return Budget(
            self.segments,
            max(min(self.frames, padded_frames) // 2, 1),
            self.free_frames,
            self.efficiency,
            self.patience,
        )

    def grown(self, most: Budget) -> Budget:
        """A little more, up to ``most``."""
        frames = min(self.frames + max(self.frames // 16, 1), most.frames)
        return Budget(self.segments, frames, self.free_frames, self.efficiency, self.patience)


def choose(waiting: Sequence[Waiting], budget: Budget) -> list[Waiting]:
    """Who is evaluated next, in the order of arrival; empty only where nobody waits.

    The first by rank and arrival always goes. Of the others those nearest to it in length join, within the
    budget, the more urgent first among equals: what is as long costs no padding.
    """
    if not waiting:
        return []
    first = min(waiting, key=lambda one: _order(one, budget))
    chosen = [first]
    real, longest = first.frames, first.frames
    for one in _nearest(first, waiting, budget):
        if len(chosen) == budget.segments:
            break
        with_it = max(longest, one.frames)
        padded = with_it * (len(chosen) + 1)
        if padded > budget.frames:
            continue
        if padded > budget.free_frames and real + one.frames < budget.efficiency * padded:
            continue
        chosen.append(one)
        real, longest = real + one.frames, with_it
    return sorted(chosen, key=lambda one: one.number)


def padded_frames(chosen: Sequence[Waiting]) -> int:
    """What an evaluation of these costs: the longest one's frames for each."""
    return len(chosen) * max((one.frames for one in chosen), default=0)


def _order(one: Waiting, budget: Budget) -> tuple[int, int]:
    return (-1 if one.passed_over >= budget.patience else one.rank, one.number)


def _nearest(first: Waiting, waiting: Sequence[Waiting], budget: Budget) -> Iterator[Waiting]:
    others = [one for one in waiting if one is not first and one.guided == first.guided]
    others.sort(key=lambda one: (abs(one.frames - first.frames), _order(one, budget)))
    yield from others
