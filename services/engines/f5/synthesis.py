"""Speech from text in a reference's voice: batches, streams, exact lengths, reproducible seeds."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from services.common.errors import Kind, Reason, VoxfleetError
from services.engines.bundles.manifest import Manifest
from services.engines.f5 import planning, upstream
from services.engines.f5.flow import Flow
from services.engines.f5.loop import Cancelled, Computed, LoopStats, SpeechLoop
from services.engines.f5.model import LoadedF5, load
from services.engines.f5.packing import Budget
from services.engines.f5.planning import (
    CROSSFADE_S,
    RATE_HZ,
    Plan,
    Reference,
    Segment,
    Streaming,
    SynthesisItem,
)
from services.engines.f5.reference import ReferenceClip
from services.engines.f5.text import Vocabulary

STREAMING = Streaming()
CPU_BUDGET = Budget(segments=1)
"""On a CPU a batch gains nothing and padding costs; segments still take turns, the urgent ones first."""
GPU_BUDGET = Budget(segments=64, frames=64_000, free_frames=4_000)

_FADE_OUT_S = 0.005

Samples = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SynthesisStats:
    """What a result cost, and what made it.

    Args:
        frames: computed, the references' included, over all passes.
        steps: evaluations of the flow for each pass.
        seconds: of audio that came out.
        wall_s: of work; of what was computed together with others, its share by frames.
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


class F5Model:
    """An F5 bundle that speaks.

    Safe to use from any number of threads: what they ask for is computed together by one loop.

    Args:
        loaded: the weights.
        budget: of one evaluation; by default what suits the device.
    """

    def __init__(self, loaded: LoadedF5, *, budget: Budget | None = None) -> None:
        self._loaded = loaded
        on_gpu = loaded.device.type == "cuda"
        self._decoding = torch.cuda.Stream(loaded.device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._loop = SpeechLoop(loaded, budget or (CPU_BUDGET if loaded.device.type == "cpu" else GPU_BUDGET))

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        device: str | torch.device = "cpu",
        check: bool = True,
        compiler: str = "",
    ) -> F5Model:
        """Load a bundle directory; see :func:`services.engines.f5.model.load`."""
        return cls(load(directory, device=device, check=check, compiler=compiler))

    @property
    def manifest(self) -> Manifest:
        """Whose weights these are: their name, licence and languages."""
        return self._loaded.manifest

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens that these weights know."""
        return self._loaded.vocabulary

    @property
    def loop_stats(self) -> LoopStats:
        """What has been computed so far, by all."""
        return self._loop.stats

    def close(self) -> None:
        """Ends the loop; what it has not finished is cancelled."""
        self._loop.close()

    def reference(self, clip: ReferenceClip) -> Reference:
        """The clip as the network takes it; keep it, and a clip's mel is computed once."""
        mel = upstream.mel_spectrogram(torch.from_numpy(clip.audio)[None])[0]
        return Reference(clip.id, mel.contiguous(), clip.text, clip.gain)

    def plan(self, item: SynthesisItem, *, streaming: Streaming | None = None) -> Plan:
        """Check an item and lay out its work, at the cost of a tokenisation; see :func:`planning.plan`."""
        return planning.plan(item, self._loaded.vocabulary, streaming=streaming)

    def synthesize(
        self, items: Sequence[SynthesisItem], *, cancelled: Cancelled | None = None, rank: int = 0
    ) -> list[Samples]:
        """The audio of every item: [samples] at 24 kHz, in the items' order.

        Raises:
            VoxfleetError: for the first item that cannot be planned (to keep one bad line from costing
                a batch, call :meth:`plan` on each and :meth:`render` on what is left); SYNTHESIS_FAILED;
                GPU_OUT_OF_MEMORY; CANCELLED.
        """
        plans = [self.plan(item) for item in items]
        return [result.audio for result in self.render(plans, cancelled=cancelled, rank=rank)]

    def render(
        self, plans: Sequence[Plan], *, cancelled: Cancelled | None = None, rank: int = 0
    ) -> list[Synthesis]:
        """Carry out plans, together with whatever else is computed; each result is as if alone.

        Args:
            plans: what to speak.
            cancelled: asked between evaluations.
            rank: who goes first where not all can; lower goes first.
        """
        failed = False

        def stop() -> bool:
            return failed or (cancelled is not None and cancelled())

        begun = [[self._begin(plan, segment, stop, rank) for segment in plan.segments] for plan in plans]
        results = []
        try:
            for plan, futures in zip(plans, begun, strict=True):
                parts = [
                    self._finished(plan, segment, future)
                    for segment, future in zip(plan.segments, futures, strict=True)
                ]
                pieces = _joined((part.audio for part in parts), plan.lengths)
                whole = _completed(plan, np.concatenate([*pieces]), before=0)
                work_s = sum(part.stats.wall_s for part in parts)
                results.append(Synthesis(whole, self._stats(plan, len(whole), work_s)))
        except BaseException:
            failed = True
            raise
        return results

    def stream(
        self,
        item: SynthesisItem,
        *,
        streaming: Streaming = STREAMING,
        cancelled: Cancelled | None = None,
        rank: int = 0,
    ) -> Iterator[Synthesis]:
        """Speak an item a few sentences at a time.

        The pieces' audio, put end to end, is what :meth:`render` gives for ``plan(item, streaming=…)``:
        each piece but the last holds its last 150 ms back, to be crossfaded into the next.
        """
        # Planned before the first piece is asked for, so that a bad request fails at the call.
        return self._stream(self.plan(item, streaming=streaming), cancelled, rank)

    def _stream(self, plan: Plan, cancelled: Cancelled | None, rank: int) -> Iterator[Synthesis]:
        before = 0
        spent: list[float] = []

        def spoken() -> Iterator[Samples]:
            for segment in plan.segments:
                part = self._finished(plan, segment, self._begin(plan, segment, cancelled, rank))
                spent.append(part.stats.wall_s)
                yield part.audio

        for index, piece in enumerate(_joined(spoken(), plan.lengths)):
            last = index == len(plan.segments) - 1
            audio = _completed(plan, piece, before=before) if last else piece
            before += len(audio)
            one = Plan(plan.item, (plan.segments[index],), None)
            yield Synthesis(audio, self._stats(one, len(audio), spent[index]))

    def _begin(
        self, plan: Plan, segment: Segment, cancelled: Cancelled | None, rank: int
    ) -> Future[Computed]:
        item = plan.item
        flow = Flow(
            *(segment.tokens, item.reference.mel, segment.frames, segment.seed),
            *(item.cfg_strength, item.steps),
        )
        return self._loop.submit(flow, rank=rank, cancelled=cancelled)

    def _finished(self, plan: Plan, segment: Segment, future: Future[Computed]) -> Synthesis:
        computed = future.result()
        began_s = time.perf_counter()
        with self._beside(computed):
            audio = self._decode(plan.item, segment, computed.mel)
        work_s = computed.work_s + time.perf_counter() - began_s
        return Synthesis(audio, self._stats(Plan(plan.item, (segment,), None), len(audio), work_s))

    @contextmanager
    def _beside(self, computed: Computed) -> Iterator[None]:
        """On a GPU, a stream of the vocoder's own: it runs beside the network's next evaluations."""
        if self._decoding is None or computed.ready is None:
            yield
            return
        with torch.cuda.stream(self._decoding):
            self._decoding.wait_event(computed.ready)
            computed.mel.record_stream(self._decoding)
            yield

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


def _joined(parts: Iterable[Samples], lengths: Sequence[int]) -> Iterator[Samples]:
    """As many pieces as parts, which end to end are the parts crossfaded over 150 ms.

    The lengths are known beforehand, so that a piece goes out before the next part is there.
    """
    overlaps = [
        min(round(CROSSFADE_S * RATE_HZ), before // 2, after // 2)
        for before, after in itertools.pairwise(lengths)
    ]
    held = np.empty(0, np.float32)
    for part, overlap in zip(parts, [*overlaps, 0], strict=True):
        faded = len(held)
        rising = np.linspace(0.0, 1.0, faded, dtype=np.float32)
        joint = held * (1 - rising) + part[:faded] * rising
        yield np.concatenate([joint, part[faded : len(part) - overlap]])
        held = part[len(part) - overlap :]


def _completed(plan: Plan, last: Samples, *, before: int) -> Samples:
    """The last piece, with the silence that a slot longer than its speech needs (or cut to the slot)."""
    if plan.samples is None:
        return last
    wanted = max(0, plan.samples - before)
    if len(last) > wanted:
        return _fitted(last, wanted)
    return np.concatenate([last, np.zeros(wanted - len(last), dtype=np.float32)])
