"""The F5 pool: what batching costs and gains, how soon a stream begins, what stays in memory.

Names: ``padding_efficiency`` (real over padded frames, with the lengths of real subtitles and 64 in flight),
``batched_vs_single_rel_err`` (fp32, the worst of ragged batches with adversarial neighbours) and
``bf16_batched_vs_single_over_own_err`` (the same in bfloat16 over bfloat16's own error against float32),
``bf16_batched_vs_fp32_over_own_err`` (a batch's error against float32 over the same: what batching costs),
``lone_request_vs_ray_call`` (an engine that does nothing, through the pool, over the same bytes by a bare Ray
call), ``pool_vs_infer_process`` (seconds of audio a second, through the pool, over f5-tts's own
``infer_process`` one by one), ``first_audio_vs_oneshot`` and ``stream_total_vs_oneshot`` (three sentences
after a clip of 5 s), ``mel_distance_7_vs_32``, ``rss_growth_after_1000_requests_mib``. What makes it fair
stands in ``docs/benchmarks/f5.md``; what needs a GPU is ``python -m bench.speech.gpu``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from bench.failures import UnmeasurableError
from bench.speech.clips import clip_of, recording_of
from bench.speech.exactness import half_errors, worst_batched_error
from bench.speech.rig import (
    Clip,
    bare_actor,
    f5_executor,
    no_engine_executor,
    own_ray,
    running_pool,
    speak_all,
    through_pool,
)
from bench.speech.stock import Stock
from bench.speech.texts import subtitle_texts
from services.engines.f5 import small
from services.engines.f5.flow import Flow, sample
from services.engines.f5.model import Architecture, LoadedF5, load
from services.engines.f5.packing import Budget
from services.engines.f5.planning import SynthesisItem
from services.engines.f5.synthesis import F5Model
from services.inference.engine.bundle import small_bundle

_STEPS = 16
_IN_FLIGHT = 4
_CROWD = 64
_REPLY_BYTES = 480_000  # ten seconds of speech
_THREE = (
    "The harbour was quiet when she came back that night.",
    "Nobody asked her where the others had gone so late.",
    "It had rained for days and the roads stood under water.",
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    crowd: int
    batches: int
    calls: int
    rounds: int
    texts: int
    streams: int
    requests: int


FULL = Sizes(crowd=400, batches=40, calls=200, rounds=5, texts=16, streams=9, requests=1000)
QUICK = Sizes(crowd=60, batches=4, calls=20, rounds=2, texts=4, streams=2, requests=30)
Figures = dict[str, float]


@dataclass
class Bench:
    """One run.

    Args:
        folder: for whatever it makes.
        sizes: how much.
        say: told what is seen.
    """

    folder: Path
    sizes: Sizes
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self.cache = self.folder / "cache"
        self.bundle = small_bundle(self.cache)
        self.loaded: LoadedF5 = load(self.bundle, check=False)

    async def padding(self) -> Figures:
        """The lengths of real subtitles, 64 in flight, as on a GPU; the smallest network that there is."""
        directory = self.folder / "tiny"
        small.build(directory, shape=_TINY)
        loaded = load(directory, check=False)
        model = F5Model(loaded, budget=Budget(segments=_CROWD, frames=64_000))
        reference = model.reference(clip_of(5.0))
        items = [
            SynthesisItem(text, reference, steps=2, seed=number)
            for number, text in enumerate(subtitle_texts(self.sizes.crowd, seed=1), start=1)
        ]
        with ThreadPoolExecutor(_CROWD) as threads:
            for future in [threads.submit(model.synthesize, [item]) for item in items]:
                await asyncio.wrap_future(future)
        stats = model.loop_stats
        model.close()
        self.say(f"{stats.frames / stats.evaluations:.0f} real frames an evaluation")
        return {
            "padding_efficiency": stats.padding_efficiency,
            "frames_per_evaluation": stats.frames / stats.evaluations,
        }

    async def exactness(self) -> Figures:
        """Ragged batches against each alone."""
        worst = await asyncio.to_thread(worst_batched_error, self.loaded, self.sizes.batches)
        half = load(self.bundle, check=False, dtype=torch.bfloat16)
        found = await asyncio.to_thread(half_errors, self.loaded, half, max(self.sizes.batches // 4, 2))
        return {
            "batched_vs_single_rel_err": worst,
            "bf16_batched_vs_single_over_own_err": found.vs_single,
            "bf16_batched_vs_fp32_over_own_err": found.vs_exact,
        }

    async def lone(self) -> Figures:
        """A request that asks for nothing, through the pool and by a bare Ray call, by turns."""
        data = bytes(_REPLY_BYTES)
        pooled: list[float] = []
        bare: list[float] = []
        async with own_ray(self.folder / "ray-lone"):
            executor, bare_handle = no_engine_executor(data, self.cache), bare_actor(data)
            _, voice = f5_executor(Clip(*recording_of(5.0)), self.cache)
            async with running_pool(executor) as pool:
                for number in range(self.sizes.calls + 20):
                    began_s = time.perf_counter()
                    events = await through_pool(pool, voice)
                    between_s = time.perf_counter()
                    reply = await bare_handle.bare.remote()
                    ended_s = time.perf_counter()
                    if len(reply) != _REPLY_BYTES or not events:
                        raise UnmeasurableError("a call brought no bytes")
                    if number >= 20:
                        pooled.append(between_s - began_s)
                        bare.append(ended_s - between_s)
        a, b = statistics.median(pooled), statistics.median(bare)
        self.say(f"a request through the pool {1e3 * a:.2f} ms, a bare call {1e3 * b:.2f} ms")
        return {"lone_request_vs_ray_call": a / b, "lone_request_ms": 1e3 * a}

    async def throughput(self) -> Figures:
        """The same texts through the pool and one by one, in turn; each with one thread of torch."""
        torch.set_num_threads(1)
        clip = Clip(*recording_of(5.0))
        path = self.folder / "reference.wav"
        path.write_bytes(clip.data)
        stock = Stock(self.loaded, path, clip.text)
        texts = subtitle_texts(self.sizes.texts, seed=2)
        executor, voice = f5_executor(clip, self.cache)
        ratios = []
        async with own_ray(self.folder / "ray-pool"), running_pool(executor) as pool:
            await speak_all(pool, voice, texts[:2], steps=_STEPS, in_flight=2)
            await asyncio.to_thread(stock.speak, texts[0], steps=_STEPS)
            for _ in range(self.sizes.rounds):
                began_s = time.perf_counter()
                ours = await speak_all(pool, voice, texts, steps=_STEPS, in_flight=_IN_FLIGHT)
                ours /= time.perf_counter() - began_s
                seconds, took_s = await asyncio.to_thread(stock.speak_all, texts, steps=_STEPS)
                ratios.append(ours / (seconds / took_s))
                self.say(f"audio seconds a second: pool {ours:.2f}, infer_process {seconds / took_s:.2f}")
        return {"pool_vs_infer_process": statistics.median(ratios)}

    async def streaming(self) -> Figures:
        """Three sentences as a stream, and all at once, by turns."""
        model = F5Model(self.loaded)
        reference = model.reference(clip_of(5.0))
        item = SynthesisItem(" ".join(_THREE), reference, steps=_STEPS, seed=1)
        first: list[float] = []
        total: list[float] = []
        for number in range(self.sizes.streams + 1):
            began_s = time.perf_counter()
            stream = model.stream(item)
            next(stream)
            first_s = time.perf_counter() - began_s
            for _ in stream:
                pass
            total_s = time.perf_counter() - began_s
            began_s = time.perf_counter()
            model.synthesize([item])
            whole_s = time.perf_counter() - began_s
            if number:
                first.append(first_s / whole_s)
                total.append(total_s / whole_s)
        model.close()
        return {
            "first_audio_vs_oneshot": statistics.median(first),
            "stream_total_vs_oneshot": statistics.median(total),
        }

    async def presets(self) -> Figures:
        """How far 7 steps are from 32, beside how far two seeds are from one another."""
        model = F5Model(self.loaded)
        reference = model.reference(clip_of(5.0))

        def mel(steps: int, seed: int) -> torch.Tensor:
            item = SynthesisItem(_THREE[0], reference, steps=steps, seed=seed)
            flow = model.plan(item).segments[0]
            return sample(self.loaded, [Flow(flow.tokens, reference.mel, flow.frames, seed, 2.0, steps)])[0][
                reference.frames :
            ]

        near = float((mel(7, 1) - mel(32, 1)).abs().mean())
        far = float((mel(32, 2) - mel(32, 1)).abs().mean())
        model.close()
        return {"mel_distance_7_vs_32": near, "mel_distance_between_seeds": far}

    async def memory(self) -> Figures:
        """What a replica and its controller hold after a thousand requests, beyond that after fifty."""
        executor, voice = f5_executor(Clip(*recording_of(5.0)), self.cache)
        warm = min(25, max(self.sizes.requests // 8, 2))
        texts = subtitle_texts(self.sizes.requests, seed=3)
        async with own_ray(self.folder / "ray-rss"), running_pool(executor) as pool:
            facts = pool.facts
            if facts is None:
                raise UnmeasurableError("the replica was lost")
            watched = [psutil.Process(facts.pid), psutil.Process()]
            # The longest among them: what one text needs at once is no growth.
            longest = sorted(texts, key=len)[-warm:]
            await speak_all(pool, voice, [*longest, *texts[:warm]], steps=4, in_flight=_IN_FLIGHT)
            before = _own_mib(watched)
            await speak_all(pool, voice, texts, steps=4, in_flight=_IN_FLIGHT)
            after = _own_mib(watched)
            if pool.facts is None or pool.facts.pid != facts.pid:
                raise UnmeasurableError("the replica was replaced on the way")
        self.say(f"{before:.0f} MiB before, {after:.0f} after")
        return {"rss_growth_after_1000_requests_mib": after - before}


_TINY = small.SmallShape(
    Architecture(dim=32, depth=1, heads=1, ff_mult=1, text_dim=16, conv_layers=1, dim_head=32),
    vocoder_dim=16,
    vocoder_layers=1,
)


def _own_mib(processes: Sequence[psutil.Process]) -> float:
    """Their own pages: the object store's are every process's that has ever looked there."""
    held = [process.memory_info() for process in processes]
    return float(sum(memory.rss - memory.shared for memory in held)) / 2**20


PARTS: Mapping[str, Callable[[Bench], Awaitable[Figures]]] = {
    "padding": Bench.padding,
    "exactness": Bench.exactness,
    "lone": Bench.lone,
    "throughput": Bench.throughput,
    "streaming": Bench.streaming,
    "presets": Bench.presets,
    "memory": Bench.memory,
}


async def measure(bench: Bench, parts: Sequence[str]) -> Figures:
    """The figures of these parts."""
    figures: Figures = {}
    for part in parts:
        began_s = time.monotonic()
        figures |= await PARTS[part](bench)
        bench.say(f"{part}: {time.monotonic() - began_s:.0f} s")
    return figures


def main() -> int:
    """Measures on a Ray of its own; 1 and a message where a figure cannot be had."""
    parser = argparse.ArgumentParser(prog="bench.f5", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run, not how fast is it")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="only these")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vfb-") as folder:
        try:
            bench = Bench(
                Path(folder),
                QUICK if arguments.quick else FULL,
                lambda line: print(line, file=sys.stderr, flush=True),
            )
            figures = asyncio.run(measure(bench, arguments.parts))
        except Exception:  # noqa: BLE001 - what cannot be measured is told
            traceback.print_exc()
            return 1
    print(json.dumps({name: float(f"{value:.4g}") for name, value in figures.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
