"""Speech from text in a reference's voice: batches, streams, exact lengths, reproducible seeds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from services.common.errors import Kind, Reason, VoxfleetError
from services.engines.bundles.manifest import Manifest
from services.engines.f5 import planning, upstream
from services.engines.f5.model import LoadedF5, load
from services.engines.f5.planning import CROSSFADE_S, RATE_HZ, Plan, Reference, Segment, SynthesisItem
from services.engines.f5.reference import ReferenceClip
from services.engines.f5.sampler import Cancelled, Flow, sample
from services.engines.f5.text import Vocabulary

STREAM_CHUNK_S = 6.0
_FADE_OUT_S = 0.005

Samples = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SynthesisStats:
    """What a result cost, and what made it.

    Args:
        frames: computed, the references' included, over all passes.
        steps: evaluations of the flow for each pass.
        seconds: of audio that came out.
        wall_s: of work; in a batch, the share of this item's frames.
        seed: the item's.
        weights: the bundle's label, which says so where the weights are untrained.
    """

    frames: int
    steps: int
    seconds: float
    wall_s: float
    seed: int
    weights: str

    @property
    def rtf(self) -> float:
        """Seconds of work for a second of audio."""
        return self.wall_s / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Synthesis:
    """A result.

    Args:
        audio: [samples] at 24 kHz, float32, as loud as the reference was.
        stats: what it cost.
    """

    audio: Samples
    stats: SynthesisStats


@dataclass(frozen=True, slots=True)
class _Pass:
    """One segment on its way: whose it is, and its place there."""

    plan: int
    index: int
    segment: Segment


class F5Model:
    """An F5 bundle that speaks.

    Safe to use from several threads; on a GPU one at a time is fastest.

    Args:
        loaded: the weights.
        max_batch: segments in one batch. On a CPU a batch gains nothing and padding costs, so the
            default there is 1; on a GPU, 16.
        max_batch_frames: segments times the longest one's frames, which bounds the memory.
    """

    def __init__(
        self, loaded: LoadedF5, *, max_batch: int | None = None, max_batch_frames: int = 32_000
    ) -> None:
        self._loaded = loaded
        self._max_batch = max_batch or (1 if loaded.device.type == "cpu" else 16)
        self._max_batch_frames = max_batch_frames

    @classmethod
    def load(cls, directory: Path, *, device: str | torch.device = "cpu", check: bool = True) -> F5Model:
        """Load a bundle directory; see :func:`services.engines.f5.model.load`."""
        return cls(load(directory, device=device, check=check))

    @property
    def manifest(self) -> Manifest:
        """Whose weights these are: their name, licence and languages."""
        return self._loaded.manifest

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens that these weights know."""
        return self._loaded.vocabulary

    def reference(self, clip: ReferenceClip) -> Reference:
        """The clip as the network takes it; keep it, and a clip's mel is computed once."""
        mel = upstream.mel_spectrogram(torch.from_numpy(clip.audio)[None])[0]
        return Reference(clip.id, mel.contiguous(), clip.text, clip.gain)

    def plan(self, item: SynthesisItem, *, chunk_s: float | None = None) -> Plan:
        """Check an item and lay out its work, at the cost of a tokenisation; see :func:`planning.plan`."""
        return planning.plan(item, self._loaded.vocabulary, chunk_s=chunk_s)

    def synthesize(
        self, items: Sequence[SynthesisItem], *, cancelled: Cancelled | None = None
    ) -> list[Samples]:
        """The audio of every item: [samples] at 24 kHz, in the items' order.

        Raises:
            VoxfleetError: for the first item that cannot be planned (to keep one bad line from costing
                a batch, call :meth:`plan` on each and :meth:`render` on what is left); SYNTHESIS_FAILED;
                GPU_OUT_OF_MEMORY; CANCELLED.
        """
        return [
            result.audio for result in self.render([self.plan(item) for item in items], cancelled=cancelled)
        ]

    def render(self, plans: Sequence[Plan], *, cancelled: Cancelled | None = None) -> list[Synthesis]:
        """Carry out plans together, segments of like length in a batch; each result is as if alone."""
        parts: list[list[Samples]] = [[np.empty(0, np.float32)] * len(plan.segments) for plan in plans]
        wall_s = [0.0] * len(plans)
        for batch in self._batches(plans):
            began = time.perf_counter()
            audio = self._speak([(plans[one.plan].item, one.segment) for one in batch], cancelled)
            took_s = time.perf_counter() - began
            for one, samples in zip(batch, audio, strict=True):
                parts[one.plan][one.index] = samples
                wall_s[one.plan] += took_s * one.segment.frames / sum(other.segment.frames for other in batch)
        results = []
        for plan, own, spent_s in zip(plans, parts, wall_s, strict=True):
            whole = _completed(plan, np.concatenate([*_joined(iter(own))]), before=0)
            results.append(Synthesis(whole, self._stats(plan, len(whole), spent_s)))
        return results

    def stream(
        self, item: SynthesisItem, *, chunk_s: float = STREAM_CHUNK_S, cancelled: Cancelled | None = None
    ) -> Iterator[Synthesis]:
        """Speak an item a group of sentences at a time.

        The pieces' audio, put end to end, is what :meth:`render` gives for ``plan(item, chunk_s=…)``:
        each piece holds its last 150 ms back, to be crossfaded into the next.
        """
        # Planned before the first piece is asked for, so that a bad request fails at the call.
        return self._stream(self.plan(item, chunk_s=chunk_s), cancelled)

    def _stream(self, plan: Plan, cancelled: Cancelled | None) -> Iterator[Synthesis]:
        began, before = time.perf_counter(), 0
        spoken = (self._speak([(plan.item, segment)], cancelled)[0] for segment in plan.segments)
        for index, piece in enumerate(_joined(spoken)):
            last = index == len(plan.segments) - 1
            audio = _completed(plan, piece, before=before) if last else piece
            before += len(audio)
            one = Plan(plan.item, (plan.segments[index],), None)
            yield Synthesis(audio, self._stats(one, len(audio), time.perf_counter() - began))
            began = time.perf_counter()

    def _batches(self, plans: Sequence[Plan]) -> Iterator[list[_Pass]]:
        """Segments that may share a batch, of like lengths, within the limits."""
        waiting: dict[tuple[int, bool], list[_Pass]] = {}
        for at, plan in enumerate(plans):
            kind = (plan.item.steps, plan.item.cfg_strength > 0)
            waiting.setdefault(kind, []).extend(
                _Pass(at, i, segment) for i, segment in enumerate(plan.segments)
            )
        for passes in waiting.values():
            batch: list[_Pass] = []
            for one in sorted(passes, key=lambda one: -one.segment.frames):
                longest = batch[0].segment.frames if batch else one.segment.frames
                if batch and (
                    len(batch) >= self._max_batch or (len(batch) + 1) * longest > self._max_batch_frames
                ):
                    yield batch
                    batch = []
                batch.append(one)
            if batch:
                yield batch

    def _speak(
        self, work: Sequence[tuple[SynthesisItem, Segment]], cancelled: Cancelled | None
    ) -> list[Samples]:
        flows = [
            Flow(segment.tokens, item.reference.mel, segment.frames, segment.seed, item.cfg_strength)
            for item, segment in work
        ]
        mels = sample(self._loaded, flows, work[0][0].steps, cancelled=cancelled)
        return [self._decode(item, segment, mel) for (item, segment), mel in zip(work, mels, strict=True)]

    @torch.inference_mode()
    def _decode(self, item: SynthesisItem, segment: Segment, mel: torch.Tensor) -> Samples:
        # One by one: in a padded batch the vocoder's convolutions would see the padding.
        new = mel[item.reference.frames :].T[None]
        wave = self._loaded.vocoder.decode(new)[0]  # type: ignore[operator]
        audio: Samples = (wave / item.reference.gain).float().cpu().numpy()
        if not np.isfinite(audio).all():
            raise VoxfleetError(
                Reason.SYNTHESIS_FAILED,
                "the network gave NaN or infinity; try another seed",
                kind=Kind.INTERNAL,
                metadata={"seed": item.seed, "weights": self.manifest.name},
            )
        return audio if segment.samples is None else _fitted(audio, segment.samples)

    def _stats(self, plan: Plan, samples: int, wall_s: float) -> SynthesisStats:
        return SynthesisStats(
            frames=plan.frames,
            steps=plan.item.steps,
            seconds=samples / RATE_HZ,
            wall_s=wall_s,
            seed=plan.item.seed,
            weights=self.manifest.label,
        )


def _fitted(audio: Samples, samples: int) -> Samples:
    """The first ``samples`` of the audio, faded at the cut so that it does not click."""
    fitted = audio[:samples].copy()
    fade = min(round(_FADE_OUT_S * RATE_HZ), samples)
    fitted[samples - fade :] *= np.linspace(1.0, 0.0, fade, dtype=np.float32)
    return fitted


def _joined(parts: Iterator[Samples]) -> Iterator[Samples]:
    """As many pieces as parts, which end to end are the parts crossfaded over 150 ms."""
    held = np.empty(0, np.float32)
    current = next(parts)
    for following in parts:
        overlap = min(round(CROSSFADE_S * RATE_HZ), len(current) // 2, len(following) // 2)
        yield np.concatenate([held, current[: len(current) - overlap]])
        rising = np.linspace(0.0, 1.0, overlap, dtype=np.float32)
        tail = current[len(current) - overlap :]
        held = tail * (1 - rising) + following[:overlap] * rising
        current = following[overlap:]
    yield np.concatenate([held, current])


def _completed(plan: Plan, last: Samples, *, before: int) -> Samples:
    """The last piece, with the silence that a slot longer than its speech needs (or cut to the slot)."""
    if plan.samples is None:
        return last
    wanted = max(0, plan.samples - before)
    if len(last) > wanted:
        return _fitted(last, wanted)
    return np.concatenate([last, np.zeros(wanted - len(last), dtype=np.float32)])
