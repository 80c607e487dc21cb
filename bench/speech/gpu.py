"""F5 at its official size on a GPU: seconds of work for a second of speech, by how many are in flight.

Random weights of the architecture of F5 v1 base (22 layers, 1024 wide, 16 heads) and of its vocoder: time and
memory do not depend on what the weights are. For 1, 8, 32 and 64 texts in flight at 16 steps: ``rtf_N`` (wall
time over seconds of audio), ``matrix_share_N`` (multiplications of the linear layers a second, over those of
a large bfloat16 product measured on the same card), ``padding_efficiency_N``. ``pool_vs_infer_process`` is 64
in flight over f5-tts's own ``infer_process`` one by one; ``memory_mib`` the most that was allocated;
``batched_vs_single_rel_err`` in float32. Prints one JSON object; fails where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import soundfile
import torch

from bench.speech.clips import clip_of
from bench.speech.exactness import half_errors, worst_batched_error
from bench.speech.stock import Stock
from bench.speech.texts import subtitle_texts
from services.engines.f5 import small
from services.engines.f5.model import Architecture, load
from services.engines.f5.planning import RATE_HZ, Reference, SynthesisItem
from services.engines.f5.synthesis import F5Model

OFFICIAL = small.SmallShape(
    Architecture(dim=1024, depth=22, heads=16, ff_mult=2, text_dim=512, conv_layers=4),
    vocoder_dim=512,
    vocoder_layers=8,
)
STEPS = 16
IN_FLIGHT = (1, 8, 32, 64)
_PRODUCT = 8192


def speak_all(
    model: F5Model, reference: Reference, texts: Sequence[str], in_flight: int
) -> tuple[float, float]:
    """(seconds of audio, seconds that it took)."""
    items = [
        SynthesisItem(text, reference, steps=STEPS, seed=seed) for seed, text in enumerate(texts, start=1)
    ]
    with ThreadPoolExecutor(in_flight) as threads:
        began_s = time.perf_counter()
        made = list(threads.map(lambda item: len(model.synthesize([item])[0]), items))
        torch.cuda.synchronize()
        return sum(made) / RATE_HZ, time.perf_counter() - began_s


def matrix_rate() -> float:
    """Multiplications and additions a second of a large bfloat16 product."""
    left = torch.randn(_PRODUCT, _PRODUCT, device="cuda", dtype=torch.bfloat16)
    right = torch.randn(_PRODUCT, _PRODUCT, device="cuda", dtype=torch.bfloat16)
    for _ in range(5):
        left @ right
    torch.cuda.synchronize()
    began_s = time.perf_counter()
    for _ in range(20):
        left @ right
    torch.cuda.synchronize()
    return 20 * 2 * float(_PRODUCT) ** 3 / (time.perf_counter() - began_s)


def measure(folder: Path) -> dict[str, float]:
    """The figures."""
    small.build(folder / "bundle", shape=OFFICIAL)
    figures: dict[str, float] = {}
    full = load(folder / "bundle", device="cuda", check=False, dtype=torch.float32)
    half = load(folder / "bundle", device="cuda", check=False, dtype=torch.bfloat16)
    figures["batched_vs_single_rel_err"] = worst_batched_error(full, 10)
    found = half_errors(full, half, 4)
    figures["bf16_batched_vs_single_over_own_err"] = found.vs_single
    figures["bf16_batched_vs_fp32_over_own_err"] = found.vs_exact
    del full
    torch.cuda.empty_cache()

    clip = clip_of(5.0)
    peak = matrix_rate()
    linear = sum(
        parameter.numel()
        for name, parameter in half.transformer.named_parameters()
        if name.startswith("transformer_blocks") and parameter.ndim == 2
    )
    torch.cuda.reset_peak_memory_stats()
    rates: dict[int, float] = {}
    for in_flight in IN_FLIGHT:
        model = F5Model(half)
        reference = model.reference(clip)
        texts = subtitle_texts(max(6 * in_flight, 24), seed=in_flight)
        speak_all(model, reference, texts[: 2 * in_flight], in_flight)
        before = model.loop_stats
        audio_s, took_s = speak_all(model, reference, texts, in_flight)
        after = model.loop_stats
        padded = after.padded_frames - before.padded_frames
        rates[in_flight] = audio_s / took_s
        figures[f"rtf_{in_flight}"] = took_s / audio_s
        # Twice for guidance, twice for a multiplication and an addition.
        figures[f"matrix_share_{in_flight}"] = 4.0 * linear * padded / took_s / peak
        figures[f"padding_efficiency_{in_flight}"] = (after.frames - before.frames) / padded
        print(
            f"{in_flight} in flight: {audio_s / took_s:.1f} s of audio a second", file=sys.stderr, flush=True
        )
        model.close()
    figures["memory_mib"] = torch.cuda.max_memory_allocated() / 2**20

    path = folder / "reference.wav"
    soundfile.write(path, clip.audio / clip.gain, RATE_HZ)
    stock = Stock(half, path, clip.text)
    texts = subtitle_texts(24, seed=5)
    stock.speak_all(texts[:3], steps=STEPS)
    audio_s, took_s = stock.speak_all(texts, steps=STEPS)
    figures["infer_process_rtf"] = took_s / audio_s
    figures["pool_vs_infer_process"] = rates[IN_FLIGHT[-1]] / (audio_s / took_s)
    figures["matrix_tflops"] = peak / 1e12
    return figures


def main() -> int:
    """Measures; 1 where there is no GPU."""
    argparse.ArgumentParser(prog="bench.speech.gpu", description=__doc__).parse_args()
    if not torch.cuda.is_available():
        print("no CUDA GPU on this machine", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="vfb-") as folder:
        figures = measure(Path(folder))
    shown = {name: float(f"{value:.4g}") for name, value in figures.items()}
    print(json.dumps({"device": torch.cuda.get_device_name(), **shown}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
