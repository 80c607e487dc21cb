"""RVC: training against a plain loop of the stock recipe, conversion against ``rvc-python``, what stays.

Names: ``train_steps_vs_reference`` (steps a second over those of ``bench.peers.rvc.stock_training``, the same
model and data, by turns), ``conversion_vs_rvc_python_10s`` and ``_60s`` (seconds of ``rvc-python`` over ours:
same voice of full size, same encoder, same F0 method, both resident and warm, as many threads),
``warm_vs_cold_voice`` (a conversion with the voice in memory over one that loads it first),
``rss_growth_after_200_conversions_mib`` (own pages of a process that keeps converting), ``resume_loss_gap``
(the last losses of a training that was killed and resumed, against those of an unbroken one, as a share).
What makes it fair stands in ``docs/benchmarks/rvc.md``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import soundfile
import soxr
import torch

from bench.failures import UnmeasurableError
from bench.peers.rvc import material, reference
from bench.peers.rvc.stock_training import StockTrainer
from services.engines.rvc import f0 as pitch
from services.engines.rvc.audio import CONTENT_RATE_HZ, Floats
from services.engines.rvc.batches import SliceStore
from services.engines.rvc.checkpoint import load_checkpoint, save_checkpoint
from services.engines.rvc.config import TINY_40K, V2_40K, ModelConfig
from services.engines.rvc.content import ContentSources, content_encoder
from services.engines.rvc.conversion import ConvertParams, convert
from services.engines.rvc.features import FeatureSet, SliceFeatures
from services.engines.rvc.parallel import Alone
from services.engines.rvc.state import State, TrainParams, new_state
from services.engines.rvc.step import Share, train_step
from services.engines.rvc.training import train
from services.engines.rvc.voice import Voice, load_voice

SPEECH = Path(__file__).parents[1] / "tests" / "fixtures" / "speech" / "target_en.flac"
Figures = dict[str, float]
_PARAMS = ConvertParams(f0_method="pm", index_rate=0.5, rms_mix_rate=1.0, filter_radius=0)
_SLICE_S = 3
_MARKS = "saved"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    steps: int
    rounds: int
    conversions: int
    long_s: int
    resumed_steps: int


FULL = Sizes(steps=20, rounds=3, conversions=200, long_s=60, resumed_steps=60)
QUICK = Sizes(steps=3, rounds=1, conversions=6, long_s=11, resumed_steps=8)


@dataclass
class Bench:
    """One run.

    Args:
        folder: for whatever it makes.
        sizes: how much.
        threads: of torch, on either side.
        say: told what is seen.
    """

    folder: Path
    sizes: Sizes
    threads: int
    say: Callable[[str], None]

    def training(self) -> Figures:
        """Steps of ours and of the stock recipe by turns; on a GPU at full size."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        config = V2_40K if device == "cuda" else TINY_40K
        features = _features(config)
        params = TrainParams(batch_size=8 if device == "cuda" else 4)
        ours = new_state(config, params, device)
        folder = self.folder / "slices"
        folder.mkdir()
        stock = StockTrainer(new_state(config, params, device), features, folder)
        store = SliceStore(features.slices, config, ours.device)
        order = np.random.default_rng(0)

        def own_step() -> None:
            chosen = order.choice(len(features.slices), params.batch_size, replace=False).tolist()
            frames = sum(store.lengths[index] for index in chosen)
            metrics = train_step(ours, Share(store.batch(chosen), len(chosen), frames), Alone())
            if device == "cpu" and not np.isfinite(float(metrics.loss_g)):
                raise UnmeasurableError("our loss is not a number")

        def stock_step() -> None:
            if not np.isfinite(stock.step()) and device == "cpu":
                raise UnmeasurableError("the stock loss is not a number")

        def timed(step: Callable[[], None]) -> float:
            began_s = time.perf_counter()
            with _cudnn_benchmark(on=step is own_step):
                step()
            if device == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - began_s

        seconds: dict[Callable[[], None], list[float]] = {own_step: [], stock_step: []}
        for number in range(self.sizes.steps + 2):
            for step in (own_step, stock_step) if number % 2 else (stock_step, own_step):
                took_s = timed(step)
                if number >= 2:
                    seconds[step].append(took_s)
        a, b = (statistics.median(seconds[step]) for step in (own_step, stock_step))
        self.say(f"a step of ours {1e3 * a:.0f} ms, of the stock recipe {1e3 * b:.0f} ms ({device})")
        return {"train_steps_vs_reference": b / a}

    def conversion(self) -> Figures:
        """The same recordings by ours and by ``rvc-python``, in turn."""
        if not reference.present():
            raise UnmeasurableError(reference.ABSENT)
        # Praat's pitch is all but free, so that the models are compared; only that interpreter has it.
        sys.path.append(str(next(reference.REFERENCE.glob("lib/python*/site-packages"))))
        hubert = material.random_hubert(self.folder / "hubert")
        sources = ContentSources(self.folder, contentvec_dir=hubert)
        speech = _speech(CONTENT_RATE_HZ)
        vectors = material.near_vectors(content_encoder("contentvec", sources).encode(speech))
        random = material.random_voice(self.folder / "random", V2_40K, vectors)
        voice = load_voice(random.directory, sources)
        figures = {}
        with reference.running("rvc-python", self.folder, hubert, threads=self.threads) as upstream:
            upstream.load(random.pth, random.index, version=random.version)
            for label, seconds in (("10s", 10), (f"{self.sizes.long_s}s", self.sizes.long_s)):
                figures[f"conversion_vs_rvc_python_{label}"] = self._race(
                    voice, upstream, speech[: seconds * CONTENT_RATE_HZ]
                )
        brief = speech[: 3 * CONTENT_RATE_HZ]
        ratios = []
        for _ in range(self.sizes.rounds + 1):
            began_s = time.perf_counter()
            convert(load_voice(random.directory, sources), brief, CONTENT_RATE_HZ, _PARAMS)
            between_s = time.perf_counter()
            convert(voice, brief, CONTENT_RATE_HZ, _PARAMS)
            ratios.append((time.perf_counter() - between_s) / (between_s - began_s))
        return figures | {"warm_vs_cold_voice": statistics.median(ratios[1:])}

    def _race(self, voice: Voice, upstream: reference.Reference, samples: Floats) -> float:
        path = self.folder / "race.wav"
        soundfile.write(path, samples, CONTENT_RATE_HZ, subtype="FLOAT")
        ours: list[float] = []
        theirs: list[float] = []
        for number in range(self.sizes.rounds + 1):
            began_s = time.perf_counter()
            made, rate_hz = convert(voice, soundfile.read(path, dtype="float32")[0], CONTENT_RATE_HZ, _PARAMS)
            took_s = time.perf_counter() - began_s
            converted = upstream.convert(path, _PARAMS)
            if abs(len(converted.made) / converted.rate_hz - len(made) / rate_hz) > 0.1:
                raise UnmeasurableError("the two did not convert the same recording")
            if number:
                ours.append(took_s)
                theirs.append(converted.took_s)
        a, b = statistics.median(ours), statistics.median(theirs)
        self.say(f"{len(samples) / CONTENT_RATE_HZ:.0f} s: ours {a:.1f} s, rvc-python {b:.1f} s")
        return b / a

    def memory(self) -> Figures:
        """A process of its own that converts recordings of all lengths; see ``resident``."""
        command = [sys.executable, "-m", "bench.rvc", "--resident", str(self.sizes.conversions)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnmeasurableError(f"the resident process failed: {done.stderr[-500:]}")
        before, after = json.loads(done.stdout.splitlines()[-1])
        self.say(f"{before:.0f} MiB before, {after:.0f} after")
        return {f"rss_growth_after_{self.sizes.conversions}_conversions_mib": after - before}

    def resume(self) -> Figures:
        """Two trainings in processes of their own, one of them killed half way and begun again."""
        steps = self.sizes.resumed_steps
        unbroken = self._trained(self.folder / "unbroken", steps)
        folder = self.folder / "killed"
        with _training(folder, steps) as process:
            marks = folder / _MARKS
            while not (marks.exists() and int(marks.read_text() or 0) >= steps // 2):
                if process.poll() is not None:
                    raise UnmeasurableError("the training to be killed ended by itself")
                time.sleep(0.05)
            process.kill()
        resumed = self._trained(folder, steps)
        first, *_ = (step for step, _ in resumed)
        if not 1 < first <= steps:
            raise UnmeasurableError(f"the killed training went on from step {first}")
        shared = max(len(resumed) // 2, 1)
        a, b = (statistics.mean(loss for _, loss in losses[-shared:]) for losses in (unbroken, resumed))
        self.say(f"resumed at step {first}: {b:.4f}, unbroken {a:.4f} over the last {shared} steps")
        return {"resume_loss_gap": abs(b - a) / a}

    def _trained(self, folder: Path, steps: int) -> list[tuple[int, float]]:
        with _training(folder, steps) as process:
            out, error = process.communicate()
        if process.returncode:
            raise UnmeasurableError(f"a training failed: {error[-500:]}")
        return [(int(step), float(loss)) for step, loss in json.loads(out.splitlines()[-1])]


@contextmanager
def _training(folder: Path, steps: int) -> Iterator[subprocess.Popen[str]]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "bench.rvc", "--train", str(folder), "--steps", str(steps)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def trained(folder: Path, steps: int) -> list[tuple[int, float]]:
    """Mel losses by step of a training to so many steps, on from the checkpoint that ``folder`` may hold."""
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = V2_40K if device == "cuda" else TINY_40K
    path = folder / "checkpoint"
    params = TrainParams(epochs=steps, max_steps=steps, batch_size=4, checkpoint_steps=3, progress_s=0)
    state = load_checkpoint(path, device) if path.exists() else new_state(config, params, device)
    losses: list[tuple[int, float]] = []

    def on_checkpoint(state: State) -> None:
        save_checkpoint(path, state)
        (folder / _MARKS).write_text(str(state.step))

    train(
        state,
        _features(config),
        on_progress=lambda progress: losses.append((progress.step, progress.loss_mel)),
        on_checkpoint=on_checkpoint,
    )
    return losses


def resident(conversions: int) -> tuple[float, float]:
    """Own MiB of this process before and after so many conversions of 1 to 30 s with a tiny voice.

    Every length has been converted once before: what one recording needs at once is no growth.
    """
    torch.set_num_threads(1)
    speech = _speech(CONTENT_RATE_HZ)
    params = replace(_PARAMS, f0_method="swift")
    with tempfile.TemporaryDirectory(prefix="vfb-") as name:
        folder = Path(name)
        hubert = material.random_hubert(folder / "hubert")
        sources = ContentSources(folder, contentvec_dir=hubert)
        vectors = np.random.default_rng(0).standard_normal((2000, 768)).astype(np.float32)
        voice = load_voice(material.random_voice(folder, TINY_40K, vectors).directory, sources)
        lengths_s = [30, 1, 12, 2, 5, 3]

        def run(number: int) -> None:
            length = lengths_s[number % len(lengths_s)] * CONTENT_RATE_HZ
            convert(voice, speech[:length], CONTENT_RATE_HZ, params)

        for number in range(2 * len(lengths_s)):
            run(number)
        before = _own_mib()
        for number in range(conversions):
            run(number)
        return before, _own_mib()


def _own_mib() -> float:
    memory = psutil.Process().memory_info()
    return float(memory.rss - memory.shared) / 2**20


@contextmanager
def _cudnn_benchmark(*, on: bool) -> Iterator[None]:
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _speech(rate_hz: int) -> Floats:
    samples, own_hz = soundfile.read(SPEECH, dtype="float32")
    return np.asarray(0.9 * soxr.resample(samples, own_hz, rate_hz) / np.abs(samples).max(), dtype=np.float32)


def _features(config: ModelConfig) -> FeatureSet:
    """Slices of 3 s of real speech; the content is noise, which costs a step as much."""
    tracker = pitch.f0_method("swift")
    rng = np.random.default_rng(0)
    whole, heard = _speech(config.rate_hz), _speech(CONTENT_RATE_HZ)
    found = []
    for first_s in range(0, 60 - _SLICE_S, _SLICE_S):
        heard_part = heard[first_s * CONTENT_RATE_HZ : (first_s + _SLICE_S) * CONTENT_RATE_HZ]
        content = rng.standard_normal((50 * _SLICE_S, config.content_width)).astype(np.float32)
        samples = whole[first_s * config.rate_hz : (first_s + _SLICE_S) * config.rate_hz]
        found.append(SliceFeatures(content, tracker.track(heard_part, 100 * _SLICE_S), samples))
    return FeatureSet(tuple(found), "contentvec", "swift", config.rate_hz)


PARTS: Mapping[str, Callable[[Bench], Figures]] = {
    "training": Bench.training,
    "conversion": Bench.conversion,
    "memory": Bench.memory,
    "resume": Bench.resume,
}


def measure(bench: Bench, parts: Sequence[str]) -> Figures:
    """The figures of these parts."""
    figures: Figures = {}
    for part in parts:
        began_s = time.monotonic()
        figures |= PARTS[part](bench)
        bench.say(f"{part}: {time.monotonic() - began_s:.0f} s")
    return figures


def main() -> int:
    """Measures; 1 and a message where a figure cannot be had."""
    parser = argparse.ArgumentParser(prog="bench.rvc", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run, not how fast is it")
    parser.add_argument(
        "--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="only these parts"
    )
    parser.add_argument("--threads", type=int, default=2, help="of torch, on either side")
    parser.add_argument("--resident", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.resident:
        print(json.dumps(resident(arguments.resident)))
        return 0
    if arguments.train:
        print(json.dumps(trained(arguments.train, arguments.steps)))
        return 0
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(prefix="vfb-") as folder:
        try:
            bench = Bench(
                Path(folder),
                QUICK if arguments.quick else FULL,
                arguments.threads,
                lambda line: print(line, file=sys.stderr, flush=True),
            )
            figures = measure(bench, arguments.only)
        except Exception:  # noqa: BLE001 - what cannot be measured is told
            traceback.print_exc()
            return 1
    print(json.dumps({name: float(f"{value:.4g}") for name, value in figures.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
